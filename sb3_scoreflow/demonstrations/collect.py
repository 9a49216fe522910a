"""Recording demonstrations by running a policy in an environment."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_scoreflow.common.env_attributes import chunk_settings
from sb3_scoreflow.common.progress import progress
from sb3_scoreflow.demonstrations.arrays import LoadedObservations, map_observations, named_observations
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.envs.action_chunking import ActionChunking, check_chunk_arguments

#: ``(observations, state, episode_starts) -> (actions, state)``, all batched
Predict = Callable[[Any, Any, np.ndarray], tuple[np.ndarray, Any]]


def collect_demonstrations(
    model: Any,
    env: gym.Env | VecEnv | str,
    n_episodes: int,
    *,
    deterministic: bool = False,
    seed: int | None = None,
    progress_bar: bool = False,
    max_transitions: int | None = None,
    n_executed: int | None = None,
) -> Demonstrations:
    """
    Run a policy for a number of episodes and record unnormalized observations, executed (clipped) actions and unnormalized
    rewards. A policy that predicts action chunks (trained with :class:`~sb3_scoreflow.ActionChunking`) runs in the environment
    without that wrapper: its chunks are executed open loop, and each of their actions is recorded with its own observation and
    reward.

    With several environments, each gets its share of the episodes in advance (as in SB3's ``evaluate_policy``), so that short
    episodes are not overrepresented. Episodes are ordered by their start. With ``VecNormalize``, the policy gets normalized
    observations, the original ones are recorded, and the running statistics are not updated.

    :param model: SB3 model or policy (any object with ``predict``), or a function that returns an action, or ``(action,
        state)`` (the state is ignored), for an observation. A function gets a single observation if ``env`` is a Gymnasium
        environment or an id, and a batch of observations if it is a ``VecEnv``
    :param env: Gymnasium environment, its id, or a ``VecEnv``, without ``ActionChunking``. An environment created from an id
        is closed at the end
    :param n_episodes: Number of complete episodes to record
    :param deterministic: Whether to use deterministic actions (passed to ``predict``)
    :param seed: Seed of the environment and of the global generators of Python, NumPy and PyTorch, from which SB3 policies
        sample; None: not seeded
    :param progress_bar: Whether to show a progress bar (needs tqdm)
    :param max_transitions: Upper limit of the number of transitions: when it is reached, no further episode starts, and
        episodes that exceed it are dropped; None: no limit
    :param n_executed: Number of actions to execute per chunk; None: as in the model's training environment, or the whole
        chunk
    :return: The demonstrations; ``metadata`` contains the environment's id, the class of the policy, ``deterministic`` and
        ``seed``
    :raises ValueError: if the environment executes chunks, or does not normalize observations as in the model's training, an
        argument is out of range, an action has the wrong shape or is not finite, or the first episode exceeds
        ``max_transitions``
    :raises ImportError: if a progress bar is asked for and tqdm is not installed
    """
    for name, value in (("n_episodes", n_episodes), ("max_transitions", max_transitions)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    with contextlib.ExitStack() as stack:
        vec_env = _as_vec_env(env, stack)
        predict = _as_predict(model, deterministic, batched=isinstance(env, VecEnv))
        horizon = _horizon(model, vec_env.action_space)
        if horizon is not None:
            given = getattr(model, "chunks", {}).get("n_executed", horizon) if n_executed is None else n_executed
            check_chunk_arguments(horizon, given, 1.0)
            predict = _Chunks(predict, horizon, given, vec_env)
        elif n_executed is not None:
            raise ValueError(f"`n_executed`={n_executed} is for policies that predict chunks; `model` does not. Leave it out.")
        if seed is not None:
            set_random_seed(seed)
            vec_env.seed(seed)
        normalizer = unwrap_vec_normalize(vec_env)
        if (normalizer is None or not normalizer.norm_obs) and _sees_normalized(model):
            raise ValueError(
                "`model` was trained on observations normalized by VecNormalize, but `env` does not normalize them: pass "
                "VecNormalize.load('vecnormalize.pkl', env), or model.get_vec_normalize_env()."
            )
        if normalizer is not None:
            stack.callback(setattr, normalizer, "training", normalizer.training)
            normalizer.training = False
        recorded = progress(
            _record(predict, vec_env, normalizer, n_episodes, max_transitions),
            n_episodes,
            progress_bar,
            desc="Collecting",
            unit="episode",
        )
        episodes = sorted(recorded, key=lambda episode: episode.number)
        metadata = {"policy": _policy_name(model), "deterministic": deterministic, **_env_metadata(vec_env)}
    if seed is not None:
        metadata["seed"] = seed
    return _assemble(episodes, max_transitions, metadata)


class _Episode:
    """
    An episode that is being recorded.

    :param number: Number of episodes that started earlier
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.observations: list[LoadedObservations] = []
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.truncated = False
        self.finished = False

    def __len__(self) -> int:
        return len(self.actions)


def _record(
    predict: Predict,
    env: VecEnv,
    normalizer: VecNormalize | None,
    n_episodes: int,
    max_transitions: int | None,
) -> Iterator[_Episode]:
    """
    :param predict: ``(observations, state, episode_starts) -> (actions, state)``
    :param env: Environment in which to record
    :param normalizer: The ``VecNormalize`` in ``env``
    :param n_episodes: Number of episodes
    :param max_transitions: No episode starts after this many transitions, and a longer one is aborted; None: no limit
    :return: Episodes in the order of their end; aborted ones are not ``finished``
    """
    remaining = [(n_episodes + i) // env.num_envs for i in range(env.num_envs)]
    limit = float("inf") if max_transitions is None else max_transitions
    n_transitions = 0
    numbers = itertools.count()
    running = [_Episode(next(numbers)) if quota else None for quota in remaining]
    observations: Any = env.reset()
    raw = _raw_observations(normalizer, observations)
    state, episode_starts = None, np.ones(env.num_envs, dtype=bool)
    while any(episode is not None for episode in running):
        actions, state = predict(observations, state, episode_starts)
        actions = _executed(actions, env)
        observations, rewards, episode_starts, infos = env.step(actions)
        if normalizer is not None:
            rewards = normalizer.get_original_reward()
        for i, episode in enumerate(running):
            if episode is None:
                continue
            episode.observations.append(_row(raw, i))
            episode.actions.append(np.array(actions[i]))
            episode.rewards.append(float(rewards[i]))
            n_transitions += 1
            if episode_starts[i]:
                episode.finished = True
                episode.truncated = bool(infos[i].get("TimeLimit.truncated", False))
                remaining[i] -= 1
                running[i] = _Episode(next(numbers)) if remaining[i] > 0 and n_transitions < limit else None
                yield episode
            elif len(episode) > limit:
                running[i] = None
                yield episode
        raw = _raw_observations(normalizer, observations)


def _assemble(episodes: list[_Episode], max_transitions: int | None, metadata: dict[str, Any]) -> Demonstrations:
    """
    :param episodes: In the order of their start
    :param max_transitions: Upper limit
    :param metadata: Metadata of the demonstrations
    :return: Demonstrations of the first episodes within the limit
    :raises ValueError: if no episode is within the limit
    """
    kept: list[_Episode] = []
    total = 0
    for episode in episodes:
        total += len(episode)
        if not episode.finished or (max_transitions is not None and total > max_transitions):
            break
        kept.append(episode)
    if not kept:
        raise ValueError(f"`max_transitions`={max_transitions} is less than the length of the first episode. Raise it.")
    lasts = np.cumsum([len(episode) for episode in kept]) - 1
    truncations = np.zeros(lasts[-1] + 1, dtype=bool)
    truncations[lasts] = [episode.truncated for episode in kept]
    terminations = np.zeros_like(truncations)
    terminations[lasts] = ~truncations[lasts]
    return Demonstrations(
        _stack([row for episode in kept for row in episode.observations]),
        np.stack([action for episode in kept for action in episode.actions]),
        np.array([reward for episode in kept for reward in episode.rewards]),
        terminations,
        truncations,
        metadata=metadata,
    )


def _as_vec_env(env: gym.Env | VecEnv | str, stack: contextlib.ExitStack) -> VecEnv:
    """
    :param env: The value passed by the user
    :param stack: Closes the environment if it was created here
    :return: The vectorized environment
    :raises ValueError: if the environment executes chunks
    """
    if isinstance(env, VecEnv):
        vec_env = env
    else:
        single = gym.make(env) if isinstance(env, str) else env
        vec_env = DummyVecEnv([lambda: single])
        if isinstance(env, str):
            stack.callback(vec_env.close)
    if any(vec_env.env_is_wrapped(ActionChunking)) or chunk_settings(vec_env) is not None:
        raise ValueError(
            "`env` executes chunks (ActionChunking, or another wrapper with `n_executed`), but demonstrations contain single "
            "actions: training extracts chunks from them. Pass the environment without ActionChunking: the chunks of a policy "
            "are executed in it."
        )
    return vec_env


def _as_predict(model: Any, deterministic: bool, batched: bool) -> Predict:
    """
    :param model: The value passed by the user
    :param deterministic: Passed to ``predict``
    :param batched: Whether a function takes a batch of observations
    :return: ``(observations, state, episode_starts) -> (actions, state)``, all batched
    :raises ValueError: if the model is neither a policy nor a function
    """
    if hasattr(model, "predict"):
        return lambda observations, state, starts: model.predict(
            observations, state=state, episode_start=starts, deterministic=deterministic
        )
    if not callable(model):
        raise ValueError(f"`model` must have a method `predict` or be a function of the observation, got {type(model)}.")

    def predict(observations: LoadedObservations, state: Any, starts: np.ndarray) -> tuple[np.ndarray, Any]:
        output = model(observations if batched else map_observations(lambda array: array[0], observations))
        action = np.asarray(output[0] if isinstance(output, tuple) else output)
        return (action if batched else action[None]), None

    return predict


def _sees_normalized(model: Any) -> bool:
    """:return: Whether the policy of a model gets normalized observations, as far as the model knows"""
    normalizer = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    return getattr(model, "sees_normalized", False) or (normalizer is not None and normalizer.norm_obs)


def _horizon(model: Any, space: spaces.Space) -> int | None:
    """
    :return: Actions per chunk of a policy that was trained with ActionChunking around an environment with this action space
    """
    shape = getattr(getattr(model, "action_space", None), "shape", None)
    return int(shape[0]) if shape and isinstance(space, spaces.Box) and shape[1:] == space.shape else None


class _Chunks:
    """
    Executes chunks open loop, one action per call. An environment whose chunk is over, or whose episode starts, gets a new
    chunk.

    :param predict: ``(observations, state, episode_starts) -> (chunks, state)``
    :param horizon: Actions per chunk
    :param n_executed: How many of them to execute
    :param env: Environment without chunks
    """

    def __init__(self, predict: Predict, horizon: int, n_executed: int, env: VecEnv) -> None:
        shape = (env.num_envs, horizon, *(env.action_space.shape or ()))
        self.predict, self.n_executed = predict, n_executed
        self.chunks = np.zeros(shape, env.action_space.dtype)
        self.position = np.zeros(env.num_envs, np.int64)

    def __call__(self, observations: LoadedObservations, _: Any, episode_starts: np.ndarray) -> tuple[np.ndarray, None]:
        due = np.flatnonzero(episode_starts | (self.position == self.n_executed))
        if len(due):
            theirs = map_observations(lambda array: array[due], observations)
            self.chunks[due] = self.predict(theirs, None, episode_starts[due])[0]
            self.position[due] = 0
        actions = self.chunks[np.arange(len(self.position)), self.position]
        self.position += 1
        return actions, None


def _row(observations: LoadedObservations, index: int) -> LoadedObservations:
    """:return: A copy of one observation of a batch; the environment may reuse the batch's memory"""
    return map_observations(lambda array: np.array(array[index]), observations)


def _stack(rows: list[Any]) -> LoadedObservations:
    """:return: The observations as a batch"""
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


def _raw_observations(normalizer: VecNormalize | None, observations: LoadedObservations) -> LoadedObservations:
    """
    :param normalizer: The environment's ``VecNormalize``
    :param observations: As returned by the environment
    :return: The observations before normalization
    :raises ValueError: if wrappers around ``VecNormalize`` reshape observations, whose originals are then unknown
    """
    if normalizer is None:
        return observations
    raw = normalizer.get_original_obs()
    raw_shapes, shapes = ({k: v.shape for k, v in named_observations(o).items()} for o in (raw, observations))
    if raw_shapes != shapes:
        raise ValueError(
            f"A wrapper around VecNormalize changes the shape of observations from {raw_shapes} to {shapes}, so they cannot "
            "be recorded unnormalized. Make VecNormalize the outermost wrapper."
        )
    return raw


def _executed(actions: Any, env: VecEnv) -> np.ndarray:
    """
    :param actions: Predicted actions
    :param env: Environment with the action space
    :return: The executed actions: clipped to the bounds of a ``Box``, in its dtype
    :raises ValueError: if the shape is wrong or an action is not finite
    """
    actions, space = np.asarray(actions), env.action_space
    expected = (env.num_envs, *(space.shape or ()))
    if actions.shape != expected:
        raise ValueError(
            f"The policy returned actions of shape {actions.shape}, but the environment takes {expected}. Was the policy "
            "trained with ActionChunking or in another environment?"
        )
    if not np.isfinite(actions).all():
        raise ValueError("The policy returned an action that is not finite.")
    if isinstance(space, spaces.Box):
        return np.clip(actions, space.low, space.high).astype(space.dtype)
    return actions


def _policy_name(model: Any) -> str:
    return type(model).__name__ if hasattr(model, "predict") else getattr(model, "__name__", type(model).__name__)


def _env_metadata(env: VecEnv) -> dict[str, str]:
    """:return: The environment's id if it is available; worker processes are not asked, because specs may not be picklable"""
    spec = env.unwrapped.envs[0].spec if isinstance(env.unwrapped, DummyVecEnv) else None
    return {} if spec is None else {"env": spec.id}

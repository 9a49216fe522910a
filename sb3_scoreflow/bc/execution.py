"""How an environment executes and rewards a policy's actions: the environment is asked, and nothing is guessed."""

from dataclasses import dataclass, field

import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_scoreflow.common.env_attributes import agreed, ask
from sb3_scoreflow.common.networks import varies
from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.demonstrations.arrays import LoadedObservations, named_observations
from sb3_scoreflow.envs import ActionChunking

#: Number of observations that a ``VecNormalize`` counts after cloning; it is so large that rollouts hardly change the
#: statistics.
_HELD_COUNT = 1e12


@dataclass(frozen=True)
class Execution:
    """
    How an environment executes and rewards actions.

    :param horizon: number of actions that the policy predicts at once; None for single actions
    :param n_executed: number of predicted actions that are executed before the next decision
    :param discount: discount per environment step inside a chunk
    :param terminate_on_success: whether a success ends the episode; None if the environment does not say
    :param remove_task_when_completed: whether FrankaKitchen rewards a completed task only once; None if the environment does
        not say
    :param max_return: largest undiscounted return of an episode; None if the environment does not say
    :param max_episode_steps: environment steps after which an episode is truncated; None if the environment does not say
    :param vec_normalize: wrapper that normalizes observations and rewards; None if there is none
    :param normalizes_reward: whether a wrapper inside the environments changes the unit of rewards during training
    """

    horizon: int | None = None
    n_executed: int = 1
    discount: float = 1.0
    terminate_on_success: bool | None = None
    remove_task_when_completed: bool | None = None
    max_return: float | None = None
    max_episode_steps: int | None = None
    vec_normalize: VecNormalize | None = field(default=None, repr=False)
    normalizes_reward: bool = False

    @property
    def raw_observation_space(self) -> spaces.Space | None:
        """The observation space before ``VecNormalize``; None without ``VecNormalize``."""
        return None if self.vec_normalize is None else self.vec_normalize.venv.observation_space

    def chunk_rewards(self, rewards: np.ndarray) -> np.ndarray:
        """
        Rewards of decisions taken at each step of an episode, before any normalization.

        :param rewards: rewards of one episode, float64, shape ``(T,)``
        :return: ``sum_j discount^j r_{t+j}`` over the actions executed before the episode ends, same shape
        """
        length, sums = len(rewards), np.zeros(len(rewards))
        for j in range(min(self.n_executed, length)):
            sums[: length - j] += self.discount**j * rewards[j:]
        return sums

    def normalize_observations(self, observations: LoadedObservations) -> LoadedObservations:
        """
        :param observations: unnormalized observations, shape ``(batch, ...)`` per part
        :return: observations as the policy receives them
        """
        normalizer = self.vec_normalize
        if normalizer is None or not normalizer.norm_obs:
            return observations
        if not isinstance(observations, dict):
            return normalizer.normalize_obs(observations)
        assert isinstance(normalizer.obs_rms, dict)
        # Part by part: normalize_obs fails if images are missing, but only vectors may be wanted
        return {
            key: normalizer._normalize_obs(part, normalizer.obs_rms[key]).astype(np.float32)
            if key in normalizer.obs_rms
            else part
            for key, part in observations.items()
        }

    def normalize_rewards(self, rewards: np.ndarray) -> np.ndarray:
        """
        :param rewards: rewards of decisions (see :meth:`chunk_rewards`), any shape
        :return: rewards as the algorithm receives them, float64, same shape
        """
        if self.vec_normalize is None or not self.vec_normalize.norm_reward:
            return rewards
        return self.vec_normalize.normalize_reward(rewards).astype(np.float64)

    def fit_normalization(self, demonstrations: Demonstrations) -> None:
        """
        Set the statistics of a ``VecNormalize`` with ``training=True`` to those of the demonstrations, and keep them: the
        clone must receive the same normalized observations before and after rollouts, and the critic must keep its unit of
        rewards (ours). A ``VecNormalize`` with ``training=False`` keeps its statistics.

        :param demonstrations: unnormalized demonstrations
        """
        normalizer = self.vec_normalize
        if normalizer is None or not normalizer.training:
            return
        if normalizer.norm_obs:
            statistics = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
            arrays = demonstrations.observations if isinstance(demonstrations.observations, dict) else {}
            for key, running in statistics.items():
                _hold_observations(running, np.asarray(arrays[key] if arrays else demonstrations.observations))
        if normalizer.norm_reward and demonstrations.rewards.any():
            returns = np.concatenate(
                [self._discounted(demonstrations.rewards[e], normalizer.gamma) for e in demonstrations.episode_slices]
            )
            if returns.var() > 0:
                normalizer.ret_rms.mean, normalizer.ret_rms.var = returns.mean(), returns.var()
                normalizer.ret_rms.count = _HELD_COUNT

    def _discounted(self, rewards: np.ndarray, gamma: float) -> np.ndarray:
        """Discounted sums of rewards, one per decision of an episode; their variance is ``VecNormalize``'s unit of rewards."""
        paid = self.chunk_rewards(rewards.astype(np.float64))[:: self.n_executed]
        total, totals = 0.0, np.zeros(len(paid))
        for i, reward in enumerate(paid):
            totals[i] = total = gamma * total + reward
        return totals


def execution_of(env: VecEnv) -> Execution:
    """
    Ask an environment how it executes and rewards actions. It executes chunks if it has the wrapper
    :class:`~sb3_scoreflow.ActionChunking`, the corresponding arguments of ``EnvPoolVecEnv``, or another wrapper with the
    attribute ``n_executed`` (and ``discount``).

    :param env: vectorized environment with its wrappers
    :return: the environment's answers
    :raises ValueError: if the single environments differ, or each normalizes observations with its own statistics
    """
    wrapped = ask(lambda: env.env_is_wrapped(ActionChunking)) or [False]
    if any(wrapped) != all(wrapped):
        raise ValueError(
            f"The environments disagree: {sum(wrapped)} of {len(wrapped)} are wrapped in ActionChunking. Wrap all "
            "or none of them."
        )
    if any(ask(lambda: env.env_is_wrapped(NormalizeObservation)) or []):
        raise ValueError(
            "The environments are wrapped in gymnasium's NormalizeObservation, whose statistics drift and differ from "
            "environment to environment, so that demonstrations cannot be normalized in the same way. Leave the wrapper out "
            "(the policy normalizes observations itself), or use Stable-Baselines3's VecNormalize."
        )
    n_executed = agreed(env, "n_executed")
    chunked = n_executed is not None
    shape = env.action_space.shape or ()
    max_episode_steps = agreed(env, "max_episode_steps")
    if max_episode_steps is None:
        max_episode_steps = agreed(env, "_max_episode_steps")  # gymnasium's TimeLimit
    discount = agreed(env, "discount") if chunked else None
    return Execution(
        horizon=int(shape[0]) if chunked else None,
        n_executed=int(n_executed) if n_executed is not None else 1,
        discount=1.0 if discount is None else float(discount),
        terminate_on_success=agreed(env, "terminate_on_success"),
        remove_task_when_completed=agreed(env, "remove_task_when_completed"),
        max_return=agreed(env, "max_return"),
        max_episode_steps=max_episode_steps,
        vec_normalize=unwrap_vec_normalize(env),
        normalizes_reward=any(ask(lambda: env.env_is_wrapped(NormalizeReward)) or []),
    )


def check_outermost(env: VecEnv) -> None:
    """
    :param env: vectorized environment with its wrappers
    :raises ValueError: if a wrapper outside of ``VecNormalize`` changes the shape of normalized observations, as
        ``VecFrameStack`` does: demonstrations have the shape that the policy gets, and cannot be normalized
    """
    normalizer = unwrap_vec_normalize(env)
    if normalizer is None or not normalizer.norm_obs:
        return
    inner, outer = normalizer.observation_space, env.observation_space
    keys = list(normalizer.obs_rms) if isinstance(normalizer.obs_rms, dict) else [None]
    for key in keys:
        shapes = [space.spaces[key].shape if isinstance(space, spaces.Dict) else space.shape for space in (inner, outer)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"A wrapper outside of VecNormalize changes the shape of normalized observations from {shapes[0]} to "
                f"{shapes[1]}, so that demonstrations cannot be normalized in the same way. Make VecNormalize the outermost "
                "wrapper, as by VecNormalize(VecFrameStack(env, 4))."
            )


def _hold_observations(running: RunningMeanStd, array: np.ndarray) -> None:
    mean, var = array.mean(0, dtype=np.float64), array.var(0, dtype=np.float64)
    running.mean, running.var, running.count = mean, np.where(varies(mean, var), var, 1.0), _HELD_COUNT


def check_normalized_alike(execution: Execution, observations: LoadedObservations) -> None:
    """
    :param execution: how the environment executes actions; only a ``VecNormalize`` with ``training=False`` is checked
    :param observations: demonstrated, unnormalized observations
    :raises ValueError: if ``VecNormalize`` would clip most values of a component, because its statistics do not fit
    """
    normalizer = execution.vec_normalize
    if normalizer is None or normalizer.training or not normalizer.norm_obs:
        return
    for name, part in named_observations(execution.normalize_observations(observations)).items():
        array = np.asarray(part)
        if array.dtype.kind != "f" or array.ndim > 2:
            continue
        clipped = (np.abs(array) >= normalizer.clip_obs).mean(0)
        if clipped.size and clipped.max() > 0.5:
            raise ValueError(
                f"VecNormalize (training=False) would clip {clipped.max():.0%} of component {int(clipped.argmax())} of the "
                f"demonstrated `{name}`: its statistics do not fit these observations. Set vec_normalize.training = True, so "
                "that cloning sets the statistics of the demonstrations, or load the right statistics with VecNormalize.load."
            )

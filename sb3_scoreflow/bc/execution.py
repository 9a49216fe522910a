"""What stands between a policy and what its environment executes and pays, as the environment says it: nothing is guessed."""

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

#: Observations that the statistics of a ``VecNormalize`` count for after cloning: rollouts do not move them any more.
_HELD_COUNT = 1e12


@dataclass(frozen=True)
class Execution:
    """
    How an environment executes actions and pays for them.

    :param horizon: actions that the policy predicts at once, None for single ones
    :param n_executed: of these, how many are executed before the next decision
    :param discount: per env step inside a chunk
    :param terminate_on_success: whether a success ends the episode; None if the environment does not say
    :param remove_task_when_completed: whether FrankaKitchen pays for a task once; None if the environment does not say
    :param max_return: largest undiscounted return of an episode; None if the environment does not say
    :param max_episode_steps: env steps after which an episode is cut off; None if the environment does not say
    :param vec_normalize: normalizes observations and rewards on their way to the policy
    :param normalizes_reward: whether a wrapper inside the environments changes the unit of rewards as it goes
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
        """The space before ``VecNormalize``; None without one."""
        return None if self.vec_normalize is None else self.vec_normalize.venv.observation_space

    def chunk_rewards(self, rewards: np.ndarray) -> np.ndarray:
        """
        What a decision at each step of an episode is paid, before any normalization.

        :param rewards: of one episode, float64, shape ``(T,)``
        :return: ``sum_j discount^j r_{t+j}`` over the actions executed before the episode ends, same shape
        """
        length, sums = len(rewards), np.zeros(len(rewards))
        for j in range(min(self.n_executed, length)):
            sums[: length - j] += self.discount**j * rewards[j:]
        return sums

    def normalize_observations(self, observations: LoadedObservations) -> LoadedObservations:
        """
        :param observations: raw, shape ``(batch, ...)`` per part
        :return: as the policy gets them
        """
        normalizer = self.vec_normalize
        if normalizer is None or not normalizer.norm_obs:
            return observations
        if not isinstance(observations, dict):
            return normalizer.normalize_obs(observations)
        assert isinstance(normalizer.obs_rms, dict)
        # Part by part: where only vectors are wanted, normalize_obs would miss the images
        return {
            key: normalizer._normalize_obs(part, normalizer.obs_rms[key]).astype(np.float32)
            if key in normalizer.obs_rms
            else part
            for key, part in observations.items()
        }

    def normalize_rewards(self, rewards: np.ndarray) -> np.ndarray:
        """
        :param rewards: of decisions (see :meth:`chunk_rewards`), any shape
        :return: as the algorithm gets them, float64
        """
        if self.vec_normalize is None or not self.vec_normalize.norm_reward:
            return rewards
        return self.vec_normalize.normalize_reward(rewards).astype(np.float64)

    def fit_normalization(self, demonstrations: Demonstrations) -> None:
        """
        Give a ``VecNormalize`` in training the statistics of the demonstrations, and hold them: a clone must see the same
        numbers for the same observation before and after rollouts, and a critic the same unit (ours). One whose ``training``
        is False keeps its own.

        :param demonstrations: raw
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
        """The sums whose variance is ``VecNormalize``'s unit of rewards, one for each decision of an episode."""
        paid = self.chunk_rewards(rewards.astype(np.float64))[:: self.n_executed]
        total, totals = 0.0, np.zeros(len(paid))
        for i, reward in enumerate(paid):
            totals[i] = total = gamma * total + reward
        return totals


def execution_of(env: VecEnv) -> Execution:
    """
    Ask an environment. Chunks are known by :class:`~sb3_scoreflow.ActionChunking`, by ``EnvPoolVecEnv``'s arguments, or by
    attributes ``n_executed`` (and ``discount``) of another wrapper that executes several actions per step.

    :param env: vectorized, with its wrappers
    :return: what it says
    :raises ValueError: if its environments disagree, or normalize observations one by one
    """
    wrapped = ask(lambda: env.env_is_wrapped(ActionChunking)) or [False]
    if any(wrapped) != all(wrapped):
        raise ValueError(
            f"The environments disagree: {sum(wrapped)} of {len(wrapped)} are wrapped in ActionChunking. Wrap all alike."
        )
    if any(ask(lambda: env.env_is_wrapped(NormalizeObservation)) or []):
        raise ValueError(
            "The environments are wrapped in gymnasium's NormalizeObservation, whose statistics drift and differ from "
            "environment to environment, so that demonstrations cannot be seen as the policy will see observations. Leave it "
            "out (the policy normalizes observations itself), or use Stable-Baselines3's VecNormalize."
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


def _hold_observations(running: RunningMeanStd, array: np.ndarray) -> None:
    mean, var = array.mean(0, dtype=np.float64), array.var(0, dtype=np.float64)
    running.mean, running.var, running.count = mean, np.where(varies(mean, var), var, 1.0), _HELD_COUNT


def check_normalized_alike(execution: Execution, observations: LoadedObservations) -> None:
    """
    :param execution: with a ``VecNormalize`` whose statistics stay as they are
    :param observations: demonstrated, raw
    :raises ValueError: if most of a demonstrated component would be clipped: the statistics are of something else
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
                f"demonstrated `{name}`: its statistics are not of these observations. Set vec_normalize.training = True, and "
                "cloning gives it those of the demonstrations; or load the right ones by VecNormalize.load."
            )

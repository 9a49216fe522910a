"""Running scale of the discounted return, the critic's unit."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_scoreflow.common.magnitudes import ABSURD, COUNTS_AS, ESTABLISHED, LIMIT, warn_of_outlier
from sb3_scoreflow.common.plain import describable


def unit_of(mean: float, variance: float) -> float:
    """
    A critic's unit, whatever the unit of the rewards (ours).

    :param mean: of the returns
    :param variance: of the returns
    :return: their standard deviation; where they do not vary, but for rounding, their absolute mean; 1 if all are 0
    """
    return variance**0.5 if variance > (1e-6 * mean) ** 2 else abs(mean) or 1.0


@describable("gamma", "statistics", "returns", "_warned")
class ReturnStatistics:
    """
    Running standard deviation of the discounted return ``G_t = gamma G_{t-1} + r_t``, reset at the end of every episode.

    The same quantity as in VecNormalize and in the official code, but applied to the critic's unit instead of to the rewards:
    logs, timeout bootstrap and a user's own wrappers keep seeing true rewards (ours).

    :param gamma: discount per step of the vectorised environment
    """

    _warned = False  # of an absurd return

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        # Without the default's 1e-4 observations of a unit normal, which would pass for a tiny scale while there is no reward
        self.statistics = RunningMeanStd(epsilon=0.0, shape=())
        self.returns = np.zeros(0)

    def update(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        """
        :param rewards: of one step, shape ``(n_envs,)``
        :param dones: whether each episode ended with it, same shape
        """
        rewards, dones = np.asarray(rewards), np.asarray(dones, bool)  # adapters of other simulators give lists
        if not (np.abs(rewards) < LIMIT).all():  # the update refuses such a rollout; the statistics must survive it
            return
        if len(self.returns) != len(rewards):  # first step, or loaded with another number of environments
            self.returns = np.zeros(len(rewards))
        # SubprocVecEnv passes float64 on, DummyVecEnv float32: rounded alike, both give the same run.
        before = self.gamma * self.returns
        self.returns = before + rewards.astype(np.float32)
        absurd = self._absurd(rewards)
        if absurd is None:
            self.statistics.update(self.returns)
        else:  # the sum goes on without the reward, or it would be absurd for the rest of the episode
            mean, std = self.statistics.mean, self.statistics.var**0.5
            self.statistics.update(np.where(absurd, mean + COUNTS_AS * std * np.sign(self.returns), self.returns))
            self.returns = np.where(absurd, before, self.returns)
        self.returns = np.where(dones, 0.0, self.returns)

    def _absurd(self, rewards: np.ndarray) -> np.ndarray | None:
        """:return: whose return is absurdly far from those before, None if nobody's is"""
        mean, std = abs(float(self.statistics.mean)), float(self.statistics.var) ** 0.5
        if self.statistics.count < ESTABLISHED or std == 0:  # sparse rewards: the first one sets the unit
            return None
        absurd = np.abs(self.returns - self.statistics.mean) > ABSURD * max(std, mean, 1.0)
        if not absurd.any():
            return None
        if not self._warned:
            self._warned, env = True, int(absurd.argmax())
            warn_of_outlier(f"The reward of env {env}", float(rewards[env]))
        return absurd

    @property
    def scale(self) -> float:
        """See :func:`unit_of`; 1 while no reward has been seen."""
        return unit_of(float(self.statistics.mean), float(self.statistics.var))


class ReturnStatisticsCallback(BaseCallback):
    """
    Feeds rewards to :class:`ReturnStatistics` before Stable-Baselines3 adds the timeout bootstrap to them.

    :param statistics: to be updated at every step
    """

    def __init__(self, statistics: ReturnStatistics) -> None:
        super().__init__()
        self.statistics = statistics

    def _on_step(self) -> bool:
        self.statistics.update(self.locals["rewards"], self.locals["dones"])
        return True

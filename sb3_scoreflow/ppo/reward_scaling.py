"""Running scale of the discounted return, the critic's unit."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd


def unit_of(mean: float, variance: float) -> float:
    """
    A critic's unit, whatever the unit of the rewards (ours).

    :param mean: of the returns
    :param variance: of the returns
    :return: their standard deviation; where they do not vary, but for rounding, their absolute mean; 1 if all are 0
    """
    return variance**0.5 if variance > (1e-6 * mean) ** 2 else abs(mean) or 1.0


class ReturnStatistics:
    """
    Running standard deviation of the discounted return ``G_t = gamma G_{t-1} + r_t``, reset at the end of every episode.

    The same quantity as in VecNormalize and in the official code, but applied to the critic's unit instead of to the rewards:
    logs, timeout bootstrap and a user's own wrappers keep seeing true rewards (ours).

    :param gamma: discount per step of the vectorised environment
    """

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
        if not np.isfinite(rewards).all():  # the update refuses such a rollout; the statistics must survive it
            return
        if len(self.returns) != len(rewards):  # first step, or loaded with another number of environments
            self.returns = np.zeros(len(rewards))
        # SubprocVecEnv passes float64 on, DummyVecEnv float32: rounded alike, both give the same run.
        self.returns = self.gamma * self.returns + rewards.astype(np.float32)
        self.statistics.update(self.returns)
        self.returns = np.where(dones, 0.0, self.returns)

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

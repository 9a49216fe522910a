"""Running scale of the discounted return, which is the unit of the critic's output."""

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_scoreflow.common.magnitudes import ABSURD, COUNTS_AS, ESTABLISHED, LIMIT, warn_of_outlier
from sb3_scoreflow.common.plain import describable


def unit_of(mean: float, variance: float) -> float:
    """
    Unit of the critic's output for returns in any unit (ours).

    :param mean: mean of the returns
    :param variance: variance of the returns
    :return: standard deviation of the returns; their absolute mean if they are constant up to rounding; 1 if all are 0
    """
    return variance**0.5 if variance > (1e-6 * mean) ** 2 else abs(mean) or 1.0


@describable("gamma", "statistics", "returns", "_warned")
class ReturnStatistics:
    """
    Running standard deviation of the discounted return ``G_t = gamma G_{t-1} + r_t``, reset at the end of every episode.

    VecNormalize and the official code divide the rewards by this quantity. Here, it only sets the unit of the critic, so that
    logs, the timeout bootstrap and users' wrappers keep the true rewards (ours).

    :param gamma: discount per step of the vectorized environment
    """

    _warned = False  # about an absurdly large return

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        # RunningMeanStd starts with 1e-4 pseudo-observations by default, which would imply a tiny scale before the first
        # reward
        self.statistics = RunningMeanStd(epsilon=0.0, shape=())
        self.returns = np.zeros(0)

    def update(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        """
        :param rewards: rewards of one step, shape ``(n_envs,)``
        :param dones: whether each episode ended with this step, same shape
        """
        rewards, dones = np.asarray(rewards), np.asarray(dones, bool)  # adapters of some simulators return lists
        if not (np.abs(rewards) < LIMIT).all():  # train() rejects such a rollout; the statistics must stay finite
            return
        if len(self.returns) != len(rewards):  # first step, or a model loaded with another number of environments
            self.returns = np.zeros(len(rewards))
        # SubprocVecEnv returns float64, DummyVecEnv float32: with the same rounding, both give the same run.
        before = self.gamma * self.returns
        self.returns = before + rewards.astype(np.float32)
        absurd = self._absurd(rewards)
        if absurd is None:
            self.statistics.update(self.returns)
        else:  # leave this reward out, or the sum would be absurd for the rest of the episode
            mean, std = self.statistics.mean, self.statistics.var**0.5
            self.statistics.update(np.where(absurd, mean + COUNTS_AS * std * np.sign(self.returns), self.returns))
            self.returns = np.where(absurd, before, self.returns)
        self.returns = np.where(dones, 0.0, self.returns)

    def _absurd(self, rewards: np.ndarray) -> np.ndarray | None:
        """:return: mask of the environments whose return is absurdly far from previous ones; None if no return is"""
        mean, std = abs(float(self.statistics.mean)), float(self.statistics.var) ** 0.5
        if self.statistics.count < ESTABLISHED or std == 0:  # sparse rewards: the first one sets the unit
            return None
        absurd = np.abs(self.returns - self.statistics.mean) > ABSURD * max(std, mean, 1.0)
        if not absurd.any():
            return None
        if not self._warned:
            self._warned, env = True, int(absurd.argmax())
            warn_of_outlier(f"The reward of environment {env}", float(rewards[env]))
        return absurd

    @property
    def scale(self) -> float:
        """Unit of the critic's output (see :func:`unit_of`); 1 before the first reward."""
        return unit_of(float(self.statistics.mean), float(self.statistics.var))


class ReturnStatisticsCallback(BaseCallback):
    """
    Passes rewards to :class:`ReturnStatistics` before Stable-Baselines3 adds the timeout bootstrap to them.

    :param statistics: statistics to update at every step
    """

    def __init__(self, statistics: ReturnStatistics) -> None:
        super().__init__()
        self.statistics = statistics

    def _on_step(self) -> bool:
        self.statistics.update(self.locals["rewards"], self.locals["dones"])
        return True

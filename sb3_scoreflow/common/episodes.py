"""Returns of training episodes, to judge a policy by."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Number of windows of episodes that measure the best weights
_N_WINDOWS = 10
#: Entry of the info of an episode's last step that says that the episode was lost with its worker
LOST = "worker_lost"
#: Relative difference of means that is due to rounding
ROUNDING = 1e-6


class EpisodeReturns:
    """
    Returns of training episodes. Each environment contributes the same number, because the first ones to end are the short
    ones. An episode that is running at the beginning does not count, because another policy may have begun it.

    :param n_envs: number of environments
    :param n_episodes: smallest number of episodes over all environments
    """

    def __init__(self, n_envs: int, n_episodes: int) -> None:
        self.n_per_env = -(-n_episodes // n_envs)
        #: Returns of each environment's episodes
        self.of_env: list[list[float]] = [[] for _ in range(n_envs)]
        self.wait()

    def wait(self) -> None:
        """Leave out the episodes that are running."""
        #: Whether each environment's episode does not count
        self.waiting = [True for _ in self.of_env]

    def add(self, infos: Sequence[Mapping[str, Any]], starts: Sequence[bool] | np.ndarray) -> bool:
        """
        Add the returns of episodes that end, unless their environment has contributed all of its episodes.

        :param infos: infos of a step of all environments
        :param starts: whether the step was the first one of an episode, shape ``(n_envs,)``
        :return: whether all episodes have ended
        """
        for env, (info, is_start) in enumerate(zip(infos, starts, strict=False)):
            self.waiting[env] = self.waiting[env] and not is_start
            value = return_of(info)
            if value is not None and not self.waiting[env] and len(self.of_env[env]) < self.n_per_env:
                self.of_env[env].append(value)
        return self.is_complete

    @property
    def returns(self) -> list[float]:
        """Returns of all environments' episodes"""
        return [value for of_env in self.of_env for value in of_env]

    @property
    def is_complete(self) -> bool:
        """Whether every environment has contributed its episodes"""
        return all(len(of_env) == self.n_per_env for of_env in self.of_env)


def return_of(info: Mapping[str, Any]) -> float | None:
    """
    :param info: info of a step; the wrapper ``Monitor`` writes an episode's return into its last one
    :return: return of the episode that the step ends; None if it ends none, or one that was lost with a worker of a
        :class:`~sb3_scoreflow.distributed.RayVecEnv`, whose return is not complete
    """
    return float(info["episode"]["r"]) if "episode" in info and not info.get(LOST) else None


def difference(returns: Sequence[float], best: Sequence[float]) -> float:
    """
    :param returns: returns of some episodes
    :param best: returns of others
    :return: difference of the means in standard errors, positive if the first is higher. The standard deviation is the larger
        one of both, because that of rare successes may be 0 by chance
    """
    mean, other = float(np.mean(returns)), float(np.mean(best))
    gain = 0.0 if math.isclose(mean, other, rel_tol=ROUNDING) else mean - other
    std = max(float(np.std(returns)), float(np.std(best)))
    error = std * (1 / len(returns) + 1 / len(best)) ** 0.5
    return 0.0 if gain == 0 else gain / error if error > 0 else math.copysign(math.inf, gain)


def pooled(best: list[float], returns: list[float], is_better: bool) -> list[float]:
    """
    Returns that measure the best weights so far. If only the luckiest windows counted, later windows would seem worse by
    chance alone.

    :param best: returns of the best weights until now
    :param returns: returns of a window that did not earn less
    :param is_better: whether the window earned more
    :return: the window's returns if it earned more, else both, but no more than those of ten such windows
    """
    return returns if is_better else (best + returns)[-_N_WINDOWS * len(returns) :]

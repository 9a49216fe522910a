"""A check of a clone's first training episodes: do they earn what the demonstrations earn?"""

from collections.abc import Sequence

import numpy as np

from sb3_scoreflow.common.episodes import EpisodeReturns
from sb3_scoreflow.common.plain import describable
from sb3_scoreflow.common.utils import warn

#: Smallest number of episodes to judge, and the share of the demonstrations' return below which there is a warning
N_EPISODES, SHARE = 5, 0.5
#: What else may be wrong
OTHERWISE = (
    "the clone is weak (clone more demonstrations, clone for longer, or execute fewer actions before the policy looks again: "
    "a smaller `n_executed` of ActionChunking, or no chunks), or the environment's rewards are not those of the "
    "demonstrations."
)


@describable("demonstrated", "n_per_env", "of_env", "waiting")
class FirstEpisodes(EpisodeReturns):
    """
    Returns of a clone's first training episodes. If they are far below the demonstrations' return, the exploration noise
    destroys the clone, the clone is weak, or the environment pays differently.

    :param demonstrated: mean return of the demonstrations; there are no shares of 0
    :param n_envs: number of environments
    """

    def __init__(self, demonstrated: float, n_envs: int) -> None:
        super().__init__(n_envs, N_EPISODES)
        self.demonstrated = demonstrated

    @property
    def are_successes(self) -> bool:
        """Whether all returns are 0 or one other value, as of failures and successes"""
        values = set(self.returns)
        return 0 in values and len(values) <= 2

    def earn_less(self, share: float) -> bool:
        """
        :param share: share of the demonstrations' return, see :func:`share_of`
        :return: whether the mean return is below it, by more than two standard errors
        """
        return earn_less(self.returns, share, self.demonstrated)

    def compared(self) -> str:
        """:return: a sentence that compares them with the demonstrations"""
        return (
            f"The first {len(self.returns)} training episodes have a mean return of {np.mean(self.returns):.4g}, but the "
            f"demonstrations have {self.demonstrated:.4g}."
        )

    def warn(self, remedy: str) -> None:
        """
        Warn if the mean return is less than half of the demonstrations', or, of costs, more than twice as negative. Otherwise,
        fine-tuning would lose the clone silently.

        :param remedy: what to do against too much noise, as a relative clause
        """
        if self.earn_less(SHARE):
            warn(
                f"{self.compared()} Evaluate the deterministic policy (evaluate_policy). If it is much better, the "
                f"exploration noise is too large for this clone, {remedy}. Otherwise, {OTHERWISE}"
            )


def share_of(value: float, share: float) -> float:
    """
    :param value: a return; if it is negative, minus a cost
    :param share: share of it, in (0, 1]
    :return: the return that is this share of it; of a cost, the return of which the cost is this share: half of 10 is 5, and
        half of -10 is -20 (ours)
    """
    return share * value if value > 0 else value / share


def earn_less(returns: Sequence[float], share: float, demonstrated: float) -> bool:
    """
    :param returns: returns of at least two episodes
    :param share: share of the demonstrations' return, see :func:`share_of`
    :param demonstrated: mean return of the demonstrations
    :return: whether the mean return is below the share, by more than two standard errors; False if ``demonstrated`` is 0
    """
    mean, error = mean_and_error(returns)
    return demonstrated != 0 and mean + 2 * error < share_of(demonstrated, share)


def mean_and_error(returns: Sequence[float]) -> tuple[float, float]:
    """
    :param returns: returns of at least two episodes
    :return: their mean, and its standard error
    """
    return float(np.mean(returns)), float(np.std(returns, ddof=1)) / len(returns) ** 0.5

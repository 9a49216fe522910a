"""A check of a clone's first training episodes: do they earn what the demonstrations earn?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_scoreflow.common.plain import describable
from sb3_scoreflow.common.utils import warn

#: Smallest number of episodes to judge, and the share of the demonstrations' return below which there is a warning
N_EPISODES, _SHARE = 5, 0.5


@describable("demonstrated", "n_per_env", "returns")
class FirstEpisodes:
    """
    Returns of a clone's first training episodes. If they are far below the demonstrations' return, the exploration noise
    destroys the clone, the clone is weak, or the environment pays differently.

    Each environment contributes the same number of episodes, because the first ones to end are the short ones.

    :param demonstrated: mean return of the demonstrations; shares of it mean something only if it is positive
    :param n_envs: number of environments
    """

    def __init__(self, demonstrated: float, n_envs: int) -> None:
        self.demonstrated = demonstrated
        self.n_per_env = -(-N_EPISODES // n_envs)
        self.returns: list[list[float]] = [[] for _ in range(n_envs)]

    def add(self, infos: Sequence[Mapping[str, Any]]) -> bool:
        """
        :param infos: infos of a step of all environments; the wrapper ``Monitor`` writes an episode's return into its last one
        :return: whether all episodes have ended
        """
        for of_env, info in zip(self.returns, infos, strict=False):
            if "episode" in info and len(of_env) < self.n_per_env:
                of_env.append(float(info["episode"]["r"]))
        return all(len(of_env) == self.n_per_env for of_env in self.returns)

    @property
    def are_successes(self) -> bool:
        """Whether all returns are 0 or one other value, as of failures and successes"""
        values = {value for of_env in self.returns for value in of_env}
        return 0 in values and len(values) <= 2

    def earn_less(self, share: float) -> bool:
        """
        :param share: share of the demonstrations' return
        :return: whether the mean return is below it, by more than two standard errors
        """
        returns = np.array(self.returns).ravel()
        error = float(returns.std(ddof=1)) / len(returns) ** 0.5
        return bool(self.demonstrated > 0 and returns.mean() + 2 * error < share * self.demonstrated)

    def warn(self, remedy: str) -> None:
        """
        Warn if the mean return is less than half of the demonstrations'. Otherwise, fine-tuning would lose the clone silently.

        :param remedy: what to do against too much noise, as a relative clause
        """
        if self.earn_less(_SHARE):
            returns = np.array(self.returns).ravel()
            warn(
                f"The first {len(returns)} training episodes have a mean return of {returns.mean():.4g}, but the "
                f"demonstrations have {self.demonstrated:.4g}. Evaluate the deterministic policy (evaluate_policy). If it is "
                f"much better, the exploration noise is too large for this clone, {remedy}. Otherwise, the clone is weak "
                "(clone more demonstrations, or for longer), or the environment's rewards differ from the demonstrations'."
            )

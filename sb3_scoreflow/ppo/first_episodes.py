"""A check of a clone's first training episodes: do they earn what the demonstrations earn?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_scoreflow.common.utils import warn

#: Smallest number of episodes to judge, and the share of the demonstrations' return below which there is a warning
_N_EPISODES, _SHARE = 5, 0.5


class FirstEpisodes:
    """
    Warns if a clone's first training episodes earn far less than the demonstrations: then the exploration noise destroys the
    clone, the clone is weak, or the environment pays differently. Otherwise, fine-tuning would lose the clone silently.

    Each environment contributes the same number of episodes, because the first ones to end are the short ones.

    :param demonstrated: mean return of the demonstrations; there is no warning if it is not positive, because shares of it
        then mean nothing
    :param n_envs: number of environments
    :param remedy: what to do against too much noise
    """

    def __init__(self, demonstrated: float, n_envs: int, remedy: str) -> None:
        self.demonstrated, self.remedy = demonstrated, remedy
        self.n_per_env = -(-_N_EPISODES // n_envs)
        self.returns: list[list[float]] = [[] for _ in range(n_envs)]

    def add(self, infos: Sequence[Mapping[str, Any]]) -> bool:
        """
        :param infos: infos of a step of all environments; the wrapper ``Monitor`` writes an episode's return into its last one
        :return: whether the check is complete
        """
        for of_env, info in zip(self.returns, infos, strict=False):
            if "episode" in info and len(of_env) < self.n_per_env:
                of_env.append(float(info["episode"]["r"]))
        if any(len(of_env) < self.n_per_env for of_env in self.returns):
            return False
        returns = np.array(self.returns).ravel()
        error = float(returns.std(ddof=1)) / len(returns) ** 0.5
        if self.demonstrated > 0 and returns.mean() + 2 * error < _SHARE * self.demonstrated:
            warn(
                f"The first {len(returns)} training episodes have a mean return of {returns.mean():.4g}, but the "
                f"demonstrations have {self.demonstrated:.4g}. Evaluate the deterministic policy (evaluate_policy). If it is "
                f"much better, the exploration noise is too large for this clone, {self.remedy}. Otherwise, the clone is weak "
                "(clone more demonstrations, or for longer), or the environment's rewards differ from the demonstrations'."
            )
        return True

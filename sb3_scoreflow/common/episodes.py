"""Returns of training episodes, to judge a policy by."""

from collections.abc import Mapping
from typing import Any


class EpisodeReturns:
    """
    Returns of training episodes. Each environment contributes the same number, because the first ones to end are the short
    ones.

    :param n_envs: number of environments
    :param n_episodes: smallest number of episodes over all environments
    """

    def __init__(self, n_envs: int, n_episodes: int) -> None:
        self.n_per_env = -(-n_episodes // n_envs)
        #: Returns of each environment's episodes
        self.of_env: list[list[float]] = [[] for _ in range(n_envs)]

    def add_return(self, env: int, info: Mapping[str, Any]) -> None:
        """
        Add the return of an episode that ends, unless the environment has contributed all of its episodes.

        :param env: index of the environment
        :param info: info of a step; the wrapper ``Monitor`` writes an episode's return into its last one
        """
        if "episode" in info and len(self.of_env[env]) < self.n_per_env:
            self.of_env[env].append(float(info["episode"]["r"]))

    @property
    def returns(self) -> list[float]:
        """Returns of all environments' episodes"""
        return [value for of_env in self.of_env for value in of_env]

    @property
    def is_complete(self) -> bool:
        """Whether every environment has contributed its episodes"""
        return all(len(of_env) == self.n_per_env for of_env in self.of_env)

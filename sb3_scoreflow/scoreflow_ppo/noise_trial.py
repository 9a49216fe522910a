"""A trial of less noise in training episodes, for clones that the default noise destroys."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_scoreflow.common.plain import describable
from sb3_scoreflow.ppo.first_episodes import N_EPISODES, FirstEpisodes

#: Share of the return that the noise has to leave
KEEP = 0.7
#: Factors of the noise: none at all (too little to matter, because densities need some), and those to choose from
_NONE, _CHOICES = 1e-5, (0.5, 0.25, 0.125)
_SCALES = (_NONE, *_CHOICES)
#: Steps per episode after which a trial is given up, because episodes without noise may never end
_MAX_STEPS = 2000


@describable("first", "n_per_env", "returns", "waiting", "n_steps")
class NoiseTrial:
    """
    Finds the largest noise that leaves a clone most of its return (ours), in episodes of the training environments, with at
    least five for each scale.

    All environments contribute the same number of episodes, because the first ones to end are the short ones, and take turns
    with the scales, so that every scale gets the same number of episodes, or one more. An episode that was running when the
    trial began does not count. The trial is given up if it takes 2000 steps for every episode of an environment.

    :param first: earlier episodes, with the full noise
    :param infos: infos of the step after which the trial begins
    """

    def __init__(self, first: FirstEpisodes, infos: Sequence[Mapping[str, Any]]) -> None:
        self.first = first
        self.n_per_env = -(-len(_SCALES) * N_EPISODES // len(infos))
        self.returns: list[list[float]] = [[] for _ in infos]
        self.waiting = ["episode" not in info for info in infos]
        self.n_steps = 0

    def restart_episodes(self) -> None:
        """To be called after a reset of all environments."""
        self.waiting = [False for _ in self.waiting]

    def add(self, infos: Sequence[Mapping[str, Any]]) -> bool:
        """
        :param infos: infos of a step of all environments
        :return: whether the trial is over
        """
        self.n_steps += 1
        for env, info in enumerate(infos):
            if "episode" not in info:
                continue
            if not self.waiting[env] and len(self.returns[env]) < self.n_per_env:
                self.returns[env].append(float(info["episode"]["r"]))
            self.waiting[env] = False
        return self._is_complete or self.n_steps >= _MAX_STEPS * self.n_per_env

    @property
    def _is_complete(self) -> bool:
        return all(len(of_env) == self.n_per_env for of_env in self.returns)

    def scales(self) -> list[float]:
        """:return: factor of the noise in the current episode of each environment"""
        return [self._scale(env, len(of_env)) for env, of_env in enumerate(self.returns)]

    def result(self) -> tuple[float, dict[float, float]]:
        """
        :return: the chosen scale, which is 1 unless the episodes with the full noise have less than 70% of the return without
            noise, by more than two standard errors; and the mean return by scale, where scale 0 is the policy without noise
        """
        if not self._is_complete:
            return 1.0, {}
        of_scale: dict[float, list[float]] = {scale: [] for scale in _SCALES}
        for env, of_env in enumerate(self.returns):
            for episode, value in enumerate(of_env):
                of_scale[self._scale(env, episode)].append(value)
        without, without_error = _mean_and_error(of_scale.pop(_NONE))
        full, full_error = _mean_and_error([value for of_env in self.first.returns for value in of_env])
        means = {0.0: without, 1.0: full}
        if KEEP * without - full <= 2 * math.hypot(KEEP * without_error, full_error):
            return 1.0, means
        chosen = _CHOICES[-1]
        for scale, returns in reversed(of_scale.items()):
            means[scale], error = _mean_and_error(returns)
            if means[scale] + error >= KEEP * without:
                chosen = scale
        return chosen, means

    def _scale(self, env: int, episode: int) -> float:
        return _SCALES[(env * self.n_per_env + episode) % len(_SCALES)]


def _mean_and_error(returns: Sequence[float]) -> tuple[float, float]:
    """:return: mean and its standard error"""
    return float(np.mean(returns)), float(np.std(returns, ddof=1)) / len(returns) ** 0.5

"""A trial of less noise in training episodes, for clones that the default noise destroys."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_scoreflow.common.episodes import EpisodeReturns
from sb3_scoreflow.common.plain import describable
from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.ppo.first_episodes import N_EPISODES, OTHERWISE, SHARE, FirstEpisodes, earn_less, mean_and_error, share_of

#: Share of the return that the noise has to leave
KEEP = 0.7
#: Factors of the noise: none at all (too little to matter, because densities need some), and those to choose from
NONE, _CHOICES = 1e-5, (0.5, 0.25, 0.125)
_SCALES = (NONE, *_CHOICES)
#: Steps per episode after which a trial is given up, because episodes without noise may never end
_MAX_STEPS = 2000


@describable("first", "n_per_env", "of_env", "waiting", "n_steps")
class NoiseTrial(EpisodeReturns):
    """
    Finds the largest noise that leaves a clone most of its return (ours), in episodes of the training environments, with at
    least five for each scale.

    All environments take turns with the scales, so that every scale gets the same number of episodes, or one more. The trial
    is given up if it takes 2000 steps for every episode of an environment.

    :param first: earlier episodes, with the full noise
    :param n_envs: number of environments
    """

    def __init__(self, first: FirstEpisodes, n_envs: int) -> None:
        super().__init__(n_envs, len(_SCALES) * N_EPISODES)
        self.first = first
        self.n_steps = 0

    def add(self, infos: Sequence[Mapping[str, Any]], starts: Sequence[bool] | np.ndarray) -> bool:
        """
        :param infos: infos of a step of all environments
        :param starts: whether the step was the first one of an episode, shape ``(n_envs,)``
        :return: whether the trial is over
        """
        self.n_steps += 1
        return super().add(infos, starts) or self.n_steps >= _MAX_STEPS * (self.n_per_env + 1)

    @property
    def n_episodes(self) -> int:
        """Number of episodes of all environments"""
        return self.n_per_env * len(self.of_env)

    def scales(self) -> list[float]:
        """:return: factor of the noise in the current episode of each environment"""
        return [self._scale(env, len(of_env)) for env, of_env in enumerate(self.of_env)]

    def result(self) -> tuple[float, dict[float, float]]:
        """
        :return: :func:`largest_scale`, with 1 among the scales, that keeps 70% of the return without noise; and the mean
            return by scale, where scale 0 is the policy without noise. The scale is 1 if the trial was given up. If the
            demonstrations have a positive return and the policy does not, with noise or without, then rewards and costs
            cancel, and there are no shares of their sum: the return is measured from that with the full noise, and the scale
            is 1 unless the policy without noise earns more than this by more than a standard error
        """
        if not self.is_complete:
            return 1.0, {}
        returns = {0.0: self._returns(NONE), 1.0: self.first.returns, **{scale: self._returns(scale) for scale in _CHOICES}}
        means = {scale: float(np.mean(of)) for scale, of in returns.items()}
        base = 0.0
        if self.first.demonstrated > 0 > min(means[0.0], means[1.0]):
            base = means[1.0]
            errors = [mean_and_error(returns[scale])[1] for scale in (0.0, 1.0)]
            if means[0.0] - base <= math.hypot(*errors):
                return 1.0, means
        return largest_scale(returns, KEEP, base), means

    def warn(self, remedy: str) -> None:
        """
        Warn if the trial was given up, if the episodes without noise have less than half of the demonstrations' return, or if
        only those with noise have, but the noise stays.

        :param remedy: what to do against too much noise, as a relative clause
        """
        if not self.is_complete:
            warn(
                f"The trial of less noise is given up, because {self.n_steps} steps of each environment were too few for "
                f"{self.n_episodes} episodes: the noise stays as it is. Pass noise_scale to choose it yourself, or limit the "
                "length of episodes with a TimeLimit."
            )
        if self.is_complete and earn_less(self._returns(NONE), SHARE, self.first.demonstrated):
            without = self._returns(NONE)
            warn(
                f"Without noise, {len(without)} training episodes have a mean return of {np.mean(without):.4g}, but the "
                f"demonstrations have {self.first.demonstrated:.4g}: {OTHERWISE}"
            )
        elif self.result()[0] == 1:
            self.first.warn(remedy)

    def _returns(self, scale: float) -> list[float]:
        return [
            value
            for env, of_env in enumerate(self.of_env)
            for episode, value in enumerate(of_env)
            if self._scale(env, episode) == scale
        ]

    def _scale(self, env: int, episode: int) -> float:
        return _SCALES[(env * self.n_per_env + episode) % len(_SCALES)]


def largest_scale(returns: Mapping[float, Sequence[float]], keep: float, base: float = 0.0) -> float:
    """
    Choose a scale of the noise from few episodes. More noise is assumed to cost more: the mean returns become those of a
    weighted isotonic regression (Barlow et al., Statistical Inference under Order Restrictions, 1972, Section 1.2), so that
    lucky episodes of a large scale do not outweigh worse ones of a smaller scale.

    :param returns: returns by scale; scale 0 is no noise
    :param keep: share of the return to keep, in (0, 1], see :func:`~sb3_scoreflow.ppo.first_episodes.share_of`
    :param base: return from which shares are measured
    :return: the largest scale that keeps the share of the fitted return without noise, or else the smallest positive scale
    """
    scales = sorted(returns)
    counts, sums = np.cumsum([[len(returns[scale]), np.sum(returns[scale])] for scale in scales], axis=0).T
    counts, sums, n = np.append(0, counts), np.append(0, sums), len(scales)

    def mean(first: int, last: int) -> float:
        return (sums[last + 1] - sums[first]) / (counts[last + 1] - counts[first])

    fitted = [min(max(mean(i, j) for j in range(at, n)) for i in range(at + 1)) for at in range(n)]
    least = base + share_of(fitted[0] - base, keep)
    return max((scale for scale, of in zip(scales[1:], fitted[1:], strict=True) if _reaches(of, least)), default=scales[1])


def _reaches(value: float, least: float) -> bool:
    """Equal returns are equal shares, in spite of rounding."""
    return value >= least or math.isclose(value, least, rel_tol=1e-9)

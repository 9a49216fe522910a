"""Deterministic training episodes that decide whether new weights may produce deterministic actions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_scoreflow.common.episodes import difference, pooled
from sb3_scoreflow.common.plain import describable

#: Episodes that validate weights: the smallest number, and the largest. Between these, short episodes are repeated until they
#: have this number of transitions
_MIN_EPISODES, _MAX_EPISODES, _TRANSITIONS = 5, 20, 500
#: Standard errors by which returns have to be higher to replace those of the weights in use
_N_ERRORS = 1.0
#: Steps of an episode after which validation is given up, because it may never end
MAX_STEPS = 10_000


@describable("noise_scale", "best", "returns", "n_started", "n_used", "n_validating", "n_all", "steps", "validates")
class Validation:
    """
    Returns of deterministic episodes with candidate weights, compared with those of the weights in use (ours).

    :param n_envs: number of environments
    :param noise_scale: factor of the noise; its square is a factor of the score in deterministic actions
    """

    def __init__(self, n_envs: int, noise_scale: float) -> None:
        self.noise_scale = noise_scale
        #: Returns of the weights in use; empty if they have not been measured
        self.best: list[float] = []
        #: Transitions of all episodes, and of those that validate
        self.n_all, self.n_validating = 0, 0
        self.restart(n_envs)

    def restart(self, n_envs: int) -> None:
        """
        Begin again after a reset of all environments.

        :param n_envs: number of environments
        """
        #: Steps of each environment's episode so far, and whether it validates
        self.steps, self.validates = [0] * n_envs, [False] * n_envs
        self.begin()

    def begin(self) -> None:
        """Begin with another candidate."""
        self.returns: list[float] = []
        self.n_started, self.n_used = 0, 0

    @property
    def rows(self) -> np.ndarray:
        """Whether each environment's episode validates, shape ``(n_envs,)``"""
        return np.array(self.validates)

    def add(self, infos: Sequence[Mapping[str, Any]], dones: np.ndarray) -> bool:
        """
        Count a step of all environments.

        :param infos: its infos; the wrapper ``Monitor`` writes an episode's return into its last one
        :param dones: whether each environment's episode ended, shape ``(n_envs,)``
        :return: False if an episode ended without a return, or does not end
        """
        n_validating = sum(self.validates)
        self.n_all += len(self.steps)
        self.n_validating += n_validating
        self.n_used += n_validating
        for env in np.flatnonzero(dones).tolist():
            if env >= len(infos) or "episode" not in infos[env]:
                return False
            if self.validates[env]:
                self.returns.append(float(infos[env]["episode"]["r"]))
            self.validates[env] = False
        self.steps = [0 if done else step + 1 for step, done in zip(self.steps, dones, strict=True)]
        return max(self.steps) < MAX_STEPS

    def start(self, starts: np.ndarray, fraction: float) -> None:
        """
        Let episodes validate that are about to begin: not more than a quarter of the environments at once.

        :param starts: whether each environment begins an episode, shape ``(n_envs,)``
        :param fraction: share of all transitions after which no further episode begins to validate
        """
        for env in np.flatnonzero(starts & ~self.rows).tolist():
            is_full = sum(self.validates) >= max(len(self.validates) // 4, 1)
            if is_full or self._has_enough or self.n_validating > fraction * self.n_all:
                return
            self.validates[env] = True
            self.n_started += 1

    @property
    def _has_enough(self) -> bool:
        return self.n_started >= _MAX_EPISODES or (self.n_started >= _MIN_EPISODES and self.n_used >= _TRANSITIONS)

    @property
    def is_complete(self) -> bool:
        """Whether all episodes of the candidate have ended"""
        return self._has_enough and not any(self.validates)

    def accept(self) -> bool:
        """
        :return: whether the candidate earns at least as much as the weights in use; its returns then replace those of these
            weights if they are higher, and are added to them if not. A small loss is not forgiven, even if it may be chance:
            the spread of the returns is widest just before a policy fails, and the next candidate follows soon
        """
        gain = difference(self.returns, self.best) if self.best else 0.0
        if gain < 0:
            return False
        self.best = pooled(self.best, self.returns, is_better=gain > _N_ERRORS)
        return True

"""Deterministic training episodes that decide whether new weights may produce deterministic actions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sb3_scoreflow.common.episodes import LOST, ROUNDING, difference, pooled, return_of
from sb3_scoreflow.common.plain import describable

#: Episodes that validate weights: the smallest number, and the largest. Between these, short episodes are repeated until they
#: have this number of transitions
_MIN_EPISODES, _MAX_EPISODES, _TRANSITIONS = 5, 20, 500
#: Standard errors by which returns may be lower, and by which they have to be higher to replace those of the weights in use
_LOWER, _HIGHER = 0.5, 2.0
#: Factor of the known returns' standard deviation from which a candidate's wider spread counts against it
_WIDER = 2.0
#: Steps of an episode after which validation is given up, because it may never end
MAX_STEPS = 10_000


@describable(
    *("noise_scale", "first", "best", "returns", "rejected", "n_started", "n_used", "n_validating", "n_all"),
    *("steps", "validates", "of_env", "began", "cost", "duration", "slack"),
)
class Validation:
    """
    Returns of deterministic episodes with candidate weights, compared with those of the weights in use (ours).

    :param n_envs: number of environments
    :param noise_scale: factor of the noise; its square is a factor of the score in deterministic actions
    """

    #: Returns of the previous candidate if it was rejected
    rejected: Sequence[float] = ()

    def __init__(self, n_envs: int, noise_scale: float) -> None:
        self.noise_scale = noise_scale
        #: Returns of the first weights, and of the weights in use; empty if they have not been measured
        self.first: list[float] = []
        self.best: list[float] = []
        #: Transitions of all episodes, and of those that validate
        self.n_all, self.n_validating = 0, 0
        #: Of the previous candidate: its own transitions, and all transitions until its last episode had ended
        self.cost, self.duration = 0, 0
        #: Transitions by which another such candidate may begin too early to end with the training
        self.slack = 0.0
        self.begin()
        self.restart(n_envs)

    def restart(self, n_envs: int) -> None:
        """
        Drop running episodes after a reset of all environments.

        :param n_envs: number of environments
        """
        #: Steps of each environment's episode so far, whether it validates, and the number of episodes that did
        self.steps, self.validates, self.of_env = [0] * n_envs, [False] * n_envs, [0] * n_envs
        self.n_started = len(self.returns)

    def begin(self) -> None:
        """Begin with another candidate."""
        self.returns: list[float] = []
        self.n_started, self.n_used, self.began = 0, 0, 0

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
            info = infos[env] if env < len(infos) else {}
            value = return_of(info)
            if value is None and not info.get(LOST):
                return False
            if self.validates[env]:
                if value is None:
                    self.n_started -= 1
                else:
                    self.returns.append(value)
            self.validates[env] = False
        self.steps = [0 if done else step + 1 for step, done in zip(self.steps, dones, strict=True)]
        return max(self.steps) < MAX_STEPS

    def start(self, starts: np.ndarray, fraction: float, remaining: float) -> None:
        """
        Let episodes validate that are about to begin: not more than a quarter of the environments at once, but one at least.
        The environments take turns.

        :param starts: whether each environment begins an episode, shape ``(n_envs,)``
        :param fraction: share of all transitions at which no further candidate begins: the first episodes do not validate
        :param remaining: transitions until the end of training; the share may be exceeded by another candidate that ends
            just before it
        """
        for env in sorted(np.flatnonzero(starts & ~self.rows).tolist(), key=lambda env: self.of_env[env]):
            is_full = sum(self.validates) >= max(len(self.validates) // 4, 1)
            if is_full or self._has_enough or not self._may_start(fraction, remaining):
                return
            if self.n_started == 0:
                self.began = self.n_all
            self.validates[env] = True
            self.of_env[env] += 1
            self.n_started += 1

    def _may_start(self, fraction: float, remaining: float) -> bool:
        """Episodes of a candidate follow each other, because it ages; those of the first weights, which stay, are spread."""
        if self.best and self.n_started:
            return True
        is_last = bool(self.best) and self.duration <= remaining < self.duration + self.slack
        return self.n_validating < fraction * self.n_all + is_last * self.cost

    @property
    def _has_enough(self) -> bool:
        return self.n_started >= _MAX_EPISODES or (self.n_started >= _MIN_EPISODES and self.n_used >= _TRANSITIONS)

    @property
    def is_complete(self) -> bool:
        """Whether all episodes of the candidate have ended"""
        return self._has_enough and not any(self.validates)

    def accept(self) -> bool:
        """
        Judge the candidate. Its returns are then added to those of the weights in use, or replace them if they are higher.
        Returns of a previous candidate that was rejected count as its own, because successive averages are similar: without
        them, each candidate would have another chance to hide rare failures in five episodes.

        :return: whether it earns about as much as the weights in use and as the first weights, or more
        """
        self.cost, self.duration = self.n_used, self.n_all - self.began
        # Of equally long episodes, all may begin at the same time, so that one has to be waited for
        self.slack = max(self.duration / 4, len(self.steps) * self.n_used / len(self.returns))
        if not np.isfinite(self.returns).all():
            return False
        if not self.best:
            self.first = self.best = self.returns
            return True
        if any(_earns_less(self.returns, self.rejected, known) for known in (self.best, self.first)):
            self.rejected = self.returns
            return False
        self.rejected = ()
        self.best = pooled(self.best, self.returns, is_better=difference(self.returns, self.best) > _HIGHER)
        return True


def _earns_less(returns: Sequence[float], predecessors: Sequence[float], known: Sequence[float]) -> bool:
    """
    :param returns: returns of a candidate
    :param predecessors: returns of the previous candidate if it was rejected
    :param known: returns of other weights
    :return: whether the mean, with the predecessor's, is lower by more than half a standard error. Its spread is that of the
        known returns if these differ: a candidate's is widest just before a policy fails, and must not excuse its failures. A
        policy that fails in most of its episodes may have a high mean by chance, so the standard error of a spread beyond
        twice theirs is subtracted from its mean
    """
    both = [*returns, *predecessors]
    std = float(np.std(known)) or float(np.std(returns))
    error = std * (1 / len(both) + 1 / len(known)) ** 0.5
    excess = (max(float(np.var(returns) - _WIDER**2 * np.var(known)), 0.0) / len(returns)) ** 0.5
    loss = float(np.mean(known) - np.mean(both)) + excess
    return loss > _LOWER * error + ROUNDING * abs(float(np.mean(known)))

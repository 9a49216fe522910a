"""
Safeguard of algorithms that explore with the actor's own actions: if the training episodes of a clone earn less than before,
the actor goes back to its best weights.
"""

from typing import Any

import numpy as np
from torch import nn

from sb3_scoreflow.common.episodes import EpisodeReturns, difference, pooled
from sb3_scoreflow.common.kept_actors import ActorKeepingAlgorithm
from sb3_scoreflow.common.plain import describable

#: Smallest number of episodes to judge the actor by, and the standard errors by which returns have to differ
_N_EPISODES, _N_ERRORS = 20, 2.0


@describable("n_per_env", "of_env", "waiting", "best")
class EpisodeWindow(EpisodeReturns):
    """
    Returns of recent training episodes, compared with those of the best actors so far (ours).

    :param n_envs: number of environments
    """

    def __init__(self, n_envs: int) -> None:
        #: Returns of the best actors' episodes: of the last window that was better than those before, and of later windows
        #: that did not differ from it; empty if there was no complete window yet
        self.best: list[float] = []
        self.restart(n_envs)

    def restart(self, n_envs: int, wait: bool = True) -> None:
        """
        Begin a new window.

        :param n_envs: number of environments
        :param wait: whether to leave out the episodes that are running, because another actor began them
        """
        super().__init__(n_envs, _N_EPISODES)
        self.waiting = [wait] * n_envs

    def difference(self) -> float:
        """:return: :func:`~sb3_scoreflow.common.episodes.difference` from the best actors' episodes"""
        return difference(self.returns, self.best)

    def accept(self, is_better: bool) -> None:
        """Make the window's episodes those of the best actors, or add them to these (see :func:`pooled`)."""
        self.best = pooled(self.best, self.returns, is_better)


class RollbackAlgorithm(ActorKeepingAlgorithm):
    """The part of RLDT and FPO that keeps the best actor of a clone, and goes back to it."""

    #: The last actor whose episodes did not earn less than those before, and the actor at the start of the window
    kept_names = ("best", "candidate")
    rollback: bool
    _window: EpisodeWindow | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Number of times that the actor went back to its best weights, since construction or pretraining
        self.n_rollbacks = 0

    def on_pretrained(self) -> None:
        """As in :class:`ActorKeepingAlgorithm`; also resets the number of rollbacks."""
        super().on_pretrained()
        self.n_rollbacks = 0

    @property
    def _is_actor_unchanged(self) -> bool:
        """Whether the actor has not changed since construction or pretraining, so that episodes differ by chance only"""
        raise NotImplementedError

    def _restart_episodes(self) -> None:
        super()._restart_episodes()
        if self._window is not None:
            self._window.wait()

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if not (self.rollback and self._pretrained and self._is_collecting):
            return
        if self._window is None:
            self._window = EpisodeWindow(self.n_envs)
            self._keep_actors()
        elif len(self._window.of_env) != self.n_envs:  # a saved model with another number of environments
            self._window.restart(self.n_envs)
        assert self._last_episode_starts is not None
        self._window.add(infos, self._last_episode_starts)

    def _judge_actor(self) -> bool:
        """
        Before an update: keep the actor unless its episodes earn less than those of the best actors; else go back.

        :return: whether the actor went back
        """
        window, is_worse = self._window, False
        if not self.rollback or window is None:
            self._forget_actors()
            return False
        if window.is_complete:
            difference = 0.0 if self._is_actor_unchanged or not window.best else window.difference()
            is_worse = difference < -_N_ERRORS
            if is_worse:
                self._roll_back(window)
            else:
                if difference >= 0 and window.best:
                    self.kept_actors["best"] = self.kept_actors["candidate"]
                window.accept(is_better=difference > _N_ERRORS)
            self.kept_actors["candidate"] = self.policy.copy_acting()
            window.restart(self.n_envs, wait=is_worse)
        self.logger.record("train/n_rollbacks", self.n_rollbacks)
        return is_worse

    def _roll_back(self, window: EpisodeWindow) -> None:
        if self.verbose >= 1:
            means = [float(np.mean(returns)) for returns in (window.returns, window.best)]
            print(f"Rollback: the last episodes have a mean return of {means[0]:.4g}, those of the best actors {means[1]:.4g}")
        policy, best = self.policy, self.kept_actors["best"]
        assert isinstance(best, nn.ModuleDict)
        for part, module in best.items():
            for target in [getattr(policy, part), *([] if policy.averaged is None else [policy.averaged[part]])]:
                target.load_state_dict(module.state_dict())
        for parameter in (each for part in best for each in getattr(policy, part).parameters()):
            policy.optimizer.state.pop(parameter, None)
        self.n_rollbacks += 1

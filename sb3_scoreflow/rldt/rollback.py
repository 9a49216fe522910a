"""RLDT's safeguard: if the training episodes of a clone earn less than before, the actor goes back to its best weights."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from torch import nn

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.plain import describable
from sb3_scoreflow.rldt.policies import RLDTPolicy

#: Smallest number of episodes to judge the actor by, and the standard errors by which returns have to differ
_N_EPISODES, _N_ERRORS = 20, 1.5
#: Number of windows that measure the best actors
_N_WINDOWS = 10


@describable("n_per_env", "of_env", "waiting", "best")
class EpisodeWindow:
    """
    Returns of recent training episodes, compared with those of the best actors so far (ours).

    Each environment contributes the same number of episodes, because the first ones to end are the short ones.

    :param n_envs: number of environments
    """

    def __init__(self, n_envs: int) -> None:
        #: Returns of the best actors' episodes: of the last window that was better than those before, and of later windows
        #: that did not differ from it; empty if there was no complete window yet
        self.best: list[float] = []
        self.restart(n_envs, False)

    def restart(self, n_envs: int, wait: bool) -> None:
        """
        Begin a new window.

        :param n_envs: number of environments
        :param wait: whether to leave out the episodes that are running, because another actor began them
        """
        self.n_per_env = -(-_N_EPISODES // n_envs)
        self.of_env: list[list[float]] = [[] for _ in range(n_envs)]
        self.waiting = [wait] * n_envs

    def add(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """:param infos: infos of a step of all environments; ``Monitor`` writes an episode's return into its last one"""
        if len(infos) != len(self.of_env):
            self.restart(len(infos), False)
        for env, info in enumerate(infos):
            if "episode" not in info:
                continue
            if not self.waiting[env] and len(self.of_env[env]) < self.n_per_env:
                self.of_env[env].append(float(info["episode"]["r"]))
            self.waiting[env] = False

    @property
    def is_complete(self) -> bool:
        """Whether every environment has contributed its episodes"""
        return all(len(returns) == self.n_per_env for returns in self.of_env)

    @property
    def returns(self) -> list[float]:
        """Returns of all environments' episodes"""
        return [value for returns in self.of_env for value in returns]

    def difference(self) -> float:
        """
        :return: difference of the mean return from that of the best actors, in standard errors, positive if it is higher. The
            standard deviation is the larger one of both, because that of rare successes may be 0 by chance
        """
        difference = float(np.mean(self.returns)) - float(np.mean(self.best))
        std = max(float(np.std(self.returns)), float(np.std(self.best)))
        error = std * (1 / len(self.returns) + 1 / len(self.best)) ** 0.5
        return 0.0 if difference == 0 else difference / error if error > 0 else math.copysign(math.inf, difference)

    def accept(self, is_better: bool) -> None:
        """
        Make the window's episodes those of the best actors, or add them to these. If only the luckiest windows counted, later
        windows would seem worse by chance alone.
        """
        self.best = self.returns if is_better else (self.best + self.returns)[-_N_WINDOWS * len(self.returns) :]


class RollbackAlgorithm(FlowAlgorithm):
    """The part of :class:`~sb3_scoreflow.RLDT` that keeps the best actor, and goes back to it."""

    policy: RLDTPolicy
    rollback: bool
    n_actor_updates: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Number of times that the actor went back to its best weights, since construction or pretraining
        self.n_rollbacks = 0
        self._window: EpisodeWindow | None = None

    def _setup_model(self) -> None:
        super()._setup_model()
        if self._window is not None and self._window.best:  # a saved model, whose best actor will be loaded
            self._keep_actor()

    def on_pretrained(self) -> None:
        """As in :class:`FlowAlgorithm`; also forgets the best actor of an earlier clone."""
        super().on_pretrained()
        self._forget_actor()
        self.n_rollbacks = 0

    def _forget_actor(self) -> None:
        self._window = None
        self.__dict__.pop("best_actor", None)

    def _keep_actor(self) -> None:
        policy = self.policy
        parts = {part: deepcopy(policy.acting(part)) for part in policy.averaged_parts if hasattr(policy, part)}
        #: The last actor whose episodes did not earn less than those before
        self.best_actor = nn.ModuleDict(parts).requires_grad_(False)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if self.rollback and self._pretrained:
            if self._window is None:
                self._window = EpisodeWindow(self.n_envs)
            self._window.add(infos)

    def _judge_actor(self) -> None:
        """Before an update: keep the actor unless its episodes earn less than those of the best actors; else go back."""
        window = self._window
        if not self.rollback or window is None:
            self._forget_actor()
            return
        if window.is_complete:
            is_first = not window.best
            difference = 0.0 if is_first or self.n_actor_updates == 0 else window.difference()
            is_worse = difference < -_N_ERRORS
            if is_worse:
                self._roll_back(window)
            else:
                if is_first or (difference >= 0 and self.n_actor_updates > 0):
                    self._keep_actor()
                window.accept(is_better=difference > _N_ERRORS)
            window.restart(self.n_envs, wait=is_worse)
        self.logger.record("train/n_rollbacks", self.n_rollbacks)

    def _roll_back(self, window: EpisodeWindow) -> None:
        if self.verbose >= 1:
            means = [float(np.mean(returns)) for returns in (window.returns, window.best)]
            print(f"Rollback: the last episodes have a mean return of {means[0]:.4g}, those of the best actors {means[1]:.4g}")
        policy = self.policy
        for part, best in self.best_actor.items():
            for module in [getattr(policy, part), *([] if policy.averaged is None else [policy.averaged[part]])]:
                module.load_state_dict(best.state_dict())
        optimizer = policy.optimizer
        for parameter in (each for part in self.best_actor for each in getattr(policy, part).parameters()):
            optimizer.state.pop(parameter, None)
        self.n_rollbacks += 1

    # ------------------------------------------------------------------ saved parameters

    def _own_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Parameters of another model, which has no best actor, replace this model's."""
        parameters = super()._own_parameters(parameters)
        if not hasattr(self, "best_actor"):
            parameters.pop("best_actor", None)
        elif "best_actor" not in parameters and "policy" in parameters:
            self._forget_actor()
        return parameters

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, *(["best_actor"] if hasattr(self, "best_actor") else [])], variables

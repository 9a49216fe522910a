"""
Safeguard of algorithms that explore with the actor's own actions: if the training episodes of a clone earn less than before,
the actor goes back to its best weights.
"""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.episodes import EpisodeReturns
from sb3_scoreflow.common.plain import describable
from sb3_scoreflow.common.policies import FlowMatchingPolicy

#: Smallest number of episodes to judge the actor by, and the standard errors by which returns have to differ
_N_EPISODES, _N_ERRORS = 20, 2.0
#: Number of windows that measure the best actors
_N_WINDOWS = 10
#: Relative difference of means that is due to rounding
_ROUNDING = 1e-6


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

    def add(self, infos: Sequence[Mapping[str, Any]], starts: Sequence[bool] | np.ndarray) -> None:
        """
        :param infos: infos of a step of all environments
        :param starts: whether the step was the first one of an episode
        """
        for env, (info, is_start) in enumerate(zip(infos, starts, strict=False)):
            self.waiting[env] = self.waiting[env] and not is_start
            if not self.waiting[env]:
                self.add_return(env, info)

    def difference(self) -> float:
        """
        :return: difference of the mean return from that of the best actors, in standard errors, positive if it is higher. The
            standard deviation is the larger one of both, because that of rare successes may be 0 by chance
        """
        mean, best = float(np.mean(self.returns)), float(np.mean(self.best))
        difference = 0.0 if math.isclose(mean, best, rel_tol=_ROUNDING) else mean - best
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
    """The part of RLDT and FPO that keeps the best actor of a clone, and goes back to it."""

    policy: FlowMatchingPolicy
    rollback: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Number of times that the actor went back to its best weights, since construction or pretraining
        self.n_rollbacks = 0
        self._window: EpisodeWindow | None = None
        self._is_loading = False

    def _setup_model(self) -> None:
        super()._setup_model()
        self._is_loading = self._window is not None
        if self._is_loading:  # a saved model, whose actors will be loaded
            self._keep_actors()

    def on_pretrained(self) -> None:
        """As in :class:`FlowAlgorithm`; also forgets the best actor of an earlier clone."""
        super().on_pretrained()
        self._forget_actors()
        self.n_rollbacks = 0

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment, as in Stable-Baselines3, and forget the best actor, because its returns belong to another one.

        :param env: the environment
        :param force_reset: whether the next ``learn`` resets the environment
        """
        super().set_env(env, force_reset)
        self._forget_actors()

    def _forget_actors(self) -> None:
        self._window = None
        self.__dict__.pop("kept_actors", None)

    @property
    def _is_actor_unchanged(self) -> bool:
        """Whether the actor has not changed since construction or pretraining, so that episodes differ by chance only"""
        raise NotImplementedError

    def _keep_actors(self) -> None:
        #: The last actor whose episodes did not earn less than those before, and the actor at the start of the window
        self.kept_actors = nn.ModuleDict({name: self._acting() for name in ("best", "candidate")})

    def _acting(self) -> nn.ModuleDict:
        """:return: a copy of the actor that deterministic actions come from"""
        policy = self.policy
        parts = {part: deepcopy(policy.acting(part)) for part in policy.averaged_parts if hasattr(policy, part)}
        return nn.ModuleDict(parts).requires_grad_(False)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if not (self.rollback and self._pretrained):
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
            self.kept_actors["candidate"] = self._acting()
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

    # ------------------------------------------------------------------ saved parameters

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """
        Set the parameters, as in :class:`FlowAlgorithm`, and forget the best actor, because its returns belong to other
        parameters.

        :param load_path_or_dict: file, or parameters from ``get_parameters``
        :param exact_match: whether all parameters must be present
        :param device: device of the loaded parameters
        :raises ValueError: if the parameters do not fit, or another algorithm wrote the file
        """
        super().set_parameters(load_path_or_dict, exact_match, device)
        if not self._is_loading:
            self._forget_actors()
        self._is_loading = False

    def _own_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Outside of :meth:`load`, kept actors stay as they are until they are forgotten."""
        parameters = super()._own_parameters(parameters)
        if not hasattr(self, "kept_actors"):
            parameters.pop("kept_actors", None)
        elif "kept_actors" not in parameters:
            parameters["kept_actors"] = self.kept_actors.state_dict()
        return parameters

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, *(["kept_actors"] if hasattr(self, "kept_actors") else [])], variables

"""Validation of the averaged weights that deterministic actions of a fine-tuned clone come from."""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_scoreflow.common.kept_actors import ActorKeepingAlgorithm
from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.scoreflow_ppo import validation
from sb3_scoreflow.scoreflow_ppo.noise_trying import NoiseTryingPPO
from sb3_scoreflow.scoreflow_ppo.validation import Validation

#: Entries of infos that describe a whole episode
_OF_EPISODES = ("episode", "is_success")
#: Change of the logarithm of ``noise_scale``, and with it of the score, after which the weights in use are measured again
_OTHER_NOISE = math.log(1.25)


class ValidatingPPO(ActorKeepingAlgorithm, NoiseTryingPPO):
    """
    The part of :class:`ScoReFlowPPO` that lets deterministic actions come from new averages only if these do not earn less
    than the weights in use, in deterministic training episodes that nothing is learned from (ours).
    """

    #: The average that follows the weights, and a copy of it that is being validated
    kept_names = ("average", "candidate")
    validation_fraction: float
    _window: Validation | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Whether the environments do not show returns of episodes
        self._cannot_validate = False
        #: Number of averages that have been judged since pretraining
        self._n_judged = 0
        #: Whether there was a warning that deterministic actions are still those of the clone
        self._has_warned = False

    def _setup_model(self) -> None:
        super()._setup_model()
        self._cannot_validate = False  # of a saved model

    def on_pretrained(self) -> None:
        """As in :class:`NoiseTryingPPO` and :class:`ActorKeepingAlgorithm`; also forgets the judgments of an earlier clone."""
        super().on_pretrained()
        self._n_judged, self._has_warned = 0, False

    @property
    def _validates(self) -> bool:
        is_wanted = self.validation_fraction > 0 and self._scheduled("averaging_horizon") > 0
        return is_wanted and self._pretrained and not self._cannot_validate

    @property
    def _may_validate(self) -> bool:
        """Whether averages of a clone are validated, unless there are none."""
        is_wanted = "validation_fraction" in self._at_default or self.validation_fraction > 0
        return is_wanted and not self._cannot_validate

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment, as in Stable-Baselines3. The weights in use are measured again, because their returns belong to
        another environment; the average goes on.

        :param env: the environment
        :param force_reset: whether the next ``learn`` resets the environment
        """
        kept = self.__dict__.get("kept_actors")
        super().set_env(env, force_reset)
        if kept is not None:
            self.kept_actors, self._window = kept, Validation(self.n_envs, self.noise_scale)
        self._cannot_validate = False

    def _forget_actors(self) -> None:
        super()._forget_actors()
        if "policy" in self.__dict__:
            self.policy.validation = None

    # ------------------------------------------------------------------ averages

    def _begin_averaging(self) -> None:
        if not self._validates:
            self._stop_validating()
        super()._begin_averaging()

    def _running_average(self) -> nn.ModuleDict | None:
        return self._kept("average") if hasattr(self, "kept_actors") else super()._running_average()

    def _kept(self, name: str) -> nn.ModuleDict:
        kept = self.kept_actors[name]
        assert isinstance(kept, nn.ModuleDict)
        return kept

    def _stop_validating(self) -> None:
        """Let deterministic actions come from the average that follows the weights."""
        if hasattr(self, "kept_actors"):
            self.policy.averaged = self._kept("average")
            self._forget_actors()

    # ------------------------------------------------------------------ episodes

    def _restart_episodes(self) -> None:
        super()._restart_episodes()
        if self._window is not None:
            self._window.restart(self.n_envs)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect a rollout, as in Stable-Baselines3, in which some episodes may be deterministic."""
        try:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        finally:
            self.policy.validation = None

    def _prepare_rollout(self) -> None:
        super()._prepare_rollout()
        if not self._validates:
            self._stop_validating()
            return
        if not hasattr(self, "kept_actors"):
            self.policy.start_average()  # the weights in use, which are measured first
            self._keep_actors()
        if self._window is None:
            self._window = Validation(self.n_envs, self.noise_scale)
        assert self._last_episode_starts is not None
        self._start_validating(self._last_episode_starts)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        window = self._window
        if window is None or dones is None or not self._is_collecting:
            super()._update_info_buffer(infos, dones)
            return
        rows = window.rows
        self.rollout_buffer.leave_out(rows)
        finds_returns = window.add(infos, dones)
        # Statistics and other checks are about the stochastic policy
        shown = [_without_episode(info) if row else info for info, row in zip(infos, rows, strict=False)]
        super()._update_info_buffer(shown, dones)
        if not finds_returns:
            self._cannot_validate = True
            self._stop_validating()
            warn(
                "validation_fraction has no effect: an episode ended without info['episode'], or did not end within "
                f"{validation.MAX_STEPS} steps. Deterministic actions come from averages that are not validated. Wrap the "
                "environments in a Monitor or VecMonitor, and limit the length of episodes with a TimeLimit; or pass "
                "validation_fraction=0."
            )
            return
        if window.is_complete:
            self._judge_candidate(window)
        if np.any(dones):
            self._start_validating(dones)

    def _judge_candidate(self, window: Validation) -> None:
        """Use the validated weights for deterministic actions, unless they earn less."""
        self._n_judged += bool(window.best)
        self.logger.record("validation/ep_rew_mean", float(np.mean(window.returns)))
        is_accepted = window.accept()
        self.logger.record("validation/accepted", float(is_accepted))
        if is_accepted:
            self.policy.averaged = self._kept("candidate")
        window.begin()

    def _start_validating(self, starts: np.ndarray) -> None:
        """Let episodes that are about to begin validate an average, unless the noise has not been found yet."""
        window = self._window
        assert window is not None
        if abs(math.log(self.noise_scale / window.noise_scale)) > _OTHER_NOISE:
            self._window = window = Validation(self.n_envs, self.noise_scale)
        finds_noise = self._first_episodes is not None or self._noise_trial is not None
        if not finds_noise and (window.n_started or not window.best or self._has_new_average(self._kept("candidate"))):
            is_new = window.n_started == 0
            window.start(starts, self.validation_fraction, self._total_timesteps - self.num_timesteps)
            if is_new and window.n_started:
                self.kept_actors["candidate"] = deepcopy(self._kept("average")) if window.best else self.policy.copy_acting()
        rows = window.rows
        self.policy.validation = (self._kept("candidate"), th.as_tensor(rows, device=self.device)) if rows.any() else None

    def _has_new_average(self, known: nn.ModuleDict) -> bool:
        """:return: whether the average differs from other weights"""
        return not all(map(th.equal, self._kept("average").parameters(), known.parameters()))

    # ------------------------------------------------------------------ update

    def train(self) -> None:
        """Update policy and critic from the rollout buffer, but not from episodes that validate."""
        n_learned, size = self.rollout_buffer.learned.sum(), self.rollout_buffer.rewards.size
        if n_learned >= min(size, self.batch_size) / 4:
            super().train()
        else:  # few environments, and almost all of their steps validate
            self._check_rollout()

    def _end_learning(self) -> None:
        super()._end_learning()
        window = self._window
        if window is None or self._n_judged or self._has_warned:
            return
        if self._has_new_average(self.policy.copy_acting()):
            self._has_warned = True
            warn(
                f"Deterministic actions are still those of the clone: after {window.n_all} transitions, no average has been "
                f"validated. Train longer, pass a larger validation_fraction than {self.validation_fraction:g} or shorter "
                "episodes, or validation_fraction=0 to use averages at once."
            )


def _without_episode(info: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in info.items() if key not in _OF_EPISODES}

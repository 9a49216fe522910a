"""The noise of a clone's exploration: bounds that follow a schedule, and a trial of less noise if it destroys the clone."""

import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.ppo.algorithm import FlowPPO
from sb3_scoreflow.ppo.first_episodes import FirstEpisodes
from sb3_scoreflow.scoreflow_ppo.defaults import MIN_STD
from sb3_scoreflow.scoreflow_ppo.noise_trial import KEEP, NoiseTrial
from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy


class NoiseTryingPPO(FlowPPO):
    """The part of :class:`ScoReFlowPPO` that sets the policy's noise, and tries less of it if a clone does not survive it."""

    less_noise = "which calibrate_noise(model, eval_env) lowers"
    policy: ScoReFlowPolicy
    min_std: float
    max_std: float | Schedule
    noise_scale: float
    log_prob_clip: float | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._noise_trial: NoiseTrial | None = None
        #: Whether a trial has changed the noise during the current rollout
        self._mixed_rollout = False

    # ------------------------------------------------------------------ bounds of the noise

    def on_pretrained(self) -> None:
        """
        As in :class:`FlowPPO`; also sets the noise bounds of a clone.
        """
        super().on_pretrained()
        self._noise_trial = self.policy.noise_factors = None
        if "noise_scale" in self._at_default:
            self.__dict__["noise_scale"] = self._default("noise_scale")
        self._update_noise()

    def _prepare_rollout(self) -> None:
        super()._prepare_rollout()
        self._update_noise()
        trial = self._noise_trial
        if trial is not None and len(trial.of_env) != self.n_envs:  # a saved model with another number of environments
            self._noise_trial = NoiseTrial(trial.first, self.n_envs)
        self._mixed_rollout = self._noise_trial is not None
        self._follow_trial()

    def _bounded_std(self, max_std: float) -> float:
        """Corrects rounding: a schedule that ends at ``min_std`` may end slightly below it."""
        return self.min_std if math.isclose(max_std, self.min_std, rel_tol=1e-6) else max_std

    def _update_noise(self, factor: float = 1.0) -> None:
        max_std = self._bounded_std(self._scheduled("max_std"))
        self.policy.set_noise(self.min_std, max_std, factor * self.noise_scale)

    # ------------------------------------------------------------------ trial of less noise

    def _restart_episodes(self) -> None:
        super()._restart_episodes()
        if self._noise_trial is not None:
            self._noise_trial.wait()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the environment, as in Stable-Baselines3. A clone's first training episodes, or the trial of less noise that
        follows them, begin again, because it may reward differently.

        :param env: the environment
        :param force_reset: whether the next ``learn`` resets the environment
        """
        super().set_env(env, force_reset)
        if self._noise_trial is not None:
            self._begin_judging(self._noise_trial.first.demonstrated)
            self._noise_trial = None

    @property
    def _may_lower_noise(self) -> bool:
        """Whether noise and learning rate are at their defaults; likelihoods with a bound do not allow smaller noise."""
        at_default = {"noise_scale", "max_std", "learning_rate"} <= self._at_default.keys() and self.min_std == MIN_STD
        return at_default and self.log_prob_clip is None

    def _judge(self, found: FirstEpisodes) -> None:
        if not self._may_lower_noise or found.are_successes or not found.earn_less(KEEP):
            super()._judge(found)
            return
        self._noise_trial, self._mixed_rollout = NoiseTrial(found, self.n_envs), True
        warn(
            f"{found.compared()} The noise may be too large for this clone: the next {self._noise_trial.n_episodes} episodes "
            "try less of it, and the policy does not change meanwhile. Pass noise_scale to choose it yourself (1: no trial)."
        )

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        trial = self._noise_trial
        super()._update_info_buffer(infos, dones)
        if not self._is_collecting:
            return
        assert self._last_episode_starts is not None
        if trial is not None and not self._may_lower_noise:  # a callback has set an argument
            self._noise_trial = None
        elif trial is not None and trial.add(infos, self._last_episode_starts):
            self._noise_trial = None
            self.__dict__["noise_scale"], returns = trial.result()
            self._update_noise()
            if self.verbose >= 1:
                print(f"Trial of less noise: noise_scale={self.noise_scale:g} (mean return by scale: {returns})")
            trial.warn(self.less_noise)
        self._follow_trial()

    def _follow_trial(self) -> None:
        """Give the policy the noise of each environment's current episode."""
        trial = self._noise_trial
        self.policy.noise_factors = None if trial is None else th.tensor(trial.scales(), device=self.device)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """Collect a rollout, as in Stable-Baselines3, in which a trial may change the noise."""
        try:
            return super().collect_rollouts(*args, **kwargs)
        finally:
            self.policy.noise_factors = None

    # ------------------------------------------------------------------ update

    def train(self) -> None:
        """Update policy and critic from the rollout buffer, but not from episodes of a trial, whose noise differs."""
        if self._mixed_rollout:
            self._check_rollout()
            self.logger.record("train/noise_scale", self.noise_scale)
            return
        super().train()
        self._update_noise()

    def _scheduled(self, name: str) -> float:
        return super()._scheduled(name) * (self.noise_scale if name == "learning_rate" else 1)

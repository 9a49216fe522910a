"""ScoRe-Flow: PPO on the denoising chain of a flow-matching policy (arXiv 2604.10962)."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule

from sb3_scoreflow.common import flow
from sb3_scoreflow.common.capabilities import Capabilities
from sb3_scoreflow.common.moved_arguments import MovedArgument, take_moved
from sb3_scoreflow.common.schedules import END, START, as_schedule
from sb3_scoreflow.common.update_log import UpdateLog
from sb3_scoreflow.common.utils import ArgumentError, warn
from sb3_scoreflow.ppo.algorithm import FlowPPO
from sb3_scoreflow.scoreflow_ppo.arguments import RULES
from sb3_scoreflow.scoreflow_ppo.defaults import DEFAULTS, MIN_STD, UNVALIDATED_HORIZON, above, from_scratch
from sb3_scoreflow.scoreflow_ppo.diagnostics import chain_diagnostics
from sb3_scoreflow.scoreflow_ppo.policies import (
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    Noise,
    ScoreDrift,
    ScoReFlowPolicy,
)
from sb3_scoreflow.scoreflow_ppo.transition import ChainEvaluation
from sb3_scoreflow.scoreflow_ppo.validating import ValidatingPPO

#: Clip ranges of at least this value suit PPO's ratio, but not a geometric mean.
_LARGE_CLIP_RANGE = 0.1


class ScoReFlowPPO(ValidatingPPO):
    """
    PPO on the denoising chain of a flow policy; the score steers the mean, and the variance is learned (arXiv 2604.10962).

    Arguments shared with :class:`stable_baselines3.PPO` keep their names and meaning. Arguments left at None get the values in
    ``sb3_scoreflow/scoreflow_ppo/defaults.py``, which depend on whether the policy was pretrained.

    :param policy: "FlowPolicy" (chooses the features extractor by the observation space), "MlpPolicy", "CnnPolicy",
        "MultiInputPolicy", or a policy class
    :param env: environment whose action space is a Box with finite bounds; to predict several actions at once, wrap it in
        :class:`~sb3_scoreflow.ActionChunking`
    :param learning_rate: learning rate of the velocity field, a float or schedule; 0 freezes it
    :param n_steps: steps per environment and iteration (chunks, with ActionChunking); None: about 2048 over all environments,
        in whole minibatches. Policies trained from scratch take 256 per dimension of an action or 128 per environment,
        whichever is more, but at most 2048, and always at least 16 per environment
    :param batch_size: minibatch size in chains; None: 256, or from scratch 64 per dimension of an action if that is less,
        adjusted if it does not suit the number of environments
    :param n_epochs: passes over the rollout per iteration
    :param gamma: discount per step (per chunk, with ActionChunking)
    :param gae_lambda: trade-off between bias and variance in generalized advantage estimation (GAE)
    :param clip_range: PPO's clip range of the ratio, a float or schedule. The ratio is a geometric mean over the chain's ``(K
        + 1) action_dim`` numbers, or over the ``action_dim`` numbers of its single noisy step, so the clip range is far
        smaller than PPO's usual 0.2. None: 0.02 for a pretrained policy; from scratch, it starts at ``0.2 /
        sqrt((K + 1) action_dim)`` and decays to 0.02 if that is lower
    :param clip_range_vf: clip range of the value function in units of the critic's output (with ``normalize_reward``, the
        return's standard deviation); None: no clipping
    :param normalize_advantage: whether to normalize advantages per minibatch
    :param ent_coef: coefficient of the chain's entropy (normalized once by ``(K + 1) action_dim``)
    :param vf_coef: coefficient of the value loss
    :param max_grad_norm: largest gradient norm of each parameter group; groups are clipped separately
    :param rollout_buffer_class: subclass of Stable-Baselines3's ``RolloutBuffer`` / ``DictRolloutBuffer``; it is adapted to
        store chains as actions. None: one of these two, by the observation space
    :param rollout_buffer_kwargs: further keyword arguments of the buffer
    :param target_kl: an iteration's update ends when the approximate KL divergence exceeds 1.5 times this value; None: no
        limit
    :param stats_window_size: number of episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of TensorBoard logs; None: no TensorBoard log
    :param noise_learning_rate: learning rate of the noise network and the score coefficient, a float or schedule
    :param critic_learning_rate: learning rate of the critic, a float or schedule
    :param denoising_steps: Euler steps ``K`` per action
    :param score_drift: coefficient of the score: "learned" (ScoRe-Flow), "constant" or "none" (ReinFlow, arXiv 2505.22094)
    :param noise: standard deviation of a denoising step: "learned", "constant" (``max_std``) or "score_matched" (``sqrt(2
        alpha(t) / K)``: the coupled SDE)
    :param min_std: lower bound of a denoising step's standard deviation, in normalized action units
    :param max_std: upper bound of this standard deviation, a float or schedule (the published one is
        :class:`~sb3_scoreflow.HoldCosineSchedule`)
    :param noise_scale: factor of ``min_std``, ``max_std`` and ``learning_rate``, for which :func:`calibrate_noise` has a
        value; its square is a factor of the score coefficient. None: 1. If a clone's first training episodes earn less than
        70% of the demonstrations' return (or cost more than 1/0.7 times as much, if it is negative), with the other arguments
        of noise and ``learning_rate`` at their defaults, the next episodes try less noise without training, and the scale
        becomes the largest of 1, 1/2, 1/4 and 1/8 that keeps 70% of the return without noise (ours)
    :param single_step_fraction: share of the environments, in [0, 1], whose chains start from ``x_0 = 0`` and have a single
        noisy step, drawn at random, so that they explore around the deterministic action. 0: all steps of all chains are noisy
        (published)
    :param deterministic_coef: coefficient of a loss that trains the start of deterministic actions, ``x_0 = 0`` (ours,
        :meth:`ScoReFlowPolicy.deterministic_loss`), times the square of ``noise_scale``; 0: only the noisy chains are trained
        (published). None: 0.1 for a clone, 0 from scratch
    :param critic_warmup_iterations: number of iterations at the start that train only the critic
    :param normalize_reward: whether the critic's outputs are in units of the running standard deviation of the discounted
        return
    :param bc_coef: coefficient of the squared distance between the ODE actions of the policy and of the pretrained policy
    :param averaging_horizon: horizon, in transitions, of the exponential moving average of the weights that deterministic
        actions come from, a number or schedule; 0: they come from the current weights. None: from 10,000 to 2,500 for a
        clone, from 40,000 to 10,000 if its averages are not validated, 0 from scratch
    :param validation_fraction: share of the transitions, in [0, 0.5], of deterministic training episodes that validate the
        average: new weights produce deterministic actions only if they earned about as much as those in use, or more, in five
        or more such episodes. Nothing is learned from them, and rollout statistics leave them out (ours). 0: the average is
        used at once. None: 0.1 for a clone, 0 from scratch
    :param log_prob_clip: bound of the absolute normalized log-probability (1 in the official code, where it stops gradients at
        small standard deviations); None: no bound
    :param policy_kwargs: further keyword arguments of :class:`ScoReFlowPolicy` (``net_arch``, ``activation_fn``,
        ``score_scale``, ``score_clip``, ...)
    :param verbose: 0: no output, 1: info, 2: debug
    :param seed: seed of the random number generators; None: not seeded
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks at construction
    :param moved: ``score_scale`` and ``score_clip``, which are now entries of ``policy_kwargs`` (deprecated here)
    :raises ValueError: if an argument is invalid; the message names the argument, its value and a remedy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": ScoReFlowPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    capabilities = Capabilities(ratio=True, likelihoods=True, value_function=True)
    rules = RULES
    defaults = DEFAULTS
    followed = ("min_std", "max_std", "noise_scale", "single_step_fraction")
    learning_rates: ClassVar[dict[str, str]] = {**FlowPPO.learning_rates, "noise": "noise_learning_rate"}
    score_scale = MovedArgument("policy_kwargs", "policy", 1.0, fixed=True)
    score_clip = MovedArgument("policy_kwargs", "policy", 10.0)
    deterministic_coef: float

    def __init__(
        self,
        policy: str | type[ScoReFlowPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        n_epochs: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule | None = None,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        noise_learning_rate: float | Schedule | None = None,
        critic_learning_rate: float | Schedule | None = None,
        denoising_steps: int = 4,
        score_drift: ScoreDrift = "learned",
        noise: Noise = "learned",
        min_std: float = MIN_STD,
        max_std: float | Schedule | None = None,
        noise_scale: float | None = None,
        single_step_fraction: float = 0.0,
        deterministic_coef: float | None = None,
        critic_warmup_iterations: int = 0,
        normalize_reward: bool = True,
        bc_coef: float = 0.0,
        averaging_horizon: float | Schedule | None = None,
        validation_fraction: float | None = None,
        log_prob_clip: float | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **moved: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            critic_learning_rate=critic_learning_rate,
            denoising_steps=denoising_steps,
            critic_warmup_iterations=critic_warmup_iterations,
            normalize_reward=normalize_reward,
            bc_coef=bc_coef,
            averaging_horizon=averaging_horizon,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.noise_learning_rate = noise_learning_rate
        self.score_drift = score_drift
        self.noise = noise
        self.min_std = min_std
        self.max_std = max_std  # type: ignore[assignment]
        self.noise_scale = noise_scale  # type: ignore[assignment]
        self.validation_fraction = validation_fraction  # type: ignore[assignment]
        self.single_step_fraction = single_step_fraction
        self.deterministic_coef = deterministic_coef  # type: ignore[assignment]
        self.log_prob_clip = log_prob_clip
        take_moved(self, moved)

        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ set-up

    def _record_width(self) -> int:
        # With single noisy steps, the index of the stochastic step precedes the chain
        return (self.denoising_steps + 1) * get_action_dim(self.action_space) + (self.single_step_fraction > 0)

    def _policy_arguments(self) -> dict[str, Any]:
        names = ("denoising_steps", "score_drift", "noise", "min_std", "noise_scale", "single_step_fraction")
        max_std = self._bounded_std(as_schedule(self.max_std)(START))
        return {**{name: getattr(self, name) for name in names}, "max_std": max_std}

    def _check_combinations(self) -> None:
        max_std = as_schedule(self.max_std)
        for when, progress in (("starts", START), ("ends", END)):
            value = max_std(progress)
            if self._bounded_std(value) < self.min_std:
                raise ArgumentError(
                    f"max_std must not be below min_std={self.min_std}, but {when} at {value}: raise max_std, or lower "
                    "min_std."
                )
        super()._check_combinations()

    def _warn_of_arguments(self) -> None:
        super()._warn_of_arguments()
        clip_range = as_schedule(self.clip_range)(START)
        if clip_range >= _LARGE_CLIP_RANGE and "clip_range" not in self._at_default:
            warn(
                f"clip_range={clip_range:g} hardly clips: the ratio is a geometric mean over the chain's (K + 1) * action_dim "
                "numbers, so it moves far less than PPO's, for which 0.2 is usual. Leave clip_range out, or start from 0.02."
            )
        if self.denoising_steps == 1 and self.score_drift != "none":
            warn(
                f"score_drift={self.score_drift!r} with denoising_steps=1 only shrinks the initial noise (the only step is at "
                "t = 0, where the score is -x): set denoising_steps to 2 or more, or score_drift='none'."
            )

    def _default_depends_on(self, name: str) -> list[Any]:
        own: dict[str, float] = {"max_std": float(self.min_std), "clip_range": int(self.denoising_steps)}
        own["averaging_horizon"] = self._may_validate
        return [*super()._default_depends_on(name), own.get(name)]

    def _default(self, name: str) -> Any:
        value = super()._default(name)
        if name not in self.sizes and not self._pretrained:
            value = from_scratch(name, self.denoising_steps, get_action_dim(self.action_space))
            value = as_schedule(value) if name == "clip_range" else value
        if name == "averaging_horizon" and self._pretrained and not self._may_validate:
            return UNVALIDATED_HORIZON
        return above(value, self.min_std) if name == "max_std" else value

    def _prepare_rollout(self) -> None:
        super()._prepare_rollout()
        self.policy.single_step_fraction = self.single_step_fraction

    # ------------------------------------------------------------------ update

    def _losses(self, batch: RolloutBufferSamples, clip_range: float, log: UpdateLog) -> dict[str, th.Tensor]:
        chain, step = self.policy.split_record(batch.actions)
        evaluation = self.policy.evaluate_chain(batch.observations, chain, step)
        log.record({"entropy_loss": -evaluation.entropy.mean()})
        return {
            "policy_gradient_loss": self._policy_loss(evaluation, batch, clip_range, log),
            "entropy_loss": -self.ent_coef * evaluation.entropy.mean(),
            **self._deterministic_loss(evaluation, chain, log),
            **self._shared_losses(evaluation.values, chain[:, 0], batch, log),
        }

    def _deterministic_loss(self, evaluation: ChainEvaluation, chain: th.Tensor, log: UpdateLog) -> dict[str, th.Tensor]:
        """Loss of the start of deterministic actions; empty without ``deterministic_coef``."""
        if self.deterministic_coef == 0:
            return {}
        loss = self.policy.deterministic_loss(evaluation.features, chain[:, -1].clamp(-1.0, 1.0))
        log.record({"deterministic_loss": loss})
        return {"deterministic_loss": self.deterministic_coef * self.noise_scale**2 * loss}

    def _policy_loss(
        self, evaluation: ChainEvaluation, batch: RolloutBufferSamples, clip_range: float, log: UpdateLog
    ) -> th.Tensor:
        """PPO's clipped surrogate loss, with the normalized ratio of chains."""
        advantages = self._advantages(batch)
        log_prob, old_log_prob = evaluation.log_prob, batch.old_log_prob
        if self.log_prob_clip is not None:
            log.record({"log_prob_clip_fraction": (log_prob.abs() > self.log_prob_clip).float().mean()})
            log_prob, old_log_prob = (p.clamp(-self.log_prob_clip, self.log_prob_clip) for p in (log_prob, old_log_prob))
        log_ratio = log_prob - old_log_prob
        ratio = log_ratio.exp()
        loss = -th.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()
        actions = batch.actions[:, -self.policy.action_dim :]
        log.record({"policy_gradient_loss": loss, **chain_diagnostics(evaluation, actions, log_ratio.detach(), clip_range)})
        return loss

    def _log_update(self, log: UpdateLog) -> None:
        super()._log_update(log)
        with th.no_grad():
            t = flow.time_grid(self.denoising_steps, device=self.device)
            alpha = self.policy.score_coefficient(t)
        if alpha is not None:
            for time, value in zip(t.tolist(), alpha.tolist(), strict=True):
                self.logger.record(f"train/score_coefficient_t{time:.2f}", value)
        self.logger.record("train/max_std", self.policy.log_std_bounds[1].exp().item())
        self.logger.record("train/noise_scale", self.noise_scale)

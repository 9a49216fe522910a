"""ScoRe-Flow: PPO on the denoising chain of a flow-matching policy (arXiv 2604.10962)."""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import explained_variance

from sb3_scoreflow import flow
from sb3_scoreflow.algorithm import FlowAlgorithm
from sb3_scoreflow.bc import BehaviorCloning
from sb3_scoreflow.demonstrations import Demonstrations
from sb3_scoreflow.execution import Execution
from sb3_scoreflow.policies import FlowMatchingPolicy
from sb3_scoreflow.schedules import START, Constant, as_schedule
from sb3_scoreflow.scoreflow_ppo.arguments import RULES, check_combinations, warn_of_arguments
from sb3_scoreflow.scoreflow_ppo.buffers import with_chains
from sb3_scoreflow.scoreflow_ppo.critic_pretraining import CriticPretraining
from sb3_scoreflow.scoreflow_ppo.defaults import (
    DEFAULTS,
    SIZES,
    above,
    clip_range_from_scratch,
    default_sizes,
    sizes_from_scratch,
)
from sb3_scoreflow.scoreflow_ppo.diagnostics import chain_diagnostics
from sb3_scoreflow.scoreflow_ppo.policies import (
    ChainEvaluation,
    CnnPolicy,
    MlpPolicy,
    MultiInputPolicy,
    Noise,
    ScoreDrift,
    ScoReFlowPolicy,
)
from sb3_scoreflow.scoreflow_ppo.reward_scaling import ReturnStatistics, ReturnStatisticsCallback
from sb3_scoreflow.update_log import UpdateLog
from sb3_scoreflow.utils import DivergenceError, name_parameter_groups

#: Keeps advantages that are all equal, hence 0, from being divided by 0
_TINY = float(np.finfo(np.float32).tiny)


class ScoReFlowPPO(FlowAlgorithm):
    """
    PPO on the denoising chain of a flow policy; the score steers the mean, the variance is learned (arXiv 2604.10962).

    Arguments shared with :class:`stable_baselines3.PPO` keep its names and meaning. Arguments left at None get the values of
    ``sb3_scoreflow/scoreflow_ppo/defaults.py``, by whether the policy was pretrained.

    :param policy: "FlowPolicy" (features extractor by observation space), "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a
        class
    :param env: environment with a Box action space of finite bounds (a chunked one: see
        :class:`~sb3_scoreflow.ActionChunking`)
    :param learning_rate: of the velocity field, a float or schedule; 0 freezes it
    :param n_steps: steps per environment and iteration (of chunks, with ActionChunking); None: about 2048 over all
        environments, in whole minibatches; from scratch 256 per dimension of an action where that is less
    :param batch_size: minibatch size, in chains; None: 256, from scratch 64 per dimension of an action where that is less; or
        about that where it does not suit the number of environments
    :param n_epochs: passes over the rollout per iteration
    :param gamma: discount per step (per chunk, with ActionChunking)
    :param gae_lambda: trade-off of bias and variance in GAE
    :param clip_range: PPO's clip range of the ratio, a float or schedule; the ratio is a geometric mean over the chain's ``(K
        + 1) action_dim`` numbers, so it is far smaller than PPO's usual 0.2; None: 0.2 over the square root of that number
        from scratch, 0.02 for a pretrained policy
    :param clip_range_vf: clip range of the value function in units of the return's standard deviation, None to deactivate
    :param normalize_advantage: whether to normalise advantages per minibatch
    :param ent_coef: coefficient of the chain's entropy (normalised once by ``(K + 1) action_dim``)
    :param vf_coef: coefficient of the value loss
    :param max_grad_norm: largest gradient norm, for each parameter group by itself
    :param rollout_buffer_class: subclass of Stable-Baselines3's ``RolloutBuffer`` / ``DictRolloutBuffer``, which is made to
        store chains for actions
    :param rollout_buffer_kwargs: further keyword arguments of the buffer
    :param target_kl: end the iteration's update when the approximate KL divergence passes 1.5 times this value
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of tensorboard logs
    :param noise_learning_rate: of noise net and score coefficient, a float or schedule
    :param critic_learning_rate: of the critic, a float or schedule
    :param denoising_steps: Euler steps ``K`` per action
    :param score_drift: "learned" (ScoRe-Flow), "constant" or "none" (ReinFlow, arXiv 2505.22094)
    :param score_scale: ``c`` of the score coefficient ``alpha(t) = min((1 - t) softplus(g(t)) c, 2 c)``
    :param score_clip: bound of the absolute score
    :param noise: "learned", "constant" (``max_std``) or "score_matched" (``sqrt(2 alpha(t) / K)``: the coupled SDE)
    :param min_std: lower bound of a denoising step's standard deviation, in normalised action units
    :param max_std: its upper bound, a float or schedule (:class:`~sb3_scoreflow.HoldCosineSchedule` is the published one)
    :param critic_warmup_iterations: first iterations that train the critic only
    :param normalize_reward: whether the critic's unit is the running standard deviation of the discounted return
    :param bc_coef: coefficient of the squared distance between the ODE actions of policy and pretrained policy
    :param log_prob_clip: bound of the absolute normalised log-probability (1 in the official code, where it stops gradients at
        small standard deviations), None to deactivate
    :param policy_kwargs: further keyword arguments of the policy (``net_arch``, ``activation_fn``, ...)
    :param verbose: 0 nothing, 1 info, 2 debug
    :param seed: seed of the pseudo-random generators
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks at construction
    :raises ValueError: if an argument is impossible; the message names it, its value and the remedy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": ScoReFlowPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    rules = RULES
    defaults = DEFAULTS
    sizes = ("n_steps", "batch_size")
    policy: ScoReFlowPolicy
    batch_size: int

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
        score_scale: float = 1.0,
        score_clip: float = 10.0,
        noise: Noise = "learned",
        min_std: float = 0.1,
        max_std: float | Schedule | None = None,
        critic_warmup_iterations: int = 0,
        normalize_reward: bool = True,
        bc_coef: float = 0.0,
        log_prob_clip: float | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.batch_size = batch_size  # type: ignore[assignment]  # None is resolved in _setup_model, as all that may be None
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.noise_learning_rate = noise_learning_rate
        self.critic_learning_rate = critic_learning_rate
        self.denoising_steps = denoising_steps
        self.score_drift = score_drift
        self.score_scale = score_scale
        self.score_clip = score_clip
        self.noise = noise
        self.min_std = min_std
        self.max_std = max_std
        self.critic_warmup_iterations = critic_warmup_iterations
        self.normalize_reward = normalize_reward
        self.bc_coef = bc_coef
        self.log_prob_clip = log_prob_clip

        self.return_statistics = ReturnStatistics(gamma)
        self._reference_is_set = False

        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ set-up

    def _setup_model(self) -> None:
        super()._setup_model()
        warn_of_arguments(self)
        if self.bc_coef > 0:
            self.reference = self._make_reference()

    def _buffer_base(self) -> tuple[type[RolloutBuffer], str]:
        base = DictRolloutBuffer if isinstance(self.observation_space, spaces.Dict) else RolloutBuffer
        return base, " for these observations"

    def _adapted_buffer(self, buffer: type[RolloutBuffer]) -> type[RolloutBuffer]:
        return with_chains(buffer)

    def _buffer_arguments(self) -> dict[str, Any]:
        return dict(denoising_steps=self.denoising_steps)

    def _policy_arguments(self) -> dict[str, Any]:
        names = ("denoising_steps", "score_drift", "score_scale", "score_clip", "noise", "min_std")
        return {
            **{name: getattr(self, name) for name in names},
            "max_std": self._bounded_std(as_schedule(self.max_std)(START)),
        }

    def _check_combinations(self) -> None:
        check_combinations(self)
        for name in ("clip_range", "clip_range_vf"):  # PPO's can be called
            value = getattr(self, name)
            if isinstance(value, (int, float)):
                self.__dict__[name] = Constant(value)

    def _default(self, name: str) -> Any:
        if name in self.sizes:
            given: dict[str, Any] = {size: None if size in self._at_default else getattr(self, size) for size in self.sizes}
            about = SIZES if self._pretrained else sizes_from_scratch(get_action_dim(self.action_space), self.n_envs)
            return default_sizes(self.n_envs, **given, about=about)[name]
        if name == "clip_range" and not self._pretrained:
            return Constant(clip_range_from_scratch((self.denoising_steps + 1) * get_action_dim(self.action_space)))
        value = super()._default(name)
        if name == "clip_range":  # PPO's can be called
            return Constant(value)
        return above(value, self.min_std) if name == "max_std" else value

    def _make_reference(self) -> FlowMatchingPolicy:
        """
        The pretrained actor that ``bc_coef`` pulls towards: only the actor's part of the policy, filled by the first
        ``learn``.
        """
        policy = self.policy
        reference = FlowMatchingPolicy(
            self.observation_space,
            policy.action_space,  # type: ignore[arg-type]
            net_arch=policy.net_arch,
            activation_fn=policy.activation_fn,
            denoising_steps=self.denoising_steps,
            time_embedding_dim=policy.time_embedding_dim,
            prior_std=policy.prior_std,
            features_extractor_class=policy.features_extractor_class,
            features_extractor_kwargs=policy.features_extractor_kwargs,
            normalize_images=policy.normalize_images,
        ).to(self.device)
        reference.requires_grad_(False)
        reference.set_training_mode(False)
        return reference

    def _keep_reference(self) -> None:
        """The reference is the policy as it is now, if it is none of this policy's yet."""
        if self.bc_coef == 0:
            return
        if not hasattr(self, "reference"):  # bc_coef was set after construction
            self.reference = self._make_reference()
        # The flags differ where the weights of a clone were loaded into the policy itself.
        if not self._reference_is_set or bool(self.reference.pretrained) != bool(self.policy.pretrained):
            state = self.policy.state_dict()
            self.reference.load_state_dict({name: state[name] for name in self.reference.state_dict()})
            self._reference_is_set = True

    def on_pretrained(self) -> None:
        """
        As in :class:`FlowAlgorithm`; the optimizer's moments and the reference are forgotten too.
        """
        super().on_pretrained()
        self.policy.optimizer.state = defaultdict(dict)
        self._reference_is_set = False
        self._keep_reference()
        self._update_noise_bounds()

    def prepare_critic(
        self,
        demonstrations: Demonstrations,
        execution: Execution,
        n_batches: int | None,
        default_batches: int,
        batch_size: int,
        rng: np.random.Generator,
    ) -> Callable[[], dict[str, float]] | None:
        """See :meth:`FlowAlgorithm.prepare_critic`: the critic is fitted to the demonstrations' returns."""
        count = default_batches if n_batches is None else n_batches
        if count == 0:
            return None
        try:
            return CriticPretraining(self.policy, demonstrations, execution, self.gamma, count, batch_size, rng).run
        except ValueError as error:
            if n_batches is not None or isinstance(error, DivergenceError):
                raise
            if demonstrations.rewards.any():
                warnings.warn(f"{error} Cloning goes on without.", stacklevel=5)
            return None

    def pretrain_critic(
        self, demonstrations: Demonstrations, n_batches: int = 2000, batch_size: int = 256, seed: int | None = None
    ) -> dict[str, float]:
        """
        Fit the critic to the demonstrations' discounted returns, as :func:`~sb3_scoreflow.pretrain_bc` does after cloning;
        for a model that got its clone otherwise (:meth:`load_clone`).

        :param demonstrations: raw; their policy should be the one that was cloned
        :param n_batches: gradient steps
        :param batch_size: transitions per gradient step
        :param seed: of the minibatches, drawn from NumPy's global generator if None
        :return: "bc/critic_loss": mean loss of the last 100 batches, in squared units of the critic
        :raises ValueError: if there is no environment, the demonstrations do not fit it, or they say nothing about returns
        :raises DivergenceError: if the loss becomes NaN or infinite; the critic then is as it was
        """
        cloning = BehaviorCloning(self, demonstrations, clip_actions=True, batch_size=batch_size, seed=seed)
        return cloning.fit_critic(n_batches)

    # ------------------------------------------------------------------ hooks into Stable-Baselines3's loop

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # when Stable-Baselines3 resets the environments
            self.return_statistics.returns = np.zeros(0)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _own_callback(self) -> BaseCallback | None:
        return ReturnStatisticsCallback(self.return_statistics) if self.normalize_reward else None

    def _prepare_rollout(self) -> None:
        super()._prepare_rollout()
        self.return_statistics.gamma = self.gamma
        self._keep_reference()
        self._update_noise_bounds()

    def _bounded_std(self, max_std: float) -> float:
        """A schedule that ends at ``min_std`` may pass it by rounding."""
        return self.min_std if math.isclose(max_std, self.min_std, rel_tol=1e-6) else max_std

    def _update_noise_bounds(self) -> None:
        self.policy.set_std_bounds(self.min_std, self._bounded_std(self._scheduled("max_std")))

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        names = dict(velocity="learning_rate", noise="noise_learning_rate", critic="critic_learning_rate")
        assert isinstance(optimizers, th.optim.Optimizer)
        name_parameter_groups(optimizers, self.policy.parameter_groups())
        for group in optimizers.param_groups:
            name = names[group["name"]]
            group["lr"] = self._scheduled(name)
            self.logger.record(f"train/{name}", group["lr"])

    # ------------------------------------------------------------------ update

    def train(self) -> None:
        """Update policy and critic from the rollout buffer."""
        self._check_rollout()
        self._resolve_defaults()  # a callback may have cloned while the rollout was made
        self._keep_reference()
        self._count_transitions(self.rollout_buffer.rewards.size)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if self.normalize_reward:
            self.policy.set_value_scale(self.return_statistics.scale)
        elif self.policy.value_scale == 0:
            self.policy.set_value_scale(1.0)
        warming_up = self.n_iterations < self.critic_warmup_iterations
        log = UpdateLog()
        for epoch in range(self.n_epochs):
            completed = self._train_epoch(epoch, warming_up, log)
            self._n_updates += 1
            if not completed:
                break
        self.n_iterations += 1
        self._check_parameters()
        self._log_update(log)
        self._update_observation_statistics()
        self._update_noise_bounds()

    def _train_epoch(self, epoch: int, warming_up: bool, log: UpdateLog) -> bool:
        """
        One pass over the rollout.

        :return: False if ``target_kl`` ended the update
        """
        clip_range = self._scheduled("clip_range")
        for batch in self.rollout_buffer.get(self.batch_size):
            if warming_up:
                values = self.policy.predict_values(batch.observations).flatten()
                losses = {"value_loss": self.vf_coef * self._value_loss(values, batch, log)}
            else:
                chain = batch.actions.view(len(batch.actions), self.denoising_steps + 1, -1)
                evaluation = self.policy.evaluate_chain(batch.observations, chain)
                losses = {
                    "policy_gradient_loss": self._policy_loss(evaluation, batch, clip_range, log),
                    "entropy_loss": -self.ent_coef * evaluation.entropy.mean(),
                    "value_loss": self.vf_coef * self._value_loss(evaluation.values, batch, log),
                }
                if self.bc_coef > 0:
                    losses["bc_loss"] = self.bc_coef * self._bc_loss(batch, chain[:, 0], log)
                log.record({"entropy_loss": -evaluation.entropy.mean()})
                if self.target_kl is not None and log.minibatch["approx_kl"] > 1.5 * self.target_kl:
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {log.minibatch['approx_kl']:.2g}")
                    log.end_minibatch()
                    return False
            self._step(losses, log)
            log.end_minibatch()
        return True

    def _policy_loss(
        self, evaluation: ChainEvaluation, batch: RolloutBufferSamples, clip_range: float, log: UpdateLog
    ) -> th.Tensor:
        """PPO's clipped surrogate on the chain's normalised ratio."""
        advantages = batch.advantages
        if self.normalize_advantage and len(advantages) > 1:
            # Not Stable-Baselines3's absolute 1e-8, which has the unit of the rewards
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8 * advantages.abs().max() + _TINY)
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

    def _value_loss(self, values: th.Tensor, batch: RolloutBufferSamples, log: UpdateLog) -> th.Tensor:
        """Squared error in units of the critic's scale, which keeps the loss of order 1 for any reward."""
        if self.clip_range_vf is not None:
            bound = self._scheduled("clip_range_vf") * self.policy.value_scale
            values = batch.old_values + th.maximum(th.minimum(values - batch.old_values, bound), -bound)
        loss = ((batch.returns - values) / self.policy.value_scale).pow(2).mean()
        log.record({"value_loss": loss})
        return loss

    def _bc_loss(self, batch: RolloutBufferSamples, noise: th.Tensor, log: UpdateLog) -> th.Tensor:
        """Squared distance between the ODE actions of the policy and of the pretrained one, from the same noise."""
        actions = self.policy.sample_ode(batch.observations, noise)
        with th.no_grad():
            target = self.reference.sample_ode(batch.observations, noise)
        loss = (actions - target).pow(2).mean()
        log.record({"bc_loss": loss})
        return loss

    def _step(self, losses: dict[str, th.Tensor], log: UpdateLog) -> None:
        """
        One optimizer step, each parameter group's gradient clipped by itself so that the critic's cannot drown the actor's.
        """
        self._check_losses(losses)
        loss = th.stack(list(losses.values())).sum()
        log.record({"loss": loss})
        self.policy.optimizer.zero_grad()
        loss.backward()
        for group in self.policy.optimizer.param_groups:
            norm = th.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
            log.record({f"grad_norm_{group['name']}": norm})
        self.policy.optimizer.step()

    def _log_update(self, log: UpdateLog) -> None:
        for name, value in log.summary().items():
            self.logger.record(f"train/{name}", value)
        buffer = self.rollout_buffer
        self.logger.record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        with th.no_grad():
            t = flow.time_grid(self.denoising_steps, device=self.device)
            alpha = self.policy.score_coefficient(t)
        if alpha is not None:
            for time, value in zip(t.tolist(), alpha.tolist(), strict=True):
                self.logger.record(f"train/score_coefficient_t{time:.2f}", value)
        self.logger.record("train/max_std", self.policy.log_std_bounds[1].exp().item())
        self.logger.record("train/value_scale", self.policy.value_scale.item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in ["clip_range"] if self.clip_range_vf is None else ["clip_range", "clip_range_vf"]:
            self.logger.record(f"train/{name}", self._scheduled(name))

    # ------------------------------------------------------------------ saved parameters

    def _own_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """
        With ``bc_coef``, parameters saved without it take their own weights as the reference policy; without it, a saved
        reference policy is left out.
        """
        if not hasattr(self, "reference"):
            parameters.pop("reference", None)
        elif "reference" not in parameters and "policy" in parameters:
            names = self.reference.state_dict().keys() & parameters["policy"].keys()
            parameters["reference"] = {name: parameters["policy"][name] for name in names}
        return parameters

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, variables = super()._get_torch_save_params()
        return [*names, *(["reference"] if hasattr(self, "reference") else [])], variables

"""PPO on a flow policy, independent of how the ratio is computed: rollouts with records, critic, minibatches, logs."""

from collections import defaultdict
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import explained_variance

from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.schedules import as_schedule
from sb3_scoreflow.common.update_log import UpdateLog
from sb3_scoreflow.common.utils import ArgumentError, name_parameter_groups, warn
from sb3_scoreflow.ppo.buffers import WideActions, with_wide_actions
from sb3_scoreflow.ppo.clone_checking import CloneCheckingPPO
from sb3_scoreflow.ppo.policies import ActorCriticFlowPolicy
from sb3_scoreflow.ppo.reward_scaling import ReturnStatistics, ReturnStatisticsCallback
from sb3_scoreflow.ppo.sizes import SIZES, default_sizes, sizes_from_scratch

#: Avoids division by 0 if all advantages of a minibatch are equal
_TINY = float(np.finfo(np.float32).tiny)


class FlowPPO(CloneCheckingPPO):
    """
    PPO's loop on a flow policy. Subclasses define the content of an action's record (:meth:`_record_width`) and the ratio
    (:meth:`_losses`).

    :param policy: alias, or a subclass of the policy class behind the alias "FlowPolicy"
    :param env: environment
    :param batch_size: minibatch size; None: chosen to suit the number of environments
    :param n_epochs: passes over the rollout per iteration
    :param clip_range: PPO's clip range of the ratio
    :param clip_range_vf: clip range of the value function in units of the critic's output (with ``normalize_reward``, the
        return's standard deviation); None: no clipping
    :param normalize_advantage: whether to normalize advantages per minibatch
    :param target_kl: an iteration's update ends when the approximate KL divergence exceeds 1.5 times this value; None: no
        limit
    :param critic_learning_rate: learning rate of the critic
    :param denoising_steps: Euler steps ``K`` per action
    :param critic_warmup_iterations: number of iterations at the start that train only the critic
    :param normalize_reward: whether the critic's outputs are in units of the running standard deviation of the discounted
        return
    :param bc_coef: coefficient of the squared distance between the ODE actions of the policy and of the pretrained policy
    :param averaging_horizon: horizon, in transitions, of the exponential moving average of the weights that deterministic
        actions come from, a number or schedule; 0: they come from the current weights; None: the subclass's default
    :param kwargs: further arguments of :class:`~sb3_scoreflow.common.algorithm.FlowAlgorithm`
    """

    sizes = ("n_steps", "batch_size")
    #: Parameter group of the policy -> argument with its learning rate
    learning_rates: ClassVar[dict[str, str]] = dict(velocity="learning_rate", critic="critic_learning_rate")
    policy: ActorCriticFlowPolicy
    rollout_buffer: WideActions
    batch_size: int

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *,
        batch_size: int | None,
        n_epochs: int,
        clip_range: float | Schedule | None,
        clip_range_vf: float | Schedule | None,
        normalize_advantage: bool,
        target_kl: float | None,
        critic_learning_rate: float | Schedule | None,
        denoising_steps: int,
        critic_warmup_iterations: int,
        normalize_reward: bool,
        bc_coef: float,
        averaging_horizon: float | Schedule | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, **kwargs)
        self.batch_size = batch_size  # type: ignore[assignment]  # _setup_model resolves None, as in all these arguments
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.critic_learning_rate = critic_learning_rate
        self.denoising_steps = denoising_steps
        self.critic_warmup_iterations = critic_warmup_iterations
        self.normalize_reward = normalize_reward
        self.bc_coef = bc_coef
        self.averaging_horizon = averaging_horizon  # type: ignore[assignment]
        self.return_statistics = ReturnStatistics(self.gamma)
        self._reference_is_set = False

    # ------------------------------------------------------------------ methods of subclasses

    def _record_width(self) -> int:
        """Number of values that the buffer stores per action; the last ``action_dim`` values are the action itself."""
        raise NotImplementedError

    def _losses(self, batch: RolloutBufferSamples, clip_range: float, log: UpdateLog) -> dict[str, th.Tensor]:
        """Terms of a minibatch's loss, including :meth:`_shared_losses`; every implementation must record "approx_kl"."""
        raise NotImplementedError

    # ------------------------------------------------------------------ set-up

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.bc_coef > 0:
            self.reference = self._make_reference()

    def _buffer_base(self) -> tuple[type[RolloutBuffer], str]:
        base = DictRolloutBuffer if isinstance(self.observation_space, spaces.Dict) else RolloutBuffer
        return base, " for these observations"

    def _adapted_buffer(self, buffer: type[RolloutBuffer]) -> type[RolloutBuffer]:
        return with_wide_actions(buffer)

    def _buffer_arguments(self) -> dict[str, Any]:
        return dict(action_width=self._record_width())

    def _check_combinations(self) -> None:
        size = self.n_steps * self.n_envs
        if self.normalize_advantage and min(self.batch_size, size) == 1:
            raise ArgumentError(
                f"normalize_advantage needs minibatches of at least 2 transitions, got batch_size={self.batch_size} and "
                f"n_steps * n_envs = {size}: raise them, or pass normalize_advantage=False."
            )
        for name in ("clip_range", "clip_range_vf"):  # as PPO does
            if getattr(self, name) is not None:
                self.__dict__[name] = as_schedule(getattr(self, name))

    def _warn_of_arguments(self) -> None:
        size = self.n_steps * self.n_envs
        if size % self.batch_size:
            warn(
                f"batch_size={self.batch_size} does not divide the rollout of n_steps * n_envs = {self.n_steps} * "
                f"{self.n_envs} = {size} transitions: in every epoch there will be a truncated mini-batch of size "
                f"{size % self.batch_size}. Choose a batch_size that is a factor of {size}, or leave out n_steps."
            )

    def _given_sizes(self) -> dict[str, int | None]:
        return {size: None if size in self._at_default else int(getattr(self, size)) for size in self.sizes}

    def _default_depends_on(self, name: str) -> list[Any]:
        depends = super()._default_depends_on(name)
        return [*depends, self._given_sizes()] if name in self.sizes else depends

    def _default(self, name: str) -> Any:
        if name in self.sizes:
            given = self._given_sizes()
            about = SIZES if self._pretrained else sizes_from_scratch(get_action_dim(self.action_space), self.n_envs)
            return default_sizes(self.n_envs, **given, about=about)[name]
        value = super()._default(name)
        return as_schedule(value) if name == "clip_range" else value

    def _make_reference(self) -> FlowMatchingPolicy:
        """
        The pretrained actor toward which ``bc_coef`` pulls the policy. It consists of the actor's part of the policy; the
        first ``learn`` sets its weights.
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
        """Copy the current weights into the reference policy, unless it already has weights of this policy."""
        if self.bc_coef == 0:
            return
        if not hasattr(self, "reference"):  # bc_coef was set after construction
            self.reference = self._make_reference()
        # The flags differ if the weights of a clone were loaded directly into the policy.
        if not self._reference_is_set or bool(self.reference.pretrained) != bool(self.policy.pretrained):
            state = self.policy.state_dict()
            self.reference.load_state_dict({name: state[name] for name in self.reference.state_dict()})
            self._reference_is_set = True

    def on_pretrained(self) -> None:
        """
        As in :class:`FlowAlgorithm`; also resets the optimizer's moments and the reference policy.
        """
        super().on_pretrained()
        self.policy.optimizer.state = defaultdict(dict)
        self._reference_is_set = False
        self._keep_reference()

    # ------------------------------------------------------------------ hooks into Stable-Baselines3's loop

    def _restart_episodes(self) -> None:
        super()._restart_episodes()
        self.return_statistics.returns = np.zeros(0)

    def _own_callback(self) -> BaseCallback | None:
        return ReturnStatisticsCallback(self.return_statistics) if self.normalize_reward else None

    def _prepare_rollout(self) -> None:
        super()._prepare_rollout()
        if self.rollout_buffer.action_dim != self._record_width():
            self._make_buffer()
        self.return_statistics.gamma = self.gamma
        self._keep_reference()

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        assert isinstance(optimizers, th.optim.Optimizer)
        name_parameter_groups(optimizers, self.policy.parameter_groups())
        for group in optimizers.param_groups:
            name = self.learning_rates[group["name"]]
            group["lr"] = self._scheduled(name)
            self.logger.record(f"train/{name}", group["lr"])

    # ------------------------------------------------------------------ update

    def train(self) -> None:
        """Update policy and critic from the rollout buffer."""
        self._check_rollout()
        self._resolve_defaults()  # a callback may have cloned demonstrations during the rollout
        self._notice_clone()
        self._keep_reference()
        self._count_transitions(self.rollout_buffer.rewards.size)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if self.normalize_reward:
            self.policy.set_value_scale(self.return_statistics.scale)
        elif self.policy.value_scale == 0:
            self.policy.set_value_scale(1.0)
        self._begin_averaging()
        log = UpdateLog()
        for epoch in range(self.n_epochs):
            completed = self._train_epoch(epoch, log)
            self._n_updates += 1
            if not completed:
                break
        self.n_iterations += 1
        self._average()
        self._check_parameters()
        self._log_update(log)
        self._update_observation_statistics()

    def _trains_critic_only(self) -> bool:
        """:return: whether the current update leaves the actor as it is"""
        return self.n_iterations < self.critic_warmup_iterations

    def _train_epoch(self, epoch: int, log: UpdateLog) -> bool:
        """
        One pass over the rollout.

        :return: False if ``target_kl`` ended the update
        """
        clip_range = self._scheduled("clip_range")
        for batch in self.rollout_buffer.get(self.batch_size):
            if self._trains_critic_only():
                values = self.policy.predict_values(batch.observations).flatten()
                losses = {"value_loss": self.vf_coef * self._value_loss(values, batch, log)}
            else:
                losses = self._losses(batch, clip_range, log)
                if self.target_kl is not None and log.minibatch["approx_kl"] > 1.5 * self.target_kl:
                    if self.verbose >= 1:
                        print(f"Early stopping at step {epoch} due to reaching max kl: {log.minibatch['approx_kl']:.2g}")
                    log.end_minibatch()
                    return False
            self._step(losses, log)
            log.end_minibatch()
        return True

    def _shared_losses(
        self, values: th.Tensor, noise: th.Tensor, batch: RolloutBufferSamples, log: UpdateLog
    ) -> dict[str, th.Tensor]:
        """
        :param values: the critic's values of the minibatch, shape ``(batch,)``
        :param noise: initial noise ``x_0`` of the minibatch's actions, shape ``(batch, action_dim)``
        :param batch: the minibatch
        :param log: collects the logged values
        :return: the value loss and, if ``bc_coef`` is positive, the loss that pulls the policy toward the pretrained one
        """
        losses = {"value_loss": self.vf_coef * self._value_loss(values, batch, log)}
        if self.bc_coef > 0:
            losses["bc_loss"] = self.bc_coef * self._bc_loss(batch, noise, log)
        return losses

    def _advantages(self, batch: RolloutBufferSamples) -> th.Tensor:
        """Advantages of a minibatch, normalized with ``normalize_advantage``."""
        advantages = batch.advantages
        if self.normalize_advantage and len(advantages) > 1:
            # Stable-Baselines3 adds 1e-8, a constant in units of the rewards
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8 * advantages.abs().max() + _TINY)
        return advantages

    def _value_loss(self, values: th.Tensor, batch: RolloutBufferSamples, log: UpdateLog) -> th.Tensor:
        """Squared error in units of the critic's scale, so that the loss has order 1 for any unit of the rewards."""
        if self.clip_range_vf is not None:
            bound = self._scheduled("clip_range_vf") * self.policy.value_scale
            values = batch.old_values + th.maximum(th.minimum(values - batch.old_values, bound), -bound)
        loss = ((batch.returns - values) / self.policy.value_scale).pow(2).mean()
        log.record({"value_loss": loss})
        return loss

    def _bc_loss(self, batch: RolloutBufferSamples, noise: th.Tensor, log: UpdateLog) -> th.Tensor:
        """Squared distance between the ODE actions of the policy and of the pretrained policy for the same noise."""
        actions = self.policy.sample_ode(batch.observations, noise)
        with th.no_grad():
            target = self.reference.sample_ode(batch.observations, noise)
        loss = (actions - target).pow(2).mean()
        log.record({"bc_loss": loss})
        return loss

    def _step(self, losses: dict[str, th.Tensor], log: UpdateLog) -> None:
        """
        One optimizer step. Each parameter group's gradient is clipped separately, so that a large gradient of the critic does
        not shrink the actor's.
        """
        self._check_losses(losses)
        loss = th.stack(list(losses.values())).sum()
        log.record({"loss": loss})
        self.policy.optimizer.zero_grad()
        loss.backward()
        for group in self.policy.optimizer.param_groups:
            norm = th.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
            # The norm of no gradients, such as the actor's while only the critic trains, is on the CPU
            log.record({f"grad_norm_{group['name']}": norm.to(self.device)})
        self.policy.optimizer.step()

    def _log_update(self, log: UpdateLog) -> None:
        for name, value in log.summary().items():
            self.logger.record(f"train/{name}", value)
        values, returns = (
            part.flatten()[self.rollout_buffer.learned] for part in (self.rollout_buffer.values, self.rollout_buffer.returns)
        )
        self.logger.record("train/explained_variance", explained_variance(values, returns))
        self.logger.record("train/value_scale", self.policy.value_scale.item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in ["clip_range"] if self.clip_range_vf is None else ["clip_range", "clip_range_vf"]:
            self.logger.record(f"train/{name}", self._scheduled(name))

    # ------------------------------------------------------------------ saved parameters

    def _own_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """
        With ``bc_coef``, parameters saved without it use their own weights as the reference policy. Without ``bc_coef``, a
        saved reference policy is ignored.
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

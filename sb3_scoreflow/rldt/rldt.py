"""The RLDT algorithm: density transport with a Stein variational field (arXiv 2606.08602)."""

import math
from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule

from sb3_scoreflow.common.capabilities import Capabilities
from sb3_scoreflow.common.moved_arguments import MovedArgument, take_moved
from sb3_scoreflow.common.observations import take
from sb3_scoreflow.common.rollback import RollbackAlgorithm
from sb3_scoreflow.common.update_log import UpdateLog
from sb3_scoreflow.common.utils import DivergenceError, name_parameter_groups, warn
from sb3_scoreflow.rldt.actor import Reference, actor_diagnostics, evaluate_actor
from sb3_scoreflow.rldt.arguments import RULES
from sb3_scoreflow.rldt.buffers import RolloutHistory, TrajectoryBatch
from sb3_scoreflow.rldt.critic import critic_batches, critic_loss, critic_targets, encode
from sb3_scoreflow.rldt.defaults import DEFAULTS, ITERATION_SIZE
from sb3_scoreflow.rldt.history import HistoryAlgorithm
from sb3_scoreflow.rldt.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, RLDTPolicy
from sb3_scoreflow.rldt.transport import Transport

SelfRLDT = TypeVar("SelfRLDT", bound="RLDT")

#: Parameter group of the policy's optimizer -> argument that gives its learning rate
RATE_NAMES = dict(velocity="learning_rate", critic="critic_learning_rate", encoder="encoder_learning_rate")


class RLDT(RollbackAlgorithm, HistoryAlgorithm):
    """
    Density transport without likelihoods: particles drawn from the flow are moved along a Stein variational field of ``Q``,
    and the flow is trained to follow them (arXiv 2606.08602).

    Arguments shared with Stable-Baselines3's algorithms keep their names and meaning. Arguments left at None get the values in
    ``sb3_scoreflow/rldt/defaults.py``, which depend on whether the policy was pretrained; ``PRESETS`` in the same file
    contains the published settings.

    :param policy: "FlowPolicy" (chooses the features extractor by the observation space), "MlpPolicy", "CnnPolicy",
        "MultiInputPolicy", or a policy class
    :param env: environment whose action space is a Box with finite bounds; to predict several actions at once, wrap it in
        :class:`~sb3_scoreflow.ActionChunking`
    :param learning_rate: learning rate of the velocity field, a float or schedule; 0 freezes it
    :param n_steps: steps per environment and iteration (chunks, with ActionChunking); None: 1000 over all environments
    :param batch_size: minibatch size of every critic, in transitions
    :param gamma: discount per step (per chunk, with ActionChunking)
    :param critic_learning_rate: learning rate of the Q networks, a float or schedule
    :param encoder_learning_rate: learning rate of the critics' features extractor, a float or schedule; None:
        ``critic_learning_rate``. If it is 0, features are computed once per refresh instead of once per critic step
    :param critic_steps: gradient steps of the critics per iteration
    :param n_refreshes: number of times per iteration that trajectories, next actions and targets are drawn again; critic and
        actor steps are divided evenly among these refreshes
    :param refresh_size: number of transitions drawn in each refresh (rounded up to complete trajectories)
    :param tau: share of the online critics' weights in the update of the targets after every critic step, in (0, 1]
    :param td_lambda: ``lambda`` of the TD(lambda) targets, in [0, 1]; None: 0 from scratch, and 0.95 for a clone, because the
        critics must learn the values of its long episodes before the clone changes (ours)
    :param target_clip: bounds ``(low, high)`` of the targets, after division by the reward scale; None: no bounds
    :param reward_scale: divisor of the rewards: a number, or "ema", a running mean of ``|r|`` over the steps whose reward is
        not 0 (ours: over all steps, rare successes would result in a tiny divisor)
    :param random_shift: largest random shift of the images on which the critics are trained, in pixels; 0: no shift
    :param critic_warmup_transitions: number of transitions at the start during which only the critics are trained; with
        ActionChunking, a transition is a chunk
    :param actor_steps: gradient steps of the actor per iteration
    :param actor_batch_size: states per actor step
    :param n_particles: particles per state
    :param transport: settings of the field that moves the particles: a :class:`~sb3_scoreflow.rldt.Transport`, or a dict of
        its entries (``kernel``, ``bandwidth``, ``temperature``, ``temperature_scaling``)
    :param consistency_coef: weight of the distance between the predicted and the actual endpoint of the chain
    :param fisher_coef: weight of the distance to the velocity field before the iteration
    :param max_shift: largest change of the flow per iteration, as a share of the particles' spread
        (:func:`~sb3_scoreflow.rldt.actor.relative_shift`): an iteration that exceeds it lowers the actor's learning rate in
        proportion, and an iteration that stays below half of it raises the rate by half, up to ``learning_rate`` (ours). It
        has no effect with a single actor step per iteration. None: 0.3 for a clone whose ``learning_rate`` is also None,
        otherwise no limit (``math.inf``)
    :param averaging_horizon: horizon, in transitions, of the exponential moving average of the weights that deterministic
        actions come from, a number or schedule; 0: they come from the current weights. None: 20,000 for a clone, 0 from
        scratch
    :param rollback: whether the actor of a clone goes back to its best weights if the last training episodes (at least 20)
        earn less than those before, by more than two standard errors; the critics, which have learned from these episodes,
        keep their weights (ours). It has no effect from scratch, or if ``Monitor`` does not record the episodes
    :param learning_rate_warmup_steps: number of actor steps over which the actor's learning rate rises linearly from 0
    :param denoising_steps: Euler steps ``K`` per action
    :param max_grad_norm: largest gradient norm of each parameter group; groups are clipped separately
    :param rollout_buffer_class: subclass of the package's ``RolloutHistory``
    :param rollout_buffer_kwargs: further keyword arguments of the buffer (``history_size``, ``new_fraction``,
        ``balance_success``, see :class:`~sb3_scoreflow.rldt.RolloutHistory`). A saved model contains its rollouts only after
        ``model.save(path, include=["rollout_buffer"])``
    :param stats_window_size: number of episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of TensorBoard logs; None: no TensorBoard log
    :param policy_kwargs: further keyword arguments of :class:`RLDTPolicy` (``net_arch``, ``activation_fn``, ``n_critics``,
        ``n_bootstrap_actions``, ``exploration_scale``, ``exploration_steps``, ...)
    :param verbose: 0: no output, 1: info, 2: debug
    :param seed: seed of the random number generators; None: not seeded
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks at construction
    :param moved: arguments of 0.1.0 that are now entries of ``policy_kwargs``, ``rollout_buffer_kwargs`` or ``transport``
        (deprecated here)
    :raises ValueError: if an argument is invalid; the message names the argument, its value and a remedy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": RLDTPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    capabilities = Capabilities(q_function=True, replay=True)
    rules = RULES
    defaults = DEFAULTS
    n_critics = MovedArgument("policy_kwargs", "policy", 2, fixed=True)
    n_bootstrap_actions = MovedArgument("policy_kwargs", "policy", 2)
    exploration_scale = MovedArgument("policy_kwargs", "policy", 1.0)
    exploration_steps = MovedArgument("policy_kwargs", "policy", 2)
    history_size = MovedArgument("rollout_buffer_kwargs", "rollout_buffer", 20, fixed=True)
    new_fraction = MovedArgument("rollout_buffer_kwargs", "rollout_buffer", 1 / 3)
    balance_success = MovedArgument("rollout_buffer_kwargs", "rollout_buffer", False)
    kernel = MovedArgument("transport", "transport", "rbf")
    bandwidth = MovedArgument("transport", "transport", None)
    temperature = MovedArgument("transport", "transport", 1e-3)
    temperature_scaling = MovedArgument("transport", "transport", "gradient")
    policy: RLDTPolicy
    rollout_buffer: RolloutHistory
    critic_steps: int
    td_lambda: float
    critic_warmup_transitions: int
    actor_steps: int
    actor_batch_size: int
    n_particles: int
    max_shift: float

    def __init__(
        self,
        policy: str | type[RLDTPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule | None = None,
        n_steps: int | None = None,
        batch_size: int = 256,
        gamma: float = 0.99,
        critic_learning_rate: float | Schedule | None = None,
        encoder_learning_rate: float | Schedule | None = None,
        critic_steps: int | None = None,
        n_refreshes: int = 16,
        refresh_size: int = 4096,
        tau: float = 0.005,
        td_lambda: float | None = None,
        target_clip: tuple[float, float] | None = None,
        reward_scale: Literal["ema"] | float = "ema",
        random_shift: int = 4,
        critic_warmup_transitions: int | None = None,
        actor_steps: int | None = None,
        actor_batch_size: int | None = None,
        n_particles: int | None = None,
        transport: Transport | dict[str, Any] | None = None,
        consistency_coef: float = 0.5,
        fisher_coef: float = 0.2,
        max_shift: float | None = None,
        averaging_horizon: float | Schedule | None = None,
        rollback: bool = True,
        learning_rate_warmup_steps: int = 320,
        denoising_steps: int = 4,
        max_grad_norm: float = 1.0,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
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
            gamma=gamma,
            gae_lambda=1.0,  # gae_lambda, ent_coef and vf_coef belong to policy gradients and are not used
            ent_coef=0.0,
            vf_coef=0.0,
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
        self.batch_size = batch_size
        self.critic_learning_rate = critic_learning_rate
        self.encoder_learning_rate = encoder_learning_rate
        self.critic_steps = critic_steps  # type: ignore[assignment]  # None is resolved in _setup_model
        self.n_refreshes = n_refreshes
        self.refresh_size = refresh_size
        self.tau = tau
        self.td_lambda = td_lambda  # type: ignore[assignment]
        self.target_clip = target_clip
        self.reward_scale = reward_scale
        self.random_shift = random_shift
        self.critic_warmup_transitions = critic_warmup_transitions  # type: ignore[assignment]
        self.actor_steps = actor_steps  # type: ignore[assignment]
        self.actor_batch_size = actor_batch_size  # type: ignore[assignment]
        self.n_particles = n_particles  # type: ignore[assignment]
        # Copied, so that models created with the same object do not share it.
        self.transport: Transport = replace(transport) if isinstance(transport, Transport) else transport  # type: ignore[assignment]
        self.consistency_coef = consistency_coef
        self.fisher_coef = fisher_coef
        self.max_shift = max_shift  # type: ignore[assignment]
        self.averaging_horizon = averaging_horizon  # type: ignore[assignment]
        self.rollback = rollback
        self.learning_rate_warmup_steps = learning_rate_warmup_steps
        self.denoising_steps = denoising_steps
        take_moved(self, moved)

        #: Gradient steps of the actor since construction or pretraining
        self.n_actor_updates = 0
        #: Share of ``learning_rate`` that ``max_shift`` leaves
        self.actor_rate_factor = 1.0

        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ set-up

    def _warn_of_arguments(self) -> None:
        if self.transport.kernel == "rbf" and self.n_particles == 1:
            warn(
                "n_particles=1 leaves no other particle that the kernel could repel: use 4 or more particles, or "
                "transport=dict(kernel='delta')."
            )

    def _policy_arguments(self) -> dict[str, Any]:
        return dict(denoising_steps=self.denoising_steps)

    def _default_depends_on(self, name: str) -> list[Any]:
        depends = super()._default_depends_on(name)
        return [*depends, "learning_rate" in self._at_default] if name == "max_shift" else depends

    def _default(self, name: str) -> Any:
        if name == "n_steps":
            return max(ITERATION_SIZE // self.n_envs, 1)
        if name == "max_shift" and "learning_rate" not in self._at_default:
            return math.inf  # a learning rate that the user sets is used as it is
        return super()._default(name)

    def on_pretrained(self) -> None:
        """
        As in :class:`FlowAlgorithm`; also resets the optimizer's moments, and the warm-up of the critics and of the actor's
        learning rate.
        """
        super().on_pretrained()
        self.policy.optimizer.state = defaultdict(dict)
        self.n_actor_updates, self.actor_rate_factor = 0, 1.0

    # ------------------------------------------------------------------ hooks into Stable-Baselines3's loop

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        size, warmup = self.n_steps * self.n_envs, self.critic_warmup_transitions
        planned = -(-total_timesteps // size) * size
        if planned > 0 and self.actor_steps > 0 and self.n_transitions + planned <= warmup:
            warn(
                f"learn(total_timesteps={total_timesteps}) ends within the critics' warm-up: the actor will not change before "
                f"critic_warmup_transitions={warmup} transitions ({self.n_transitions} so far). Train longer, or lower "
                "critic_warmup_transitions.",
            )
        return result

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        assert isinstance(optimizers, th.optim.Optimizer)
        name_parameter_groups(optimizers, self.policy.parameter_groups())
        rates = dict(velocity=self._scheduled("learning_rate"), critic=self._scheduled("critic_learning_rate"))
        rates["encoder"] = self._encoder_rate()
        if self.n_actor_updates < self.learning_rate_warmup_steps:
            rates["velocity"] *= (self.n_actor_updates + 1) / self.learning_rate_warmup_steps
        rates["velocity"] *= self.actor_rate_factor
        for group in optimizers.param_groups:
            group["lr"] = rates[group["name"]]

    def _encoder_rate(self) -> float:
        return self._scheduled("critic_learning_rate" if self.encoder_learning_rate is None else "encoder_learning_rate")

    # ------------------------------------------------------------------ update

    @property
    def _is_actor_unchanged(self) -> bool:
        return self.n_actor_updates == 0

    def train(self) -> None:
        """Update critics and actor from the rollout history."""
        try:
            self._check_rollout()
        except DivergenceError:
            self.rollout_buffer.discard_last()  # otherwise it would be sampled again if training continued
            raise
        self.policy.set_training_mode(True)
        self._update_reward_scale()
        self._resolve_defaults()  # a callback may have cloned the policy during the rollout
        self._count_transitions(self.rollout_buffer.rewards.size)
        self._begin_averaging()
        self._judge_actor()
        if self.max_shift == math.inf:
            self.actor_rate_factor = 1.0  # without a limit, the learning rate applies in full at once
        warming_up = self.n_transitions <= self.critic_warmup_transitions
        reference = Reference(deepcopy(self.policy.features_extractor), deepcopy(self.policy.velocity_field))
        log = UpdateLog()
        n_trajectories = -(-self.refresh_size // self.n_steps)
        shift = None
        for refresh in range(self.n_refreshes):
            batch = self.rollout_buffer.sample(n_trajectories, self._renormalization())
            self._train_critic(batch, self._share(self.critic_steps, refresh), log)
            if not warming_up:
                last = self._train_actor(batch, reference, self._share(self.actor_steps, refresh), log)
                shift = shift if last is None else last
        if shift is not None:
            self._adapt_rate(shift.item())
        self.n_iterations += 1
        self._average()
        self._check_parameters()
        self._log_update(log)
        self._update_observation_statistics()

    def _share(self, total: int, refresh: int) -> int:
        """:return: number of steps in one refresh; the numbers of all refreshes sum to ``total``"""
        return (refresh + 1) * total // self.n_refreshes - refresh * total // self.n_refreshes

    def _train_critic(self, batch: TrajectoryBatch, n_batches: int, log: UpdateLog) -> None:
        if n_batches == 0:
            return
        targets = critic_targets(self.policy, batch, self.gamma, self.td_lambda, self.target_clip, self.random_shift)
        log.record({"td_target_min": targets.min(), "td_target_max": targets.max()})
        log.end_minibatch()
        encoder = list(self.policy.critic_features_extractor.parameters())
        encoded = not encoder or self._encoder_rate() == 0
        if encoded:
            batch = encode(self.policy, batch, self.random_shift)
        for minibatch in critic_batches(batch, targets, self.policy.n_critics, n_batches, self.batch_size):
            loss, q = critic_loss(self.policy, minibatch, encoded, self.random_shift)
            self._step({"q_loss": loss}, ("critic", "encoder"), log)
            self.policy.update_targets(self.tau)
            log.record({"q_loss": loss, "q_mean": q.mean()})
            log.end_minibatch()
            self._n_updates += 1

    def _train_actor(self, batch: TrajectoryBatch, reference: Reference, n_steps: int, log: UpdateLog) -> th.Tensor | None:
        """:return: shift of the flow before the last step, in units of its spread; None if no step was taken"""
        rows, shift = batch.valid.flatten().nonzero().squeeze(-1), None
        if len(rows) == 0:  # all drawn transitions come after a success
            return None
        batch_size, n_particles = self.actor_batch_size, self.n_particles
        for _ in range(n_steps):
            chosen = rows[th.randint(len(rows), (batch_size,), device=rows.device)]
            states = take(batch.observations, chosen)
            evaluation = evaluate_actor(self.policy, reference, states, n_particles, self.transport)
            losses = {
                "alignment_loss": evaluation.alignment,
                "consistency_loss": self.consistency_coef * evaluation.consistency,
                "fisher_loss": self.fisher_coef * evaluation.fisher,
            }
            self._step(losses, ("velocity",), log)
            self.n_actor_updates += 1
            diagnostics = actor_diagnostics(evaluation, self.denoising_steps)
            log.record(diagnostics)
            log.end_minibatch()
            shift = diagnostics["actor_shift"]
        return shift

    def _adapt_rate(self, shift: float) -> None:
        """Lower or raise the actor's learning rate according to the flow's shift in this iteration."""
        if shift > self.max_shift:
            self.actor_rate_factor *= self.max_shift / shift
        elif shift < self.max_shift / 2:
            self.actor_rate_factor = min(1.5 * self.actor_rate_factor, 1.0)

    def _step(self, losses: dict[str, th.Tensor], groups: tuple[str, ...], log: UpdateLog) -> None:
        """Take one optimizer step on some parameter groups, with each group's gradient clipped separately."""
        optimizer = self.policy.optimizer
        self._update_learning_rate(optimizer)
        optimizer.zero_grad()
        self._check_losses(losses)
        th.stack(list(losses.values())).sum().backward()
        for group in optimizer.param_groups:
            if group["name"] in groups:
                norm = th.nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)
                log.record({f"grad_norm_{group['name']}": norm})
        optimizer.step()

    def _log_update(self, log: UpdateLog) -> None:
        for group in self.policy.optimizer.param_groups:
            self.logger.record(f"train/{RATE_NAMES[group['name']]}", group["lr"])
        for name, value in log.summary().items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/reward_scale", self.policy.reward_scale.item())
        self.logger.record("train/buffer_fill", self.rollout_buffer.fill)
        self.logger.record("train/n_actor_updates", self.n_actor_updates, exclude="tensorboard")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

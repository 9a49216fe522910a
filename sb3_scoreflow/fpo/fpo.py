"""Flow Policy Optimization: PPO whose ratio is a difference of flow-matching losses (arXiv 2507.21053, arXiv 2602.02481)."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule

from sb3_scoreflow.common.capabilities import Capabilities
from sb3_scoreflow.common.checks import check_argument
from sb3_scoreflow.common.episodes import LOST
from sb3_scoreflow.common.rollback import RollbackAlgorithm
from sb3_scoreflow.common.update_log import UpdateLog
from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.fpo.arguments import RULES
from sb3_scoreflow.fpo.defaults import DEFAULTS
from sb3_scoreflow.fpo.diagnostics import pair_diagnostics
from sb3_scoreflow.fpo.policies import CnnPolicy, FPOPolicy, MlpPolicy, MultiInputPolicy
from sb3_scoreflow.fpo.records import record_width
from sb3_scoreflow.fpo.surrogate import Ratio, TrustRegion, log_ratios, surrogate
from sb3_scoreflow.ppo.algorithm import FlowPPO

#: Transitions after which an actor no longer waits for episodes that measure it
_MAX_WAIT = 20_000


class FPO(RollbackAlgorithm, FlowPPO):
    """
    PPO without likelihoods: the decrease of an action's flow-matching loss takes the place of the log-ratio (FPO, arXiv
    2507.21053). The loss is estimated from pairs of a time and noise, and every pair has its own ratio (FPO++, arXiv
    2602.02481).

    Arguments shared with :class:`stable_baselines3.PPO` keep their names and meaning. Arguments left at None get the values in
    ``sb3_scoreflow/fpo/defaults.py``, which depend on whether the policy was pretrained.

    :param policy: "FlowPolicy" (chooses the features extractor by the observation space), "MlpPolicy", "CnnPolicy",
        "MultiInputPolicy", or a policy class
    :param env: environment whose action space is a Box with finite bounds; to predict several actions at once, wrap it in
        :class:`~sb3_scoreflow.ActionChunking`
    :param learning_rate: learning rate of the velocity field, a float or schedule; 0 freezes it
    :param n_steps: steps per environment and iteration (chunks, with ActionChunking); None: about 2048 over all environments,
        in whole minibatches. Policies trained from scratch take 256 per dimension of an action or 128 per environment,
        whichever is more, but at most 2048, and always at least 16 per environment
    :param batch_size: minibatch size in actions; None: 256, or from scratch 64 per dimension of an action if that is less,
        adjusted if it does not suit the number of environments
    :param n_epochs: passes over the rollout per iteration
    :param gamma: discount per step (per chunk, with ActionChunking)
    :param gae_lambda: trade-off between bias and variance in generalized advantage estimation (GAE)
    :param clip_range: clip range of the ratio, a float or schedule
    :param clip_range_vf: clip range of the value function in units of the critic's output (with ``normalize_reward``, the
        return's standard deviation); None: no clipping
    :param normalize_advantage: whether to normalize advantages per minibatch
    :param vf_coef: coefficient of the value loss
    :param max_grad_norm: largest gradient norm of each parameter group; groups are clipped separately
    :param rollout_buffer_class: subclass of Stable-Baselines3's ``RolloutBuffer`` / ``DictRolloutBuffer``; it is adapted to
        store records as actions. None: one of these two, by the observation space
    :param rollout_buffer_kwargs: further keyword arguments of the buffer
    :param target_kl: an iteration's update ends when the mean of ``ratio - 1 - log ratio`` exceeds 1.5 times this value; None:
        no limit
    :param stats_window_size: number of episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of TensorBoard logs; None: no TensorBoard log
    :param critic_learning_rate: learning rate of the critic, a float or schedule
    :param denoising_steps: Euler steps ``K`` per action; with few steps, actions vary less than actions of the exact flow
        (docs/fpo.md)
    :param n_mc_samples: number ``N`` of pairs of a time and noise that score an action
    :param zero_noise_fraction: share of the pairs whose noise is 0, in [0, 1], so that they score the path of deterministic
        actions, which start from ``x_0 = 0`` (ours). None: 0.125 for a clone, 0 from scratch
    :param ratio: "per_sample" (FPO++): one ratio per pair; "mean" (FPO): one ratio per action, from the mean of its pairs'
        losses
    :param trust_region: "clip" (PPO) or "aspo" (FPO++ from scratch: for negative advantages, a quadratic penalty instead of
        clipping)
    :param loss_clip: upper bound of a pair's loss in the ratio
    :param critic_warmup_iterations: number of iterations at the start that train only the critic
    :param normalize_reward: whether the critic's outputs are in units of the running standard deviation of the discounted
        return
    :param bc_coef: coefficient of the squared distance between the ODE actions of the policy and of the pretrained policy
    :param averaging_horizon: horizon, in transitions, of the exponential moving average of the weights that deterministic
        actions come from, a number or schedule; 0: they come from the current weights. None: 40,000 for a clone, 0 from
        scratch
    :param rollback: whether the actor of a clone goes back to its best weights if the last training episodes (at least 20)
        earn less than those before, by more than two standard errors; the critic keeps its weights (ours). Until the first
        episodes have measured the clone, the actor waits, for 20,000 transitions at most. It has no effect from scratch, or
        if ``Monitor`` does not record the episodes
    :param policy_kwargs: further keyword arguments of the policy (``net_arch``, ``activation_fn``, ...)
    :param verbose: 0: no output, 1: info, 2: debug
    :param seed: seed of the random number generators; None: not seeded
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks at construction
    :raises ValueError: if an argument is invalid; the message names the argument, its value and a remedy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": FPOPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    capabilities = Capabilities(ratio=True, value_function=True)
    less_noise = "which FPO cannot lower: use ScoReFlowPPO with calibrate_noise"
    rules = RULES
    defaults = DEFAULTS
    policy: FPOPolicy

    def __init__(
        self,
        policy: str | type[FPOPolicy],
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
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        critic_learning_rate: float | Schedule | None = None,
        denoising_steps: int = 10,
        n_mc_samples: int = 8,
        zero_noise_fraction: float | None = None,
        ratio: Ratio = "per_sample",
        trust_region: TrustRegion = "clip",
        loss_clip: float = 3.0,
        critic_warmup_iterations: int = 0,
        normalize_reward: bool = True,
        bc_coef: float = 0.0,
        averaging_horizon: float | Schedule | None = None,
        rollback: bool = True,
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
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=0.0,  # a flow's entropy has no closed form
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
        self.n_mc_samples = n_mc_samples
        self.zero_noise_fraction = zero_noise_fraction
        self.ratio = ratio
        self.trust_region = trust_region
        self.loss_clip = loss_clip
        self.rollback = rollback
        #: Whether the actor has been trained since construction or pretraining
        self._actor_changed = False
        #: Whether the current update leaves the actor as it is
        self._holds_actor = False
        #: Transitions during which the actor has waited for the first complete window of episodes
        self._n_waited = 0

        if _init_setup_model:
            self._setup_model()

    def _record_width(self) -> int:
        return record_width(self.n_mc_samples, get_action_dim(self.action_space))

    def _policy_arguments(self) -> dict[str, Any]:
        return dict(denoising_steps=self.denoising_steps, n_mc_samples=self.n_mc_samples)

    def _prepare_rollout(self) -> None:
        super()._prepare_rollout()
        rule = RULES["zero_noise_fraction"]
        self.policy.zero_noise_fraction = check_argument(rule, "zero_noise_fraction", self.zero_noise_fraction)

    # ------------------------------------------------------------------ safeguard

    def on_pretrained(self) -> None:
        """As in :class:`~sb3_scoreflow.ppo.FlowPPO`; the first training episodes measure the new clone."""
        super().on_pretrained()
        self._actor_changed = False

    def _forget_actors(self) -> None:
        super()._forget_actors()
        self._n_waited = 0

    @property
    def _is_actor_unchanged(self) -> bool:
        return not self._actor_changed

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        ended = () if dones is None else np.flatnonzero(dones).tolist()
        if any(env >= len(infos) or not infos[env].keys() & {"episode", LOST} for env in ended):
            self._n_waited = _MAX_WAIT  # without Monitor, no episode would ever measure the clone

    def _waits(self) -> bool:
        """:return: whether the actor has to wait, because its episodes have not been measured yet"""
        measured = self._actor_changed or (self._window is not None and bool(self._window.best))
        return self.rollback and self._pretrained and not measured and self._n_waited < _MAX_WAIT

    def _end_learning(self) -> None:
        super()._end_learning()
        if self._holds_actor and not self._actor_changed:
            warn(
                f"The actor is still that of the clone: it waits until its episodes have been measured, for {_MAX_WAIT} "
                f"transitions at most, of which {self._n_waited} have passed. Train longer, or pass rollback=False."
            )

    def train(self) -> None:
        """Update policy and critic from the rollout buffer; only the critic if the actor goes back, or is not measured yet."""
        goes_back = self._judge_actor()
        waits = self._waits()  # afterwards, because the judgment may measure the actor
        if waits:
            self._n_waited += self.rollout_buffer.rewards.size
        # The rollout of an actor that goes back has no ratios for the actor that comes back
        self._holds_actor = goes_back or waits
        self._actor_changed |= not self._trains_critic_only()
        super().train()

    def _trains_critic_only(self) -> bool:
        return super()._trains_critic_only() or self._holds_actor

    def _losses(self, batch: RolloutBufferSamples, clip_range: float, log: UpdateLog) -> dict[str, th.Tensor]:
        record = self.policy.unflatten(batch.actions)
        values, losses = self.policy.evaluate_records(batch.observations, record)
        log_ratio = log_ratios(record.losses, losses, self.ratio, self.loss_clip)
        objective = surrogate(log_ratio.exp(), self._advantages(batch).unsqueeze(1), clip_range, self.trust_region)
        policy_loss = -objective.mean()
        log.record({"policy_gradient_loss": policy_loss})
        log.record(pair_diagnostics(losses, record.action, log_ratio, clip_range, self.loss_clip))
        return {"policy_gradient_loss": policy_loss, **self._shared_losses(values, record.start, batch, log)}

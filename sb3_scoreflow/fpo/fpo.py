"""Flow Policy Optimization: PPO whose ratio is a difference of flow-matching losses (arXiv 2507.21053, arXiv 2602.02481)."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule

from sb3_scoreflow.common.capabilities import Capabilities
from sb3_scoreflow.common.update_log import UpdateLog
from sb3_scoreflow.fpo.arguments import RULES
from sb3_scoreflow.fpo.defaults import DEFAULTS
from sb3_scoreflow.fpo.diagnostics import pair_diagnostics
from sb3_scoreflow.fpo.policies import CnnPolicy, FPOPolicy, MlpPolicy, MultiInputPolicy
from sb3_scoreflow.fpo.records import record_width
from sb3_scoreflow.fpo.surrogate import Ratio, TrustRegion, log_ratios, surrogate
from sb3_scoreflow.ppo.algorithm import FlowPPO


class FPO(FlowPPO):
    """
    PPO without likelihoods: an action is as likely as its flow-matching loss is small (FPO, arXiv 2507.21053), with one ratio
    for each pair of a time and noise that the loss is estimated from (FPO++, arXiv 2602.02481).

    Arguments shared with :class:`stable_baselines3.PPO` keep its names and meaning. Arguments left at None get the values of
    ``sb3_scoreflow/fpo/defaults.py``, by whether the policy was pretrained.

    :param policy: "FlowPolicy" (features extractor by observation space), "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a
        class
    :param env: environment with a Box action space of finite bounds (a chunked one: see
        :class:`~sb3_scoreflow.ActionChunking`)
    :param learning_rate: of the velocity field, a float or schedule; 0 freezes it
    :param n_steps: steps per environment and iteration (of chunks, with ActionChunking); None: about 2048 over all
        environments, in whole minibatches; from scratch 256 per dimension of an action, or 128 per environment, where that
        is less
    :param batch_size: minibatch size, in actions; None: 256, from scratch 64 per dimension of an action where that is less; or
        about that where it does not suit the number of environments
    :param n_epochs: passes over the rollout per iteration
    :param gamma: discount per step (per chunk, with ActionChunking)
    :param gae_lambda: trade-off of bias and variance in GAE
    :param clip_range: clip range of the ratio, a float or schedule
    :param clip_range_vf: clip range of the value function in units of the return's standard deviation, None to deactivate
    :param normalize_advantage: whether to normalize advantages per minibatch
    :param vf_coef: coefficient of the value loss
    :param max_grad_norm: largest gradient norm, for each parameter group by itself
    :param rollout_buffer_class: subclass of Stable-Baselines3's ``RolloutBuffer`` / ``DictRolloutBuffer``, which is made to
        store records for actions
    :param rollout_buffer_kwargs: further keyword arguments of the buffer
    :param target_kl: end the iteration's update when the mean of ``ratio - 1 - log ratio`` passes 1.5 times this value
    :param stats_window_size: episodes over which rollout statistics are averaged
    :param tensorboard_log: folder of tensorboard logs
    :param critic_learning_rate: of the critic, a float or schedule
    :param denoising_steps: Euler steps ``K`` per action; fewer make actions spread less than the flow's (docs/fpo.md)
    :param n_mc_samples: pairs of a time and noise that score an action, ``N``
    :param ratio: "per_sample" (FPO++): one ratio for each pair; "mean" (FPO): one for the mean of the pairs' losses
    :param trust_region: "clip" (PPO's) or "aspo" (FPO++ from scratch: where the advantage is negative, a quadratic penalty
        instead of the clip)
    :param loss_clip: losses of pairs above this count as this
    :param critic_warmup_iterations: first iterations that train the critic only
    :param normalize_reward: whether the critic's unit is the running standard deviation of the discounted return
    :param bc_coef: coefficient of the squared distance between the ODE actions of policy and pretrained policy
    :param averaging_horizon: transitions over which the weights that deterministic actions come from are averaged, by an
        exponential moving average; 0: they are the current weights. None: 40,000 for a clone, 0 from scratch
    :param policy_kwargs: further keyword arguments of the policy (``net_arch``, ``activation_fn``, ...)
    :param verbose: 0 nothing, 1 info, 2 debug
    :param seed: seed of the pseudo-random generators
    :param device: device of the networks
    :param _init_setup_model: whether to build the networks at construction
    :raises ValueError: if an argument is impossible; the message names it, its value and the remedy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": FPOPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    capabilities = Capabilities(ratio=True, value_function=True)
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
        ratio: Ratio = "per_sample",
        trust_region: TrustRegion = "clip",
        loss_clip: float = 3.0,
        critic_warmup_iterations: int = 0,
        normalize_reward: bool = True,
        bc_coef: float = 0.0,
        averaging_horizon: float | None = None,
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
        self.ratio = ratio
        self.trust_region = trust_region
        self.loss_clip = loss_clip

        if _init_setup_model:
            self._setup_model()

    def _record_width(self) -> int:
        return record_width(self.n_mc_samples, get_action_dim(self.action_space))

    def _policy_arguments(self) -> dict[str, Any]:
        return dict(denoising_steps=self.denoising_steps, n_mc_samples=self.n_mc_samples)

    def _losses(self, batch: RolloutBufferSamples, clip_range: float, log: UpdateLog) -> dict[str, th.Tensor]:
        record = self.policy.unflatten(batch.actions)
        values, losses = self.policy.evaluate_records(batch.observations, record)
        log_ratio = log_ratios(record.losses, losses, self.ratio, self.loss_clip)
        objective = surrogate(log_ratio.exp(), self._advantages(batch).unsqueeze(1), clip_range, self.trust_region)
        policy_loss = -objective.mean()
        log.record({"policy_gradient_loss": policy_loss})
        log.record(pair_diagnostics(losses, record.action, log_ratio, clip_range, self.loss_clip))
        return {"policy_gradient_loss": policy_loss, **self._shared_losses(values, record.start, batch, log)}

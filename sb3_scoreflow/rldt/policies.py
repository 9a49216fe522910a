"""Flow policy with an ensemble of Q networks, for RLDT."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_scoreflow.common import flow
from sb3_scoreflow.common.checks import Count, Number, check_argument
from sb3_scoreflow.common.networks import TimeFeatures
from sb3_scoreflow.common.policies import FlowMatchingPolicy, ObservationNormalization
from sb3_scoreflow.rldt.networks import QEnsemble

#: Rows that go through the networks at once when no gradient is recorded, so that activations stay in the CPU's cache.
_BLOCK = 1024


class RLDTPolicy(FlowMatchingPolicy):
    """
    Flow policy with Q networks and their slowly moving targets (arXiv 2606.08602, Section 4).

    The critics' inputs are the state's features and the normalized action. The action is clamped to [-1, 1], so the critics
    never evaluate an action outside the bounds. Their outputs are in units of ``reward_scale``; :meth:`predict_values` and
    :meth:`q_values` convert them to reward units.

    The policy has the parameters of :class:`~sb3_scoreflow.FlowMatchingPolicy` (``net_arch`` has the keys ``pi`` and ``vf``;
    by default, the critics have three layers of 256 units) and these:

    :param n_critics: number of Q networks, at least 1
    :param n_bootstrap_actions: number of actions, at least 1, over which a state's value (the minimum over the networks) is
        averaged
    :param exploration_scale: factor of the exploration noise (see :meth:`forward`), at least 0
    :param exploration_steps: number of final denoising steps that determine the noise's scale, at least 1. The very last step
        adds no noise, so there is no noise if this is 1 or if the chain has only one denoising step
    :param critic_activation_fn: activation of the critics
    """

    _instead_of_likelihoods = "; q_values(obs, actions) gives their values"
    reward_scale: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        critic_activation_fn: type[nn.Module] = nn.SiLU,
        denoising_steps: int = 4,
        inference_steps: int | None = None,
        time_embedding_dim: int = 16,
        prior_std: float = 0.2,
        n_critics: int = 2,
        n_bootstrap_actions: int = 2,
        exploration_scale: float = 1.0,
        exploration_steps: int = 2,
        observation_normalization: ObservationNormalization = "auto",
        use_sde: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        n_critics = check_argument(Count(), "n_critics", n_critics, 2)
        n_bootstrap_actions = check_argument(Count(), "n_bootstrap_actions", n_bootstrap_actions, 2)
        exploration_scale = check_argument(Number(), "exploration_scale", exploration_scale, 1.0)
        exploration_steps = check_argument(Count(), "exploration_steps", exploration_steps, 2)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=dict(pi=[256, 256], vf=[256, 256, 256]) if net_arch is None else net_arch,
            activation_fn=activation_fn,
            denoising_steps=denoising_steps,
            inference_steps=inference_steps,
            time_embedding_dim=time_embedding_dim,
            prior_std=prior_std,
            observation_normalization=observation_normalization,
            use_sde=use_sde,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.n_critics = n_critics
        self.n_bootstrap_actions = n_bootstrap_actions
        self.exploration_scale = exploration_scale
        self.exploration_steps = exploration_steps
        self.critic_activation_fn = critic_activation_fn

        self.critic_features_extractor = self.make_features_extractor()
        self.critic = QEnsemble(n_critics, self.features_dim, self.action_dim, self.net_arch["vf"], critic_activation_fn)
        self.target_critic_features_extractor = deepcopy(self.critic_features_extractor).requires_grad_(False)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.register_buffer("reward_scale", th.ones(()))

        self._build_optimizer(lr_schedule)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """
        :return: group -> parameters: "velocity" (including the actor's features extractor), "critic" and "encoder" (the
            critics' features extractor); every trained parameter occurs once
        """
        return dict(
            velocity=[*self.features_extractor.parameters(), *self.velocity_field.parameters()],
            critic=list(self.critic.parameters()),
            encoder=list(self.critic_features_extractor.parameters()),
        )

    def set_training_mode(self, mode: bool) -> None:
        """
        Set the mode of all networks except the targets. As in Stable-Baselines3, targets stay in evaluation mode, so that
        dropout and batch statistics do not affect them.

        :param mode: whether training mode (dropout, batch normalization) is on
        """
        super().set_training_mode(mode)
        self.target_critic.train(False)
        self.target_critic_features_extractor.train(False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            critic_activation_fn=self.critic_activation_fn,
            n_critics=self.n_critics,
            n_bootstrap_actions=self.n_bootstrap_actions,
            exploration_scale=self.exploration_scale,
            exploration_steps=self.exploration_steps,
        )
        return data

    # ------------------------------------------------------------------ actor

    def condition(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: raw observations, shape ``(batch, ...)`` per part
        :return: the observations' share of the velocity field's first layer, shape ``(batch, width)``
        """
        return self.velocity_field.condition(self.extract_features(obs))

    def sample_chains(self, condition: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Integrate the flow for ``n`` particles per observation and return every point of the chains.

        :param condition: output of :meth:`condition`, shape ``(batch, width)``
        :param noise: ``x_0``, shape ``(batch, n, action_dim)``
        :return: chains, shape ``(K + 1, batch, n, action_dim)`` (the last point not clamped), and velocities ``(K, batch, n,
            action_dim)``
        """
        field = self.velocity_field
        time = field.time_features(flow.time_grid(self.denoising_steps, dtype=noise.dtype, device=noise.device))
        condition = condition.unsqueeze(1)
        velocities = []

        def step(x: th.Tensor, time: TimeFeatures) -> th.Tensor:
            velocities.append(field(x, time, condition))
            return x + velocities[-1] / self.denoising_steps

        points = flow.chain(step, noise, time.steps())
        return th.stack(points), th.stack(velocities)

    def sample_actions(self, obs: PyTorchObs, n: int) -> th.Tensor:
        """
        :param obs: raw observations, shape ``(batch, ...)`` per part
        :param n: number of actions per observation
        :return: samples of the policy, clamped to [-1, 1], shape ``(batch, n, action_dim)``
        """
        condition = self.condition(obs)
        noise = th.randn(len(condition), n, self.action_dim, dtype=condition.dtype, device=condition.device)
        rows = max(_BLOCK // n, 1)
        blocks = zip(condition.split(rows), noise.split(rows), strict=True)
        return th.cat([self.sample_chains(*block)[0][-1] for block in blocks]).clamp_(-1.0, 1.0)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:  # type: ignore[override]
        """
        Draw actions for the rollout, in the form that Stable-Baselines3's ``collect_rollouts`` expects of an actor-critic
        policy.

        Gaussian noise is added to the ODE's action ``a``. Its standard deviation is ``exploration_scale |a - e| /
        sqrt(action_dim)``, where ``e`` is the endpoint predicted at one of the last ``exploration_steps`` denoising steps,
        which is drawn independently for every observation. The noise is small where the flow is certain, and zero at the very
        last step, which predicts ``a`` (arXiv 2606.08602, Section 4; we add the square root, which makes the noise independent
        of the action's width).

        :param obs: raw observations, shape ``(batch, ...)`` per part
        :param deterministic: whether to start from ``x_0 = 0`` and add no noise
        :return: normalized actions in [-1, 1], shape ``(batch, *action_shape)``, and zeros in place of values ``(batch, 1)``
            and log-probabilities ``(batch,)``, which RLDT does not use
        """
        if deterministic:
            features = self.extract_features(obs, self.acting("features_extractor"))
            zeros = features.new_zeros(len(features))
            start = features.new_zeros(len(features), self.action_dim)
            action = self._deterministic_action(features, start, self.denoising_steps)
            return action.clamp(-1.0, 1.0).view(len(features), *self.action_space.shape), zeros.unsqueeze(-1), zeros  # type: ignore[misc]
        condition = self.condition(obs)
        batch = len(condition)
        zeros = condition.new_zeros(batch)
        noise = th.randn(batch, 1, self.action_dim, dtype=condition.dtype, device=condition.device)
        chains, velocities = self.sample_chains(condition, noise)
        action = chains[-1, :, 0]
        if self.exploration_scale > 0:
            window = min(self.exploration_steps, self.denoising_steps)
            k = th.randint(self.denoising_steps - window, self.denoising_steps, (batch,), device=action.device)
            rows = th.arange(batch, device=action.device)
            t = (k / self.denoising_steps).unsqueeze(-1)
            guess = flow.endpoint(chains[k, rows, 0], velocities[k, rows, 0], t)
            distance = (action - guess).norm(dim=-1, keepdim=True)
            # At the very last step, the two are equal except for rounding.
            distance = distance * (k < self.denoising_steps - 1).unsqueeze(-1)
            action = action + self.exploration_scale * distance / self.action_dim**0.5 * th.randn_like(action)
        # Actions need the space's shape: a batch with one flat action of width d would look like one action of shape (1, d).
        return action.clamp(-1.0, 1.0).view(batch, *self.action_space.shape), zeros.unsqueeze(-1), zeros  # type: ignore[misc]

    # ------------------------------------------------------------------ critics

    def critic_condition(self, obs: PyTorchObs, target: bool = False) -> th.Tensor:
        """
        :param obs: raw observations, shape ``(batch, ...)`` per part
        :param target: whether to use the target networks
        :return: the observations' share of the critics' first layers, shape ``(n_critics, batch, width)``
        """
        if target:
            return self.target_critic.condition(self.extract_features(obs, self.target_critic_features_extractor))
        return self.critic.condition(self.extract_features(obs, self.critic_features_extractor))

    def q_values(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, shape ``(batch, ...)`` per part
        :param actions: normalized actions, shape ``(batch, action_dim)``; they are clamped to [-1, 1]
        :return: ``Q`` of every member in reward units, shape ``(n_critics, batch)``
        """
        q = self.critic(self.critic_condition(obs), actions.clamp(-1.0, 1.0).unsqueeze(1))
        return q.squeeze(-1) * self.reward_scale

    def bootstrap_values(self, obs: PyTorchObs, target: bool, random_shift: int = 0) -> th.Tensor:
        """
        Value of a state: the minimum over the ensemble, averaged over ``n_bootstrap_actions`` samples of the policy.

        :param obs: raw observations, shape ``(batch, ...)`` per part
        :param target: whether to use the target networks
        :param random_shift: largest random shift of the images for the critics, in pixels (the actor sees the original images)
        :return: values in units of ``reward_scale``, shape ``(batch,)``
        """
        actions = self.sample_actions(obs, self.n_bootstrap_actions)
        critic = self.target_critic if target else self.critic
        condition = self.critic_condition(self.augment(obs, random_shift), target)
        rows = max(_BLOCK // self.n_bootstrap_actions, 1)
        blocks = zip(condition.split(rows, dim=1), actions.split(rows), strict=True)
        return th.cat([critic(*block).amin(0).mean(-1) for block in blocks])

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: raw observations, shape ``(batch, ...)`` per part
        :return: values in reward units (:meth:`bootstrap_values` of the online critics), shape ``(batch, 1)``
        """
        return self.bootstrap_values(obs, target=False).unsqueeze(-1) * self.reward_scale

    @th.no_grad()
    def update_targets(self, tau: float) -> None:
        """
        Move the targets towards the online critics: ``target <- (1 - tau) target + tau online``.

        :param tau: share of the online weights, in (0, 1]; 1 copies them
        """
        for online, target in (
            (self.critic, self.target_critic),
            (self.critic_features_extractor, self.target_critic_features_extractor),
        ):
            parameters: list[th.Tensor] = list(target.parameters())
            if parameters:
                # SB3's polyak_update rounds, so that a target equal to a frozen critic would drift away from it.
                th._foreach_lerp_(parameters, list(online.parameters()), tau)
            _copy_buffers(online.buffers(), target.buffers())

    def share_actor_features(self) -> None:
        """Copy the weights of the actor's features extractor to the critics', for example after behavior cloning."""
        self.critic_features_extractor.load_state_dict(self.features_extractor.state_dict())
        self.target_critic_features_extractor.load_state_dict(self.features_extractor.state_dict())


def _copy_buffers(sources: Iterable[th.Tensor], targets: Iterable[th.Tensor]) -> None:
    """Copy running statistics (batch normalization), because their counts cannot be averaged."""
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


class MlpPolicy(RLDTPolicy):
    """:class:`RLDTPolicy` that flattens observations."""

    default_features_extractor_class = FlattenExtractor


class CnnPolicy(RLDTPolicy):
    """:class:`RLDTPolicy` with Stable-Baselines3's NatureCNN."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(RLDTPolicy):
    """:class:`RLDTPolicy` for Dict observations, with Stable-Baselines3's CombinedExtractor."""

    default_features_extractor_class = CombinedExtractor

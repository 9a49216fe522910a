"""ScoRe-Flow's policy: the common flow policy with a score coefficient, a noise network and a critic."""

import math
from typing import Any, ClassVar, Literal, get_args

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_scoreflow.common import flow
from sb3_scoreflow.common.checks import Number, check_argument
from sb3_scoreflow.common.networks import TimeFeatures
from sb3_scoreflow.common.policies import ObservationNormalization
from sb3_scoreflow.common.utils import ArgumentError, check_choice
from sb3_scoreflow.ppo.policies import ActorCriticFlowPolicy
from sb3_scoreflow.scoreflow_ppo.networks import NoiseNet, ScoreCoefficient, initial_score_gate
from sb3_scoreflow.scoreflow_ppo.transition import (
    ChainEvaluation,
    chain_entropy,
    chain_log_prob,
    scored_transitions,
    transition_mean,
    truncated_normal,
)

ScoreDrift = Literal["learned", "constant", "none"]
Noise = Literal["learned", "constant", "score_matched"]


class ScoReFlowPolicy(ActorCriticFlowPolicy):
    """
    Flow policy with Gaussian denoising steps: the score steers the mean, and the standard deviation is learned (arXiv
    2604.10962, Section 4).

    The parameters are those of :class:`~sb3_scoreflow.ppo.ActorCriticFlowPolicy` and the following. If the algorithm has an
    argument with the same name, it sets the parameter:

    :param score_drift: coefficient of the score: "learned" by a network, "constant" (``(1 - t) softplus(-2) score_scale``), or
        "none" (no score drift, as in ReinFlow)
    :param score_scale: ``c`` of the coefficient ``alpha(t) = min((1 - t) softplus(g(t)) c, 2 c)``, positive
    :param score_clip: bound of the absolute score, positive
    :param noise: standard deviation of a step: "learned" by a network, "constant" (``max_std``), or "score_matched" (``sqrt(2
        alpha(t) / K)``, at least ``min_std``)
    :param min_std: lower bound of a step's standard deviation, positive
    :param max_std: upper bound of a step's standard deviation, at least ``min_std``
    :param noise_scale: factor of both bounds, positive; its square is a factor of the score coefficient (ours), because the
        SDE that keeps the flow's densities is ``dx = (v + sigma^2 / 2 score) dt + sigma dW``
    :param single_step_fraction: share of the environments (rows of a batch), in [0, 1], whose chains have a single noisy step.
        This step is drawn at random for every chain, and all other steps take their means (the hybrid sampling of arXiv
        2510.25889). 0: all steps of all chains are noisy (published)
    :param zero_start_fraction: share of the chains with a single noisy step, in [0, 1], that start from ``x_0 = 0``, as
        deterministic actions do, instead of ``N(0, I)``; they explore around the deterministic action (ours)
    """

    net_arch_parts = ("pi", "vf", "noise")
    group_modules: ClassVar[dict[str, tuple[str, ...]]] = dict(
        velocity=("features_extractor", "velocity_field"),
        noise=("noise_net", "score_coefficient_net"),
        critic=("vf_features_extractor", "value_net"),
    )
    averaged_parts = (*ActorCriticFlowPolicy.averaged_parts, "score_coefficient_net")
    _instead_of_likelihoods = "; evaluate_actions(obs, records), records = policy(obs)[0], gives log-probabilities of chains"
    log_std_bounds: th.Tensor
    log_noise_scale: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        critic_activation_fn: type[nn.Module] = nn.Mish,
        denoising_steps: int = 4,
        inference_steps: int | None = None,
        time_embedding_dim: int = 16,
        prior_std: float = 0.2,
        score_drift: ScoreDrift = "learned",
        score_scale: float = 1.0,
        score_clip: float = 10.0,
        noise: Noise = "learned",
        min_std: float = 0.1,
        max_std: float = 0.24,
        noise_scale: float = 1.0,
        single_step_fraction: float = 0.0,
        zero_start_fraction: float = 1.0,
        observation_normalization: ObservationNormalization = "auto",
        use_sde: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_choice("score_drift", score_drift, get_args(ScoreDrift))
        check_choice("noise", noise, get_args(Noise))
        score_scale = check_argument(Number(open_low=True), "score_scale", score_scale, 1.0)
        score_clip = check_argument(Number(open_low=True, bound=True), "score_clip", score_clip, 10.0)
        single_step_fraction = check_argument(Number(high=1), "single_step_fraction", single_step_fraction, 0.0)
        zero_start_fraction = check_argument(Number(high=1), "zero_start_fraction", zero_start_fraction, 1.0)
        min_std = check_argument(Number(open_low=True), "min_std", min_std, 0.1)
        noise_scale = check_argument(Number(open_low=True), "noise_scale", noise_scale, 1.0)
        if noise == "score_matched" and score_drift == "none":
            raise ValueError("noise='score_matched' needs a score: set score_drift to 'learned' or 'constant'.")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch,
            activation_fn=activation_fn,
            critic_activation_fn=critic_activation_fn,
            denoising_steps=denoising_steps,
            inference_steps=inference_steps,
            time_embedding_dim=time_embedding_dim,
            prior_std=prior_std,
            observation_normalization=observation_normalization,
            use_sde=use_sde,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        self.score_drift = score_drift
        self.score_scale = score_scale
        self.score_clip = score_clip
        self.noise = noise
        self.min_std = min_std
        self.max_std = max_std
        self.noise_scale = noise_scale
        self.single_step_fraction = single_step_fraction
        self.zero_start_fraction = zero_start_fraction
        #: Factor of the noise for each environment of a rollout, shape ``(n_envs,)``; None: 1
        self.noise_factors: th.Tensor | None = None

        if score_drift == "learned":
            self.score_coefficient_net = ScoreCoefficient(score_scale)
        if noise == "learned":
            noise_arch = self.net_arch.get("noise", [64, 64])
            self.noise_net = NoiseNet(self.features_dim, self.action_dim, time_embedding_dim, noise_arch)
        self.register_buffer("log_std_bounds", th.zeros(2))
        self.register_buffer("log_noise_scale", th.zeros(()))
        self.set_noise(min_std, max_std, noise_scale)
        self._build_critic(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            score_drift=self.score_drift,
            score_scale=self.score_scale,
            score_clip=self.score_clip,
            noise=self.noise,
            min_std=self.min_std,
            max_std=self.max_std,
            noise_scale=self.noise_scale,
            single_step_fraction=self.single_step_fraction,
            zero_start_fraction=self.zero_start_fraction,
        )
        return data

    def set_noise(self, min_std: float, max_std: float, noise_scale: float = 1.0) -> None:
        """
        Set the bounds of the standard deviation, and the factor of the score coefficient. The state dict contains them, so
        that a saved policy acts in the same way.

        :param min_std: lower bound, positive
        :param max_std: upper bound, at least ``min_std``
        :param noise_scale: factor of both bounds, positive; its square is the factor of the score coefficient
        :raises ValueError: if ``min_std`` or ``noise_scale`` is not positive, or ``min_std`` exceeds ``max_std``
        """
        if not 0 < min_std <= max_std:
            raise ValueError(f"min_std must be positive and at most max_std, got min_std={min_std}, max_std={max_std}.")
        if not 0 < noise_scale < math.inf:
            raise ValueError(f"noise_scale must be positive, got {noise_scale}: pass 1.0 for all noise.")
        self.log_std_bounds.copy_(th.tensor([noise_scale * min_std, noise_scale * max_std]).log())
        self.log_noise_scale.fill_(math.log(noise_scale))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}log_std_bounds" in state_dict:  # files of earlier versions: their score did not follow the noise
            state_dict.setdefault(f"{prefix}log_noise_scale", th.zeros_like(self.log_noise_scale))
        super()._load_from_state_dict(state_dict, prefix, *args)

    # ------------------------------------------------------------------ chain

    def score_coefficient(self, t: th.Tensor, average: bool = False) -> th.Tensor | None:
        """
        :param t: times in [0, 1), shape ``(K,)``
        :param average: whether to use the averaged weights, from which deterministic actions come
        :return: ``alpha(t)``, same shape; None without score drift
        """
        if self.score_drift == "none":
            return None
        if self.score_drift == "learned":
            alpha = self.acting("score_coefficient_net")(t) if average else self.score_coefficient_net(t)
        else:
            alpha = th.clamp((1 - t) * initial_score_gate() * self.score_scale, max=2 * self.score_scale)
        return alpha * th.exp(2 * self.log_noise_scale)

    def _step_std(self, features: th.Tensor, time_embedding: th.Tensor, alpha: th.Tensor | None) -> th.Tensor:
        """
        Standard deviations of denoising steps, shape ``(..., action_dim)``; they do not depend on ``x``. The leading
        dimensions of features and time embeddings are broadcast; ``alpha`` has those of the time embeddings.
        """
        if self.noise == "learned":
            return self.noise_net(features, time_embedding, self.log_std_bounds)
        low, high = self.log_std_bounds.exp()
        if self.noise == "constant":
            std = high
        else:
            assert alpha is not None  # checked by the constructor
            std = th.sqrt(2 * alpha / self.denoising_steps).clamp(min=low).unsqueeze(-1)
        return std.expand(*th.broadcast_shapes(features.shape[:-1], time_embedding.shape[:-1]), self.action_dim)

    def _sample_chain(
        self,
        features: th.Tensor,
        noise: th.Tensor,
        denoising_steps: int,
        step: th.Tensor | None = None,
        mean: bool = False,
        factors: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param step: index of each chain's stochastic step, -1 if all its steps are stochastic, shape ``(batch,)``; None: all
            steps of all chains are stochastic
        :param mean: whether all steps take their means; the networks then have the averaged weights of deterministic actions
        :param factors: factor of each chain's noise, as ``noise_scale``, shape ``(batch,)``; None: 1
        :return: chain ``(batch, K + 1, action_dim)``, means ``(batch, K, action_dim)``, and standard deviations, which are
            None with ``mean``
        """
        field = self.acting("velocity_field") if mean else self.velocity_field
        t = flow.time_grid(denoising_steps, dtype=noise.dtype, device=noise.device)
        time, condition, alpha = field.time_features(t), field.condition(features), self.score_coefficient(t, mean)
        std = None if mean else self._step_std(features.unsqueeze(1), time.embedding, alpha)
        if std is not None and factors is not None:
            std = std * factors[:, None, None]
            alpha = None if alpha is None else alpha[:, None, None] * factors[:, None] ** 2
        deviates = truncated_normal(std.shape, dtype=noise.dtype, device=noise.device) * std if std is not None else None
        if deviates is not None and step is not None:
            deviates = deviates * scored_transitions(step, denoising_steps).unsqueeze(-1)
        means = []

        def move(x: th.Tensor, at: tuple[int, TimeFeatures]) -> th.Tensor:
            k, features = at
            coefficient = None if alpha is None else alpha[k]
            velocity = field(x, features, condition)
            means.append(transition_mean(x, velocity, t[k], coefficient, denoising_steps, self.score_clip))
            return means[-1] if deviates is None else means[-1] + deviates[:, k]

        points = flow.chain(move, noise, enumerate(time.steps()))
        return th.stack(points, dim=1), th.stack(means, dim=1), std

    def _single_steps(self, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param noise: draws from ``N(0, I)``, shape ``(batch, action_dim)``
        :return: ``x_0`` of the chains, and the stochastic step of each chain (see :meth:`_sample_chain`)
        """
        if self.single_step_fraction == 0:
            return noise, None
        n, device = len(noise), noise.device
        # The same rows each time, so that environments with single noisy steps stay near the states that deterministic actions
        # reach. The number of rows is rounded at random, so that a single environment gets chains of both kinds
        single = th.arange(n, device=device) < th.floor(self.single_step_fraction * n + th.rand((), device=device))
        step = th.where(single, th.randint(self.denoising_steps, (n,), device=device), -1)
        zero = single & (th.rand(n, device=device) < self.zero_start_fraction)
        return noise * ~zero.unsqueeze(-1), step

    def _deterministic_action(self, features: th.Tensor, noise: th.Tensor, denoising_steps: int) -> th.Tensor:
        return self._sample_chain(features, noise, denoising_steps, mean=True)[0][:, -1]

    def _stochastic_action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        noise, step = self._single_steps(noise)
        return self._sample_chain(self.extract_features(obs), noise, self.denoising_steps, step)[0][:, -1]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:  # type: ignore[override]
        """
        Sample a chain; :meth:`collect_rollouts` of Stable-Baselines3 calls this method.

        The last point is stored before clamping, so that it is scored with the density that it was drawn from;
        ``unscale_action`` clamps it.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param deterministic: whether to start from ``x_0 = 0`` and take the mean of every step
        :return: records of the chains (see :meth:`split_record`), values ``(batch, 1)``, normalized log-probabilities
            ``(batch,)``
        """
        preprocessed = self.preprocess(obs)
        features = self.features_extractor(preprocessed)
        acting = self.acting("features_extractor")(preprocessed) if deterministic else features
        noise, step = th.zeros(len(features), self.action_dim, device=features.device), None
        if not deterministic:
            noise, step = self._single_steps(th.randn_like(noise))
        elif self.single_step_fraction > 0:
            step = th.full((len(features),), -1, device=features.device)
        factors = self.noise_factors
        if factors is not None and len(factors) != len(features):  # not a rollout's step
            factors = None
        chain, mean, std = self._sample_chain(acting, noise, self.denoising_steps, step, deterministic, factors)
        if std is None:
            log_prob = self.evaluate_chain(obs, chain).log_prob
        else:
            log_prob = chain_log_prob(chain, mean, std, step)
        records = chain.flatten(1) if step is None else th.cat([step.unsqueeze(-1).to(chain.dtype), chain.flatten(1)], dim=1)
        return self.with_validation(obs, records), self._values(preprocessed, features), log_prob

    def split_record(self, records: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param records: records from :meth:`forward`: flattened chains; if ``single_step_fraction`` is positive, which the
            width shows, the index of the stochastic step precedes the chain
        :return: chains ``(batch, K + 1, action_dim)``, and the index of each chain's stochastic step ``(batch,)``, -1 if all
            its steps are stochastic; None: all steps of all chains are stochastic
        :raises ValueError: if the argument contains actions instead of records: their likelihood has no closed form
        """
        width = (self.denoising_steps + 1) * self.action_dim
        shape, records = tuple(records.shape), records.flatten(1)
        if records.shape[1] not in (width, width + 1):
            one = self.single_step_fraction > 0
            expected = f"(batch, (denoising_steps + 1) * action_dim{' + 1' if one else ''}) = (batch, {width + one})"
            raise ArgumentError(
                f"actions must be records of denoising chains, shape {expected}, got {shape}: a flow policy gives no "
                "probability of an action. Pass records = policy(obs)[0], or those of the rollout buffer."
            )
        step = records[:, 0].long() if records.shape[1] > width else None
        return records[:, -width:].view(len(records), self.denoising_steps + 1, self.action_dim), step

    def evaluate_chain(self, obs: PyTorchObs, chain: th.Tensor, step: th.Tensor | None = None) -> ChainEvaluation:
        """
        Score stored chains. Each network is called once for all noisy transitions, and features are computed once per
        observation.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param chain: shape ``(batch, K + 1, action_dim)``
        :param step: index of each chain's stochastic step, -1 if all its steps are stochastic, shape ``(batch,)``; None: all
            steps of all chains are stochastic
        :return: values, log-probability, entropy, means and standard deviations
        """
        preprocessed = self.preprocess(obs)
        features = self.features_extractor(preprocessed)
        values = self._values(preprocessed, features).flatten()
        field = self.velocity_field
        t = flow.time_grid(self.denoising_steps, dtype=chain.dtype, device=chain.device)
        time, alpha, condition = field.time_features(t), self.score_coefficient(t), field.condition(features)
        if step is None:
            mean, std = self._transition(chain[:, :-1], t, time, alpha, condition.unsqueeze(1), features.unsqueeze(1))
            return ChainEvaluation(values, chain_log_prob(chain, mean, std), chain_entropy(std), mean, std, features)
        scored = scored_transitions(step, self.denoising_steps)
        row, k = scored.nonzero(as_tuple=True)
        coefficient = None if alpha is None else alpha[k]
        mean, std = self._transition(chain[row, k], t[k], time.at(k), coefficient, condition[row], features[row])
        every_mean, every_std = chain[:, 1:].clone(), th.ones_like(chain[:, 1:])
        every_mean[row, k], every_std[row, k] = mean, std
        log_prob, entropy = chain_log_prob(chain, every_mean, every_std, step), chain_entropy(every_std, step)
        return ChainEvaluation(values, log_prob, entropy, mean, std, features, k)

    def _transition(
        self,
        x: th.Tensor,
        t: th.Tensor,
        time: TimeFeatures,
        alpha: th.Tensor | None,
        condition: th.Tensor,
        features: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        """Means and standard deviations of transitions from ``x``; other arguments are broadcast to its leading dimensions."""
        coefficient = None if alpha is None else alpha.unsqueeze(-1)
        velocity = self.velocity_field(x, time, condition)
        mean = transition_mean(x, velocity, t.unsqueeze(-1), coefficient, self.denoising_steps, self.score_clip)
        return mean, self._step_std(features, time.embedding, alpha)

    def deterministic_loss(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Flow-matching loss at the start of deterministic actions, ``x_0 = 0`` at ``t = 0`` (ours).

        Chains start from normal noise, whose norm is about the square root of the dimension, so PPO does not train the
        velocity there. The loss is smallest if this velocity is the mean of the policy's own actions. Later times are left to
        PPO: around a chain, they remove noise, and points between 0 and a noisy action would teach them to keep it.

        :param features: observation features, shape ``(batch, features_dim)``
        :param actions: normalized actions in [-1, 1], shape ``(batch, action_dim)``
        :return: mean squared error of the velocity
        """
        field = self.velocity_field
        start = field.time_features(th.zeros(1, dtype=actions.dtype, device=actions.device))
        velocity = field(th.zeros_like(actions), start, field.condition(features))
        return (velocity - actions).pow(2).mean()

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Stable-Baselines3's interface to :meth:`evaluate_chain`.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param actions: records of chains from :meth:`forward`
        :return: values ``(batch, 1)``, normalized log-probabilities ``(batch,)``, normalized entropies ``(batch,)``
        :raises ValueError: if the argument contains actions instead of records: their likelihood has no closed form
        """
        evaluation = self.evaluate_chain(obs, *self.split_record(actions))
        return evaluation.values.unsqueeze(-1), evaluation.log_prob, evaluation.entropy


class MlpPolicy(ScoReFlowPolicy):
    """:class:`ScoReFlowPolicy` that flattens observations."""

    default_features_extractor_class = FlattenExtractor


class CnnPolicy(ScoReFlowPolicy):
    """:class:`ScoReFlowPolicy` with Stable-Baselines3's NatureCNN."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(ScoReFlowPolicy):
    """:class:`ScoReFlowPolicy` for Dict observations, with Stable-Baselines3's CombinedExtractor."""

    default_features_extractor_class = CombinedExtractor

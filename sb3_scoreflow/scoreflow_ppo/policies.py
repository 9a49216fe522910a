"""ScoRe-Flow's policy: the shared flow plus score coefficient, noise net and critic."""

from typing import Any, ClassVar, Literal, NamedTuple, get_args

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
    chain_entropy,
    chain_log_prob,
    step_entropy,
    step_log_prob,
    transition_mean,
    truncated_normal,
)

ScoreDrift = Literal["learned", "constant", "none"]
Noise = Literal["learned", "constant", "score_matched"]
StochasticSteps = Literal["all", "one"]


class ChainEvaluation(NamedTuple):
    """What one pass over stored chains gives: ``batch`` chains of ``n`` scored transitions, all ``K`` or a single one."""

    values: th.Tensor  #: in reward units, shape ``(batch,)``
    log_prob: th.Tensor  #: normalized, shape ``(batch,)``
    entropy: th.Tensor  #: normalized, shape ``(batch,)``
    mean: th.Tensor  #: shape ``(batch, n, action_dim)``
    std: th.Tensor  #: shape ``(batch, n, action_dim)``
    step: th.Tensor | None = None  #: which transition is scored, shape ``(batch,)``; None: all of them


class ScoReFlowPolicy(ActorCriticFlowPolicy):
    """
    Flow policy whose denoising steps are Gaussian: mean steered by the score, standard deviation learned (arXiv 2604.10962,
    Section 4).

    The parameters of :class:`~sb3_scoreflow.ppo.ActorCriticFlowPolicy` and the following; those that the algorithm has
    arguments for are set through these:

    :param score_drift: "learned": coefficient net; "constant": ``(1 - t) softplus(-2) score_scale``; "none": ReinFlow
    :param score_scale: ``c`` of the coefficient ``alpha(t) = min((1 - t) softplus(g(t)) c, 2 c)``, positive
    :param score_clip: bound of the absolute score, positive
    :param noise: "learned": noise net; "constant": ``max_std``; "score_matched": ``sqrt(2 alpha(t) / K)``, at least
        ``min_std``
    :param min_std: lower bound of a step's standard deviation, positive
    :param max_std: upper bound, at least ``min_std``
    :param stochastic_steps: "all" denoising steps of a chain are noisy (published), or "one", drawn anew for every chain,
        while the others take their means (the hybrid sampling of arXiv 2510.25889)
    :param zero_start_fraction: share of the chains of rollouts, in [0, 1], that start from ``x_0 = 0`` as deterministic actions
        do, if one step is stochastic: their return is what is optimized then, too (ours)
    """

    net_arch_parts = ("pi", "vf", "noise")
    group_modules: ClassVar[dict[str, tuple[str, ...]]] = dict(
        velocity=("features_extractor", "velocity_field"),
        noise=("noise_net", "score_coefficient_net"),
        critic=("vf_features_extractor", "value_net"),
    )
    _instead_of_likelihoods = "; evaluate_actions(obs, records), records = policy(obs)[0], gives log-probabilities of chains"
    log_std_bounds: th.Tensor

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
        stochastic_steps: StochasticSteps = "all",
        zero_start_fraction: float = 0.25,
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
        check_choice("stochastic_steps", stochastic_steps, get_args(StochasticSteps))
        score_scale = check_argument(Number(open_low=True), "score_scale", score_scale, 1.0)
        score_clip = check_argument(Number(open_low=True, bound=True), "score_clip", score_clip, 10.0)
        zero_start_fraction = check_argument(Number(high=1), "zero_start_fraction", zero_start_fraction, 0.25)
        min_std = check_argument(Number(open_low=True), "min_std", min_std, 0.1)
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
        self.stochastic_steps = stochastic_steps
        self.zero_start_fraction = zero_start_fraction

        if score_drift == "learned":
            self.score_coefficient_net = ScoreCoefficient(score_scale)
        if noise == "learned":
            noise_arch = self.net_arch.get("noise", [64, 64])
            self.noise_net = NoiseNet(self.features_dim, self.action_dim, time_embedding_dim, noise_arch)
        self.register_buffer("log_std_bounds", th.zeros(2))
        self.set_std_bounds(min_std, max_std)
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
            stochastic_steps=self.stochastic_steps,
            zero_start_fraction=self.zero_start_fraction,
        )
        return data

    def set_std_bounds(self, min_std: float, max_std: float) -> None:
        """
        Set the bounds of the standard deviation; they are kept in the state dict, so that a saved policy explores as it did.

        :param min_std: lower bound, positive
        :param max_std: upper bound, at least ``min_std``
        :raises ValueError: if the bounds are impossible
        """
        if not 0 < min_std <= max_std:
            raise ValueError(f"min_std must be positive and at most max_std, got min_std={min_std}, max_std={max_std}.")
        self.log_std_bounds.copy_(th.tensor([min_std, max_std]).log())

    # ------------------------------------------------------------------ chain

    def score_coefficient(self, t: th.Tensor) -> th.Tensor | None:
        """
        :param t: times in [0, 1), shape ``(K,)``
        :return: ``alpha(t)``, same shape; None without score drift
        """
        if self.score_drift == "none":
            return None
        if self.score_drift == "learned":
            return self.score_coefficient_net(t)
        return th.clamp((1 - t) * initial_score_gate() * self.score_scale, max=2 * self.score_scale)

    def _step_std(self, features: th.Tensor, time_embedding: th.Tensor, alpha: th.Tensor | None) -> th.Tensor:
        """
        Standard deviations of ``n`` steps at once, shape ``(batch, n, action_dim)``: they do not depend on ``x``. The steps
        are the same for all, embeddings ``(n, time_embedding_dim)``, or one for each, ``(batch, 1, time_embedding_dim)``;
        ``alpha`` has the same leading dimensions.
        """
        if self.noise == "learned":
            return self.noise_net(features, time_embedding, self.log_std_bounds)
        low, high = self.log_std_bounds.exp()
        if self.noise == "constant":
            std = high.expand(time_embedding.shape[:-1])
        else:
            assert alpha is not None  # checked by the constructor
            std = th.sqrt(2 * alpha / self.denoising_steps).clamp(min=low)
        return std.unsqueeze(-1).expand(len(features), -1, self.action_dim)

    def _sample_chain(
        self, features: th.Tensor, noise: th.Tensor, stochastic: bool, denoising_steps: int
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None, th.Tensor | None]:
        """
        :return: chain ``(batch, K + 1, action_dim)``, means ``(batch, K, action_dim)``, the standard deviations of the
            stochastic steps, ``(batch, K, action_dim)`` or ``(batch, 1, action_dim)``, if there are any, and the stochastic
            step ``(batch,)``, if it is a single one
        """
        field = self.velocity_field
        t = flow.time_grid(denoising_steps, dtype=noise.dtype, device=noise.device)
        time, condition, alpha = field.time_features(t), field.condition(features), self.score_coefficient(t)
        std = stochastic_step = deviates = None
        if stochastic:
            if self.stochastic_steps == "one":
                stochastic_step = th.randint(denoising_steps, (len(noise),), device=noise.device)
            of = slice(None) if stochastic_step is None else stochastic_step.unsqueeze(-1)
            std = self._step_std(features, time.embedding[of], None if alpha is None else alpha[of])
            deviates = truncated_normal(std.shape, dtype=noise.dtype, device=noise.device) * std
            if stochastic_step is not None:
                one_hot = stochastic_step.unsqueeze(-1) == th.arange(denoising_steps, device=noise.device)
                deviates = deviates * one_hot.unsqueeze(-1)
        means = []

        def step(x: th.Tensor, at: tuple[int, TimeFeatures]) -> th.Tensor:
            k, features = at
            coefficient = None if alpha is None else alpha[k]
            velocity = field(x, features, condition)
            means.append(transition_mean(x, velocity, t[k], coefficient, denoising_steps, self.score_clip))
            return means[-1] if deviates is None else means[-1] + deviates[:, k]

        points = flow.chain(step, noise, enumerate(time.steps()))
        return th.stack(points, dim=1), th.stack(means, dim=1), std, stochastic_step

    def _deterministic_action(self, features: th.Tensor, noise: th.Tensor, denoising_steps: int) -> th.Tensor:
        return self._sample_chain(features, noise, False, denoising_steps)[0][:, -1]

    def _start(self, shape: tuple[int, int]) -> th.Tensor:
        """``x_0`` of chains that explore."""
        noise = th.randn(shape, device=self.device)
        if self.stochastic_steps == "one" and self.zero_start_fraction > 0:
            noise *= th.rand(shape[0], 1, device=self.device) >= self.zero_start_fraction
        return noise

    def _stochastic_action(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        return self._sample_chain(self.extract_features(obs), noise, True, self.denoising_steps)[0][:, -1]

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:  # type: ignore[override]
        """
        Sample a chain, as :meth:`collect_rollouts` of Stable-Baselines3 expects of an actor-critic.

        The last point is stored unclamped, so the density that scores it is the one that it was drawn from; ``unscale_action``
        clamps.

        :param obs: raw observations, shape ``(batch, ...)`` per part
        :param deterministic: whether to take the means, from ``x_0 = 0``
        :return: records of the chains ``(batch, record_width)``, values ``(batch, 1)``, normalized log-probabilities
            ``(batch,)``
        """
        preprocessed = self.preprocess(obs)
        features = self.features_extractor(preprocessed)
        shape = (len(features), self.action_dim)
        noise = th.zeros(shape, device=features.device) if deterministic else self._start(shape)
        chain, mean, std, step = self._sample_chain(features, noise, not deterministic, self.denoising_steps)
        if std is None:  # no step is stochastic; of one, it is the first that counts
            step = None if self.stochastic_steps == "all" else th.zeros(len(chain), dtype=th.long, device=chain.device)
            log_prob = self.evaluate_chain(obs, chain, step).log_prob
        elif step is None:
            log_prob = chain_log_prob(chain, mean, std)
        else:
            rows = th.arange(len(chain), device=chain.device)
            log_prob = step_log_prob(chain[rows, step + 1], mean[rows, step], std[:, 0])
        records = chain.flatten(1) if step is None else th.cat([step.unsqueeze(-1).to(chain.dtype), chain.flatten(1)], dim=1)
        return records, self._values(preprocessed, features), log_prob

    @property
    def record_width(self) -> int:
        """
        Numbers that :meth:`forward` returns of an action: the chain's ``(K + 1) * action_dim``, behind the stochastic step's
        index if it is a single one. The width tells which it is.
        """
        return (self.denoising_steps + 1) * self.action_dim + (self.stochastic_steps == "one")

    def split_record(self, records: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param records: from :meth:`forward`, shape ``(batch, record_width)``
        :return: chains ``(batch, K + 1, action_dim)`` and the stochastic step of each ``(batch,)``, None if all are
        :raises ValueError: if they are no records: an action by itself has no likelihood in closed form
        """
        width = (self.denoising_steps + 1) * self.action_dim
        records = records.flatten(1)
        if records.shape[1] not in (width, width + 1):
            raise ArgumentError(
                f"actions must be records of denoising chains, shape (batch, (denoising_steps + 1) * action_dim) = (batch, "
                f"{width}), or one wider with stochastic_steps='one', got {tuple(records.shape)}: a flow policy gives no "
                "probability of an action. Pass records = policy(obs)[0], or those of the rollout buffer."
            )
        step = records[:, 0].long() if records.shape[1] > width else None
        return records[:, -width:].view(len(records), self.denoising_steps + 1, self.action_dim), step

    def evaluate_chain(self, obs: PyTorchObs, chain: th.Tensor, step: th.Tensor | None = None) -> ChainEvaluation:
        """
        Score stored chains: all transitions that count in one call of each network, the observation's features once.

        :param obs: raw observations, shape ``(batch, ...)`` per part
        :param chain: shape ``(batch, K + 1, action_dim)``
        :param step: the transition of each chain that counts, shape ``(batch,)``; None: all of them
        :return: values, log-probability, entropy, means and standard deviations
        """
        preprocessed = self.preprocess(obs)
        features = self.features_extractor(preprocessed)
        field = self.velocity_field
        t = flow.time_grid(self.denoising_steps, dtype=chain.dtype, device=chain.device)
        time, alpha = field.time_features(t), self.score_coefficient(t)
        x, after = chain[:, :-1], chain[:, 1:]
        if step is not None:
            of, rows = step.unsqueeze(-1), th.arange(len(chain), device=chain.device).unsqueeze(-1)
            x, after, t, time = x[rows, of], after[rows, of], t[of], time.at(of)
            alpha = None if alpha is None else alpha[of]
        std = self._step_std(features, time.embedding, alpha)
        velocity = field(x, time, field.condition(features).unsqueeze(1))
        coefficient = None if alpha is None else alpha.unsqueeze(-1)
        mean = transition_mean(x, velocity, t.unsqueeze(-1), coefficient, self.denoising_steps, self.score_clip)
        values = self._values(preprocessed, features).flatten()
        if step is None:
            return ChainEvaluation(values, chain_log_prob(chain, mean, std), chain_entropy(std), mean, std)
        log_prob, entropy = step_log_prob(after[:, 0], mean[:, 0], std[:, 0]), step_entropy(std[:, 0])
        return ChainEvaluation(values, log_prob, entropy, mean, std, step)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Stable-Baselines3's interface to :meth:`evaluate_chain`.

        :param obs: raw observations, shape ``(batch, ...)`` per part
        :param actions: records of chains from :meth:`forward`, shape ``(batch, record_width)``
        :return: values ``(batch, 1)``, normalized log-probabilities ``(batch,)``, normalized entropies ``(batch,)``
        :raises ValueError: if they are no records: an action by itself has no likelihood in closed form
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

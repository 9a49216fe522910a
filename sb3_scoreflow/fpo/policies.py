"""FPO's policy: the common flow policy with a critic; each action is returned with the pairs that score it."""

from typing import Any, NamedTuple

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
from sb3_scoreflow.common.checks import Count, check_argument
from sb3_scoreflow.common.policies import ObservationNormalization
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.fpo.records import Record, record_width, unflatten
from sb3_scoreflow.ppo.policies import ActorCriticFlowPolicy


class PairEvaluation(NamedTuple):
    """Result of one pass over stored records."""

    values: th.Tensor  #: values in units of the rewards, shape ``(batch,)``
    losses: th.Tensor  #: flow-matching losses of the pairs, shape ``(batch, N)``


class FPOPolicy(ActorCriticFlowPolicy):
    """
    Flow policy that explores only through its initial noise ``x_0 ~ N(0, I)`` and scores actions by flow-matching losses
    (arXiv 2507.21053).

    The parameters are those of :class:`~sb3_scoreflow.ppo.ActorCriticFlowPolicy` and the following, which the algorithm's
    argument with the same name sets:

    :param n_mc_samples: number ``N`` of pairs of a time and noise that score an action
    """

    #: Probability that a pair's noise is 0; the algorithm sets it
    zero_noise_fraction = 0.0
    _instead_of_likelihoods = "; evaluate_actions(obs, records), records = policy(obs)[0], gives negative mean losses"

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        critic_activation_fn: type[nn.Module] = nn.Mish,
        denoising_steps: int = 10,
        inference_steps: int | None = None,
        time_embedding_dim: int = 16,
        prior_std: float = 0.2,
        n_mc_samples: int = 8,
        observation_normalization: ObservationNormalization = "auto",
        use_sde: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.n_mc_samples = check_argument(Count(), "n_mc_samples", n_mc_samples)
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
        self._build_critic(lr_schedule)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "n_mc_samples": self.n_mc_samples}

    # ------------------------------------------------------------------ pairs

    def _losses(self, features: th.Tensor, action: th.Tensor, noise: th.Tensor, t: th.Tensor) -> th.Tensor:
        """
        ``l_i = |v(x_i, t_i, s) - (a - eps_i)|^2 / action_dim``, ``x_i = (1 - t_i) eps_i + t_i a`` (arXiv 2507.21053, Section
        3.2; arXiv 2602.02481, Section III), with one call of the network for all pairs.

        :param features: observation features, shape ``(batch, features_dim)``
        :param action: executed actions, shape ``(batch, action_dim)``
        :param noise: noise ``eps`` of the pairs, shape ``(batch, N, action_dim)``
        :param t: times of the pairs, shape ``(batch, N)``
        :return: losses of the pairs, shape ``(batch, N)``
        """
        field, action = self.velocity_field, action.unsqueeze(1)
        x = flow.interpolate(noise, action, t.unsqueeze(-1))
        velocity = field(x, field.time_features(t), field.condition(features).unsqueeze(1))
        return (velocity - flow.velocity_target(noise, action)).pow(2).mean(-1)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:  # type: ignore[override]
        """
        Sample an action and the pairs that score it; :meth:`collect_rollouts` of Stable-Baselines3 calls this method. Times
        are uniform in [0, 1), as in FPO. Noise is standard normal, but 0 with the probability ``zero_noise_fraction`` (ours):
        pairs of normal noise in many dimensions never come near the path from ``x_0 = 0``.

        Actions are stored and scored after clamping, as they are executed.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param deterministic: whether to start from ``x_0 = 0``
        :return: flattened records ``(batch, record_width)`` (see :class:`~sb3_scoreflow.fpo.records.Record`), values ``(batch,
            1)``, and the negative mean losses of the pairs ``(batch,)`` in place of log-probabilities
        """
        preprocessed = self.preprocess(obs)
        features = self.features_extractor(preprocessed)
        field, condition = self.velocity_field, features
        shape, kind = (len(features), self.n_mc_samples), dict(dtype=features.dtype, device=features.device)
        start = th.randn(shape[0], self.action_dim, **kind)
        if deterministic:
            start = th.zeros_like(start)
            field, condition = self.acting("velocity_field"), self.acting("features_extractor")(preprocessed)
        action = self._integrate(field, condition, start, self.denoising_steps)
        t, noise = th.rand(shape, **kind), th.randn(*shape, self.action_dim, **kind)
        if self.zero_noise_fraction > 0:
            noise = noise.masked_fill((th.rand(shape, **kind) < self.zero_noise_fraction).unsqueeze(-1), 0.0)
        losses = self._losses(features, action, noise, t)
        records = Record(t, noise, losses, start, action).flatten()
        return records, self._values(preprocessed, features), -losses.mean(1)

    def evaluate_records(self, obs: PyTorchObs, record: Record) -> PairEvaluation:
        """
        Score stored records. The network is called once for all pairs, and features are computed once per observation.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param record: records of ``batch`` actions
        :return: values and losses
        """
        preprocessed = self.preprocess(obs)
        features = self.features_extractor(preprocessed)
        losses = self._losses(features, record.action, record.noise, record.t)
        return PairEvaluation(self._values(preprocessed, features).flatten(), losses)

    def unflatten(self, records: th.Tensor) -> Record:
        """
        :param records: flattened records from :meth:`forward` or the rollout buffer
        :return: the parts of the records
        """
        return unflatten(records, self.n_mc_samples, self.action_dim)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, None]:
        """
        Stable-Baselines3's interface to :meth:`evaluate_records`.

        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :param actions: flattened records
        :return: values ``(batch, 1)``, negative mean losses of the records' pairs ``(batch,)``, and None as the entropy, which
            is Stable-Baselines3's convention for an entropy without closed form
        :raises ValueError: if the argument contains actions instead of records: actions have no pairs
        """
        width = record_width(self.n_mc_samples, self.action_dim)
        if actions[0].numel() != width:
            raise ArgumentError(
                f"actions must be records, shape (batch, n_mc_samples * (action_dim + 2) + 2 * action_dim) = (batch, {width}),"
                f" got {tuple(actions.shape)}: a flow policy gives no probability of an action. Pass records = policy(obs)[0],"
                " or those of the rollout buffer."
            )
        evaluation = self.evaluate_records(obs, self.unflatten(actions.reshape(len(actions), width)))
        return evaluation.values.unsqueeze(-1), -evaluation.losses.mean(1), None


class MlpPolicy(FPOPolicy):
    """:class:`FPOPolicy` that flattens observations."""

    default_features_extractor_class = FlattenExtractor


class CnnPolicy(FPOPolicy):
    """:class:`FPOPolicy` with Stable-Baselines3's NatureCNN."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(FPOPolicy):
    """:class:`FPOPolicy` for Dict observations, with Stable-Baselines3's CombinedExtractor."""

    default_features_extractor_class = CombinedExtractor

"""A flow policy with a value function, for PPO-like algorithms."""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_scoreflow.common.linear import mlp
from sb3_scoreflow.common.policies import FlowMatchingPolicy


class ActorCriticFlowPolicy(FlowMatchingPolicy):
    """
    Flow policy and critic. The critic network's outputs are in units of ``value_scale``; predicted values are in units of the
    rewards.

    The parameters are those of :class:`~sb3_scoreflow.FlowMatchingPolicy` and

    :param critic_activation_fn: activation function of the critic
    :param share_features_extractor: whether the critic uses the actor's features (without gradient) instead of features from
        its own extractor
    """

    #: Parameter group -> names of its modules; names that a policy lacks are skipped
    group_modules: ClassVar[dict[str, tuple[str, ...]]] = dict(
        velocity=("features_extractor", "velocity_field"), critic=("vf_features_extractor", "value_net")
    )
    value_scale: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        critic_activation_fn: type[nn.Module] = nn.Mish,
        share_features_extractor: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self.critic_activation_fn = critic_activation_fn
        self.share_features_extractor = share_features_extractor

    def _build_critic(self, lr_schedule: Schedule) -> None:
        """Build the critic and the optimizer of all parameters; call it after all other networks have been built."""
        if not self.share_features_extractor:
            self.vf_features_extractor = self.make_features_extractor()
        self.value_net = mlp([self.features_dim, *self.net_arch["vf"], 1], self.critic_activation_fn)
        # 0 stands for "no unit yet": an untrained critic predicts V = 0 for any unit of the rewards (ours).
        self.register_buffer("value_scale", th.zeros(()))
        self._build_optimizer(lr_schedule)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """
        :return: parameter group -> its parameters, by :attr:`group_modules`; every parameter occurs once
        """
        return {
            group: [p for name in names if hasattr(self, name) for p in getattr(self, name).parameters()]
            for group, names in self.group_modules.items()
        }

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(critic_activation_fn=self.critic_activation_fn, share_features_extractor=self.share_features_extractor)
        return data

    # ------------------------------------------------------------------ values

    def _values(self, preprocessed: PyTorchObs, features: th.Tensor) -> th.Tensor:
        features = features.detach() if self.share_features_extractor else self.vf_features_extractor(preprocessed)
        return self.value_net(features) * self.value_scale

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: unnormalized observations, shape ``(batch, ...)`` per part
        :return: values in units of the rewards, shape ``(batch, 1)``
        """
        preprocessed = self.preprocess(obs)
        if not self.share_features_extractor:
            return self._values(preprocessed, th.empty(0))
        return self._values(preprocessed, self.features_extractor(preprocessed))

    def share_actor_features(self) -> None:
        """Copy the actor's features extractor into the critic's, for example after behavior cloning."""
        if not self.share_features_extractor:
            self.vf_features_extractor.load_state_dict(self.features_extractor.state_dict())

    def set_value_scale(self, scale: float) -> None:
        """
        Change the unit of the critic's output and rescale its last layer so that predicted values stay the same. The first
        call sets the unit without changing the weights.

        :param scale: new unit (reward units per unit of output), positive
        """
        ratio = float(self.value_scale) / scale or 1.0
        last = self.value_net[-1]
        assert isinstance(last, nn.Linear)
        with th.no_grad():
            last.weight.mul_(ratio)
            last.bias.mul_(ratio)
        self.value_scale.fill_(scale)

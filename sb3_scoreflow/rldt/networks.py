"""The Q networks of RLDT."""

from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn

from sb3_scoreflow.common.linear import batched_linear


class QEnsemble(nn.Module):
    """
    Independent networks ``Q(s, a)`` of the same shape, evaluated together as batched matrix products.

    As in :class:`VelocityField`, the first layer is split: the observation's share is computed once for all actions of a
    state. Every member is initialized like a separate chain of ``nn.Linear`` layers.

    :param n_critics: number of networks ``E``, at least 1
    :param features_dim: width of the observation features
    :param action_dim: flattened width of the action
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation function
    """

    def __init__(
        self,
        n_critics: int,
        features_dim: int,
        action_dim: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module] = nn.SiLU,
    ) -> None:
        super().__init__()
        if n_critics < 1:
            raise ValueError(f"n_critics must be at least 1, got {n_critics}.")
        self.n_critics = n_critics
        widths = [features_dim + action_dim, *net_arch, 1]
        layers = [[nn.Linear(a, b) for _ in range(n_critics)] for a, b in pairwise(widths)]
        weights = [th.stack([member.weight.detach().T for member in layer]) for layer in layers]
        # Layout for products from the left, (E, inputs, outputs)
        self.features_weight = nn.Parameter(weights[0][:, :features_dim].contiguous())
        self.action_weight = nn.Parameter(weights[0][:, features_dim:].contiguous())
        self.weights = nn.ParameterList([weight.contiguous() for weight in weights[1:]])
        self.biases = nn.ParameterList([th.stack([m.bias.detach() for m in layer]).unsqueeze(1) for layer in layers])
        self.activation = activation_fn()

    def condition(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: observation features, shape ``(batch, features_dim)``, or ``(E, batch, features_dim)`` if every member
            has separate features
        :return: the observation's share of the first layer, shape ``(E, batch, width)``
        """
        return features @ self.features_weight + self.biases[0]

    def forward(self, condition: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param condition: output of :meth:`condition`, shape ``(E, batch, width)``
        :param actions: ``n`` actions per observation, shape ``(batch, n, action_dim)``, or ``(E, batch, n, action_dim)`` if
            every member has separate actions
        :return: ``Q``, shape ``(E, batch, n)``
        """
        *_, batch, n, action_dim = actions.shape
        share = actions.reshape(*actions.shape[:-3], batch * n, action_dim) @ self.action_weight
        hidden = (share.view(self.n_critics, batch, n, -1) + condition.unsqueeze(2)).flatten(1, 2)
        for weight, bias in zip(self.weights, list(self.biases)[1:], strict=True):
            hidden = batched_linear(self.activation(hidden), weight, bias)
        return hidden.view(self.n_critics, batch, n)

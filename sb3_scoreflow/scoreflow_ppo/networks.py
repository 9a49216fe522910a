"""ScoRe-Flow's networks for the standard deviation of a denoising step and for the coefficient of the score."""

import math
from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_scoreflow.common.linear import Linear, mlp

#: Bias of the score coefficient's last layer: softplus(-2) = 0.127 at the start (arXiv 2604.10962, released configuration).
SCORE_COEFFICIENT_BIAS = -2.0


class NoiseNet(nn.Module):
    """
    Standard deviation of a denoising step, per action dimension, within ``[min_std, max_std]``.

    ``tanh`` of an MLP interpolates ``log std^2`` linearly between the bounds. The MLP's inputs are the time embedding and the
    features, but not ``x`` (arXiv 2505.22094, Section 4; arXiv 2604.10962, Section 4). The last layer starts at zero (ours),
    so every policy starts with the geometric mean of the bounds in all states.

    :param features_dim: width of the observation features
    :param action_dim: flattened width of the action
    :param time_embedding_dim: width of the time embedding
    :param net_arch: widths of the hidden layers
    """

    def __init__(
        self, features_dim: int, action_dim: int, time_embedding_dim: int, net_arch: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.net = mlp([features_dim + time_embedding_dim, *net_arch, action_dim], nn.Tanh)
        last = self.net[-1]
        assert isinstance(last, Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: th.Tensor, time_embedding: th.Tensor, log_std_bounds: th.Tensor) -> th.Tensor:
        """
        :param features: observation features, shape ``(..., features_dim)``
        :param time_embedding: shape ``(..., time_embedding_dim)``; the leading dimensions are broadcast against those of the
            features, and no gradient flows into the embedding
        :param log_std_bounds: ``log [min_std, max_std]``, shape ``(2,)``
        :return: standard deviations, shape ``(..., action_dim)``
        """
        leading = th.broadcast_shapes(features.shape[:-1], time_embedding.shape[:-1])
        parts = features, time_embedding.detach()
        inputs = th.cat([part.expand(*leading, part.shape[-1]) for part in parts], dim=-1)
        low, high = log_std_bounds
        return th.exp(low + 0.5 * (th.tanh(self.net(inputs)) + 1) * (high - low))


class ScoreCoefficient(nn.Module):
    """
    Coefficient of the score in the drift, ``alpha(t) = min((1 - t) softplus(g(t)) c, 2 c)`` (arXiv 2604.10962, Section 4).

    ``g`` is a tiny MLP of ``t`` alone; the factor ``1 - t`` cancels the pole of the score. The last layer's weights start at
    zero and its bias at -2, so ``softplus(g) = 0.127`` at every ``t`` before training.

    :param score_scale: ``c``
    """

    def __init__(self, score_scale: float) -> None:
        super().__init__()
        self.score_scale = score_scale
        last = nn.Linear(16, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, SCORE_COEFFICIENT_BIAS)
        self.net = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 16), nn.SiLU(), last)

    def forward(self, t: th.Tensor) -> th.Tensor:
        """
        :param t: times in [0, 1), shape ``(K,)``
        :return: coefficients, shape ``(K,)``
        """
        gate = nn.functional.softplus(self.net(t.unsqueeze(-1)).squeeze(-1))
        return th.clamp((1 - t) * gate * self.score_scale, max=2 * self.score_scale)


def initial_score_gate() -> float:
    """``softplus(-2)``: the initial value of ``softplus(g)``, which a constant score drift keeps."""
    return math.log1p(math.exp(SCORE_COEFFICIENT_BIAS))

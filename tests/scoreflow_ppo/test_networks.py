"""Noise net and score coefficient against independent re-computations."""

import math

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_scoreflow.common import flow
from sb3_scoreflow.scoreflow_ppo.networks import NoiseNet, ScoreCoefficient, initial_score_gate

FEATURES, ACTION, EMBEDDING = 5, 3, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


# ---------------------------------------------------------------------- noise net


LOG_BOUNDS = th.tensor([0.05, 0.8], dtype=th.float64).log()


def _noise_net() -> NoiseNet:
    """With a last layer that is not zero, as after some training."""
    net = NoiseNet(FEATURES, ACTION, EMBEDDING, (16,)).double()
    last = list(net.net)[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, std=0.5)
    return net


def test_noise_starts_at_the_geometric_mean_everywhere() -> None:
    net = NoiseNet(FEATURES, ACTION, EMBEDDING).double()
    features, embedding = 100 * th.randn(7, FEATURES, dtype=th.float64), th.randn(4, EMBEDDING, dtype=th.float64)
    std = net(features.unsqueeze(1), embedding, LOG_BOUNDS)
    th.testing.assert_close(std, th.full((7, 4, ACTION), math.sqrt(0.05 * 0.8), dtype=th.float64), rtol=1e-12, atol=0)


def test_noise_interpolates_the_log_variance() -> None:
    """exp(0.5 * interp(tanh(net), 2 log min, 2 log max)), one forward per (row, step) pair."""
    net = _noise_net()
    features, embedding = th.randn(5, FEATURES, dtype=th.float64), th.randn(3, EMBEDDING, dtype=th.float64)
    std = net(features.unsqueeze(1), embedding, LOG_BOUNDS).detach()
    for row in range(5):
        for k in range(3):
            squashed = np.tanh(net.net(th.cat([features[row], embedding[k]])).detach().numpy())
            expected = np.exp(0.5 * np.interp(squashed, [-1, 1], [2 * math.log(0.05), 2 * math.log(0.8)]))
            np.testing.assert_allclose(std[row, k], expected, rtol=1e-12)
    assert std.std() > 0.05  # otherwise nothing was tested


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_noise_bounds_hold_for_extreme_inputs(dtype: th.dtype) -> None:
    net, bounds = _noise_net().to(dtype), LOG_BOUNDS.to(dtype)
    last = list(net.net)[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, std=1e4)
    features = th.cat([th.full((1, FEATURES), value) for value in (-1e30, -1e3, 0.0, 1e3, 1e30)]).to(dtype)
    std = net(features.unsqueeze(1), th.randn(4, EMBEDDING, dtype=dtype), bounds)
    slack = 1e-6 if dtype == th.float32 else 1e-12
    assert std.min() >= 0.05 * (1 - slack) and std.max() <= 0.8 * (1 + slack)
    assert std.min() < 0.0501 and std.max() > 0.799  # both ends are reached


def test_noise_gives_no_gradient_to_the_time_embedding() -> None:
    net = _noise_net()
    features = th.randn(5, FEATURES, dtype=th.float64, requires_grad=True)
    embedding = th.randn(3, EMBEDDING, dtype=th.float64, requires_grad=True)
    net(features.unsqueeze(1), embedding, LOG_BOUNDS).sum().backward()
    assert embedding.grad is None
    assert features.grad is not None and features.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


# ---------------------------------------------------------------------- score coefficient


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_score_coefficient_starts_at_softplus_of_minus_two(scale: float) -> None:
    t = np.array([0.0, 0.25, 0.5, 0.99])
    alpha = ScoreCoefficient(scale).double()(th.as_tensor(t)).detach()
    np.testing.assert_allclose(alpha, 0.12692801104297263 * (1 - t) * scale, rtol=1e-12)
    assert initial_score_gate() == pytest.approx(0.12692801104297263, rel=1e-14)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_score_coefficient_is_capped(scale: float) -> None:
    """``min((1 - t) softplus(g) c, 2 c)`` with softplus(g) = 50: the cap holds up to t = 0.96."""
    net = ScoreCoefficient(scale).double()
    last = list(net.net)[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, 50.0)
    alpha = net(th.tensor([0.0, 0.5, 0.96, 0.98], dtype=th.float64)).detach()
    np.testing.assert_allclose(alpha, np.array([2.0, 2.0, 2.0, 1.0]) * scale, rtol=1e-12)


def test_score_coefficient_has_the_right_gradient() -> None:
    """Against finite differences, after the last layer has left zero; and the first step can already leave it."""
    net, t = ScoreCoefficient(1.5).double(), flow.time_grid(5, dtype=th.float64)
    last = list(net.net)[-1]
    assert isinstance(last, nn.Linear)
    net(t).sum().backward()
    assert last.bias.grad is not None and last.weight.grad is not None
    # d alpha / d bias = (1 - t) c sigmoid(-2), summed over the grid
    slope = 1.5 * (1 / (1 + math.exp(2))) * (1 + 0.8 + 0.6 + 0.4 + 0.2)
    assert float(last.bias.grad) == pytest.approx(slope, rel=1e-10)
    assert last.weight.grad.abs().max() > 0
    nn.init.normal_(last.weight)
    parameters = tuple(net.parameters())

    def alpha(*values: th.Tensor) -> th.Tensor:
        return th.func.functional_call(net, dict(zip(dict(net.named_parameters()), values, strict=True)), (t,))

    assert th.autograd.gradcheck(alpha, parameters)


def test_score_coefficient_can_differ_between_times() -> None:
    net = ScoreCoefficient(1.0).double()
    last = list(net.net)[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, std=3.0)
    t = th.tensor([0.0, 0.5], dtype=th.float64)
    gate = net(t).detach() / (1 - t)
    assert abs(gate[0] - gate[1]) > 0.01

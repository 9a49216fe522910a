"""
What a difference of flow-matching losses has to do with a ratio of densities, where both are known.

For actions ``a ~ N(m, s^2)`` the exact velocity is ``v(x, t) = (m (1 - t) + (t s^2 - (1 - t)) x) / D``, ``D = (1 - t)^2 + t^2
s^2``, and the loss of an action, averaged over the noise, is ``l(t) = ((a - m)^2 (1 - t)^2 + t^2 s^4) / D^2``.

- Weighted by ``t / (1 - t)`` and integrated, differences of it are exactly those of the log-density, for any two Gaussians
  (the evidence lower bound is tight).
- With uniform times, as FPO has them, the integral is ``(pi / 4) ((a - m)^2 / s + s)``. For Gaussians of the same width the
  difference is exactly ``pi s / 2`` times that of the log-density: FPO's ratio is a power of the true one. For other widths it
  is none; to first order a change of the width counts half as much as one of the mean, with the right sign.
"""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_scoreflow.common import flow
from sb3_scoreflow.fpo.policies import FPOPolicy

NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)
TIMES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2


def denominator(s: float) -> np.ndarray:
    return (1 - TIMES) ** 2 + TIMES**2 * s**2


def loss(a: float, m: float, s: float) -> np.ndarray:
    """Averaged over the noise, at each of the times."""
    return ((a - m) ** 2 * (1 - TIMES) ** 2 + TIMES**2 * s**4) / denominator(s) ** 2


def uniform_loss(a: float, m: float, s: float) -> float:
    return math.pi / 4 * ((a - m) ** 2 / s + s)


def log_density(a: float, m: float, s: float) -> float:
    return -((a - m) ** 2) / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)


POLICIES = [(0.0, 1.0), (0.3, 1.0), (-0.2, 0.5), (0.1, 0.2), (0.0, 2.0)]
ACTIONS = [-1.0, -0.3, 0.0, 0.25, 0.9]


@pytest.mark.parametrize(("m", "s"), POLICIES)
def test_formula_of_the_loss(m: float, s: float) -> None:
    """By quadrature over the noise, with the path and the target that the policies use."""
    deviates, weights = np.polynomial.hermite_e.hermegauss(3)  # exact for the square of what is linear in the noise
    t, noise = (th.tensor(x) for x in np.meshgrid(TIMES, deviates, indexing="ij"))
    for a in ACTIONS:
        data = th.full_like(noise, a)
        x, d = flow.interpolate(noise, data, t), th.tensor(denominator(s)).unsqueeze(1)
        velocity = (m * (1 - t) + (t * s**2 - (1 - t)) * x) / d
        squares = (velocity - flow.velocity_target(noise, data)).pow(2).numpy()
        np.testing.assert_allclose(squares @ weights / weights.sum(), loss(a, m, s), rtol=1e-10)
        assert WEIGHTS @ loss(a, m, s) == pytest.approx(uniform_loss(a, m, s), rel=1e-9)


@pytest.mark.parametrize("old", POLICIES)
@pytest.mark.parametrize("new", POLICIES)
def test_weighted_differences_are_those_of_the_log_density(old: tuple[float, float], new: tuple[float, float]) -> None:
    for a in ACTIONS:
        difference = WEIGHTS @ (TIMES / (1 - TIMES) * (loss(a, *old) - loss(a, *new)))
        assert difference == pytest.approx(log_density(a, *new) - log_density(a, *old), rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("s", [0.1, 0.5, 1.0])
def test_ratio_of_equal_widths_is_a_power_of_the_density_ratio(s: float) -> None:
    for a in ACTIONS:
        difference = uniform_loss(a, -0.1, s) - uniform_loss(a, 0.2, s)
        exact = log_density(a, 0.2, s) - log_density(a, -0.1, s)
        assert difference == pytest.approx(math.pi * s / 2 * exact, rel=1e-12)


@pytest.mark.parametrize(("m", "s"), POLICIES)
def test_to_first_order_mean_and_width_move_the_right_way(m: float, s: float) -> None:
    h = 1e-6
    for a in ACTIONS:
        for (dm, ds), factor in (((h, 0.0), math.pi * s / 2), ((0.0, h), math.pi * s / 4)):
            ends = [(m + sign * dm, s + sign * ds) for sign in (1, -1)]
            losses = uniform_loss(a, *ends[0]) - uniform_loss(a, *ends[1])
            densities = log_density(a, *ends[0]) - log_density(a, *ends[1])
            assert -losses == pytest.approx(factor * densities, rel=1e-5, abs=1e-14)


def test_ratios_of_other_widths_may_err_in_their_direction() -> None:
    """Not to be had: for this action one says that it has become more likely, the other, rightly, that it has not."""
    old, new, a = (0.0, 2.0), (0.0, 1.0), math.sqrt(1.92)
    assert uniform_loss(a, *old) - uniform_loss(a, *new) > 0 > log_density(a, *new) - log_density(a, *old)


def test_constant_advantages_move_nothing_on_average() -> None:
    """As of the score of a density, the mean of the loss's gradient over the policy's own actions is 0."""
    deviates, weights = np.polynomial.hermite_e.hermegauss(5)
    m, s, h = 0.3, 0.4, 1e-5
    for dm, ds in ((h, 0.0), (0.0, h)):
        slopes = [
            (uniform_loss(m + s * z, m + dm, s + ds) - uniform_loss(m + s * z, m - dm, s - ds)) / (2 * h) for z in deviates
        ]
        assert np.dot(weights, slopes) == pytest.approx(0, abs=1e-8) and np.abs(slopes).max() > 0.1


@pytest.mark.parametrize("s", [0.3, 1.0])
def test_policys_losses_are_those_of_the_gaussian(s: float) -> None:
    """An untrained field without its network is the exact flow of N(0, s^2): times, path, target and mean all enter."""
    th.manual_seed(0)
    n, spread = 50_000, spaces.Box(-1, 1, (2,))
    policy = FPOPolicy(spaces.Box(-1, 1, (1,)), spread, lambda _: 0.0, net_arch=[4], prior_std=s, n_mc_samples=n).double()
    with th.no_grad():
        for parameter in policy.velocity_field.output_layer.parameters():
            parameter.zero_()
        obs = th.zeros(3, 1, dtype=th.float64)
        record = policy.unflatten(policy(obs)[0])
        actions = th.tensor([[0.0, 0.0], [0.5, -0.5], [0.9, 0.1]], dtype=th.float64)
        losses = policy.evaluate_records(obs, record._replace(action=actions)).losses
    expected = [np.mean([uniform_loss(a, 0.0, s) for a in action]) for action in actions.tolist()]
    error = losses.std(1) / n**0.5
    assert ((losses.mean(1) - th.tensor(expected)).abs() < 4 * error).all(), (losses.mean(1), expected, error)
    assert (error < 0.02 * losses.mean(1)).all()

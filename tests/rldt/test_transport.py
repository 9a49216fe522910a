"""The transport field: against loops in float64, Stein's identity, and densities whose particles must come out right."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow.rldt.transport import transport_field
from tests.rldt.reference import slow_field

MEAN = th.tensor([0.5, -1.0], dtype=th.float64)
COVARIANCE = th.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=th.float64)
#: Peaks of the mixture, in both dimensions, and the standard deviation of each
PEAK, WIDTH = 1.5, 0.4


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _check(
    queries: np.ndarray, particles: np.ndarray, gradients: np.ndarray, dtype: th.dtype = th.float64, **kwargs: Any
) -> None:
    tensors = [th.tensor(x, dtype=dtype) for x in (queries, particles, gradients)]
    field = transport_field(tensors[0], tensors[1], tensors[2], **kwargs)
    attraction, repulsion = slow_field(queries, particles, gradients, **kwargs)
    tolerance = 1e-12 if dtype == th.float64 else 2e-5
    assert field.attraction.dtype == field.repulsion.dtype == dtype
    np.testing.assert_allclose(field.attraction, attraction, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(field.repulsion, repulsion, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(field.total, attraction + repulsion, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------- the formula


@pytest.mark.parametrize("n_particles", [1, 2, 7, 8])
@pytest.mark.parametrize("bandwidth", [None, 0.3])
@pytest.mark.parametrize("scaling", ["gradient", "none"])
def test_field_equals_double_loop(n_particles: int, bandwidth: float | None, scaling: str) -> None:
    """Queries elsewhere than the particles, and of another number; a large temperature, so that no term hides the other."""
    queries, particles = _random(5, 3, seed=1), _random(n_particles, 3, seed=2)
    gradients = 2 * _random(n_particles, 3, seed=3)
    _check(queries, particles, gradients, bandwidth=bandwidth, temperature=0.7, temperature_scaling=scaling)


@pytest.mark.parametrize("lead", [(4,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("bandwidth", [None, 2.0])
def test_leading_dimensions_are_separate_sets(lead: tuple[int, ...], bandwidth: float | None) -> None:
    queries, particles, gradients = (_random(*lead, n, 2, seed=n) for n in (3, 6, 6))
    # Gradients of very different size: a temperature that was averaged over the sets would show
    gradients *= 10 ** np.linspace(-1, 1, math.prod(lead)).reshape(*lead, 1, 1)
    _check(queries, particles, gradients, bandwidth=bandwidth, temperature=0.5)


def test_queries_at_the_particles() -> None:
    """As in Stein variational gradient descent itself: every particle also meets itself, at distance 0."""
    particles = _random(2, 8, 4, seed=1)
    _check(particles, particles, _random(2, 8, 4, seed=2), temperature=0.5)


def test_float32_is_kept() -> None:
    _check(_random(3, 8, 4), _random(3, 8, 4, seed=1), _random(3, 8, 4, seed=2), dtype=th.float32, temperature=0.5)


def test_median_is_the_lower_of_the_middle_ones() -> None:
    """Distances 1, 2, 3, 4 from the query: h = 2^2 / (2 log 5); the mean of the middle ones would give 2.5^2 or 6.5."""
    particles = th.tensor([[1.0], [-2.0], [3.0], [-4.0]], dtype=th.float64)
    field = transport_field(th.zeros(1, 1, dtype=th.float64), particles, th.ones_like(particles), temperature=0.0)
    weights = [5 ** (-(d**2) / 4) for d in (1, 2, 3, 4)]  # exp(-d^2 / (2 h)) = exp(-d^2 log(5) / 4)
    assert field.attraction.item() == pytest.approx(sum(weights) / 4, rel=1e-12)


def test_each_query_has_its_own_bandwidth() -> None:
    """A query in the crowd and one far away: the far one is still reached, as its own median is large."""
    particles = th.tensor([[0.0], [0.1], [0.2]], dtype=th.float64)
    queries = th.tensor([[0.1], [50.0]], dtype=th.float64)
    field = transport_field(queries, particles, th.ones_like(particles), temperature=0.0)
    near = np.exp(-np.array([1, 0, 1]) * np.log(4))
    far = np.exp(-(np.array([50, 49.9, 49.8]) ** 2) / 49.9**2 * np.log(4))
    np.testing.assert_allclose(field.attraction.flatten(), [near.mean(), far.mean()], rtol=1e-12)


def test_one_particle() -> None:
    """At its own place a single particle feels its gradient and nothing else; elsewhere k = exp(-log 2) by the median rule."""
    particle, gradient = th.tensor([[0.3, -0.2]], dtype=th.float64), th.tensor([[2.0, 1.0]], dtype=th.float64)
    field = transport_field(particle, particle, gradient, temperature=1.0)
    assert th.equal(field.attraction, gradient) and th.equal(field.repulsion, th.zeros(1, 2, dtype=th.float64))
    away = transport_field(particle + 1, particle, gradient, temperature=1.0, temperature_scaling="none")
    th.testing.assert_close(away.attraction, gradient / 2)
    # h = 2 / (2 log 2), so k (q - a) / h = 1/2 log 2
    th.testing.assert_close(away.repulsion, th.full_like(gradient, 0.5 * math.log(2)))


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_coinciding_particles_do_not_repel_each_other(dtype: th.dtype) -> None:
    """All at one point: the mean gradient and exact zeros, neither NaN nor a huge number from a bandwidth of 0."""
    particles, gradients = th.full((8, 3), 0.7, dtype=dtype), th.randn(8, 3, dtype=dtype)
    field = transport_field(particles, particles, gradients, temperature=1.0)
    th.testing.assert_close(field.attraction, gradients.mean(0).expand(8, 3))
    assert th.equal(field.repulsion, th.zeros(8, 3, dtype=dtype))


def test_two_points_shared_by_several_particles() -> None:
    """Five at one point, three at another: the median is 0 for the five, the distance for the three."""
    particles = np.repeat([[0.0, 0.0], [1.0, 2.0]], [5, 3], axis=0)
    _check(particles, particles, _random(8, 2), temperature=0.5)


def test_delta_kernel_is_the_gradient_at_the_query() -> None:
    particles, gradients = th.randn(2, 5, 3), th.randn(2, 5, 3)
    for kwargs in product([None, 0.1], [0.0, 5.0], ["gradient", "none"]):
        field = transport_field(particles, particles, gradients, "delta", *kwargs)  # type: ignore[arg-type]
        assert th.equal(field.attraction, gradients) and th.equal(field.total, gradients)
        assert th.equal(field.repulsion, th.zeros_like(gradients))


def test_gradient_scaling_makes_the_unit_of_the_rewards_cancel() -> None:
    particles, gradients = th.randn(2, 8, 3, dtype=th.float64), th.randn(2, 8, 3, dtype=th.float64)
    field = transport_field(particles, particles, gradients)
    scaled = transport_field(particles, particles, 1000 * gradients)
    th.testing.assert_close(scaled.attraction, 1000 * field.attraction)
    th.testing.assert_close(scaled.repulsion, 1000 * field.repulsion)
    fixed = transport_field(particles, particles, 1000 * gradients, temperature_scaling="none")
    norm = gradients.norm(dim=-1).mean(-1)[:, None, None]
    th.testing.assert_close(fixed.repulsion, field.repulsion / norm)


def test_no_gradient_flows_without_need() -> None:
    queries, particles, gradients = (th.randn(4, 2) for _ in range(3))
    assert not transport_field(queries, particles, gradients).total.requires_grad


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        (dict(kernel="gauss"), ["kernel", "'gauss'", "'rbf'", "'delta'"]),
        (dict(temperature_scaling="q"), ["temperature_scaling", "'q'", "'gradient'", "'none'"]),
        (dict(bandwidth=0.0), ["bandwidth", "0.0"]),
        (dict(bandwidth=-1.0), ["bandwidth", "-1.0"]),
        (dict(bandwidth=math.nan), ["bandwidth", "nan"]),
        (dict(temperature=-1e-3), ["temperature", "-0.001"]),
        (dict(temperature=math.nan), ["temperature", "nan"]),
        (dict(gradients=th.zeros(5, 3)), ["gradients", "(5, 3)", "(5, 2)"]),
        (dict(kernel="delta", queries=th.zeros(4, 2)), ["kernel='delta'", "queries", "(4, 2)", "(5, 2)"]),
    ],
)
def test_errors_name_the_argument(kwargs: dict[str, Any], words: list[str]) -> None:
    arguments: dict[str, Any] = dict(queries=th.zeros(5, 2), particles=th.zeros(5, 2), gradients=th.zeros(5, 2))
    transport_field(**arguments)
    with pytest.raises(ValueError) as error:
        transport_field(**(arguments | kwargs))
    assert all(word in str(error.value) for word in words), error.value


# ---------------------------------------------------------------------- the theory behind it


def _gaussian_score(x: th.Tensor) -> th.Tensor:
    return (MEAN - x) @ th.linalg.inv(COVARIANCE)


def _gaussian_samples(n: int, seed: int) -> th.Tensor:
    generator = th.Generator().manual_seed(seed)
    return MEAN + th.randn(n, 2, dtype=th.float64, generator=generator) @ th.linalg.cholesky(COVARIANCE).T


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("bandwidth", [None, 0.2, 3.0])
def test_steins_identity(bandwidth: float | None, temperature: float) -> None:
    """
    With particles from ``p = exp(Q / temperature)`` the two terms cancel in expectation, at every query and for every
    bandwidth, also for one that depends on the query. A factor missing in either term breaks it.
    """
    n = 200_000
    particles, queries = _gaussian_samples(n, seed=0), _gaussian_samples(20, seed=1)
    gradients = temperature * _gaussian_score(particles)
    field = transport_field(queries, particles, gradients, "rbf", bandwidth, temperature, "none")
    scale = field.attraction.norm(dim=-1).mean()
    assert field.total.norm(dim=-1).mean() < 0.04 * scale
    # The same with the temperature a tenth off is clearly no zero
    wrong = transport_field(queries, particles, gradients, "rbf", bandwidth, 1.1 * temperature, "none")
    assert wrong.total.norm(dim=-1).mean() > 0.06 * scale


def _move(particles: th.Tensor, score: Any, n_steps: int, step_size: float) -> th.Tensor:
    """Stein variational gradient descent with Adagrad, as in Liu and Wang's experiments."""
    history = th.zeros_like(particles)
    for _ in range(n_steps):
        phi = transport_field(particles, particles, score(particles), "rbf", None, 1.0, "none").total
        history += phi**2
        particles = particles + step_size * phi / (1e-8 + history.sqrt())
    return particles


def _mixture_score(x: th.Tensor) -> th.Tensor:
    """Half of ``N((PEAK, PEAK), WIDTH^2 I)``, half of its mirror image: a point's mean peak is ``PEAK tanh(log-odds / 2)``."""
    return (PEAK * th.tanh(PEAK * x.sum(-1, keepdim=True) / WIDTH**2) - x) / WIDTH**2


def _normal_start(n: int = 120) -> th.Tensor:
    return th.randn(n, 2, dtype=th.float64, generator=th.Generator().manual_seed(1))


def test_particles_reach_a_correlated_gaussian() -> None:
    """From a round cloud far away. A finite number of particles comes out a few percent too narrow."""
    start = 0.3 * _normal_start(150) + th.tensor([-2.0, 2.0], dtype=th.float64)
    particles = _move(start, _gaussian_score, 600, 0.3)
    np.testing.assert_allclose(particles.mean(0), MEAN, atol=0.02)
    np.testing.assert_allclose(th.cov(particles.T), COVARIANCE, atol=0.06)


def test_both_modes_are_kept_and_their_width() -> None:
    """From one cloud between them."""
    particles = _move(_normal_start(), _mixture_score, 600, 0.1)
    right = particles.sum(-1) > 0
    assert 0.4 < right.double().mean() < 0.6
    for mode, sign in ((particles[right], 1), (particles[~right], -1)):
        np.testing.assert_allclose(mode.mean(0), [sign * PEAK] * 2, atol=0.03)
        np.testing.assert_allclose(th.cov(mode.T), WIDTH**2 * np.eye(2), atol=0.03)


def test_delta_kernel_collapses_every_mode_to_its_peak() -> None:
    """The same density and start without a kernel: every particle climbs alone and nothing of the width is left."""
    start = particles = _normal_start()
    for _ in range(200):
        particles = particles + 0.02 * transport_field(particles, particles, _mixture_score(particles), "delta").total
    # Each to the peak on whose side it began
    np.testing.assert_allclose(particles, PEAK * start.sum(-1, keepdim=True).sign().expand(-1, 2), atol=1e-6)

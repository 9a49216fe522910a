"""One denoising step and the density of a chain, against NumPy, SciPy and torch.distributions in float64."""

import math

import numpy as np
import pytest
import torch as th
from scipy import stats

from sb3_scoreflow.scoreflow_ppo.transition import (
    NOISE_TRUNCATION,
    chain_entropy,
    chain_log_prob,
    transition_mean,
    truncated_normal,
)

BATCH, STEPS, ACTION = 6, 4, 3
TIMES = np.arange(STEPS) / STEPS


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _chain() -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Chain, means and standard deviations that have nothing to do with each other."""
    rng = np.random.default_rng(0)
    chain = rng.standard_normal((BATCH, STEPS + 1, ACTION))
    mean = rng.uniform(-1, 1, (BATCH, STEPS, ACTION))
    std = rng.uniform(0.1, 1.5, (BATCH, STEPS, ACTION))
    return th.as_tensor(chain), th.as_tensor(mean), th.as_tensor(std)


# ---------------------------------------------------------------------- mean


def _numpy_mean(x: np.ndarray, v: np.ndarray, t: float, alpha: float | None, steps: int, clip: float) -> np.ndarray:
    """The formulas of the method, one number at a time."""
    result = np.empty_like(x)
    for index, (position, velocity) in enumerate(zip(x.flat, v.flat, strict=True)):
        drift = velocity
        if alpha is not None:
            drift += alpha * min(max((t * velocity - position) / (1 - t), -clip), clip)
        result.flat[index] = min(max(position + drift / steps, -1.0), 1.0)
    return result


@pytest.mark.parametrize("score_clip", [10.0, 1.5])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.127, 2.0])
def test_transition_mean_values(alpha: float | None, score_clip: float) -> None:
    rng = np.random.default_rng(1)
    x, velocity = 1.5 * rng.standard_normal((2, 40, ACTION))
    clipped_scores = clipped_means = 0
    for t in (0.0, 0.25, 0.5, 0.75, 0.99):
        coefficient = None if alpha is None else th.tensor(alpha, dtype=th.float64)
        time = th.tensor(t, dtype=th.float64)
        mean = transition_mean(th.as_tensor(x), th.as_tensor(velocity), time, coefficient, STEPS, score_clip).numpy()
        np.testing.assert_allclose(mean, _numpy_mean(x, velocity, t, alpha, STEPS, score_clip), rtol=1e-12, atol=1e-12)
        clipped_scores += int((np.abs((t * velocity - x) / (1 - t)) > score_clip).sum())
        clipped_means += int((np.abs(mean) == 1).sum())
    # Both clips were at work, and not everywhere
    assert 0 < clipped_scores < 5 * x.size and 0 < clipped_means < 5 * x.size


def test_transition_mean_of_a_whole_grid_equals_its_steps() -> None:
    x, velocity = 0.5 * th.randn(2, BATCH, STEPS, ACTION, dtype=th.float64)
    t, alpha = th.as_tensor(TIMES), th.rand(STEPS, dtype=th.float64)
    whole = transition_mean(x, velocity, t.unsqueeze(-1), alpha.unsqueeze(-1), STEPS, 10.0)
    for k in range(STEPS):
        one = transition_mean(x[:, k], velocity[:, k], t[k], alpha[k], STEPS, 10.0)
        th.testing.assert_close(whole[:, k], one, rtol=0, atol=1e-15)


def test_no_score_is_the_euler_step() -> None:
    """ReinFlow's mean; a coefficient of zero gives the same."""
    x, velocity = 0.3 * th.randn(2, BATCH, ACTION, dtype=th.float64)
    t, zero = th.tensor(0.5, dtype=th.float64), th.zeros((), dtype=th.float64)
    mean = transition_mean(x, velocity, t, None, STEPS, 10.0)
    th.testing.assert_close(mean, x + velocity / STEPS, rtol=0, atol=1e-15)
    th.testing.assert_close(mean, transition_mean(x, velocity, t, zero, STEPS, 10.0), rtol=0, atol=0)


# ---------------------------------------------------------------------- log-probability and entropy


def _unnormalized_log_prob(chain: th.Tensor, mean: th.Tensor, std: th.Tensor) -> np.ndarray:
    """SciPy's density of every number, summed."""
    total = stats.norm.logpdf(chain[:, 0]).sum(1)
    for k in range(chain.shape[1] - 1):
        total += stats.norm.logpdf(chain[:, k + 1], mean[:, k], std[:, k]).sum(1)
    return total


def test_chain_log_prob_is_that_of_scipy_and_normalized_once() -> None:
    chain, mean, std = _chain()
    expected = _unnormalized_log_prob(chain, mean, std) / ((STEPS + 1) * ACTION)
    np.testing.assert_allclose(chain_log_prob(chain, mean, std), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("steps", "action_dim"), [(1, 1), (1, 4), (7, 1), (3, 12)])
def test_chain_log_prob_is_that_of_torch_for_any_size(steps: int, action_dim: int) -> None:
    chain, mean, std = (
        th.randn(BATCH, steps + 1, action_dim, dtype=th.float64),
        th.randn(BATCH, steps, action_dim, dtype=th.float64),
        0.1 + th.rand(BATCH, steps, action_dim, dtype=th.float64),
    )
    start = th.distributions.Normal(th.zeros_like(chain[:, 0]), th.ones_like(chain[:, 0])).log_prob(chain[:, 0])
    moves = th.distributions.Normal(mean, std).log_prob(chain[:, 1:])
    # Every number of the chain has the same weight, so the normalized value is a plain mean
    expected = th.cat([start.unsqueeze(1), moves], dim=1).flatten(1).mean(1)
    th.testing.assert_close(chain_log_prob(chain, mean, std), expected, rtol=0, atol=1e-10)


def test_chain_log_prob_broadcasts_a_std_per_step() -> None:
    chain, mean, _ = _chain()
    std = th.tensor([0.1, 0.2, 0.4, 0.8], dtype=th.float64).view(1, STEPS, 1)
    expected = _unnormalized_log_prob(chain, mean, std.expand_as(mean)) / ((STEPS + 1) * ACTION)
    np.testing.assert_allclose(chain_log_prob(chain, mean, std), expected, rtol=0, atol=1e-12)


def test_chain_log_prob_gradient() -> None:
    """Wrt means and standard deviations, by finite differences."""
    chain, mean, std = _chain()
    mean.requires_grad_()
    std.requires_grad_()
    assert th.autograd.gradcheck(lambda mean, std: chain_log_prob(chain, mean, std), (mean, std))
    chain_log_prob(chain, mean, std).sum().backward()
    assert mean.grad is not None and std.grad is not None
    weight = 1 / ((STEPS + 1) * ACTION)
    deviation = (chain[:, 1:] - mean) / std
    th.testing.assert_close(mean.grad, (weight * deviation / std).detach(), rtol=1e-10, atol=1e-12)
    th.testing.assert_close(std.grad, (weight * (deviation**2 - 1) / std).detach(), rtol=1e-10, atol=1e-12)


def test_chain_entropy_is_the_closed_form_normalized_once() -> None:
    _, _, std = _chain()
    total = ACTION * stats.norm.entropy() + stats.norm.entropy(scale=std.numpy()).sum((1, 2))
    np.testing.assert_allclose(chain_entropy(std), total / ((STEPS + 1) * ACTION), rtol=0, atol=1e-12)


def test_chain_entropy_is_minus_the_expected_log_prob() -> None:
    """Monte Carlo over untruncated chains whose means depend on where they are."""
    n = 100_000
    generator = th.Generator().manual_seed(0)
    std = th.tensor([[0.1, 0.7], [0.4, 0.2], [1.3, 0.5]], dtype=th.float64).expand(n, 3, 2)
    points, means = [th.randn(n, 2, dtype=th.float64, generator=generator)], []
    for k in range(3):
        means.append(th.tanh(points[-1].flip(-1)))
        points.append(means[-1] + std[:, k] * th.randn(n, 2, dtype=th.float64, generator=generator))
    samples = -chain_log_prob(th.stack(points, dim=1), th.stack(means, dim=1), std)
    entropy, standard_error = float(chain_entropy(std)[0]), float(samples.std()) / math.sqrt(n)
    assert standard_error < 1e-3
    assert float(samples.mean()) == pytest.approx(entropy, abs=4 * standard_error)


# ---------------------------------------------------------------------- truncated noise


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_truncated_normal_distribution(dtype: th.dtype) -> None:
    n = 1_000_000
    z = truncated_normal((n,), dtype=dtype, device=th.device("cpu"))
    assert z.dtype == dtype
    assert z.abs().max() <= NOISE_TRUNCATION == 3.0
    samples, exact = z.double().numpy(), stats.truncnorm(-3, 3)
    # Moments within 4.5 standard errors of the closed form; a normal clipped to +-3 has a variance of 0.9946 instead of 0.9733
    density, mass = stats.norm.pdf(3), 2 * stats.norm.cdf(3) - 1
    variance = 1 - 6 * density / mass
    fourth = 3 * variance - 2 * 27 * density / mass
    assert variance == pytest.approx(exact.var(), rel=1e-9)
    assert samples.mean() == pytest.approx(0, abs=4.5 * math.sqrt(variance / n))
    assert (samples**2).mean() == pytest.approx(variance, abs=4.5 * math.sqrt((fourth - variance**2) / n))
    assert stats.kstest(samples[:200_000], exact.cdf).pvalue > 0.01
    assert (np.abs(samples) == 3).mean() < 1e-4  # no atoms at the ends
    assert np.abs(samples).max() > 2.99  # and nothing missing before them


def test_truncated_normal_shape_and_independence() -> None:
    z = truncated_normal((50_000, 2, 3), dtype=th.float64, device=th.device("cpu"))
    assert z.shape == (50_000, 2, 3)
    correlation = np.corrcoef(z.flatten(1).numpy().T)
    np.testing.assert_allclose(correlation, np.eye(6), atol=0.02)  # standard error 0.0045

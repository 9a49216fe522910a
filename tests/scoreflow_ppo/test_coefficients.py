"""The score coefficient and the standard deviations of a policy, as its arguments say."""

import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_scoreflow.common.networks import TimeFeatures
from sb3_scoreflow.scoreflow_ppo.policies import ScoReFlowPolicy

BATCH, STEPS, ACTION = 6, 4, 3
TIMES = np.arange(STEPS) / STEPS


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _policy(**kwargs: object) -> ScoReFlowPolicy:
    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (ACTION,))
    arguments = dict(net_arch=[8], denoising_steps=STEPS) | kwargs
    return ScoReFlowPolicy(observation_space, action_space, lambda _: 1e-3, **arguments).double()  # type: ignore[arg-type]


def _std(policy: ScoReFlowPolicy) -> np.ndarray:
    obs, chain = th.randn(BATCH, 2), 0.1 * th.randn(BATCH, STEPS + 1, ACTION, dtype=th.float64)
    std = policy.evaluate_chain(obs, chain).std.detach().numpy()
    assert std.shape == (BATCH, STEPS, ACTION)
    return std


@pytest.mark.parametrize("score_scale", [0.5, 2.0])
def test_constant_drift(score_scale: float) -> None:
    policy = _policy(score_drift="constant", score_scale=score_scale)
    alpha = policy.score_coefficient(th.as_tensor(TIMES))
    assert alpha is not None and not alpha.requires_grad
    np.testing.assert_allclose(alpha, math.log1p(math.exp(-2)) * (1 - TIMES) * score_scale, rtol=1e-12)


def test_learned_drift_starts_at_the_constant_one() -> None:
    t = th.as_tensor(TIMES)
    learned, constant = (_policy(score_drift=drift, score_scale=1.3).score_coefficient(t) for drift in ("learned", "constant"))
    assert learned is not None and constant is not None and learned.requires_grad
    th.testing.assert_close(learned, constant, rtol=1e-12, atol=0, check_stride=False)


def test_no_drift() -> None:
    assert _policy(score_drift="none").score_coefficient(th.as_tensor(TIMES)) is None


def test_constant_noise_is_max_std() -> None:
    np.testing.assert_allclose(_std(_policy(noise="constant", min_std=0.1, max_std=0.35)), 0.35, rtol=1e-6)


def test_learned_noise_starts_at_the_geometric_mean() -> None:
    np.testing.assert_allclose(_std(_policy(noise="learned", min_std=0.1, max_std=0.4)), 0.2, rtol=1e-6)


@pytest.mark.parametrize("score_drift", ["learned", "constant"])
def test_score_matched_noise_is_that_of_the_sde(score_drift: str) -> None:
    """sqrt(2 alpha(t) dt), the diffusion that leaves the marginals alone, with a lower bound."""
    policy = _policy(noise="score_matched", score_drift=score_drift, score_scale=2.0, min_std=1e-4, max_std=5.0)
    expected = np.sqrt(2 * 2.0 * math.log1p(math.exp(-2)) * (1 - TIMES) / STEPS)
    np.testing.assert_allclose(_std(policy), np.broadcast_to(expected[:, None], (BATCH, STEPS, ACTION)), rtol=1e-6)
    bounded = _policy(noise="score_matched", score_drift=score_drift, score_scale=2.0, min_std=0.3, max_std=5.0)
    assert expected.min() < 0.3 < expected.max()
    np.testing.assert_allclose(_std(bounded)[0, :, 0], np.maximum(expected, 0.3), rtol=1e-6)


def test_score_matched_noise_follows_the_learned_coefficient() -> None:
    policy = _policy(noise="score_matched", score_drift="learned", min_std=1e-4, max_std=5.0)
    last = list(policy.score_coefficient_net.net)[-1]
    assert isinstance(last, th.nn.Linear)
    th.nn.init.normal_(last.weight, std=2.0)
    alpha = policy.score_coefficient(th.as_tensor(TIMES))
    assert alpha is not None
    np.testing.assert_allclose(_std(policy)[0, :, 0], np.sqrt(2 * alpha.detach().numpy() / STEPS), rtol=1e-6)


class GaussianField(nn.Module):
    """Velocity of the flow from ``N(0, 1)`` to ``N(0.2, 0.3^2)`` per dimension: ``E[x_1 - x_0 | x_t = x]``"""

    mean, std = 0.2, 0.3

    def time_features(self, t: th.Tensor) -> TimeFeatures:
        return TimeFeatures(t.unsqueeze(-1).expand(-1, 16), t.unsqueeze(-1), t.unsqueeze(-1))

    def condition(self, features: th.Tensor) -> th.Tensor:
        return features

    def variance(self, t: Any) -> Any:
        return (1 - t) ** 2 + (t * self.std) ** 2

    def forward(self, x: th.Tensor, time: TimeFeatures, condition: th.Tensor) -> th.Tensor:
        t = time.embedding[..., :1]
        return self.mean + (t * self.std**2 - (1 - t)) / self.variance(t) * (x - t * self.mean)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.125, 2.0])
@pytest.mark.parametrize("score_drift", ["learned", "constant"])
def test_the_score_follows_the_noise(score_drift: str, scale: float) -> None:
    """
    ``dx = (v + sigma^2 / 2 score) dt + sigma dW`` keeps the densities: what the score adds to the mean of a step is half its
    variance times the gradient of ``log N(t mean, variance(t))``. The published noise has a fixed ratio to it, at any scale.
    """
    field, x = GaussianField(), 0.5 * th.randn(BATCH, STEPS + 1, ACTION, dtype=th.float64).clamp(-1, 1)
    t = th.as_tensor(TIMES).unsqueeze(-1)
    gradient = -(x[:, :-1] - t * field.mean) / field.variance(t)
    without = x[:, :-1] + field(x[:, :-1], field.time_features(t.squeeze(-1)), x) / STEPS
    ratios = {}
    for noise, bounds in (("score_matched", (1e-6, 9.0)), ("learned", (0.1, 0.24))):
        for factor in (1.0, scale):
            policy = _policy(score_drift=score_drift, noise=noise, min_std=bounds[0], max_std=bounds[1], noise_scale=factor)
            policy.velocity_field = field  # type: ignore[assignment]
            with th.no_grad():
                found = policy.evaluate_chain(th.zeros(BATCH, 2), x)
            assert found.mean.abs().max() < 1  # not clipped
            ratios[noise, factor] = (found.mean - without) / (0.5 * found.std**2 * gradient)
        np.testing.assert_allclose(ratios[noise, scale], ratios[noise, 1.0], rtol=1e-6)
        assert found.std.mean() == pytest.approx(scale * (0.2 if noise == "score_matched" else 0.155), rel=0.1)
    np.testing.assert_allclose(ratios["score_matched", scale], 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "remedy"),
    [
        (dict(noise="score_matched", score_drift="none"), dict(noise="score_matched", score_drift="constant")),
        (dict(score_drift="always"), dict(score_drift="learned")),
        (dict(noise="white"), dict(noise="constant")),
        (dict(score_scale=0), dict(score_scale=1e-3)),
        (dict(score_clip=0), dict(score_clip=1e-3)),
        (dict(min_std=0), dict(min_std=1e-3)),
        (dict(noise_scale=0), dict(noise_scale=1e-3)),
        (dict(min_std=0.5, max_std=0.2), dict(min_std=0.2, max_std=0.5)),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_by_name(kwargs: dict[str, Any], remedy: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as error:
        _policy(**kwargs)
    assert all(name in str(error.value) for name in kwargs)
    assert any(repr(value) in str(error.value) for value in kwargs.values())
    _policy(**remedy)

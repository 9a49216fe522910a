"""The actor's update on a bandit whose Q is known: where its samples go, and how far they spread."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_scoreflow.rldt.actor import evaluate_actor
from sb3_scoreflow.rldt.policies import RLDTPolicy
from sb3_scoreflow.rldt.transport import Transport
from tests.rldt.helpers import reference_of

OBS, ACTION, STEPS, BATCH, PARTICLES = 3, 2, 4, 3, 5
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
PLAIN = spaces.Box(-1, 1, (ACTION,))


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


class KnownQ(nn.Module):
    """
    ``Q(s, a) = -strength |a - optimum(s)|^2`` on average, ``optimum(s) = offset + 0.4 s``; the two members are off by as much
    in opposite directions, so that only their mean has the right peak.
    """

    def __init__(self, offset: list[float], strength: float = 1.0) -> None:
        super().__init__()
        self.offset, self.strength = th.tensor(offset), strength

    def optimum(self, obs: th.Tensor) -> th.Tensor:
        return self.offset + 0.4 * obs[..., :ACTION]

    def condition(self, features: th.Tensor) -> th.Tensor:
        return features.unsqueeze(0).expand(2, -1, -1)

    def forward(self, condition: th.Tensor, actions: th.Tensor) -> th.Tensor:
        assert actions.abs().max() <= 1
        errors = th.tensor([0.3, -0.3]).view(2, 1, 1, 1)
        return -self.strength * (actions - self.optimum(condition).unsqueeze(2) - errors).pow(2).sum(-1)


def _train(
    policy: RLDTPolicy, iterations: int, n_particles: int = 8, batch: int = 64, lr: float = 2e-3, **changes: Any
) -> None:
    """Actor steps as RLDT makes them, in states uniform in [-1, 1]."""
    optimizer = th.optim.Adam(policy.velocity_field.parameters(), lr=lr)
    settings = Transport(**changes)
    for _ in range(iterations):
        reference = reference_of(policy, perturbed=False)
        for _ in range(20):
            evaluation = evaluate_actor(policy, reference, 2 * th.rand(batch, OBS) - 1, n_particles, settings)
            loss = evaluation.alignment + 0.5 * evaluation.consistency + 0.2 * evaluation.fisher
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.velocity_field.parameters(), 1.0)
            optimizer.step()


def _bandit(q: KnownQ) -> RLDTPolicy:
    policy = RLDTPolicy(
        VECTOR, PLAIN, lambda _: 1e-3, net_arch=[32, 32], denoising_steps=STEPS, observation_normalization="none"
    )
    policy.critic = q  # type: ignore[assignment]
    return policy


@pytest.mark.parametrize("kernel", ["rbf", "delta"])
def test_bandit_samples_move_to_the_optimum(kernel: str) -> None:
    q = KnownQ([0.4, -0.3])
    policy, obs = _bandit(q), 2 * th.rand(300, OBS) - 1
    distance = []
    for iterations in (0, 15):
        _train(policy, iterations, kernel=kernel)
        with th.no_grad():
            distance.append((policy.sample_actions(obs, 8) - q.optimum(obs).unsqueeze(1)).norm(dim=-1).mean().item())
    assert distance[1] < 0.08 and distance[0] > 0.5


def test_bandit_optimum_outside_the_bounds() -> None:
    """First dimension: 1.8 and more. The samples go to the bound, and the flow's raw ends do not run away beyond it."""
    q = KnownQ([2.2, -0.3])
    policy, obs = _bandit(q), 2 * th.rand(300, OBS) - 1
    _train(policy, 20)
    with th.no_grad():
        raw = policy.sample_chains(policy.condition(obs), th.randn(300, 8, ACTION))[0][-1]
    samples = raw.clamp(-1, 1)
    assert samples[..., 0].mean() > 0.95
    assert raw[..., 0].max() < 1.6
    assert (samples[..., 1] - q.optimum(obs)[:, None, 1]).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("std", "n_particles", "low", "high"),
    [pytest.param(0.15, 64, 0.85, 1.05, marks=pytest.mark.slow), (0.3, 64, 0.85, 1.05), (0.3, 8, 0.5, 0.8)],
)
def test_temperature_sets_the_spread(std: float, n_particles: int, low: float, high: float) -> None:
    """
    The maximum-entropy optimum exp(Q / temperature) of a quadratic Q is a Gaussian of variance temperature / (2 strength).

    With few particles the spread comes out too small (measured: 0.68 of it with 8, 0.86 with 32, 0.91 with 64, 0.98 with 256):
    every particle is one of its own P neighbors, and from itself it feels Q's gradient at full weight but no repulsion.
    """
    q = KnownQ([0.1, -0.1])
    policy, obs = _bandit(q), th.zeros(500, OBS)
    _train(policy, 20, n_particles=n_particles, batch=16, temperature=2 * std**2, temperature_scaling="none")
    with th.no_grad():
        samples = policy.sample_actions(obs, 8).flatten(0, 1)
    np.testing.assert_allclose(samples.mean(0), q.offset, atol=0.1 * std + 0.03)
    ratio = th.cov(samples.T).diag().sqrt() / std
    assert low < ratio.min() and ratio.max() < high, ratio

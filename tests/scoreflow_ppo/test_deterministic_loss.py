"""``deterministic_coef``: the path of deterministic actions learns the mean of the policy's own actions."""

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import Demonstrations, pretrain_bc
from sb3_scoreflow.common.update_log import UpdateLog
from tests.ppo.helpers import SIZE, collect, logs_of, make_model, perturb
from tests.scoreflow_ppo.helpers import ACTION, make_obs, make_policy


def test_velocity_at_the_start_becomes_the_mean_of_the_actions() -> None:
    """Of ``N(m, 0.2^2 I)``, whose variance remains as the loss."""
    th.manual_seed(0)
    policy = make_policy()
    optimizer = th.optim.Adam(policy.velocity_field.parameters(), 3e-3)
    mean, obs, zeros = th.linspace(-0.5, 0.4, ACTION), make_obs(256), th.zeros(256, ACTION)
    with th.no_grad():
        features = policy.extract_features(obs)
    losses = []
    for _ in range(1000):
        loss = policy.deterministic_loss(features, mean + 0.2 * th.randn(256, ACTION))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    velocity = policy.velocity(obs, zeros, th.zeros(())).detach()
    np.testing.assert_allclose(velocity.mean(0), mean, atol=0.02)
    assert np.mean(losses[-100:]) == pytest.approx(0.2**2, rel=0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_update_adds_it_to_the_loss(fraction: float) -> None:
    """For executed actions, the last points of chains; no other loss depends on it."""
    model = make_model(
        deterministic_coef=0.3, ent_coef=0.1, bc_coef=0.1, max_std=1.8, noise_scale=0.5, single_step_fraction=fraction
    )
    perturb(model, scale=0.5)
    collect(model)
    perturb(model)
    (batch,) = model.rollout_buffer.get(SIZE)
    losses = model._losses(batch, 0.02, UpdateLog())
    executed = model.policy.unscale_action(batch.actions.numpy())  # the environment's bounds are -1 and 1
    assert np.abs(batch.actions.numpy()[:, -2:]).max() > np.abs(executed).max() == 1, "some are clamped"
    velocity = model.policy.velocity(batch.observations, th.zeros(SIZE, 2), th.zeros(())).detach().numpy()
    expected = 0.5 * 0.3 * np.square(velocity - executed).mean()
    assert float(losses.pop("deterministic_loss").detach()) == pytest.approx(expected, rel=1e-5)
    model.deterministic_coef = 0.0
    others = model._losses(batch, 0.02, UpdateLog())
    assert losses.keys() == others.keys() and all(th.equal(losses[name], others[name]) for name in others)


def test_only_the_actor_learns_from_it() -> None:
    model = make_model(deterministic_coef=1.0)
    model.learn(SIZE)
    policy = model.policy
    policy.optimizer.zero_grad()
    obs = th.as_tensor(np.random.default_rng(0).uniform(-1, 1, (9, 2)), dtype=th.float32)
    policy.deterministic_loss(policy.extract_features(obs), th.zeros(9, 2)).backward()
    groups = policy.parameter_groups()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in groups.pop("velocity"))
    assert all(parameter.grad is None for group in groups.values() for parameter in group)
    assert logs_of(model)["deterministic_loss"] > 0


def test_clones_have_it_by_default() -> None:
    model = make_model()
    assert model.deterministic_coef == 0
    demonstrations = Demonstrations(np.zeros((8, 2)), np.zeros((8, 2)), np.zeros(8), np.arange(8) == 7, np.zeros(8, bool))
    pretrain_bc(model, demonstrations, n_batches=1, critic_batches=0)
    assert model.deterministic_coef == 0.1

"""``deterministic_coef``: the path of deterministic actions learns the mean of the policy's own actions."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import NatureCNN

from sb3_scoreflow.common.update_log import UpdateLog
from tests.ppo.helpers import SIZE, collect, logs_of, make_model, perturb
from tests.scoreflow_ppo.helpers import ACTION, IMAGE, make_obs, make_policy


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
    model = make_model(deterministic_coef=0.3, ent_coef=0.1, bc_coef=0.1, max_std=0.9, single_step_fraction=fraction)
    perturb(model, scale=0.5)
    collect(model)
    perturb(model)
    (batch,) = model.rollout_buffer.get(SIZE)
    losses = model._losses(batch, 0.02, UpdateLog())
    executed = model.policy.unscale_action(batch.actions.numpy())  # the environment's bounds are -1 and 1
    assert np.abs(batch.actions.numpy()[:, -2:]).max() > np.abs(executed).max() == 1, "some are clamped"
    velocity = model.policy.velocity(batch.observations, th.zeros(SIZE, 2), th.zeros(())).detach().numpy()
    expected = 0.3 * np.square(velocity - executed).mean()
    assert float(losses.pop("deterministic_loss").detach()) == pytest.approx(expected, rel=1e-5)
    model.deterministic_coef = 0.0
    others = model._losses(batch, 0.02, UpdateLog())
    assert losses.keys() == others.keys() and all(th.equal(losses[name], others[name]) for name in others)


@pytest.mark.parametrize("shared", [False, True])
def test_only_the_actor_and_its_encoder_learn_from_it(shared: bool) -> None:
    policy = make_policy(IMAGE, features_extractor_class=NatureCNN, share_features_extractor=shared)
    policy.deterministic_loss(policy.extract_features(make_obs(3, IMAGE)), th.zeros(3, ACTION)).backward()
    learning = {name.split(".")[0] for name, of in policy.named_parameters() if of.grad is not None and of.grad.any()}
    assert learning == {"features_extractor", "velocity_field"}


def test_it_is_logged() -> None:
    model = make_model(deterministic_coef=1.0).learn(SIZE)
    assert logs_of(model)["deterministic_loss"] > 0

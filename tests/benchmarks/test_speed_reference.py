"""The sequential reference of the speed benchmarks computes what the package computes."""

from functools import partial
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.utils import set_random_seed

from benchmarks.speed.sequential import SequentialPolicy, trainer
from benchmarks.speed.setting import ACTION_DIM, OBS_DIM, make_model, make_policy
from benchmarks.speed.timing import target
from sb3_scoreflow import ScoReFlowPPO
from sb3_scoreflow.common.update_log import UpdateLog

SMALL: dict[str, Any] = dict(net_arch=dict(pi=[32, 32, 32], vf=[16, 16]))
close = partial(th.testing.assert_close, rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def _seed() -> None:
    set_random_seed(0)


@pytest.mark.parametrize("steps", [1, 4])
def test_same_chains_values_and_log_probs_from_the_same_noise(steps: int) -> None:
    policy = make_policy(steps, **SMALL)
    policy.set_value_scale(3.0)
    plain, obs = SequentialPolicy(policy), 2 * th.randn(64, OBS_DIM)
    with th.no_grad():
        features = policy.extract_features(obs)
        chain, mean, std = policy._sample_chain(features, th.randn(64, ACTION_DIM), steps)
        assert std is not None
        values, log_prob, entropy = policy.evaluate_actions(obs, chain.flatten(1))
        found, found_values, found_log_prob = plain.sample(obs, chain[:, 0], (chain[:, 1:] - mean) / std)
    close(found, chain)
    close(found_values, values.flatten())
    close(found_log_prob, log_prob)
    for one, other in zip(plain.evaluate(obs, chain), (values.flatten(), log_prob, entropy), strict=True):
        close(one, other)


def test_same_cloning_loss() -> None:
    policy = make_policy(**SMALL)
    obs, actions, noise, t = th.randn(64, OBS_DIM), th.rand(64, ACTION_DIM), th.randn(64, ACTION_DIM), th.rand(64, 1)
    loss = policy.flow_matching_loss(obs, actions, noise, t.squeeze(1))
    close(SequentialPolicy(policy).cloning_loss(obs, actions, noise, t), loss)


def test_same_loss_and_gradients_of_the_update() -> None:
    model = make_model(ScoReFlowPPO, 4000, policy_kwargs=SMALL, ent_coef=0.01)  # the iteration changed the weights: ratio != 1
    plain, captured = SequentialPolicy(model.policy), {}
    model._step = lambda losses, _: captured.update(losses)
    model._train_epoch(0, UpdateLog())
    ours = th.stack(list(captured.values())).sum()
    (batch,) = model.rollout_buffer.get(4000)
    theirs = plain.loss(batch, model._scheduled("clip_range"), model.vf_coef, model.ent_coef)
    close(theirs, ours)
    field, middle = model.policy.velocity_field, plain.hidden[1].weight
    assert isinstance(middle, th.Tensor)
    gradients = th.autograd.grad(ours, [field.hidden_layers[1].weight, field.action_layer.weight, field.features_layer.weight])
    whole = th.autograd.grad(theirs, [middle, plain.first.weight])
    close(whole[0], gradients[0])
    close(whole[1][:, :ACTION_DIM], gradients[1])
    close(whole[1][:, -OBS_DIM:], gradients[2])


def test_trainer_steps() -> None:
    plain = SequentialPolicy(make_policy(**SMALL))
    before = [p.clone() for p in plain.parameters()]
    obs = th.randn(8, OBS_DIM)
    trainer(plain)(plain.evaluate(obs, th.randn(8, 5, ACTION_DIM))[1].mean() + plain.value(obs).mean())
    assert all(not th.equal(a, b) for a, b in zip(before, plain.parameters(), strict=True) if a.numel() > 1)


def test_targets_say_whether_they_are_met() -> None:
    assert target(1.9, 2.0)["passed"] and not target(2.1, 2.0)["passed"]
    assert target(2.1, 2.0, at_least=True)["passed"] and not target(1.9, 2.0, at_least=True)["passed"]

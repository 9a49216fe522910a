"""The critic of a flow policy: its unit, and that it and the actor keep their gradients to themselves."""

import pytest
import torch as th
from gymnasium import spaces

from tests.scoreflow_ppo.helpers import ACTION, IMAGE, STEPS, VECTOR, make_obs, make_policy


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def test_changing_the_value_scale_changes_no_prediction() -> None:
    policy, obs = make_policy(), make_obs(20)
    assert not policy.predict_values(obs).any()  # no unit yet
    output = policy.value_net(policy.vf_features_extractor(policy.preprocess(obs))).detach()
    policy.set_value_scale(3.0)
    before = policy.predict_values(obs).detach()
    th.testing.assert_close(before, 3 * output)
    for scale in (7.0, 0.02, 1300.0):
        policy.set_value_scale(scale)
        assert float(policy.value_scale) == pytest.approx(scale)
        th.testing.assert_close(policy.predict_values(obs).detach(), before, rtol=1e-5, atol=1e-5)
        output = policy.value_net(policy.vf_features_extractor(policy.preprocess(obs))).detach()
        th.testing.assert_close(output * scale, before, rtol=1e-5, atol=1e-5)
    assert before.std() > 0.01


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_shared_features_get_no_gradient_from_the_critic(space: spaces.Space) -> None:
    shared, own = make_policy(space, share_features_extractor=True), make_policy(space, share_features_extractor=False)
    for policy in (shared, own):
        policy.set_value_scale(1.0)
        policy.zero_grad()
        obs = make_obs(4, space)
        (policy.predict_values(obs).sum() + policy.evaluate_chain(obs, th.randn(4, STEPS + 1, ACTION)).values.sum()).backward()
        for name, parameter in policy.named_parameters():
            critic = name.startswith(("value_net", "vf_features_extractor"))
            moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
            assert not moved or critic, name
        assert all(p.grad is not None for p in policy.value_net.parameters())
    assert not hasattr(shared, "vf_features_extractor")
    assert shared.features_extractor is not own.vf_features_extractor
    # The critic does see the actor's features when it shares them
    obs = make_obs(4, space)
    th.testing.assert_close(shared.predict_values(obs), shared.value_net(shared.extract_features(obs)), rtol=1e-6, atol=1e-6)


def test_actor_loss_gives_the_critic_no_gradient() -> None:
    policy = make_policy(IMAGE)
    evaluation = policy.evaluate_chain(make_obs(4, IMAGE), th.randn(4, STEPS + 1, ACTION))
    (evaluation.log_prob + evaluation.entropy).sum().backward()
    groups = policy.parameter_groups()
    assert all(p.grad is None for p in groups["critic"])
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in policy.features_extractor.parameters())

"""The unit of rewards, and the bounds of the critics' targets."""

import pytest

from tests.rldt.helpers import TinyEnv, iterate, logs_of, make_model


def test_reward_scale_is_a_running_mean_of_the_size_of_rewards() -> None:
    """Rollouts with |r| = 2, 12, 7: 2, then 2 + .01 * 10, then a hundredth of the way to 7."""
    model = make_model(lambda: TinyEnv([-2.0, 12.0, 7.0]))
    expected = [2.0, 2.1, 2.1 + 0.01 * (7 - 2.1)]
    for scale in expected:
        iterate(model)
        assert model.policy.reward_scale.item() == pytest.approx(scale, rel=1e-6)
        assert logs_of(model)["reward_scale"] == pytest.approx(scale, rel=1e-6)
    assert model.reward_magnitude == pytest.approx(expected[-1], rel=1e-6)


def test_reward_scale_waits_for_the_first_reward() -> None:
    """Sparse rewards: the unit stays 1 until there are any, and is then that of the first."""
    model = make_model(lambda: TinyEnv([0.0, 0.0, 5.0]))
    for scale in (1.0, 1.0, 5.0):
        iterate(model)
        assert model.policy.reward_scale.item() == pytest.approx(scale)


def test_reward_scale_can_be_a_number() -> None:
    model = make_model(lambda: TinyEnv([-2.0, 12.0]), reward_scale=4.0)
    for _ in range(2):
        iterate(model)
        assert model.policy.reward_scale.item() == 4.0


def test_targets_are_in_units_of_the_reward_scale() -> None:
    """With gamma = 0 the targets are the rewards, divided by the scale."""
    model = make_model(lambda: TinyEnv([-6.0]), gamma=0.0, reward_scale=4.0)
    iterate(model)
    assert logs_of(model)["td_target_min"] == logs_of(model)["td_target_max"] == -1.5


@pytest.mark.parametrize("td_lambda", [0.0, 0.5])
def test_target_clip_is_respected(td_lambda: float) -> None:
    """Rewards of -3 in one rollout and of 5 in the next, and clipping at what the history mixes."""
    model = make_model(lambda: TinyEnv([-3.0, 5.0]), target_clip=(-0.5, 2.0), reward_scale=1.0, td_lambda=td_lambda)
    iterate(model)
    assert logs_of(model)["td_target_min"] == -0.5
    iterate(model)
    assert logs_of(model)["td_target_min"] == -0.5 and logs_of(model)["td_target_max"] == 2.0
    free = make_model(lambda: TinyEnv([-3.0, 5.0]), reward_scale=1.0, td_lambda=td_lambda)
    iterate(free, 2)
    assert logs_of(free)["td_target_min"] < -2.5 and logs_of(free)["td_target_max"] > 4.5


def test_rewards_in_the_history_have_no_bootstrap() -> None:
    """Stable-Baselines3 adds gamma V to rewards at timeouts; every third step ends an episode here, half of them so."""
    model = make_model(lambda: TinyEnv([1.5]))
    model.policy.critic.biases[-1].data.fill_(100.0)
    iterate(model, 2)
    batch = model.rollout_buffer.sample(100)
    assert (batch.ended & ~batch.terminated).any()
    assert (batch.rewards == 1.5).all()

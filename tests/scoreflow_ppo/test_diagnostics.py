"""What a minibatch tells about the update, in numbers that are known beforehand."""

import copy
import math

import numpy as np
import pytest
import torch as th

from tests.ppo.helpers import ACTION, STEPS, collect, logs_of, make_model


def test_logged_values_before_the_first_update() -> None:
    """One minibatch: its statistics are those of the policy that collected. With a frozen noise group, so is alpha."""
    model = make_model(
        noise_learning_rate=0.0, min_std=0.1, max_std=0.4, learning_rate=1e-3, critic_learning_rate=2e-3, clip_range=0.03
    )
    model.policy.set_value_scale(1.0)  # as if it had been trained: values are not 0
    collect(model)
    buffer = copy.deepcopy(model.rollout_buffer)
    model.train()
    logs = logs_of(model)
    assert logs["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert logs["ratio_min"] == pytest.approx(1, abs=1e-5) and logs["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert logs["ratio_std"] == pytest.approx(0, abs=1e-5)
    assert logs["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert logs["clip_fraction"] == 0
    # Normalized advantages have mean 0, and every ratio is 1
    assert logs["policy_gradient_loss"] == pytest.approx(0, abs=1e-5)
    for k in range(STEPS):
        for statistic in ("mean", "min", "max"):
            assert logs[f"std_step{k}_{statistic}"] == pytest.approx(0.2, rel=1e-5)  # geometric mean of the bounds
        alpha = (1 - k / STEPS) * math.log1p(math.exp(-2))
        assert logs[f"score_coefficient_t{k / STEPS:.2f}"] == pytest.approx(alpha, rel=1e-5)
    last = buffer.actions.reshape(-1, (STEPS + 1) * ACTION)[:, -ACTION:]
    assert logs["clamped_action_fraction"] == pytest.approx((np.abs(last) > 1).mean(), abs=1e-6)
    assert 0 <= logs["clamped_mean_fraction"] < 0.5
    error = np.square((buffer.returns - buffer.values) / logs["value_scale"]).mean()
    assert logs["value_loss"] == pytest.approx(error, rel=1e-4)
    explained = 1 - np.var(buffer.returns - buffer.values) / np.var(buffer.returns)
    assert logs["explained_variance"] == pytest.approx(explained, rel=1e-4, abs=1e-6)
    assert logs["loss"] == pytest.approx(logs["policy_gradient_loss"] + 0.5 * logs["value_loss"], rel=1e-5)
    settings = dict(learning_rate=1e-3, noise_learning_rate=0.0, critic_learning_rate=2e-3, clip_range=0.03, n_updates=1)
    for name, value in settings.items():
        assert logs[name] == pytest.approx(value)
    assert logs["max_std"] == pytest.approx(0.4, rel=1e-5)
    assert all(logs[f"grad_norm_{name}"] > 0 for name in ("velocity", "noise", "critic"))


def test_clamped_fractions_count_what_is_clamped() -> None:
    """Defect 5 of the official code: samples outside the bounds are visible in the log."""
    model = make_model(min_std=0.8, max_std=1.0, policy_kwargs=dict(prior_std=3.0))
    collect(model)
    actions = model.rollout_buffer.actions.reshape(-1, STEPS + 1, ACTION).copy()
    observations = model.rollout_buffer.observations.reshape(-1, 2).copy()
    mean = model.policy.evaluate_chain(th.as_tensor(observations), th.as_tensor(actions)).mean.detach().numpy()
    expected = (np.abs(actions[:, -1]) > 1).mean(), (np.abs(mean) == 1).mean()
    assert min(expected) > 0.05
    model.train()
    assert logs_of(model)["clamped_action_fraction"] == pytest.approx(expected[0], abs=1e-6)
    assert logs_of(model)["clamped_mean_fraction"] == pytest.approx(expected[1], abs=1e-6)

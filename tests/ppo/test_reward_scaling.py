"""The critic's unit: the running scale of the discounted return."""

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow.ppo.reward_scaling import ReturnStatistics
from tests.ppo.helpers import N_STEPS, SIZE, make_model


def test_return_statistics_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    rewards = (3 + 5 * rng.standard_normal((500, 3))).astype(np.float32)  # the precision that environments give
    dones = rng.random((500, 3)) < 0.1
    statistics = ReturnStatistics(gamma=0.9)
    assert statistics.scale == 1
    for reward, done in zip(rewards, dones, strict=True):
        statistics.update(reward, done)
    returns = []
    for env in range(3):
        total = 0.0
        for reward, done in zip(rewards[:, env], dones[:, env], strict=True):
            total = 0.9 * total + float(reward)
            returns.append(total)
            total = 0.0 if done else total
    assert statistics.scale == pytest.approx(np.std(returns), rel=1e-10)


def test_constant_returns_leave_the_scale_at_one() -> None:
    """Sparse rewards: before the first one, a tiny scale would make the critic's first errors enormous."""
    statistics = ReturnStatistics(gamma=0.99)
    for _ in range(10):
        statistics.update(np.zeros(2), np.zeros(2, dtype=bool))
    assert statistics.scale == 1
    statistics.update(np.array([1.0, 0.0]), np.zeros(2, dtype=bool))
    assert statistics.scale == pytest.approx(np.std([1.0] + 21 * [0.0]), rel=1e-10)


def test_critic_unit_is_the_scale_of_the_true_returns() -> None:
    """The rewards of the environment, without Stable-Baselines3's timeout bootstrap, over two iterations."""
    model = make_model(gamma=0.9)
    model.learn(2 * SIZE)
    returns = []
    assert isinstance(model.env, DummyVecEnv)
    for env in model.env.envs:
        history = env.unwrapped.history  # type: ignore[attr-defined]
        assert len(history) == 2 * N_STEPS and sum(done for _, done in history) >= 2
        total = 0.0
        for reward, done in history:
            total = 0.9 * total + float(reward)
            returns.append(total)
            total = 0.0 if done else total
    assert model.return_statistics.scale == pytest.approx(np.std(returns), rel=1e-4)
    assert float(model.policy.value_scale) == pytest.approx(np.std(returns), rel=1e-4)
    assert np.std(returns) > 2


def test_critic_unit_can_be_switched_off() -> None:
    model = make_model(normalize_reward=False)
    model.learn(2 * SIZE)
    assert float(model.policy.value_scale) == 1

"""RLDT's critics on chains of states whose Q is known."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from tests.rldt.helpers import make_model, state_of


class ChainEnv(gym.Env):
    """
    Three states, one after another; reward ``BASE[s] + SLOPE[s] a``, so that the actions' mean is all that values need.

    :param ring: whether the third state leads back to the first one, for ever but for a time limit of 4; it ends the episode
        otherwise
    """

    BASE, SLOPE = np.array([1.0, -2.0, 3.0]), np.array([2.0, -1.0, 1.5])
    observation_space = spaces.Box(0, 1, (3,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, ring: bool) -> None:
        self.ring = ring

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.state, self.steps = int(self.np_random.integers(3)), 0
        return np.eye(3, dtype=np.float32)[self.state], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(self.BASE[self.state] + self.SLOPE[self.state] * action[0])
        self.state, self.steps = (self.state + 1) % 3, self.steps + 1
        return np.eye(3, dtype=np.float32)[self.state], reward, not self.ring and self.state == 0, self.steps == 4, {}


@pytest.mark.parametrize(
    ("ring", "td_lambda", "reward_scale"),
    [
        pytest.param(False, 0.0, "ema", id="terminates, one step"),
        pytest.param(True, 0.0, 1.0, id="is cut off by a time limit, one step"),
        pytest.param(True, 0.5, "ema", id="is cut off by a time limit, many steps"),
    ],
)
def test_critics_of_a_fixed_policy_approach_its_q(ring: bool, td_lambda: float, reward_scale: Any) -> None:
    """
    V(s) = base + slope E[a] + gamma V(s'), solved as a linear system. Values of the ring are those without the time limit.
    """
    gamma = 0.8
    model = make_model(
        lambda: ChainEnv(ring),
        n_envs=4,
        n_steps=32,
        gamma=gamma,
        learning_rate=0.0,
        actor_steps=0,
        critic_steps=200,
        n_refreshes=10,
        refresh_size=512,
        batch_size=64,
        critic_learning_rate=3e-3,
        tau=0.05,
        td_lambda=td_lambda,
        reward_scale=reward_scale,
        exploration_scale=0.0,
        policy_kwargs=dict(net_arch=[32, 32], prior_std=0.5, observation_normalization="none"),
    )
    before = state_of(model.policy.velocity_field)
    model.learn(6 * 128)
    assert all(th.equal(value, before[name]) for name, value in model.policy.velocity_field.named_parameters())
    states = th.eye(3)
    with th.no_grad():
        actions = model.policy.sample_actions(states, 5000).squeeze(-1).double()
    follows = np.roll(np.eye(3), 1, axis=1)
    if not ring:
        follows[2] = 0.0
    rewards = ChainEnv.BASE + ChainEnv.SLOPE * actions.mean(1).numpy()
    values = np.linalg.solve(np.eye(3) - gamma * follows, rewards)
    if ring:  # what would come out if every fourth step were an end
        cut = np.linalg.solve(np.eye(3) - 0.75 * gamma * follows, rewards)
        assert (values - cut).min() > 0.4
    with th.no_grad():
        for a in (-0.5, 0.0, 0.5):
            expected = ChainEnv.BASE + ChainEnv.SLOPE * a + gamma * follows @ values
            # Rarer actions are known less well: the policy's standard deviation is 0.5
            atol = 0.15 if a == 0 else 0.4
            np.testing.assert_allclose(model.policy.q_values(states, th.full((3, 1), a)), [expected] * 2, atol=atol)
        predicted = model.policy.predict_values(states.repeat_interleave(500, 0)).view(3, 500).mean(1)
    np.testing.assert_allclose(predicted, values, atol=0.15)

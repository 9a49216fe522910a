"""
Advantages and targets of whole rollouts, in environments that follow a script, against the definitions in float64.

Episodes end anywhere, terminated or truncated, within chunks that are discounted and at their ends.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import FPO, RLDT, ActionChunking, ScoReFlowPPO
from sb3_scoreflow.rldt.targets import td_lambda_targets
from tests.properties.strategies import Episode, ScriptedEnv, episodes

pytestmark = pytest.mark.filterwarnings("ignore:The environment executes chunks")

DISCOUNTS = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]) | st.floats(0, 1)


class Transition(NamedTuple):
    """A step of the policy, as the script has it."""

    observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    following: np.ndarray
    """The last one of the episode where it is over"""


def transitions(env: ActionChunking, n: int) -> list[Transition]:
    """What is to be collected: the script does not ask what the actions are."""
    observation, result = env.reset()[0], []
    for _ in range(n):
        assert env.action_space.shape is not None
        following, reward, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape, np.float32))
        result.append(Transition(observation, float(reward), terminated, truncated and not terminated, following))
        observation = env.reset()[0] if terminated or truncated else following
    return result


class Setting(NamedTuple):
    """Environments and how they are collected from."""

    scripts: list[list[Episode]]
    horizon: int
    discount: float
    n_steps: int
    n_rollouts: int

    def make_env(self, name: int) -> ActionChunking:
        return ActionChunking(ScriptedEnv(self.scripts[name], name=name), self.horizon, discount=self.discount)

    def collect(self, model: Any) -> list[list[Transition]]:
        """:return: for each environment, its transitions in all rollouts"""
        model.set_env(DummyVecEnv([lambda name=name: self.make_env(name) for name in range(2)]))  # type: ignore[misc]
        model.n_steps = self.n_steps
        model._make_buffer()  # a history would keep what it has, of other environments
        _, callback = model._setup_learn(10**6, None)
        callback.on_training_start({}, {})
        for _ in range(self.n_rollouts):
            model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        return [transitions(self.make_env(name), self.n_steps * self.n_rollouts) for name in range(2)]


SETTINGS = st.builds(
    Setting,
    scripts=st.lists(episodes(longest=6), min_size=2, max_size=2),
    horizon=st.integers(1, 4),
    discount=st.floats(0.1, 1),
    n_steps=st.integers(1, 9),
    n_rollouts=st.integers(1, 3),
)


@cache
def model_of(algorithm: Any, horizon: int) -> Any:
    """One for all examples, whose settings change. Its values are far from zero and from each other."""
    env = DummyVecEnv([lambda: ActionChunking(ScriptedEnv([]), horizon)] * 2)
    arguments = {} if algorithm is RLDT else dict(batch_size=4, n_epochs=1, normalize_advantage=False)
    model = algorithm("FlowPolicy", env, n_steps=2, policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu", **arguments)
    if algorithm is not RLDT:
        model.policy.set_value_scale(3.0)
        with th.no_grad():
            for parameter in model.policy.value_net.parameters():
                parameter.mul_(3)
    return model


def advantages(steps: list[Transition], value: Any, gamma: float, gae_lambda: float) -> list[float]:
    """GAE (arXiv 1506.02438, Eq. 16): sums of discounted TD errors, up to the end of the episode or of the rollout."""
    result = []
    for t in range(len(steps)):
        total, weight = 0.0, 1.0
        for step in steps[t:]:
            bootstrap = 0.0 if step.terminated else gamma * value(step.following)
            total += weight * (step.reward + bootstrap - value(step.observation))
            weight *= gamma * gae_lambda
            if step.terminated or step.truncated:
                break
        result.append(total)
    return result


@pytest.mark.parametrize("algorithm", [ScoReFlowPPO, FPO])
@given(setting=SETTINGS, gamma=DISCOUNTS, gae_lambda=DISCOUNTS)
def test_advantages(algorithm: Any, setting: Setting, gamma: float, gae_lambda: float) -> None:
    model = model_of(algorithm, setting.horizon)
    model.gamma, model.gae_lambda = gamma, gae_lambda
    traces = setting.collect(model)
    buffer: RolloutBuffer = model.rollout_buffer

    def value(observation: np.ndarray) -> float:
        with th.no_grad():
            return model.policy.predict_values(th.as_tensor(observation)[None]).item()

    assert buffer.full and buffer.advantages.shape == (setting.n_steps, 2)
    for env, trace in enumerate(traces):
        last = trace[-setting.n_steps :]  # the rollout that the buffer holds
        np.testing.assert_array_equal(buffer.observations[:, env], [step.observation for step in last])
        expected = advantages(last, value, gamma, gae_lambda)
        np.testing.assert_allclose(buffer.advantages[:, env], expected, rtol=1e-4, atol=1e-3)
        returns = np.array(expected) + [value(step.observation) for step in last]
        np.testing.assert_allclose(buffer.returns[:, env], returns, rtol=1e-4, atol=1e-3)


def lambda_returns(steps: list[Transition], value: Any, gamma: float, td_lambda: float) -> list[float]:
    """Sutton and Barto 2018, Eq. 12.3: n-step returns, each with its weight, the last one with what is left."""
    result = []
    for t in range(len(steps)):
        total, rewards, weight, discount = 0.0, 0.0, 1.0, 1.0
        for k, step in enumerate(steps[t:], start=t):
            rewards += discount * step.reward
            discount *= gamma
            n_step_return = rewards + (0.0 if step.terminated else discount * value(step.following))
            if step.terminated or step.truncated or k == len(steps) - 1:
                total += weight * n_step_return
                break
            total += weight * (1 - td_lambda) * n_step_return
            weight *= td_lambda
        result.append(total)
    return result


@given(setting=SETTINGS, gamma=DISCOUNTS, td_lambda=DISCOUNTS)
def test_targets(setting: Setting, gamma: float, td_lambda: float) -> None:
    model = model_of(RLDT, setting.horizon)
    traces = setting.collect(model)
    batch = model.rollout_buffer.sample(10_000)
    n_steps, m = setting.n_steps, len(batch.rewards)
    assert m == 2 * setting.n_rollouts, "each rollout of each environment"
    factors = th.tensor([2.0, -3.0, 1.0, 5.0], dtype=th.float64)

    def value(observation: Any) -> Any:
        return th.as_tensor(observation, dtype=th.float64) @ factors

    next_values = value(batch.next_observations).view(m, n_steps)
    targets = td_lambda_targets(batch.rewards.double(), next_values, batch.terminated, batch.ended, gamma, td_lambda)
    seen = set()
    for row, observations in enumerate(batch.observations.view(m, n_steps, -1).numpy()):
        trace = traces[int(observations[0, 2])]
        starts = range(0, len(trace), n_steps)
        [start] = [s for s in starts if np.array_equal(trace[s].observation, observations[0])]
        seen.add((int(observations[0, 2]), start))
        steps = trace[start : start + n_steps]
        np.testing.assert_array_equal(observations, [step.observation for step in steps])
        assert batch.terminated[row].tolist() == [step.terminated for step in steps]
        assert batch.ended[row].tolist() == [step.terminated or step.truncated for step in steps]
        expected = lambda_returns(steps, lambda o: value(o).item(), gamma, td_lambda)
        np.testing.assert_allclose(targets[row], expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == m

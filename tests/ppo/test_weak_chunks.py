"""A clone of a precise demonstrator that is weak because it does not look often enough: the warning's remedy works."""

import warnings
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_scoreflow import ActionChunking, Demonstrations, ScoReFlowPPO, collect_demonstrations, pretrain_bc

DISTURBANCE, STEPS, HORIZON = 0.5, 16, 8


class Drift(gym.Env):
    """
    The position x becomes ``x + action + w``, ``w ~ U[-0.5, 0.5]``, and a step costs ``x^2``. Whoever looks in each step can
    hold x at w, at a cost of ``0.5^2 / 3`` per step; without looking, each step adds this to the cost of the step before.
    """

    observation_space = spaces.Box(-3, 3, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps, self.x = 0, self.np_random.uniform(-DISTURBANCE, DISTURBANCE)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        self.x = self.x + float(action[0]) + self.np_random.uniform(-DISTURBANCE, DISTURBANCE)
        return self._observation(), -(self.x**2), False, self.n_steps == STEPS, {}

    def _observation(self) -> np.ndarray:
        return np.clip([self.x], -3, 3).astype(np.float32)


class Holds:
    """Holds x at the disturbance of the last step."""

    def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        return -observation, None


def fine_tuned(demonstrations: Demonstrations, n_executed: int) -> tuple[float, list[str]]:
    """The deterministic clone's cost per step, and the warnings about its first training episodes."""
    chunked = partial(ActionChunking, horizon=HORIZON, n_executed=n_executed)
    env, eval_env = (make_vec_env(Drift, 20, seed=seed, wrapper_class=chunked) for seed in (0, 100))
    settings: dict[str, Any] = dict(n_steps=16, batch_size=160, n_epochs=1, noise_scale=0.5)
    model = ScoReFlowPPO("FlowPolicy", env, policy_kwargs=dict(net_arch=[32, 32]), seed=0, device="cpu", **settings)
    pretrain_bc(model, demonstrations, n_batches=800, critic_batches=20, seed=0)
    cost = -np.mean(evaluate_policy(model, eval_env, 100)[0]) / STEPS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(320)
    return float(cost), [str(each.message) for each in caught if "training episodes" in str(each.message)]


def test_looking_more_often_is_the_remedy() -> None:
    demonstrations, least = collect_demonstrations(Holds(), Drift(), 80, seed=0), DISTURBANCE**2 / 3
    assert -demonstrations.episode_returns.mean() / STEPS == pytest.approx(least, rel=0.1)
    cost, messages = fine_tuned(demonstrations, HORIZON)
    # If the first action removes what is seen and the others are the mean, 0, costs rise from 1 to 8 times the least
    assert cost > 0.9 * least * (1 + HORIZON) / 2
    assert len(messages) == 1 and "a smaller `n_executed` of ActionChunking" in messages[0]
    cost, messages = fine_tuned(demonstrations, 1)
    assert cost == pytest.approx(least, rel=0.15) and not messages

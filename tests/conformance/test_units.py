"""The same problem in other units gives the same clone and the same learning curve, to rounding."""

from functools import cache, partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow import Demonstrations, pretrain_bc
from sb3_scoreflow.common.networks import ObservationNormalizer, varies
from sb3_scoreflow.ppo.reward_scaling import ReturnStatistics, unit_of
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS

LENGTH = 12


class Follow(gym.Env):
    """
    Reward for an action near the observation; both, and the reward, in any unit. Every third episode terminates, the others
    are truncated. One component of the observation is constant.
    """

    def __init__(self, reward: float = 1.0, observation: float = 1.0, action: float = 1.0) -> None:
        self.reward, self.observation, self.action = reward, observation, action
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Box(-action, action, (2,), np.float64)
        self.episodes = 0

    def _observe(self) -> np.ndarray:
        return np.array([*(self.observation * self.target), 5 * self.observation])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.target = 0, self.np_random.uniform(-0.8, 0.8, 2)
        self.episodes += 1
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        reward = self.reward * (1 - float(np.square(action / self.action - self.target).sum()))
        self.target = self.np_random.uniform(-0.8, 0.8, 2)
        ended = self.t == LENGTH
        return self._observe(), reward, ended and self.episodes % 3 == 0, ended, {}


def demonstrations(reward: float = 1.0, observation: float = 1.0, action: float = 1.0) -> Demonstrations:
    rng, n = np.random.default_rng(0), 40 * LENGTH
    targets = rng.uniform(-0.8, 0.8, (n, 2))
    ends, third = np.arange(n) % LENGTH == LENGTH - 1, np.arange(n) // LENGTH % 3 == 0
    errors = rng.normal(0, 0.1, (n, 2))
    return Demonstrations(
        observation * np.column_stack([targets, np.full(n, 5.0)]),
        action * (targets + errors).clip(-1, 1),
        reward * (1 - np.square(errors).sum(1)),
        ends & third,
        ends & ~third,
    )


def run(algorithm: Algorithm, pretrained: bool, **units: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalized actions of the last policy, its values in units of the reward, and the rewards of every rollout."""
    env: VecEnv = make_vec_env(partial(Follow, **units), 2, seed=0)
    model = algorithm.make("FlowPolicy", env, gamma=0.9)
    if pretrained:
        pretrain_bc(model, demonstrations(**units), n_batches=40, batch_size=64, seed=0)
    curve = []
    for _ in range(4):
        model.learn(algorithm.iteration(2), reset_num_timesteps=False)
        curve.append(model.rollout_buffer.rewards.mean() / units.get("reward", 1.0))
    probe = np.array([[0.3, -0.5, 5.0], [-0.7, 0.1, 5.0], [0.0, 0.6, 5.0]]) * units.get("observation", 1.0)
    actions = model.predict(probe, deterministic=True)[0] / units.get("action", 1.0)
    th.manual_seed(0)
    with th.no_grad():
        values = model.policy.predict_values(model.policy.obs_to_tensor(probe)[0]).numpy() / units.get("reward", 1.0)
    return actions, values, np.array(curve)


@cache
def _reference(name: str, pretrained: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return run(next(each for each in ALGORITHMS if str(each) == name), pretrained)


def reference_run(algorithm: Algorithm, pretrained: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In units of 1."""
    return _reference(str(algorithm), pretrained)


@pytest.mark.parametrize("pretrained", [False, True], ids=["scratch", "clone"])
@pytest.mark.parametrize("quantity", ["reward", "observation", "action"])
def test_units_that_float32_scales_exactly_change_nothing(algorithm: Algorithm, quantity: str, pretrained: bool) -> None:
    """2^-20 and 2^20, about 1e-6 and 1e6."""
    reference = reference_run(algorithm, pretrained)
    for unit in (2.0**-20, 2.0**20):
        for ours, theirs in zip(run(algorithm, pretrained, **{quantity: unit}), reference, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e6])
def test_all_units_at_once(algorithm: Algorithm, unit: float) -> None:
    reference = reference_run(algorithm, True)
    changed = run(algorithm, True, reward=1 / unit, observation=unit, action=1 / unit)
    for ours, theirs in zip(changed, reference, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=5e-3)


# ---------------------------------------------------------------------- what is constant


def test_constant_components_are_told_in_any_unit() -> None:
    mean = np.array([0.0, 5.0, 1e3, 0.0, 0.0, 1.0])
    std = np.array([1.0, 1.0, 1e-3, 0.0, 1e-17, 1e-3])
    expected = [True, True, False, False, False, True]  # the third's deviation is a millionth of its mean
    for unit in (1e-6, 1.0, 1e6):
        assert varies(unit * mean, (unit * std) ** 2).tolist() == expected
        tensors = th.as_tensor(unit * mean), th.as_tensor((unit * std) ** 2)
        assert varies(*tensors).tolist() == expected
    mixed = np.array([1e-6, 1.0, 1e6])  # beside each other
    assert varies(0 * mixed, mixed**2).all()
    assert varies(np.zeros((0,)), np.zeros((0,))).shape == (0,)


@pytest.mark.parametrize("unit", [1e-6, 1e-4, 1.0, 1e6])
def test_normalizer_gives_unit_variance_in_any_unit(unit: float) -> None:
    normalizer = ObservationNormalizer(spaces.Box(-np.inf, np.inf, (2,)))
    x = th.as_tensor(unit * np.random.default_rng(0).normal([3.0, 0.0], [2.0, 0.5], (5000, 2)), dtype=th.float32)
    normalizer.update(x)
    z = normalizer(x)
    assert isinstance(z, th.Tensor)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-3)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_unit_of_returns(unit: float) -> None:
    rng = np.random.default_rng(0)
    statistics = ReturnStatistics(0.0)
    for rewards in rng.normal(2, 3, (400, 5)):
        statistics.update(unit * rewards, np.zeros(5, bool))
    assert statistics.scale == pytest.approx(3 * unit, rel=0.05)
    constant = ReturnStatistics(0.0)
    for _ in range(3):
        constant.update(np.full(5, 0.7 * unit), np.zeros(5, bool))
    assert constant.scale == pytest.approx(0.7 * unit, rel=1e-6)  # they do not vary
    assert unit_of(0.0, 0.0) == 1.0
    assert unit_of(-4.0 * unit, 1e-20 * unit**2) == 4.0 * unit

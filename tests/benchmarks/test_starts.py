"""The study of starts: counts on an environment in which success is a known function of the start and of the action."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.starts import by_start, shares


class Reach(gym.Env[np.ndarray, np.ndarray]):
    """The start is a random place in [0, 1); success is an action beyond it, and failure is truncated after two steps."""

    observation_space = spaces.Box(0, 1, (1,), np.float64)
    action_space = spaces.Box(0, 1, (1,), np.float64)
    seeded = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed if self.seeded else None)
        self.place, self.steps = float(self.np_random.random()), 0
        return np.array([self.place]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        success = float(action[0]) > self.place
        return np.array([self.place]), float(success), success, self.steps == 2, {}


class Unseeded(Reach):
    seeded = False


class Reacher:
    """Deterministic actions reach half of the places. Exploration reaches 0.8 in every third episode, and otherwise 0.2."""

    def __init__(self) -> None:
        self.calls = 0

    def predict(self, observation: np.ndarray, deterministic: bool) -> tuple[np.ndarray, None]:
        reach = 0.5
        if not deterministic:
            reach = 0.8 if self.calls // 2 % 3 == 0 else 0.2  # an episode has two steps
            self.calls += 1
        return np.full((len(observation), 1), reach), None


def test_successes_are_counted_for_each_start() -> None:
    of_mean, counts = by_start(Reacher(), make_vec_env(Reach, n_envs=5), seed=7, n_starts=10, n_episodes=6)
    places = [float(np.random.Generator(np.random.PCG64(seed)).random()) for seed in range(7, 17)]
    assert of_mean == [place < 0.5 for place in places]
    assert counts == [6 if place < 0.2 else 2 if place < 0.8 else 0 for place in places]
    assert {2, 6} <= set(counts) and False in of_mean  # all kinds of starts occur


def test_shares_of_starts_from_which_the_deterministic_policy_fails() -> None:
    found = shares({"deterministic": [True, False, False, True], "exploring": [10, 0, 4, 6]})
    assert found == {
        "deterministic": 0.5,
        "exploring": 0.5,
        "exploring_where_it_fails": 0.2,
        "ever_where_it_fails": 0.5,
    }
    assert np.isnan(shares({"deterministic": [True], "exploring": [10]})["ever_where_it_fails"])


def test_starts_that_the_seed_does_not_determine_are_refused() -> None:
    with pytest.raises(AssertionError):
        by_start(Reacher(), make_vec_env(Unseeded, n_envs=5), seed=7, n_starts=5, n_episodes=1)

"""Observations of an unbounded space in other units than the demonstrations: told by the first rollout."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_scoreflow import Demonstrations, pretrain_bc
from tests.conformance.algorithm import Algorithm


class Angles(gym.Env):
    """Two random angles, in units that bounds do not tell."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, unit: float, parts: bool = False) -> None:
        vector = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.unit, self.parts = unit, parts
        self.observation_space: spaces.Space = spaces.Dict(q=vector, mode=spaces.Discrete(2)) if parts else vector

    def _observe(self) -> Any:
        vector = (self.unit * self.np_random.uniform(-1, 1, 2)).astype(np.float32)
        return dict(q=vector, mode=1) if self.parts else vector

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.t += 1
        return self._observe(), 1.0, False, self.t == 10, {}


def demonstrations(parts: bool) -> Demonstrations:
    rng = np.random.default_rng(0)
    q = rng.uniform(-1, 1, (100, 2))
    return Demonstrations(
        dict(q=q, mode=np.ones(100, int)) if parts else q, q[:, :1] / 2, None, None, np.arange(100) % 10 == 9
    )


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("unit", [180 / np.pi, np.pi / 180, 1e6])
def test_other_units_are_told_once(algorithm: Algorithm, unit: float, parts: bool) -> None:
    model = algorithm.make("FlowPolicy", Angles(unit, parts))
    pretrain_bc(model, demonstrations(parts), n_batches=2, seed=0)
    with pytest.warns(UserWarning, match=r"do not resemble the demonstrated ones.*same units"):
        model.learn(algorithm.iteration())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", r".* still (that|those) of the clone")  # training is short
        model.learn(algorithm.iteration(), reset_num_timesteps=False)


@pytest.mark.parametrize("parts", [False, True])
def test_the_same_units_are_fine(algorithm: Algorithm, parts: bool) -> None:
    model = algorithm.make("FlowPolicy", Angles(1.0, parts))
    pretrain_bc(model, demonstrations(parts), n_batches=2, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", r".* still (that|those) of the clone")  # training is short
        model.learn(algorithm.iteration(), reset_num_timesteps=False)


class Constants(gym.Env):
    """Two components, which vary by ``spread`` around ``center``."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, center: tuple[float, float], spread: tuple[float, float] = (0.0, 0.0)) -> None:
        self.center, self.spread = np.array(center), np.array(spread)

    def _observe(self) -> np.ndarray:
        return (self.center + self.spread * self.np_random.uniform(-1, 1, 2)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._observe(), 1.0, True, False, {}


def cloned(algorithm: Algorithm, center: tuple[float, float], spread: tuple[float, float], env: Constants) -> Any:
    """A clone of what ``Constants(center, spread)`` shows, in another environment."""
    model = algorithm.make("FlowPolicy", env)
    rng = np.random.default_rng(0)
    observations = center + np.array(spread) * rng.uniform(-1, 1, (100, 2))
    shown = Demonstrations(observations, rng.uniform(-1, 1, (100, 1)), None, None, np.ones(100, bool))
    pretrain_bc(model, shown, n_batches=2, seed=0)
    return model


@pytest.mark.parametrize(
    "center, spread",
    [
        ((0.0, 0.0), (0.0, 0.0)),
        ((1.0, -250.0), (0.0, 0.0)),
        ((0.1, 1e9), (0.0, 0.0)),  # neither has an exact float32
        ((0.1, 1e9), (1e-8, 100.0)),  # rounding, other in each observation
        ((1.0, 0.0), (0.0, 1.0)),
    ],
)
def test_the_same_constants_are_fine(algorithm: Algorithm, center: tuple[float, float], spread: tuple[float, float]) -> None:
    model = cloned(algorithm, center, spread, Constants(center, spread))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", r".* still (that|those) of the clone")  # training is short
        model.learn(algorithm.iteration())


@pytest.mark.parametrize(
    "center, spread, other_center, other_spread, told",
    [
        ((0.0, 0.0), (0.0, 0.0), (0.0, 1.0), (0.0, 0.0), r"component 1, which was always 0, is between 1 and 1"),
        ((5.0, 0.0), (0.0, 1.0), (4.0, 0.0), (0.5, 1.0), r"component 0, which was always 5, is between 3\.\d+ and 4\.\d+"),
        ((1.0, 0.0), (0.0, 1.0), (90.0, 0.0), (0.0, 1.0), r"100% of component 0 are 10 or more standard deviations"),
        ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0), r"largest spread of their varying components is 0 standard"),
        ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 0.01), r"largest spread of their varying components is 0\.01\d* standard"),
    ],
    ids=["all constant", "one constant", "constant in other units", "standstill", "other order"],
)
def test_other_constants_are_told(
    algorithm: Algorithm,
    center: tuple[float, float],
    spread: tuple[float, float],
    other_center: tuple[float, float],
    other_spread: tuple[float, float],
    told: str,
) -> None:
    model = cloned(algorithm, center, spread, Constants(other_center, other_spread))
    with pytest.warns(UserWarning, match=f"do not resemble the demonstrated ones.*{told}.*same units"):
        model.learn(algorithm.iteration())

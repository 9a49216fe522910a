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
    with pytest.warns(UserWarning, match=r"are not like the demonstrated ones.*same units"):
        model.learn(algorithm.iteration())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(algorithm.iteration(), reset_num_timesteps=False)


@pytest.mark.parametrize("parts", [False, True])
def test_the_same_units_are_fine(algorithm: Algorithm, parts: bool) -> None:
    model = algorithm.make("FlowPolicy", Angles(1.0, parts))
    pretrain_bc(model, demonstrations(parts), n_batches=2, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(algorithm.iteration(), reset_num_timesteps=False)

"""A task that noise makes harder, by as much as is wanted."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_scoreflow import Demonstrations

N_STEPS = 10


class Needle(gym.Env):
    """Pays 1 for each action that is no further from 0 than ``width``, less a fee, which is the same for all."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (2,), np.float32)

    def __init__(self, width: float = 4.0, fee: float = 0.0) -> None:
        self.width, self.fee = width, fee

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward = float(np.linalg.norm(action) <= self.width) - self.fee
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), reward, self.steps == N_STEPS, False, {}


class ResumableNeedle(Needle):
    """Provides its state."""

    def get_checkpoint(self) -> Any:
        return self.steps, self.np_random.bit_generator.state

    def set_checkpoint(self, state: Any) -> None:
        self.steps, self.np_random.bit_generator.state = state


if "Needle-v0" not in gym.registry:
    gym.register("Needle-v0", entry_point=f"{__name__}:Needle", kwargs=dict(width=0.25), disable_env_checker=True)


def demonstrations_of_zero() -> Demonstrations:
    """Of an expert that always acts with 0"""
    n = 200
    observations, ends = np.random.default_rng(0).uniform(-1, 1, (n, 1)), np.arange(n) % N_STEPS == N_STEPS - 1
    return Demonstrations(observations, np.zeros((n, 2)), np.ones(n), ends, np.zeros(n, bool))

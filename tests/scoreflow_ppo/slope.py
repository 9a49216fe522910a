"""An environment whose return shows which actions were executed, and clones for it whose weights only callbacks move."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.scoreflow_ppo import validation

N_STEPS, N_ENVS, SIZE = 10, 8, 96
#: Policies that act with 0, by whether observations are dictionaries
CLONES: dict[bool, Any] = {}
OBS = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]


class Slope(gym.Env):
    """Pays the first number of an action, and keeps each episode's actions."""

    observation_space: spaces.Space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (2,), np.float32)

    def __init__(self, n_steps: float = N_STEPS) -> None:
        self.n_steps, self.steps = n_steps, 0
        #: Observations and actions of episodes that have ended
        self.episodes: list[tuple[np.ndarray, np.ndarray]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.observations, self.actions = 0, [self._observe()], list[np.ndarray]()
        return self._shown(), {}

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 1).astype(np.float32)

    def _shown(self) -> Any:
        return self.observations[-1]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.actions.append(action)
        done = self.steps == self.n_steps
        if done:
            self.episodes.append((np.array(self.observations), np.array(self.actions)))
        self.observations.append(self._observe())
        return self._shown(), float(action[0]), done, False, {"is_success": True} if done else {}


class SlopeOfParts(Slope):
    """Observations are dictionaries."""

    observation_space = spaces.Dict(near=Slope.observation_space)

    def _shown(self) -> Any:
        return {"near": self.observations[-1]}


class ResumableSlope(Slope):
    """Provides its state."""

    def get_checkpoint(self) -> Any:
        return self.steps, self.observations, self.actions, self.np_random.bit_generator.state

    def set_checkpoint(self, state: Any) -> None:
        self.steps, self.observations, self.actions, self.np_random.bit_generator.state = state


@pytest.fixture
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five, because of their ten steps, there would otherwise be twenty."""
    monkeypatch.setattr(validation, "_MAX_EPISODES", 5)


def monitored(env: type[Slope] = Slope, n_envs: int = N_ENVS, **kwargs: Any) -> VecMonitor:
    return VecMonitor(DummyVecEnv([lambda: env(**kwargs)] * n_envs))


def make(envs: Any = None, **arguments: Any) -> ScoReFlowPPO:
    """A clone whose learning rate is 0, so that only callbacks move its weights."""
    defaults: dict[str, Any] = dict(policy_kwargs=dict(net_arch=[16]), n_steps=12, batch_size=24, n_epochs=1, device="cpu")
    defaults |= dict(learning_rate=0.0, noise_scale=0.2, averaging_horizon=20.0, validation_fraction=0.5, seed=0)
    model = ScoReFlowPPO("FlowPolicy", monitored() if envs is None else envs, **{**defaults, **arguments})
    is_dict = isinstance(model.observation_space, spaces.Dict)
    if is_dict not in CLONES:
        observations, ends = np.random.default_rng(0).uniform(-1, 1, (200, 1)), np.arange(200) % N_STEPS == N_STEPS - 1
        parts = {"near": observations} if is_dict else observations
        shown = Demonstrations(parts, np.zeros((200, 2)), np.zeros(200), np.zeros(200, bool), ends)
        CLONES[is_dict] = deepcopy(model.policy)
        pretrain_bc(CLONES[is_dict], shown, n_batches=200, seed=0)
    model.load_clone(CLONES[is_dict])
    return model


def shift(policy: Any, by: float) -> None:
    """Shift deterministic actions in normalized units."""
    with th.no_grad():
        list(policy.velocity_field.parameters())[-1].add_(by)


class Shifts(BaseCallback):
    """Shifts the current weights before some rollouts, and keeps the mean deterministic reward."""

    def __init__(self, shifts: Sequence[float]) -> None:
        super().__init__()
        self.shifts, self.rewards = list(shifts), list[float]()

    def _on_rollout_start(self) -> None:
        self.rewards.append(reward_of(self.model))
        if self.shifts:
            shift(self.model.policy, self.shifts.pop(0))

    def _on_step(self) -> bool:
        return True


def reward_of(model: Any) -> float:
    obs = {"near": OBS} if isinstance(model.observation_space, spaces.Dict) else OBS
    return float(model.predict(obs, deterministic=True)[0][:, 0].mean())


DOWN_AND_UP = [*[-0.15] * 6, *[0.0] * 6, *[0.3] * 6, *[0.0] * 12]

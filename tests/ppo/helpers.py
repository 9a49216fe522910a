"""A small environment and model for tests of PPO's update; ScoReFlowPPO stands for all of its relatives."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_scoreflow import ScoReFlowPPO

STEPS, ACTION, N_ENVS, N_STEPS = 4, 2, 2, 16
SIZE = N_ENVS * N_STEPS


class TinyEnv(gym.Env):
    """Random observations, and a reward for actions near them. Episodes end in turn by termination and by truncation."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (ACTION,))

    def __init__(self) -> None:
        self.episode = self.step_count = 0
        self.history: list[tuple[float, bool]] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.step_count = self.episode + 1, 0
        self.obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 5.0 - 3.0 * float(np.square(action - self.obs).sum())
        self.step_count += 1
        self.obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        terminated = self.episode % 2 == 0 and self.step_count == 5
        truncated = self.step_count == 7
        self.history.append((reward, terminated or truncated))
        return self.obs, reward, terminated, truncated, {}


def make_model(**kwargs: Any) -> ScoReFlowPPO:
    policy_kwargs = dict(net_arch=[16, 16]) | kwargs.pop("policy_kwargs", {})
    arguments = dict(n_steps=N_STEPS, batch_size=SIZE, n_epochs=1, seed=0, device="cpu", policy_kwargs=policy_kwargs) | kwargs
    return ScoReFlowPPO("FlowPolicy", DummyVecEnv([TinyEnv] * N_ENVS), **arguments)


def collect(model: ScoReFlowPPO, total_timesteps: int = 100 * SIZE) -> None:
    """One rollout, as ``learn`` would make it, and no update."""
    _, callback = model._setup_learn(total_timesteps, reset_num_timesteps=model.num_timesteps == 0)
    callback.on_training_start({}, {})
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def logs_of(model: ScoReFlowPPO) -> dict[str, float]:
    """What the last ``train`` recorded."""
    return {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}


def state_of(module: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved_in(module: nn.Module, before: dict[str, th.Tensor]) -> set[str]:
    """Names of the parameters that are not bit-identical to ``before``."""
    return {name for name, value in module.named_parameters() if not th.equal(value, before[name])}


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def perturb(model: ScoReFlowPPO, scale: float = 0.05) -> None:
    """Move the policy away from the one that collected, so that ratios differ from 1."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(scale * th.randn(parameter.shape, generator=generator))

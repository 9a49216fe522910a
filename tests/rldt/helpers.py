"""A small environment and model for tests of RLDT's iteration, and what tests of its actor share."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_scoreflow import RLDT
from sb3_scoreflow.rldt.actor import Reference
from sb3_scoreflow.rldt.policies import RLDTPolicy
from sb3_scoreflow.rldt.transport import Transport

N_ENVS, N_STEPS, ACTION = 2, 8, 2
SIZE = N_ENVS * N_STEPS


class TinyEnv(gym.Env):
    """
    Observations are random. Episodes end alternately by termination and by truncation.

    :param rewards: reward of all steps of a rollout, for each rollout; the last one also holds for later rollouts. None: the
        reward depends on the action
    """

    observation_space = spaces.Box(-1, 1, (3,))
    action_space = spaces.Box(-1, 1, (ACTION,))

    def __init__(self, rewards: list[float] | None = None) -> None:
        self.rewards, self.n_steps, self.episode = rewards, 0, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 2.0 - float(np.square(action - 0.5).sum())
        if self.rewards is not None:
            reward = self.rewards[min(self.n_steps // N_STEPS, len(self.rewards) - 1)]
        self.n_steps, self.steps = self.n_steps + 1, self.steps + 1
        end, odd = self.steps == 3, self.episode % 2 == 1
        return self._observation(), reward, end and odd, end and not odd, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


def make_model(env: Any = TinyEnv, n_envs: int = N_ENVS, **kwargs: Any) -> RLDT:
    policy_kwargs = dict(net_arch=[16, 16]) | kwargs.pop("policy_kwargs", {})
    arguments: dict[str, Any] = dict(
        n_steps=N_STEPS,
        batch_size=8,
        critic_steps=6,
        n_refreshes=2,
        refresh_size=2 * SIZE,
        actor_steps=4,
        actor_batch_size=8,
        n_particles=4,
        critic_warmup_transitions=0,
        learning_rate=1e-3,
        learning_rate_warmup_steps=0,
        denoising_steps=3,
        seed=0,
        device="cpu",
        policy_kwargs=policy_kwargs,
    )
    return RLDT("FlowPolicy", DummyVecEnv([env] * n_envs), **(arguments | kwargs))


def iterate(model: RLDT, n: int = 1) -> None:
    """Iterations as in ``learn``, without its final logging, so that the recorded values can be read."""
    _, callback = model._setup_learn(10**6, reset_num_timesteps=model.num_timesteps == 0)
    callback.on_training_start({}, {})
    for _ in range(n):
        model.logger.name_to_value.clear()
        assert model.env is not None
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        model.train()


def logs_of(model: RLDT) -> dict[str, float]:
    return {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}


def state_of(net: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in net.named_parameters()}


def moved_networks(model: RLDT, before: dict[str, th.Tensor]) -> set[str]:
    """Networks with a parameter that is not bit-identical to ``before``."""
    return {name.split(".")[0] for name, value in model.policy.named_parameters() if not th.equal(value, before[name])}


def spy_steps(model: RLDT) -> list[tuple[str, float, float]]:
    """:return: list to which every later optimizer step adds its kind and the learning rates of velocity and critic"""
    steps: list[tuple[str, float, float]] = []

    def record(*_: Any) -> None:
        groups = {group["name"]: group for group in model.policy.optimizer.param_groups}
        kinds = [name for name, group in groups.items() if any(p.grad is not None for p in group["params"])]
        assert len(kinds) == 1  # no step mixes the two
        steps.append((kinds[0], groups["velocity"]["lr"], groups["critic"]["lr"]))

    model.policy.optimizer.register_step_pre_hook(record)
    return steps


#: A temperature at which the repulsion is a good part of the field
FIELD_SETTINGS = Transport(temperature=0.3)


def perturb(module: nn.Module, scale: float = 0.2) -> None:
    with th.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * th.randn_like(parameter))


def reference_of(policy: RLDTPolicy, perturbed: bool = True) -> Reference:
    reference = Reference(copy.deepcopy(policy.features_extractor), copy.deepcopy(policy.velocity_field))
    if perturbed:
        perturb(reference.velocity_field, 0.1)
    return reference

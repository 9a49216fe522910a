"""A small environment, models and demonstrations for tests of cloning."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_scoreflow import Demonstrations, FlowMatchingPolicy, ScoReFlowPPO, pretrain_bc

OBS, ACTION = 3, 2
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
PLAIN = spaces.Box(-1, 1, (ACTION,))
CHUNKS = spaces.Box(-2, 2, (4, 3))
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)


class BlankEnv(gym.Env):
    """Spaces, and a reward that says how near the action is to the observation's first numbers."""

    def __init__(self, observation_space: spaces.Space = VECTOR, action_space: spaces.Box = PLAIN) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.full(OBS, 0.1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return (
            np.full(OBS, 0.1 * (self.steps + 1), np.float32),
            float(action[0] - 0.5 * self.steps),
            self.steps == 3,
            False,
            {},
        )


def make_policy(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Box = PLAIN, **kwargs: Any
) -> FlowMatchingPolicy:
    th.manual_seed(0)
    return FlowMatchingPolicy(observation_space, action_space, **(dict(net_arch=[16]) | kwargs)).eval()


def make_model(env: Any = None, **kwargs: Any) -> ScoReFlowPPO:
    arguments: dict[str, Any] = dict(n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    arguments |= dict(policy_kwargs=dict(net_arch=[16])) | kwargs
    return ScoReFlowPPO("FlowPolicy", BlankEnv() if env is None else env, **arguments)


def ends_of(n: int, length: int) -> np.ndarray:
    return np.arange(n) % length == length - 1


def make_demonstrations(n: int = 60, length: int = 10, seed: int = 0, **kwargs: Any) -> Demonstrations:
    rng = np.random.default_rng(seed)
    arguments: dict[str, Any] = dict(
        observations=rng.normal(size=(n, OBS)) * [1.0, 5.0, 0.1] + [0.0, 3.0, -2.0],
        actions=rng.uniform(-0.9, 0.9, (n, ACTION)),
        rewards=rng.normal(size=n),
        terminations=ends_of(n, length),
    )
    return Demonstrations(**(arguments | kwargs))


def state_of(module: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(module: nn.Module, state: dict[str, th.Tensor]) -> None:
    for name, value in module.state_dict().items():
        assert th.equal(value, state[name]), name


def clone(model: Any, demonstrations: Demonstrations | None = None, **kwargs: Any) -> dict[str, list[float]]:
    arguments = dict(n_batches=4, batch_size=16, seed=0) | kwargs
    return pretrain_bc(model, make_demonstrations() if demonstrations is None else demonstrations, **arguments)


def refused(*words: str, model: Any = None, demonstrations: Any = None, **kwargs: Any) -> None:
    """The message has these words, and nothing has changed."""
    model = make_model() if model is None else model
    policy = model if isinstance(model, FlowMatchingPolicy) else model.policy
    before = state_of(policy)
    with pytest.raises(ValueError) as error:
        clone(model, demonstrations, **kwargs)
    assert all(word in str(error.value) for word in words), error.value
    assert_same(policy, before)


def numbered_episodes(n_episodes: int, length: int) -> Demonstrations:
    """Observations that name their episode."""
    n = n_episodes * length
    obs = np.repeat((np.arange(n) // length)[:, None], OBS, axis=1).astype(np.float32)
    return make_demonstrations(n, length, observations=obs)

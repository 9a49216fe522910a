"""
Deterministic environments, one for each kind of observation.

They draw no random numbers, every episode starts in the same state, and they refuse actions outside their action space.
So a rollout that starts at the beginning of an episode is a function of the policy and of torch's generator alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

#: Asymmetric, different in every dimension.
ACTION_SPACE = spaces.Box(np.array([-1.0, 0.5], np.float32), np.array([3.0, 0.75], np.float32), dtype=np.float32)


def _image(state: np.ndarray) -> np.ndarray:
    pattern = np.outer(np.sin(np.arange(36) * (1 + state[0])), np.cos(np.arange(36) * (1 + state[1])))
    return (127.5 + 127 * pattern).astype(np.uint8)[:, :, None]


def _bucket(value: float, n: int) -> int:
    return int(np.clip((value + 1) / 2 * n, 0, n - 1))


_FLAT = spaces.Box(-10, 10, (3,), np.float32)
_IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)

#: kind -> observation space, and the observation of a state (three numbers of order 1)
OBSERVATIONS: dict[str, tuple[spaces.Space, Callable[[np.ndarray], Any]]] = {
    "flat": (_FLAT, lambda s: s.astype(np.float32)),
    "float64": (spaces.Box(-10, 10, (3,), np.float64), lambda s: s.copy()),
    "matrix": (spaces.Box(-10, 10, (2, 3), np.float32), lambda s: np.stack([s, 2 * s]).astype(np.float32)),
    "image": (_IMAGE, _image),
    "dict": (
        spaces.Dict({"vector": _FLAT, "image": _IMAGE, "mode": spaces.Discrete(4)}),
        lambda s: {"vector": s.astype(np.float32), "image": _image(s), "mode": _bucket(s[0], 4)},
    ),
    # For features extractors other than the aliases' own: see SMALL_EXTRACTOR
    "vit": (_IMAGE, _image),
    "cameras": (
        spaces.Dict({"front": _IMAGE, "joints": _FLAT, "wrist": _IMAGE}),
        lambda s: {"front": _image(s), "joints": s.astype(np.float32), "wrist": _image(s[::-1])},
    ),
    "vectors": (
        spaces.Dict({"a": _FLAT, "c": spaces.Box(-10, 10, (1,), np.float32)}),
        lambda s: {"a": s.astype(np.float32), "c": s[:1].astype(np.float32)},
    ),
    "discrete": (spaces.Discrete(5), lambda s: _bucket(s[0], 5)),
    "multibinary": (spaces.MultiBinary(3), lambda s: (s > 0).astype(np.int8)),
    "multidiscrete": (spaces.MultiDiscrete([3, 4]), lambda s: np.array([_bucket(s[0], 3), _bucket(s[1], 4)])),
}


class ToyEnv(gym.Env):
    """
    A state of three numbers that follows the action; an episode always has ``length`` steps.

    :param kind: kind of observation, a key of OBSERVATIONS
    :param action_space: action space
    :param length: steps per episode
    :param start: offset of the initial state
    :param truncated: whether episodes end by truncation or by termination
    :param faulty_from: from this step (since construction) on, ``fault`` is returned
    :param fault: "reward" or "observation" to make that part NaN, "huge" to make the reward as large as may be
    :param record: whether to keep what happened
    """

    def __init__(
        self,
        kind: str = "flat",
        action_space: spaces.Space = ACTION_SPACE,
        length: int = 4,
        start: float = 0.0,
        truncated: bool = False,
        faulty_from: int | None = None,
        fault: str = "reward",
        record: bool = True,
    ) -> None:
        self.observation_space, self._observe = OBSERVATIONS[kind]
        self.action_space = action_space
        self.length = length
        self.start = np.array([0.1, -0.2, 0.3]) + start
        self.truncated = truncated
        self.faulty_from, self.fault = faulty_from, fault
        self.n_steps = 0
        self.count = 0
        self.state = self.start
        self.record = record
        #: Of every step: the state before, the action, the state after, the reward.
        self.history: list[tuple[np.ndarray, np.ndarray, np.ndarray, float]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.state = 0, self.start
        return self._observe(self.state), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        space = self.action_space
        assert isinstance(space, spaces.Box)
        assert action.dtype == space.dtype, f"action has dtype {action.dtype}, not {space.dtype}"
        assert space.contains(action), f"action {action} is outside {space}"
        scaled = float(np.mean((action - space.low) / (space.high - space.low)) * 2 - 1)
        before = self.state
        self.state = 0.6 * self.state + 0.4 * np.array([scaled, scaled**2 - 0.3, np.sin(3 * self.state[0])])
        self.count += 1
        self.n_steps += 1
        observation, reward = self._observe(self.state), float(self.state[0] - 0.2 * scaled**2)
        if self.record:
            self.history.append((before, action.copy(), self.state, reward))
        if self.faulty_from is not None and self.n_steps >= self.faulty_from:
            if self.fault == "observation":
                observation = np.full_like(observation, np.nan)
            else:
                reward = float("nan") if self.fault == "reward" else 1e19
        done = self.count == self.length
        info = {"is_success": self.state[0] > 0} if done else {}
        return observation, reward, done and not self.truncated, done and self.truncated, info


def _monitored(**kwargs: Any) -> gym.Env:
    return Monitor(ToyEnv(**kwargs))


def toy_env_fns(n_envs: int, **kwargs: Any) -> list[Callable[[], gym.Env]]:
    """Constructors of environments that differ by their start."""
    return [partial(_monitored, **{"start": 0.1 * i, **kwargs}) for i in range(n_envs)]


def make_toy(kind: str = "flat", n_envs: int = 1, **kwargs: Any) -> VecEnv:
    """
    :param kind: kind of observation
    :param n_envs: number of environments, which differ by their start
    :param kwargs: of :class:`ToyEnv`
    """
    return DummyVecEnv(toy_env_fns(n_envs, kind=kind, **kwargs))


class Foreign(VecEnvWrapper):
    """A wrapper of the user's, which might replace NaN: what is behind it is not refused before the algorithm has it."""

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        return self.venv.step_wait()


def toys(env: VecEnv) -> list[ToyEnv]:
    """The environments inside a vectorised one."""
    while not isinstance(env, DummyVecEnv):
        env = env.venv  # type: ignore[attr-defined]
    unwrapped = [inner.unwrapped for inner in env.envs]
    assert all(isinstance(inner, ToyEnv) for inner in unwrapped)
    return unwrapped  # type: ignore[return-value]


def observe(kind: str, states: np.ndarray) -> Any:
    """
    :param kind: kind of observation
    :param states: shape ``(batch, 3)``
    :return: batched observations, images channel first as behind VecTransposeImage
    """
    observations = [OBSERVATIONS[kind][1](state) for state in states]
    if isinstance(observations[0], dict):
        return {key: _channel_first(np.stack([o[key] for o in observations])) for key in observations[0]}
    return _channel_first(np.stack([np.asarray(o) for o in observations]))


def _channel_first(batch: np.ndarray) -> np.ndarray:
    return batch.transpose(0, 3, 1, 2) if batch.ndim == 4 else batch


def some_states(n: int, seed: int = 0) -> np.ndarray:
    """Random states of order 1, shape ``(n, 3)``."""
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3))

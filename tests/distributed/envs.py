"""Environments for workers: one whose episodes end in every way, and does in a step what a test asks of it."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class RandomEnds(gym.Env):
    """
    Episodes end at random, by termination or by truncation. Observations and infos depend on seed, options and actions.

    :param space: observation space, a ``Box`` or a ``Dict`` of boxes
    :param faults: folder of requests. A file ``NAME-INDEX`` asks the environment with this index for a fault in its next step,
        in which it removes the file: "kill", "exit", "stop" (the process), "raise", or "wait" (write a file "here_INDEX", and
        wait for a file "go")
    :param index: index of the environment
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, space: spaces.Space | None = None, faults: Path | None = None, index: int = 0) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32) if space is None else space
        self.render_mode = "rgb_array"
        self.faults, self.index, self.total, self.gain = faults, index, 0.0, 1.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.total = float((options or {}).get("start", 0.0))
        return self._observation(), {"seed": seed, "start": self.total}

    def step(self, action: np.ndarray) -> Any:
        self._fail()
        self.total += float(action.sum())
        draw = self.np_random.random()
        terminated, truncated = draw < 0.1, 0.05 < draw < 0.15
        reward = self.gain * (self.np_random.random() + self.total)
        return self._observation(), reward, terminated, truncated, {"draw": draw, "array": np.full(2, draw)}

    def _observation(self) -> Any:
        def draw(space: spaces.Space) -> np.ndarray:
            return (self.np_random.random(space.shape) * 10 + self.total).astype(space.dtype or np.float32)

        if isinstance(self.observation_space, spaces.Dict):
            return {key: draw(part) for key, part in self.observation_space.items()}
        return draw(self.observation_space)

    def _fail(self) -> None:
        for path in self.faults.glob(f"*-{self.index}") if self.faults else ():
            fault = path.name.partition("-")[0]
            path.unlink()
            match fault:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "exit":
                    raise SystemExit(3)
                case "raise":
                    raise LookupError("no such joint")
                case "wait":
                    (path.parent / f"here_{self.index}").touch()
                    while not (path.parent / "go").exists():
                        time.sleep(0.01)

    def render(self) -> Any:
        return np.full((4, 4, 3), self.index, np.uint8)

    def get_checkpoint(self) -> Any:
        return self.np_random.bit_generator.state, self.total

    def set_checkpoint(self, state: Any) -> None:
        self.np_random.bit_generator.state, self.total = state

    def pid(self) -> int:
        return os.getpid()

    def node(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()

    @property
    def lock(self) -> Any:
        """An object that cannot be sent to another process."""
        return threading.Lock()

    def double(self, value: float, plus: float = 0.0) -> float:
        return 2 * value + plus + self.index


class Broken(RandomEnds):
    """
    Cannot be made.

    :param how: "raise" or "exit"
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        if how == "raise":
            raise LookupError("no meshes here")
        os._exit(3)


def ask_for(faults: Path, name: str, index: int) -> None:
    """
    Request a fault.

    :param faults: folder, see :class:`RandomEnds`
    :param name: name of the fault
    :param index: index of the environment
    """
    (faults / f"{name}-{index}").touch()


def makers(n_envs: int, **arguments: Any) -> list[Callable[[], gym.Env]]:
    """:return: functions that make :class:`RandomEnds`"""
    return [partial(RandomEnds, index=index, **arguments) for index in range(n_envs)]

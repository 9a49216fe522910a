"""Environments that fail in a chosen way, in a chosen step of a chosen environment."""

import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_scoreflow import DivergenceError

#: The step, since construction, in which an environment fails, and its index
STEP, INDEX = 5, 1


class Crash(Exception):
    """Error of a simulator whose constructor, unlike that of other exceptions, needs a keyword argument."""

    def __init__(self, simulator: str, *, code: int) -> None:
        super().__init__(f"{simulator} stopped with code {code}")
        self.code = code


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not me")


class FaultyEnv(gym.Env):
    """
    :param index: index of the environment; only the environment with index ``INDEX`` fails
    :param fault: name of the fault, see :meth:`_fail`; "": no fault
    :param call: "step" or "reset", the method whose call number ``STEP`` fails
    :param space: observation space
    """

    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(
        self, index: int = INDEX, fault: Any = "", call: str = "step", space: spaces.Space | None = None, length: int = 3
    ) -> None:
        self.observation_space = spaces.Box(-10, 10, (3,), np.float32) if space is None else space
        self.index, self.fault, self.call, self.length = index, fault, call, length
        self.counts = {"step": 0, "reset": 0}
        self.seed_seen: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.seed_seen = self.seed_seen if seed is None else seed
        return self._answer("reset", (self._observation(), {}))

    def step(self, action: np.ndarray) -> Any:
        ended = (self.counts["step"] + 1) % self.length == 0
        return self._answer("step", (self._observation(), 1.0, ended, False, {}))

    def _observation(self) -> Any:
        return np.full(self.observation_space.shape or (), self.index, self.observation_space.dtype or float)

    def _answer(self, call: str, answer: tuple[Any, ...]) -> Any:
        self.counts[call] += 1
        if (call, self.counts[call], self.index) != (self.call, STEP if call == "step" else 1, INDEX):
            return answer
        return self.fault(answer) if callable(self.fault) else self._fail(answer)

    def _fail(self, answer: tuple[Any, ...]) -> Any:
        match self.fault:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                faulthandler.disable()  # pytest's report of it would look like a crash of the tests
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
            case "sys.exit":
                raise SystemExit(4)
            case "hang":
                time.sleep(1000)
            case "raise":
                raise Crash("sim", code=7)
            case "eof":
                raise EOFError("the file of meshes ends early")
            case "unpicklable":
                raise Unpicklable("of this process")
            case "nested":
                raise DivergenceError("the simulator diverged")
            case "interrupt":
                raise KeyboardInterrupt
        return answer

    def raise_in_method(self) -> None:
        raise LookupError("as a method may")

    def end_in_method(self) -> None:
        os._exit(5)

    def render(self) -> Any:
        return np.zeros((2, 2, 3), np.uint8)

    def pid(self) -> int:
        return os.getpid()

    def nothing(self, value: Any = None) -> Any:
        return value


def make_faulty(n_envs: int = 3, **kwargs: Any) -> list[Callable[[], gym.Env]]:
    """
    :param n_envs: number of environments
    :param kwargs: arguments of :class:`FaultyEnv`
    :return: functions that create the environments
    """
    return [partial(FaultyEnv, index, **kwargs) for index in range(n_envs)]


class Late(Exception):
    """A test that hangs."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """
    Let code that hangs, in Python or in a system call, fail.

    :param seconds: time limit
    """

    def fail(*_: object) -> None:
        raise Late(f"not done within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """As a terminal's process is: pytest-xdist's workers ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_gone(pid: int) -> bool:
    """:return: whether there is no such process, not even as a zombie"""
    return not Path(f"/proc/{pid}").exists() if Path("/proc/self").exists() else not _exists(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

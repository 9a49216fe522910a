"""Environments that fail do so by name and in time, not in silence (``guard_env``)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_scoreflow.common.env_answers import CheckedEnv, check_finite
from sb3_scoreflow.common.env_errors import EnvDivergedError, EnvFailedError
from sb3_scoreflow.common.env_workers import Workers
from sb3_scoreflow.common.utils import ArgumentError

__all__ = ["EnvDivergedError", "EnvFailedError", "guard_env"]

#: Wrappers that hand NaN on; others may replace it, or leave out what has it
_TRANSPARENT = (VecCheckNan, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage)


def guard_env(venv: VecEnv, step_timeout: float | None = None) -> VecEnv:
    """
    Make a vectorized environment fail with an error that names the environment: within seconds if its process ends, at once if
    it raises an exception or answers ``step`` or ``reset`` with what Gymnasium does not allow (see docs/reliability.md). The
    algorithms do so with theirs; call it to set ``step_timeout``, or for an environment that no algorithm trains in.

    The innermost environment is changed in place, if it is a ``DummyVecEnv``, a ``SubprocVecEnv`` or a ``RayVecEnv`` (which
    replaces workers that end or hang, and does the rest by itself, but for NaN); others are left alone. It remains what it was
    (``isinstance``, names, attributes, results), and copies of it are not guarded. In the environments' processes, this
    package is imported.

    :param venv: environment, in any wrappers
    :param step_timeout: seconds that an environment of a ``SubprocVecEnv`` may take for any answer; for a step, with the reset
        that may follow it. None: any time, with a warning after a minute; a ``step_timeout`` that was set before stays. Of a
        ``RayVecEnv``, seconds that a worker may take
    :return: ``venv`` itself
    :raises ArgumentError: if ``step_timeout`` is not positive, or the environments are in no processes of their own
    :raises EnvFailedError: if a process has already ended
    """
    *wrappers, base = _layers(venv)
    if step_timeout is not None and not step_timeout > 0:
        raise ArgumentError(f"step_timeout must be a positive number of seconds, got {step_timeout!r}: pass 300.0, or None.")
    checks_answers = getattr(type(base), "checks_answers", False)
    if step_timeout is not None and not (isinstance(base, SubprocVecEnv) or checks_answers):
        raise ArgumentError(
            f"step_timeout={step_timeout!r} is for environments in processes of their own, which can be ended, and got a "
            f"{type(base).__name__}: pass vec_env_cls=SubprocVecEnv to make_vec_env, or leave out step_timeout."
        )
    if isinstance(base, SubprocVecEnv) and not isinstance(base, _GuardedSubproc) and not base.closed:
        workers = Workers(base)
        _change_class(base, _GuardedSubproc, _Guard(workers=workers))
        workers.take_over(base.observation_space)
    elif isinstance(base, DummyVecEnv) and not isinstance(base, _GuardedDummy):
        _change_class(base, _GuardedDummy, _Guard())
    elif checks_answers and not isinstance(base, _Guarded):
        _change_class(base, _Guarded, _Guard())
    if isinstance(base, _Guarded):
        base._guard.refuses_nan &= all(type(wrapper) in _TRANSPARENT for wrapper in wrappers)
    if isinstance(base, _GuardedSubproc) and step_timeout is not None:
        base._workers.step_timeout = step_timeout
    elif step_timeout is not None:
        base.step_timeout = step_timeout  # type: ignore[attr-defined]
    return venv


def guard_evaluations(callback: BaseCallback) -> None:
    """:param callback: of which, and of those that it calls, the environments of evaluations are guarded"""
    if isinstance(callback, EvalCallback):
        guard_env(callback.eval_env)
    inner = [value for name, value in vars(callback).items() if isinstance(value, BaseCallback) and name != "parent"]
    for each in [*getattr(callback, "callbacks", ()), *inner]:
        guard_evaluations(each)


@dataclass
class _Guard:
    """What a guarded environment knows beyond what it was."""

    #: Whether NaN is an error of the environment: what wraps it hands all numbers on
    refuses_nan: bool = True
    workers: Workers | None = None
    #: Environments of a ``DummyVecEnv``, and with checks
    envs: list[gym.Env] = field(default_factory=list)
    checked: list[CheckedEnv] = field(default_factory=list)


class _Guarded(VecEnv):
    """Comes before the class of the innermost environment, whose methods it calls."""

    _guard: _Guard

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = super().step_wait()  # type: ignore[safe-super]
        if self._guard.refuses_nan:
            check_finite(observations, rewards, dones, infos)
        return observations, rewards, dones, infos

    def reset(self) -> VecEnvObs:
        observations = super().reset()  # type: ignore[safe-super]
        if self._guard.refuses_nan:
            check_finite(observations, 0.0)
        return observations

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy, or what is read from a file, is not guarded."""
        guarded = type(self)
        self.__class__ = guarded.__bases__[1]
        try:
            function, arguments, state, *rest = self.__reduce_ex__(protocol)
        finally:
            self.__class__ = guarded
        # Not `function` itself, of which pickle knows that it makes an object of this very class
        return _call, (function, *arguments), {name: value for name, value in state.items() if name != "_guard"}, *rest


class _GuardedDummy(_Guarded):
    envs: list[Any]

    def step_wait(self) -> VecEnvStepReturn:
        envs = self._check_envs()
        try:
            return super().step_wait()
        finally:
            self.envs = envs

    def reset(self) -> VecEnvObs:
        envs = self._check_envs()
        try:
            return super().reset()
        finally:
            self.envs = envs

    def _check_envs(self) -> list[gym.Env]:
        """:return: the environments, in whose place are those with checks"""
        guard, envs = self._guard, self.envs
        if guard.envs != envs:  # the user may have exchanged one
            guard.envs = list(envs)
            guard.checked = [CheckedEnv(env, i, self.observation_space, exact=False) for i, env in enumerate(envs)]
        self.envs = guard.checked
        return envs


class _GuardedSubproc(_Guarded):
    waiting: bool
    closed: bool

    @property
    def _workers(self) -> Workers:
        assert self._guard.workers is not None
        return self._guard.workers

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._workers.close(self.waiting)


def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def _change_class(venv: Any, guarded: Any, guard: _Guard) -> None:
    venv.__class__ = _class_before(guarded, type(venv))  # type: ignore[arg-type]  # classes are hashable
    venv._guard = guard


@cache
def _class_before(guarded: Any, cls: Any) -> type:
    """:return: a subclass of both that goes by the name of the second"""
    names: Any = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (guarded, cls), names)


def _layers(venv: VecEnv) -> Iterator[VecEnv]:
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv
    yield venv

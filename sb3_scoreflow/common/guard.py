"""``guard_env`` makes a failure of an environment raise, in time, an error that names the environment."""

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

#: Wrappers that pass on NaN; others may replace it or remove the entry
_TRANSPARENT = (VecCheckNan, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage)


def guard_env(venv: VecEnv, step_timeout: float | None = None) -> VecEnv:
    """
    Make failures of a vectorized environment raise an error that names the environment: within seconds if its process ends,
    and immediately if it raises an exception or if ``step`` or ``reset`` returns values that Gymnasium does not allow (see
    docs/reliability.md). The algorithms call this function for their environments. Call it yourself to set ``step_timeout``,
    or for an environment that is used without an algorithm.

    The function changes the innermost environment in place if it is a ``DummyVecEnv``, a ``SubprocVecEnv`` or a ``RayVecEnv``
    (which already replaces workers that end or hang and only lacks the check for NaN); others stay unchanged. Its type, names,
    attributes and results stay the same, and copies of it are not guarded. The environments' processes import this package.

    :param venv: vectorized environment, in any wrappers
    :param step_timeout: time limit in seconds for an answer of an environment in a ``SubprocVecEnv``, or of a worker of a
        ``RayVecEnv``; a step includes the reset that may follow it. None: no limit, but a warning after a minute; an earlier
        ``step_timeout`` is kept
    :return: ``venv`` itself
    :raises ArgumentError: if ``step_timeout`` is not positive, or the environments are not in separate processes
    :raises EnvFailedError: if a process has already ended
    """
    *wrappers, base = _layers(venv)
    if step_timeout is not None and not step_timeout > 0:
        raise ArgumentError(f"step_timeout must be a positive number of seconds, got {step_timeout!r}: pass 300.0, or None.")
    checks_answers = getattr(type(base), "checks_answers", False)
    if step_timeout is not None and not (isinstance(base, SubprocVecEnv) or checks_answers):
        raise ArgumentError(
            f"step_timeout={step_timeout!r} needs environments in separate processes, which can be ended, but got a "
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
    """
    Guard the evaluation environments of a callback and of its child callbacks, which may refer to each other.

    :param callback: the callback
    """
    waiting, known = [callback], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in known:
            continue
        known.add(id(each))
        if isinstance(each, EvalCallback):
            guard_env(each.eval_env)
        inner = [value for name, value in vars(each).items() if isinstance(value, BaseCallback) and name != "parent"]
        waiting += [*getattr(each, "callbacks", ()), *inner]


@dataclass
class _Guard:
    """Additional state of a guarded environment."""

    #: Whether NaN counts as an error of the environment, because all its wrappers pass on NaN
    refuses_nan: bool = True
    workers: Workers | None = None
    #: Environments of a ``DummyVecEnv``, without and with checks
    envs: list[gym.Env] = field(default_factory=list)
    checked: list[CheckedEnv] = field(default_factory=list)


class _Guarded(VecEnv):
    """Mixin that precedes the class of the innermost environment and calls its methods."""

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
        """Copies and unpickled environments are not guarded."""
        guarded = type(self)
        self.__class__ = guarded.__bases__[1]
        try:
            function, arguments, state, *rest = self.__reduce_ex__(protocol)
        finally:
            self.__class__ = guarded
        # Not `function` itself, because pickle knows that it creates an object of this class
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
        """:return: the environments, after replacing them with environments with checks"""
        guard, envs = self._guard, self.envs
        if guard.envs != envs:  # the user may have replaced one
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
    """:return: a subclass of both classes with the name of the second"""
    names: Any = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (guarded, cls), names)


def _layers(venv: VecEnv) -> Iterator[VecEnv]:
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv
    yield venv

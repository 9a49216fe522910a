"""Checks of an environment's return values against Gymnasium's interface, before Stable-Baselines3 uses them."""

import math
from collections.abc import Callable, MutableMapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_scoreflow.common.env_errors import EnvDivergedError, EnvFailedError, raised_error

_STEP = "(observation, reward, terminated, truncated, info)"
_RESET = "(observation, info)"
#: Types that need no further check
_REWARDS = frozenset({float, int, np.float64, np.float32})
_FLAGS = frozenset({bool, np.bool_})


class CheckedEnv:
    """
    An environment whose return values of ``step`` and ``reset`` are checked. All other attributes are the environment's.

    :param env: environment
    :param index: its index in the vectorized environment, for messages
    :param space: space of observations
    :param exact: whether an observation must have exactly the space's shape; if not, leading axes of length 1 may be missing
        or additional, because observations are written into an array
    :param raised: function that creates the error, from an exception of the environment, its index, and the called method
    """

    __slots__ = ("_env", "reset", "step")
    _env: gym.Env

    def __init__(
        self,
        env: gym.Env,
        index: int,
        space: spaces.Space,
        exact: bool,
        raised: Callable[[Exception, int, str], Exception] = raised_error,
    ) -> None:
        # object.__setattr__, because this class forwards its own; functions, because every step would look up attributes
        object.__setattr__(self, "_env", env)
        object.__setattr__(self, "step", _checked_step(env, index, space, exact, raised))
        object.__setattr__(self, "reset", _checked_reset(env, index, space, exact, raised))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._env.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._env, name, value)


def _checked_step(env: gym.Env, index: int, space: spaces.Space, exact: bool, raised: Any) -> Callable[[Any], Any]:
    shape, dtype = _expected(space)

    def step(action: Any) -> Any:
        try:
            answer = env.step(action)
        except Exception as error:
            raise raised(error, index, "step()") from error
        try:
            observation, reward, terminated, truncated, info = answer
            if (
                type(reward) in _REWARDS
                and type(info) is dict
                and type(terminated) in _FLAGS
                and type(truncated) in _FLAGS
                and observation.shape == shape
                and observation.dtype is dtype
            ):
                return answer
        except (AttributeError, TypeError, ValueError):  # step_fault describes the fault
            pass
        fault = step_fault(answer, space, exact)
        if fault is not None:
            raise _refused(index, "step()", fault)
        return answer

    return step


def _checked_reset(env: gym.Env, index: int, space: spaces.Space, exact: bool, raised: Any) -> Callable[..., Any]:
    shape, dtype = _expected(space)

    def reset(**kwargs: Any) -> Any:
        try:
            answer = env.reset(**kwargs)
        except Exception as error:
            raise raised(error, index, "reset()") from error
        try:
            observation, info = answer
            if type(answer) is tuple and type(info) is dict and observation.shape == shape and observation.dtype is dtype:
                return answer
        except (AttributeError, TypeError, ValueError):
            pass
        fault = reset_fault(answer, space, exact)
        if fault is not None:
            raise _refused(index, "reset()", fault)
        return answer

    return reset


def _expected(space: spaces.Space) -> tuple[tuple[int, ...] | None, np.dtype | None]:
    """:return: shape and dtype of observations that need no further check"""
    # NumPy's only object for this dtype; unpickled spaces may have another object
    return space.shape, np.dtype(space.dtype.type) if isinstance(space, spaces.Box) else None


def step_fault(answer: Any, space: spaces.Space, exact: bool = False) -> str | None:
    """
    :param answer: answer of an environment's ``step``
    :param space: space of its observations
    :param exact: see :class:`CheckedEnv`
    :return: description of the fault and of the expected value; None if there is no fault
    """
    if not isinstance(answer, (tuple, list)) or len(answer) != 5:
        old = isinstance(answer, (tuple, list)) and len(answer) == 4
        remedy = (
            ", not the (observation, reward, done, info) of Gym before 0.26; done is `terminated or truncated`" if old else ""
        )
        return f"returned {_describe(answer)}: Gymnasium expects {_STEP}{remedy}"
    observation, reward, terminated, truncated, info = answer
    number = _array(reward)
    if number is None or number.shape != () or number.dtype.kind not in "biuf":
        return f"returned the reward {_describe(reward)}: Gymnasium expects one number, such as float(reward)"
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        value = _array(flag)
        if value is None or value.shape != () or value.dtype.kind not in "biuf" or value not in (0, 1):
            return f"returned {name}={_describe(flag)}: Gymnasium expects True or False, such as bool({name})"
    if not isinstance(info, MutableMapping):
        return f"returned the info {_describe(info)}: Gymnasium expects a dict, {{}} if there is nothing to say"
    return observation_fault(observation, space, exact)


def reset_fault(answer: Any, space: spaces.Space, exact: bool = False) -> str | None:
    """
    :param answer: answer of an environment's ``reset``
    :param space: space of its observations
    :param exact: see :class:`CheckedEnv`
    :return: description of the fault and of the expected value; None if there is no fault
    """
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return f"returned {_describe(answer)}: Gymnasium expects {_RESET}, with {{}} as info if there is nothing to say"
    observation, info = answer
    if info is not None and not isinstance(info, MutableMapping):  # Stable-Baselines3 does not look at it
        return f"returned the info {_describe(info)}: Gymnasium expects {_RESET}, with a dict as info"
    return observation_fault(observation, space, exact)


def observation_fault(observation: Any, space: spaces.Space, exact: bool = False) -> str | None:
    """
    :param observation: observation of an environment
    :param space: space of its observations; parts that Stable-Baselines3 does not know pass
    :param exact: see :class:`CheckedEnv`
    :return: description of the fault; None if there is no fault
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, dict):
            return f"returned the observation {_describe(observation)}: its space expects a dict with {list(space.spaces)}"
        missing = [key for key in space.spaces if key not in observation]
        if missing:
            return f"returned an observation with the keys {list(observation)}: its space also expects {missing}"
        parts = [(f"observation[{key!r}]", observation[key], part) for key, part in space.spaces.items()]
    else:
        parts = [("observation", observation, space)]
    for name, value, part in parts:
        if part.shape is not None and part.dtype is not None:
            fault = _array_fault(name, value, part.shape, np.dtype(part.dtype), exact)
            if fault is not None:
                return fault
    return None


def _array_fault(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype, exact: bool) -> str | None:
    array = _array(value)
    if array is None or array.dtype.kind not in "biuf":
        return f"returned the {name} {_describe(value)}: its space expects numbers of shape {shape} and dtype {dtype}"
    if array.shape != shape and (exact or _without_leading(array.shape) != _without_leading(shape)):
        return f"returned an {name} of shape {array.shape}: its space expects {shape}"
    if dtype.kind != "f" and array.dtype != dtype:
        with np.errstate(invalid="ignore"):
            lost = array.astype(dtype) != array
        if lost.any():
            return (
                f"returned an {name} of dtype {array.dtype}, with {array[lost][0]}, which {dtype} cannot hold: its space "
                f"expects {dtype}. Convert it, or give the space the other dtype and bounds"
            )
    return None


def check_finite(observations: Any, rewards: Any, dones: Any = (), infos: Any = ()) -> None:
    """
    :param observations: observations of all environments, shape ``(n_envs, ...)``, or such parts by key
    :param rewards: rewards of all environments, shape ``(n_envs,)``
    :param dones: which episodes have ended, shape ``(n_envs,)``
    :param infos: infos of the environments, those that ended with their "terminal_observation"
    :raises EnvDivergedError: if a number is NaN or infinite
    """
    if not _is_finite(rewards):
        raise _diverged("reward", rewards)
    _check_observation("observation", observations)
    if len(dones) and np.count_nonzero(dones):
        for index in np.flatnonzero(dones):
            _check_observation("last observation", infos[index].get("terminal_observation"), int(index))


def _check_observation(name: str, observation: Any, index: int | None = None) -> None:
    """
    :param name: name of the observation, for the message
    :param observation: observations of all environments, or the observation of one environment
    :param index: index of this environment; None: all environments
    """
    if isinstance(observation, dict):
        for key, part in observation.items():
            _check_observation(f"{name}[{key!r}]", part, index)
    elif not _is_finite(observation):
        raise _diverged(name, observation, index)


def _is_finite(values: Any) -> bool:
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return True
    # The sum of squares is the fastest check; if it overflows, the numbers may still be finite
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _diverged(name: str, values: Any, index: int | None = None) -> EnvDivergedError:
    array = np.asarray(values)
    position = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    env, component = (position[0], position[1:]) if index is None else (index, position)
    where = f" in component {component[0] if len(component) == 1 else component}" if component else ""
    return EnvDivergedError(
        f"Environment {env} returned a NaN or infinite {name} ({array[position]}{where}); nothing was learned from it. Fix "
        "the environment, or clip its return values, and continue from the last checkpoint.",
        env,
    )


def _refused(index: int, call: str, fault: str) -> EnvFailedError:
    remedy = "Correct the environment; gymnasium.utils.env_checker.check_env(env) finds such errors."
    return EnvFailedError(f"Environment {index} {fault} ({call}). {remedy}", index)


def _array(value: Any) -> np.ndarray | None:
    """:return: the value as an array; None if it cannot be an array"""
    try:
        return np.asarray(value)
    except Exception:  # lists of different lengths; other types may raise any error
        return None


def _without_leading(shape: tuple[int, ...]) -> tuple[int, ...]:
    """:return: a shape without its first axes of length 1, which NumPy adds and drops"""
    return shape[next((axis for axis, length in enumerate(shape) if length != 1), len(shape)) :]


def _describe(value: Any) -> str:
    """:return: a value, or its type and contents"""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(each).__name__ for each in value)})"
    if isinstance(value, np.ndarray) and value.shape != ():
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if value is None or isinstance(value, (bool, int, float, str, np.generic, np.ndarray)):
        return repr(value)
    return f"a {type(value).__name__}"

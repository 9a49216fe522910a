"""The state of callbacks, such as the best return of an evaluation."""

import io
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.resuming.vec_envs import VecEnvState, set_vec_env_state, vec_env_state

#: Attributes that belong to the process and not to the run
_FOREIGN = (BaseAlgorithm, BaseCallback, Logger, VecEnv, gym.Env, th.nn.Module)
#: Attributes that every call of ``learn`` sets
_SET_ANEW = frozenset({"locals", "globals", "model", "parent"})


class CallbackStates:
    """
    The states of callbacks and of their child callbacks: all picklable attributes that have changed since construction, and
    the random number generators and episodes of their environments, such as those of evaluations.

    :param callbacks: newly constructed callbacks, before training
    """

    def __init__(self, callbacks: Iterable[BaseCallback]) -> None:
        self.callbacks = dict(_named("", callbacks))
        #: Pickled attributes of each callback after construction
        self._made = {name: _attributes(callback) for name, callback in self.callbacks.items()}
        self._restored: dict[str, set[str]] = {name: set() for name in self.callbacks}

    def get(self) -> dict[str, dict[str, Any]]:
        """:return: the state of every callback, by its place and class; it can be pickled"""
        states = {}
        for name, callback in self.callbacks.items():
            made, restored = self._made[name], self._restored[name]
            values = _attributes(callback)
            changed = {key: value for key, value in values.items() if key in restored or made.get(key) != value}
            envs = {key: vec_env_state(value) for key, value in vars(callback).items() if _is_own_env(callback, value)}
            states[name] = {"attributes": changed, "envs": envs}
        return states

    def set(self, states: dict[str, dict[str, Any]]) -> None:
        """
        Set the states of the callbacks. Callbacks without a saved state start from their initial state, with a warning.

        :param states: result of :meth:`get`
        """
        new, lost = sorted(set(self.callbacks) - set(states)), sorted(set(states) - set(self.callbacks))
        if new or lost:
            warn(
                f"The run had other callbacks: {new} start from the beginning, and the states of {lost} are ignored. Pass the "
                "same callbacks."
            )
        for name in self.callbacks.keys() & states.keys():
            callback, state = self.callbacks[name], states[name]
            for key, value in state["attributes"].items():
                setattr(callback, key, pickle.loads(value))
                self._restored[name].add(key)
            for key, env_state in state["envs"].items():
                assert isinstance(env_state, VecEnvState)
                set_vec_env_state(getattr(callback, key), env_state)


def _named(
    prefix: str, callbacks: Iterable[BaseCallback], outer: tuple[BaseCallback, ...] = ()
) -> Iterator[tuple[str, BaseCallback]]:
    """:return: callbacks and their child callbacks, each with its path from the outermost callback, without cycles"""
    for index, callback in enumerate(callbacks):
        if any(callback is each for each in outer):
            continue
        name, path = f"{prefix}{index}:{type(callback).__name__}", (*outer, callback)
        yield name, callback
        yield from _named(f"{name}/", getattr(callback, "callbacks", []), path)
        inner = {key: value for key, value in vars(callback).items() if isinstance(value, BaseCallback) and key != "parent"}
        for key, value in inner.items():
            yield from _named(f"{name}.{key}/", [value], path)


def _is_own_env(callback: BaseCallback, value: Any) -> bool:
    model = getattr(callback, "model", None)
    return isinstance(value, VecEnv) and value is not (model.get_env() if model is not None else None)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> None:
        if isinstance(obj, _FOREIGN):
            raise pickle.PicklingError(f"{type(obj).__name__} is not part of a callback's state")


def _attributes(callback: BaseCallback) -> dict[str, bytes]:
    """:return: the picklable attributes, each pickled separately"""
    result = {}
    for name, value in vars(callback).items():
        if name in _SET_ANEW:
            continue
        buffer = io.BytesIO()
        try:
            _Pickler(buffer).dump(value)
        except Exception:  # objects may raise any error; files and threads are not part of the state
            continue
        result[name] = buffer.getvalue()
    return result

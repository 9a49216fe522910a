"""The code of a worker, which runs some of the environments."""

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.patch_gym import _patch_env
from stable_baselines3.common.vec_env.util import obs_space_info

from sb3_scoreflow.common.env_answers import CheckedEnv
from sb3_scoreflow.common.env_errors import EnvFailedError, raised_error
from sb3_scoreflow.common.env_workers import WorkerFailure
from sb3_scoreflow.envs.state import env_state, set_env_state

#: Observations of several environments by key (None: the observation is a single array), shapes ``(n_envs, *shape)``
Arrays = dict[Any, np.ndarray]


def empty_observations(space: spaces.Space, n_envs: int) -> Arrays:
    """
    :param space: space of one environment's observations
    :param n_envs: number of environments
    :return: arrays with the space's shapes and dtypes, as in ``DummyVecEnv``
    """
    keys, shapes, dtypes = obs_space_info(space)
    return {key: np.zeros((n_envs, *shapes[key]), dtypes[key]) for key in keys}


class Steps(NamedTuple):
    """
    A worker's answer to ``step``, with an entry per environment.

    Ray's arrays are read-only. The receiver copies observations, rewards and flags; all other entries are sent as bytes.
    """

    observations: Arrays
    rewards: np.ndarray
    dones: np.ndarray
    #: Pickled infos, each with the info of the reset or None
    infos: list[bytes]


class Resets(NamedTuple):
    """A worker's answer to ``reset``, with an entry per environment."""

    observations: Arrays
    #: Pickled infos
    infos: list[bytes]


class Failure:
    """
    A worker's answer if an environment raised an exception.

    :param index: index of the environment
    :param call: name of the call, such as "step()"
    :param error: the exception, or the error for an invalid answer
    """

    def __init__(self, index: int, call: str, error: Exception) -> None:
        self.index, self.call = index, call
        cause = error.__cause__ if isinstance(error, EnvFailedError) else None
        self.failure = WorkerFailure(cause if isinstance(cause, Exception) else error)

    def error(self) -> Exception:
        """:return: error to raise in the process that trains"""
        error = self.failure.error()
        if isinstance(error, EnvFailedError):
            error.__cause__ = None  # the answer was invalid, and the traceback does not show the environment
            return error
        failed = raised_error(error, self.index, self.call)
        failed.__cause__ = error
        return failed


class EnvWorker:
    """Environments in a process of their own. Arguments and results of its methods can be pickled."""

    def __init__(self) -> None:
        self.envs: list[gym.Env] = []
        self.checked: list[CheckedEnv] = []
        self.first = 0

    def place(self) -> tuple[int, str]:
        """:return: process id and host name of the worker"""
        return os.getpid(), socket.gethostname()

    def make(self, functions: bytes, first: int, attributes: Sequence[dict[str, Any]]) -> Any:
        """
        :param functions: pickled functions that create the environments
        :param first: index of the first environment
        :param attributes: attributes to set in each environment
        :return: observation space and action space of each environment, pickled
        """
        self.first = first
        try:
            for make, values in zip(cloudpickle.loads(functions), attributes, strict=True):
                env = _patch_env(make())
                if any(env.unwrapped is other.unwrapped for other in self.envs):
                    raise ValueError(
                        "a function of `env_fns` returned the same environment as another one. Each must create a new one: "
                        "pass [lambda: gym.make(...)] * n_envs, not [lambda: env] * n_envs."
                    )
                for name, value in values.items():
                    setattr(env, name, value)
                self.checked.append(CheckedEnv(env, first + len(self.envs), env.observation_space, exact=False))
                self.envs.append(env)
        except Exception as error:
            return Failure(first + len(self.envs), "its construction", error)
        return [cloudpickle.dumps((env.observation_space, env.action_space)) for env in self.envs]

    def step(self, actions: np.ndarray) -> Any:
        """
        Step all environments, and reset those whose episode ends.

        :param actions: shape ``(n_envs, ...)``
        :return: :class:`Steps`
        """
        n, i = len(self.envs), 0
        observations, rewards, dones = self._empty(), np.zeros(n, np.float32), np.zeros(n, bool)
        infos: list[bytes] = []
        try:
            for i, env in enumerate(self.checked):
                observation, rewards[i], terminated, truncated, info = env.step(actions[i])
                dones[i], reset_info = terminated or truncated, None
                info["TimeLimit.truncated"] = truncated and not terminated
                if dones[i]:
                    info["terminal_observation"] = observation
                    observation, reset_info = env.reset()
                _write(observations, i, observation)
                infos.append(cloudpickle.dumps((info, reset_info)))
        except Exception as error:
            return Failure(self.first + i, "step()", error)
        return Steps(observations, rewards, dones, infos)

    def reset(self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> Any:
        """
        :param seeds: seed of each environment
        :param options: options of each environment; empty dict: no options
        :return: :class:`Resets`
        """
        resets, i = Resets(self._empty(), []), 0
        try:
            for i, env in enumerate(self.checked):
                maybe_options = {"options": options[i]} if options[i] else {}
                observation, info = env.reset(seed=seeds[i], **maybe_options)
                _write(resets.observations, i, observation)
                resets.infos.append(cloudpickle.dumps(info))
        except Exception as error:
            return Failure(self.first + i, "reset()", error)
        return resets

    def ask(self, command: str, call: str, indices: Sequence[int], data: Any) -> Any:
        """
        :param command: name of one of ``COMMANDS``
        :param call: name of the call, for messages
        :param indices: indices of environments
        :param data: data of the command
        :return: answer of each of these environments, pickled
        """
        answers, index = [], self.first
        try:
            for index in indices:
                answers.append(cloudpickle.dumps(COMMANDS[command](self.envs[index - self.first], data)))
        except Exception as error:
            return Failure(index, call, error)
        return answers

    def _empty(self) -> Arrays:
        return empty_observations(self.envs[0].observation_space, len(self.envs))


def _write(arrays: Arrays, index: int, observation: Any) -> None:
    for key, array in arrays.items():
        array[index] = observation if key is None else observation[key]


def _has_attr(env: gym.Env, name: str) -> bool:
    try:
        env.get_wrapper_attr(name)
    except AttributeError:
        return False
    return True


#: Commands for environments besides step and reset
COMMANDS: dict[str, Callable[[gym.Env, Any], Any]] = {
    "get_attr": lambda env, name: env.get_wrapper_attr(name),
    "has_attr": _has_attr,
    "set_attr": lambda env, data: setattr(env, data[0], data[1]),
    "env_method": lambda env, data: env.get_wrapper_attr(data[0])(*data[1], **data[2]),
    "is_wrapped": is_wrapped,
    "render": lambda env, _: env.render(),
    "state": lambda env, _: env_state(env),
    "set_state": set_env_state,
    "close": lambda env, _: env.close(),
}

"""Checks of ``RayVecEnv``'s arguments before anything is started."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_scoreflow.common.utils import ArgumentError

#: Options of Ray's actors that ``RayVecEnv`` sets itself
_OWN_OPTIONS = frozenset("num_cpus num_gpus max_restarts max_task_retries max_concurrency name lifetime get_if_exists".split())


class _Functions:
    """Replaces a vectorized environment, and collects the functions that ``make_vec_env`` creates."""

    def __init__(self, env_fns: list[Callable[[], gym.Env]]) -> None:
        self.env_fns = env_fns

    def seed(self, seed: int | None) -> None:
        """Does nothing; the environments are seeded later."""


def env_functions(env_fns: Any, n_envs: int | None) -> list[Callable[[], gym.Env]]:
    """
    :param env_fns: functions that create environments, or an id or function for ``make_vec_env``
    :param n_envs: number of environments; None: the number of functions, or 1
    :return: one function per environment
    :raises ArgumentError: if there are no functions, or their number differs from ``n_envs``
    """
    _check_count("n_envs", n_envs)
    if isinstance(env_fns, str) or callable(env_fns):
        made: Any = make_vec_env(env_fns, n_envs or 1, vec_env_cls=_Functions)  # type: ignore[arg-type]
        return made.env_fns
    functions = list(env_fns)
    if not functions or n_envs not in (None, len(functions)):
        raise ArgumentError(
            f"`env_fns` has {len(functions)} functions, and n_envs={n_envs}: pass one or more functions, and leave n_envs out."
        )
    return functions


def pickled_functions(functions: Sequence[Callable[[], gym.Env]], indices: range) -> bytes:
    """
    :param functions: functions that create environments
    :param indices: indices of the functions to pickle
    :return: these functions, pickled together
    :raises ArgumentError: if a function cannot be pickled
    """
    try:
        return cloudpickle.dumps([functions[index] for index in indices])
    except Exception as error:  # pickling may raise any error
        if len(indices) > 1:
            for index in indices:
                pickled_functions(functions, range(index, index + 1))
        raise ArgumentError(
            f"The function that makes environment {indices[0]} cannot be pickled ({error}), which is necessary to send it to "
            "another process. Create files, locks, simulators and environments inside the function."
        ) from error


def check_arguments(
    envs_per_worker: int | None,
    num_cpus: float | None,
    num_gpus: float,
    worker_options: Mapping[str, Any] | None,
    step_timeout: float | None,
    start_timeout: float,
    max_restarts: int,
) -> None:
    """:raises ArgumentError: if an argument is out of range; the message names it"""
    _check_count("envs_per_worker", envs_per_worker)
    for name, amount in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if amount is not None and not 0 <= amount < math.inf:
            raise ArgumentError(f"{name} must be 0 or more, got {amount!r}: pass 1.")
    for name, seconds in (("step_timeout", step_timeout), ("start_timeout", start_timeout)):
        if seconds is not None and not seconds > 0:
            raise ArgumentError(f"{name} must be a positive number of seconds, got {seconds!r}: pass 300.0.")
    if isinstance(max_restarts, bool) or not isinstance(max_restarts, int) or max_restarts < 0:
        raise ArgumentError(f"max_restarts must be 0 or a positive integer, got {max_restarts!r}: pass 3.")
    fixed = sorted(_OWN_OPTIONS & set(worker_options or {}))
    if fixed:
        raise ArgumentError(
            f"worker_options has {fixed}, which RayVecEnv sets itself: leave them out; `num_cpus` and `num_gpus` are "
            "arguments."
        )


def _check_count(name: str, number: int | None) -> None:
    if number is not None and (isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1):
        raise ArgumentError(f"{name} must be a positive integer, got {number!r}: pass 4, or leave it out.")

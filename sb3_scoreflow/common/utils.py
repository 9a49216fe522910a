"""Small helpers for all packages: argument checks, processor cores, warnings."""

import math
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization


class ArgumentError(ValueError, AssertionError):
    """
    An invalid argument.

    Stable-Baselines3 checks most arguments by assertions, so code written for its algorithms may catch either error.
    """


def name_parameter_groups(optimizer: th.optim.Optimizer, parts: Mapping[str, Sequence[th.nn.Parameter]]) -> None:
    """
    Split the groups of an optimizer that the user made, like ``SGD(policy.parameters())``, into the policy's, in their order,
    so that each part gets its own learning rate and a file can be loaded. Options and moments stay.

    :param optimizer: optimizer; groups that have a "name" stay unchanged
    :param parts: name -> parameters; a trained parameter that is in no part belongs to the first
    """
    if all("name" in group for group in optimizer.param_groups):  # called in every gradient step
        return
    known = {id(parameter) for parameters in parts.values() for parameter in parameters}
    first, groups = next(iter(parts)), []
    for group in optimizer.param_groups:
        if "name" in group:
            groups.append(group)
            continue
        given = {id(parameter): parameter for parameter in group["params"]}
        for name, parameters in parts.items():
            chosen = [parameter for parameter in parameters if id(parameter) in given]
            if name == first:
                chosen += [p for key, p in given.items() if key not in known and p.requires_grad]
            if chosen:
                groups.append({**group, "params": chosen, "name": name})
    optimizer.param_groups = groups


class DivergenceError(FloatingPointError, ValueError):
    """
    Rewards, observations, losses or parameters have become NaN or infinite.

    It is also a ValueError, which rl_zoo3 and users of Optuna catch to end one trial instead of the whole study.
    """


def non_finite_parameter(module: th.nn.Module) -> str | None:
    """
    :param module: module to search
    :return: the name of the first parameter or floating-point buffer with a NaN or infinite entry, None if all are finite
    """
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(th.isfinite(tensor).all()):
            return name
    return None


def check_choice(argument: str, value: Any, choices: Sequence[str]) -> None:
    """
    :param argument: name of the argument, for the message
    :param value: value of the argument
    :param choices: valid values
    :raises ArgumentError: if the value is not one of them
    """
    if value not in choices:
        raise ArgumentError(f"{argument} must be one of {', '.join(repr(c) for c in choices)}, got {value!r}.")


def check_whole_numbers(arguments: Mapping[str, Any]) -> None:
    """
    :param arguments: name -> value of arguments that are counts; None is accepted
    :raises ArgumentError: if a value is not an integer
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, Integral):
            raise ArgumentError(f"{name} must be a whole number, got {value!r}: pass an int.")


#: Start of an absolute path on any system; neither "a/b" nor the host of a URL matches
_PATH = re.compile(r"(?<![\w/.])(?:(?:[A-Za-z]:)?(?:/(?=[\w.])|\\)|~\w*[/\\])")


def without_folders(text: str) -> str:
    """
    Remove folders from text that will be published, because they contain names of users and machines.

    :param text: one line, such as a path or a sentence with a path
    :return: the text, in which absolute paths are shortened to their last part
    """
    found = _PATH.search(text)
    if found is None:
        return text
    *folders, last = re.split(r"[/\\]", text[found.start() :].rstrip("/\\"))
    return text[: found.start()] + ("..." if folders[-1:] in (["home"], ["Users"]) else last)


def sync_normalization(env: VecEnv, eval_env: VecEnv) -> None:
    """
    Copy the statistics of ``VecNormalize`` to an environment for evaluation.

    :param env: environment of training
    :param eval_env: environment for evaluation
    :raises ArgumentError: if ``eval_env`` has other wrappers
    """
    try:
        sync_envs_normalization(env, eval_env)
    except (AttributeError, AssertionError) as error:
        raise ArgumentError(
            "eval_env is not wrapped like the training environment, which has a VecNormalize: also wrap it "
            "in VecNormalize(training=False)."
        ) from error


def copy_statistics(source: VecNormalize, target: VecNormalize) -> None:
    """
    Copy those statistics of ``VecNormalize`` that both wrappers have: without ``norm_obs``, there are none of observations.

    :param source: wrapper of the training environment
    :param target: wrapper of another environment
    """
    for name in ("obs_rms", "ret_rms"):
        if hasattr(source, name) and hasattr(target, name):
            setattr(target, name, deepcopy(getattr(source, name)))


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """
    Issue a warning at the line that called this package, skipping frames of this package and of Stable-Baselines3.

    :param message: text of the warning
    :param category: category of the warning
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("sb3_scoreflow", "stable_baselines3"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """
    :param quota: file with the processor time and the period of a Linux container's quota, in microseconds
    :return: number of cores that this process may use, at least 1
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        time, period = quota.read_text().split()
        return max(min(cores, math.ceil(int(time) / int(period))), 1)
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


@cache
def warn_of_threads(threads: int, cores: int) -> None:
    """
    Warn, once, if torch computes with more threads than there are cores.

    :param threads: ``torch.get_num_threads()``
    :param cores: :func:`usable_cores`
    """
    if threads > cores:
        warnings.warn(
            f"PyTorch computes with {threads} threads on {cores} usable core{'s' if cores > 1 else ''}: they wait for each "
            "other in every product (docs/speed.md has measurements). Set OMP_NUM_THREADS=1, or torch.set_num_threads(1) "
            "before training.",
            stacklevel=3,
        )

"""The arguments of a run, to check that a resuming call has the same arguments as the call that started the run."""

import inspect
from typing import Any

import numpy as np

from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.common.utils import ArgumentError

#: Arguments that do not affect training: they concern the machine, or the display of the run
_NOT_COMPARED = frozenset({"self", "policy", "env", "verbose", "device", "tensorboard_log", "stats_window_size", "moved"})


def arguments_of(model: FlowAlgorithm) -> dict[str, str]:
    """
    :param model: newly constructed model
    :return: argument -> description, including the algorithm and the number of environments, without arguments left at their
        defaults
    """
    names = [name for name in inspect.signature(type(model)).parameters if not name.startswith("_") and hasattr(model, name)]
    given = {name: getattr(model, name) for name in names if name not in _NOT_COMPARED and name not in model._at_default}
    return {
        "algorithm": type(model).__name__,
        "n_envs": repr(model.n_envs),
        **{name: describe(value) for name, value in given.items()},
    }


def check_same_arguments(now: dict[str, str], before: dict[str, str], folder: str) -> None:
    """
    :param now: arguments of this call
    :param before: arguments of the call that started the run
    :param folder: folder of the run
    :raises ArgumentError: if the arguments differ
    """
    different = [
        f"{name} was {before.get(name, 'left out')}, is {now.get(name, 'left out')}"
        for name in sorted(now.keys() | before.keys())
        if now.get(name) != before.get(name)
    ]
    if different:
        raise ArgumentError(
            f"The run in folder={folder!r} was started with other arguments ({'; '.join(different)}): pass the original "
            "arguments, or another folder for a new run. To continue with other arguments, load() the newest checkpoint's "
            "model.zip with them, and pass that model and another folder."
        )


def describe(value: Any) -> str:
    """
    :param value: value of an argument
    :return: description of the value that is the same in every process
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {describe(value[key])}" for key in sorted(value, key=str)) + "}"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(describe(each) for each in value) + ")"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return repr(value.tolist())
    name = getattr(value, "__qualname__", None)
    if name is not None:  # a class or a function
        return f"{value.__module__}.{name}"
    return f"{type(value).__name__}{describe(vars(value)) if hasattr(value, '__dict__') else ''}"

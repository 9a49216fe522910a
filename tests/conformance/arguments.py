"""Functions that inspect the arguments of an algorithm."""

import inspect
from typing import Any

from tests.conformance.algorithm import Algorithm


def arguments_of(cls: Any) -> set[str]:
    """:return: names of the constructor's arguments"""
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}


def has(algorithm: Algorithm, arguments: dict[str, Any]) -> bool:
    """:return: whether the algorithm has these arguments, and its policy and buffer have the entries passed to them"""
    parts = dict(policy_kwargs=algorithm.cls.policy_aliases["FlowPolicy"], rollout_buffer_kwargs=algorithm.buffer_class)
    return arguments.keys() <= arguments_of(algorithm.cls) and all(
        value.keys() <= arguments_of(parts[name])
        for name, value in arguments.items()
        if name in parts and isinstance(value, dict)
    )

"""Which arguments an algorithm has."""

import inspect
from typing import Any

from tests.conformance.algorithm import Algorithm


def arguments_of(cls: Any) -> set[str]:
    """Those that its constructor names."""
    parameters = inspect.signature(cls).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}


def has(algorithm: Algorithm, arguments: dict[str, Any]) -> bool:
    """Whether it has these arguments, and the entries of those that are handed on."""
    parts = dict(policy_kwargs=algorithm.cls.policy_aliases["FlowPolicy"], rollout_buffer_kwargs=algorithm.buffer_class)
    return arguments.keys() <= arguments_of(algorithm.cls) and all(
        value.keys() <= arguments_of(parts[name])
        for name, value in arguments.items()
        if name in parts and isinstance(value, dict)
    )

"""Which arguments an algorithm has."""

import inspect
from typing import Any

from tests.conformance.algorithm import Algorithm


def has(algorithm: Algorithm, arguments: dict[str, Any]) -> bool:
    return arguments.keys() <= inspect.signature(algorithm.cls).parameters.keys()

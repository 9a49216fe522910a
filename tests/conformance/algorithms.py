"""The algorithms that have to pass the conformance suite: all of the registry, each with the case in its own tests."""

import importlib

from sb3_scoreflow.registry import ALGORITHMS as REGISTERED
from tests.conformance.algorithm import Algorithm

ALGORITHMS: list[Algorithm] = [importlib.import_module(f"tests.{name}.conformance").CASE for name in REGISTERED]

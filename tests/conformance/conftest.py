"""
Parametrizes the suite over the algorithms.

A test that takes ``algorithm`` runs for each of them; one that takes the name of a capability instead (``ratio``, ``replay``,
``value_function``, ..., see :class:`~sb3_scoreflow.common.capabilities.Capabilities`), for those that have it; and one that
takes ``case`` too for each of their policy aliases. With the marker ``first_algorithm``, other algorithms are left to the
nightly.
"""

from dataclasses import fields

import pytest

from sb3_scoreflow.common.capabilities import Capabilities
from tests.conformance.algorithm import Algorithm, Case
from tests.conformance.algorithms import ALGORITHMS


def _marks(algorithm: Algorithm, case: Case) -> list[pytest.MarkDecorator]:
    """One algorithm is tried under all names of its policy in every run, the others in the nightly."""
    return [pytest.mark.slow] if case.alias != "FlowPolicy" and algorithm is not ALGORITHMS[0] else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = {"algorithm": ALGORITHMS}
    for capability in fields(Capabilities):
        chosen[capability.name] = [each for each in ALGORITHMS if getattr(each.capabilities, capability.name)]
    for fixture, algorithms in chosen.items():
        if fixture not in metafunc.fixturenames:
            continue
        if "case" in metafunc.fixturenames:
            pairs = [(algorithm, case) for algorithm in algorithms for case in algorithm.cases]
            marked = [pytest.param(*pair, marks=_marks(*pair), id="-".join(map(str, pair))) for pair in pairs]
            metafunc.parametrize((fixture, "case"), marked)
        else:
            later = ALGORITHMS[1:] if metafunc.definition.get_closest_marker("first_algorithm") else []
            marks = {str(each): [pytest.mark.slow] if each in later else [] for each in algorithms}
            metafunc.parametrize(fixture, [pytest.param(each, marks=marks[str(each)], id=str(each)) for each in algorithms])

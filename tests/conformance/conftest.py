"""
Parametrises the suite over the algorithms.

A test that takes ``algorithm`` runs for each of them, one that takes ``ppo`` instead for those with a PPO ratio, one that
takes ``rldt`` for those without, which keep a history of rollouts; and one that takes ``case`` too for each of their policy
aliases.
"""

import pytest

from tests.conformance.algorithms import ALGORITHMS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = {
        "algorithm": ALGORITHMS,
        "ppo": [each for each in ALGORITHMS if each.ratio],
        "rldt": [each for each in ALGORITHMS if not each.ratio],
    }
    for fixture, algorithms in chosen.items():
        if fixture not in metafunc.fixturenames:
            continue
        if "case" in metafunc.fixturenames:
            pairs = [(algorithm, case) for algorithm in algorithms for case in algorithm.cases]
            metafunc.parametrize((fixture, "case"), pairs, ids=[f"{algorithm}-{case}" for algorithm, case in pairs])
        else:
            metafunc.parametrize(fixture, algorithms, ids=str)

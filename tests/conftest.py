"""
One torch thread: with networks of test size, waiting OpenMP threads cost more than they bring.

Properties are tried on few examples, the same ones every time; on as many as are wanted with ``make test-properties``.

Tests that run the same code as others, but more of it, are not traced for coverage, which would take half of their time again.
"""

import os
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch as th
from hypothesis import HealthCheck, settings

th.set_num_threads(1)
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # before MuJoCo is imported: rendering would need a screen

ANY_TIME = settings(deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("few", ANY_TIME, max_examples=20, derandomize=True, database=None)
settings.register_profile("nightly", ANY_TIME, max_examples=int(os.environ.get("EXAMPLES", 10_000)), print_blob=True)
settings.load_profile("few")  # --hypothesis-profile takes another one

#: Folders, and names of files, whose tests are not traced
UNTRACED = frozenset(
    """
    benchmarks docs examples properties
    test_adapters.py test_bandit.py test_failing_envs.py test_fuzzing.py test_known_values.py test_leaks.py test_learning.py
    test_ppo_runs.py test_predict.py test_resume.py test_rollouts.py test_units.py
    """.split()
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if UNTRACED & set(item.path.relative_to(Path(__file__).parent).parts):
            item.add_marker(pytest.mark.no_cover)


_TIME_LIMIT = gym.wrappers.TimeLimit


@pytest.fixture(autouse=True)
def gymnasium_as_it_is() -> None:
    """rl_zoo3 replaces a class of Gymnasium, for good, when it is imported, be it to collect tests."""
    for module in (gym.wrappers, gym.wrappers.common, gym.envs.registration):
        if hasattr(module, "TimeLimit"):
            vars(module)["TimeLimit"] = _TIME_LIMIT

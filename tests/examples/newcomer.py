"""An algorithm that no example knows of: all have to run it at its defaults."""

import pytest

from sb3_scoreflow import ALGORITHMS, ScoReFlowPPO


class Newcomer(ScoReFlowPPO):
    """Registered by somebody else."""


#: What examples are run with
NAMES = [*ALGORITHMS, "newcomer"]


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add it to the registry for the length of a test."""
    monkeypatch.setitem(ALGORITHMS, "newcomer", Newcomer)

"""Tools are the same wherever they run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_commits_are_checked_with_the_ruff_of_the_constraints() -> None:
    hook = re.search(r"/ruff-pre-commit\n +rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    pin = re.search(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert hook and pin and hook[1] == pin[1]

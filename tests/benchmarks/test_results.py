"""Every committed result says where it comes from."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.curves import CurveTable
from benchmarks.study import RESULTS

#: Without the files of single runs, which git ignores
FILES = sorted(path for path in RESULTS.rglob("*.json") if path.parent.name != "runs")
NAMES = [str(path.relative_to(RESULTS)) for path in FILES]


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def dictionaries(node: Any) -> Iterator[dict[str, Any]]:
    """All dictionaries in a JSON file, and in dictionaries and lists in it."""
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from dictionaries(value)


def origins(node: Any) -> list[dict[str, Any]]:
    return [found for found in dictionaries(node) if "command" in found]


def module_of(command: str) -> str:
    match = re.match(r"python -m benchmarks\.(\w+)", command)
    assert match, command
    return match[1]


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=RESULTS, capture_output=True, text=True)


def test_there_are_results() -> None:
    assert {path.parent.name for path in FILES} > {"finetune", "from_scratch", "score", "speed"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RESULTS)))
def test_result_names_command_repeats_commit_versions_and_hardware(path: Path) -> None:
    result = load(str(path.relative_to(RESULTS)))
    # The file is of one command, or each of its sections is of some
    for section in [result] if {"command", "origins"} & set(result) else result.values():
        assert origins(section)
        assert any({"seed", "seeds", "repeats"} & set(found) for found in dictionaries(section))
        for origin in origins(section):
            assert module_of(origin["command"])
            assert re.fullmatch(r"[0-9a-f]{40}\+?", origin["commit"])
            assert {"python", "torch", "stable-baselines3", "numpy"} <= set(origin["versions"])
            assert origin["platform"] and origin["cpu"] and origin["cpu_count"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_commit_exists_and_contains_the_module_of_the_command(name: str) -> None:
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("without the whole history")
    for commit, module in {(origin["commit"].rstrip("+"), module_of(origin["command"])) for origin in origins(load(name))}:
        assert git("cat-file", "-e", commit + "^{commit}").returncode == 0, commit
        found = [git("cat-file", "-e", f"{commit}:benchmarks/{module}{end}").returncode for end in (".py", "/__main__.py")]
        assert 0 in found, (commit, module)


def test_every_table_of_curves_has_its_summary_and_figure() -> None:
    tables = sorted(RESULTS.rglob("curves.csv.gz"))
    assert tables
    for path in tables:
        assert CurveTable(path.parent).read()
        assert (path.parent / "summary.json").exists() and (path.parent / "figure.png").exists()
    assert not list(RESULTS.glob("*/*.csv"))

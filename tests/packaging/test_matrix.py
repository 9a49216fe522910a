"""Which versions `make test-matrix` takes for the oldest."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / ".ci/matrix.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_oldest_that_everybody_allows(matrix: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        "sb3-scoreflow": ["stable-baselines3<3,>=2.9", "numpy>=2.0", 'numpy>=3; extra == "other"'],
        "stable-baselines3": ["numpy<3.0,>=1.20", "torch<3.0,>=2.8"],
    }
    monkeypatch.setattr(matrix, "requires", asked.get)
    index = {
        "stable-baselines3": ["2.10.0", "2.9.2", "2.9.0", "2.8.0"],
        "gymnasium": ["1.0.0", "0.29.1"],
        "torch": ["2.13.0+cpu", "2.8.0", "2.7.1"],
        "numpy": ["2.4.6", "2.0.0", "1.26.4"],
    }
    monkeypatch.setattr(matrix, "available", index.get)
    assert matrix.wanted("oldest") == ["stable-baselines3==2.9.0", "gymnasium==0.29.1", "torch==2.8.0", "numpy==2.0.0"]
    pairs = zip(matrix.wanted("newest"), index, strict=True)
    newest = [set(requirement.removeprefix(package).split(",")) for requirement, package in pairs]
    assert newest == [{"<3", ">=2.9"}, {""}, {"<3.0", ">=2.8"}, {">=2.0", "<3.0", ">=1.20"}]


def test_what_is_run_is_there(matrix: Any) -> None:
    assert all((ROOT / path).exists() for path in matrix.TESTS)

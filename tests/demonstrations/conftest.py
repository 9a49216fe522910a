from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Minari datasets lie: never the user's own folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What would be there if a command of the dataset had been run."""
    return tmp_path / "marker"

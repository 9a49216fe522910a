"""The part "growth" of the speed suite plots into the folder of its results."""

import shutil
from pathlib import Path

import pytest

from benchmarks.provenance import ROOT
from benchmarks.speed.growth import plot

RESULTS = ROOT / "benchmarks/results/speed"


@pytest.mark.parametrize("parts", [("growth",), ("growth", "memory")])
def test_plot_uses_the_results_of_its_folder(tmp_path: Path, parts: tuple[str, ...]) -> None:
    """Results of other folders, such as the committed ones, are neither read nor replaced."""
    committed = (RESULTS / "growth.png").read_bytes()
    for part in parts:
        shutil.copy(RESULTS / f"{part}.json", tmp_path)
    plot(tmp_path)
    made = (tmp_path / "growth.png").read_bytes()
    assert made.startswith(b"\x89PNG")
    assert (RESULTS / "growth.png").read_bytes() == committed
    without_memory = tmp_path / "without"
    without_memory.mkdir()
    shutil.copy(RESULTS / "growth.json", without_memory)
    plot(without_memory)
    assert ((without_memory / "growth.png").read_bytes() == made) == (parts == ("growth",))

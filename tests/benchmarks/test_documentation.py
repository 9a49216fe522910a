"""README and documentation show what the results say, and the drawings that their scripts make."""

import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import finetune, quickstart, study
from benchmarks.provenance import ROOT

FIGURES = ROOT / "docs/figures"


def test_figure_of_the_readme_has_its_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("summary.json", "curves.csv.gz"):
        shutil.copy(study.RESULTS / "finetune" / name, tmp_path)
    drawn = {}
    monkeypatch.setattr(study, "plot", lambda rows, path, **settings: drawn.update({path.name: rows}))
    finetune.main(["--env", "Hopper-v5", "--variants", "--output", str(tmp_path)])
    (panels,) = drawn["overview.png"]
    labels = {finetune.VARIANTS[name].label for name in finetune.OVERVIEW}
    assert [panel.title for panel in panels] == [f"{env}, deterministic policy" for env in ("Hopper-v5", "HalfCheetah-v5")]
    assert all(set(panel.curves) == labels and panel.column == "return_deterministic" for panel in panels)
    assert set(drawn) == {"figure.png", "overview.png"} and "finetune/overview.png" in (ROOT / "README.md").read_text()


def test_quickstart_prints_what_was_recorded() -> None:
    readme, section = (ROOT / "README.md").read_text(), study.read_summary(study.RESULTS / "quickstart")["hopper"]
    assert quickstart.output(section) in readme and len(section["output"]) == 2
    assert section["code"] == quickstart.block()
    assert f"about {round(section['cpu_seconds'], -1):.0f} seconds of one core" in readme
    assert 'load_demonstrations("builtin:hopper-medium")' in quickstart.block()


def test_quickstart_keeps_the_lines_with_returns_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = Path.cwd()
    code = "print('clone: mean return 1')\nprint('other')\nopen('model', 'w').close()"
    found = quickstart.run(code)
    assert found["output"] == ["clone: mean return 1"] and found["wall_seconds"] >= 0
    assert Path.cwd() == before and not Path("model").exists()
    with pytest.raises(ZeroDivisionError):
        quickstart.run("1 / 0")
    assert Path.cwd() == before


def test_command_writes_the_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "block", lambda: "print('clone: mean return 3')")
    quickstart.main(["--output", str(tmp_path)])
    section = study.read_summary(tmp_path)["hopper"]
    assert section["output"] == ["clone: mean return 3"] and section["command"].startswith("python -m benchmarks.")


def test_drawings_are_those_of_the_script() -> None:
    drawings: Callable[[], dict[str, str]] = runpy.run_path(str(FIGURES / "drawings.py"))["drawings"]
    committed = {path.name: path.read_text() for path in FIGURES.glob("*.svg")}
    assert drawings() == committed, "Run `python docs/figures/drawings.py`."


def test_figures_of_the_concepts_can_be_drawn_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script: dict[str, Any] = runpy.run_path(str(FIGURES / "concepts.py"))
    script["main"](tmp_path)
    drawn = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(drawn) == {path.name for path in FIGURES.glob("*.png")} and min(drawn.values()) > 10_000
    used = set(re.findall(r"figures/(\w+\.png)", (ROOT / "docs/concepts.md").read_text()))
    assert used == set(drawn)


def test_exact_flow_of_the_figures_reaches_its_modes() -> None:
    th = pytest.importorskip("torch")
    script: dict[str, Any] = runpy.run_path(str(FIGURES / "concepts.py"))
    th.manual_seed(0)
    x, steps = th.randn(4000, 1), 400
    for k in range(steps):
        x = x + script["velocity"](x, th.tensor(k / steps)) / steps
    nearest = (x - script["MODES"].T).abs().min(1).values
    assert float((nearest < 4 * script["WIDTH"]).float().mean()) > 0.99
    assert float((x > 0).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130

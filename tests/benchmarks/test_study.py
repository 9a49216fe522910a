"""What studies share, and one of them from its command line to its files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import from_scratch, study
from benchmarks.curves import CurveTable, Run


def test_summary_is_json_with_short_entries_on_one_line(tmp_path: Path) -> None:
    summary: dict[str, Any] = {
        "interval": {"mean": 1.5, "ci95": [1.0, 2.0]},
        "many": [x / 7 for x in range(100)],
        "rows": [{"text": "[\n" + 50 * "x"}, {"none": None, "text": 50 * "y", "more": 50 * "z"}, {}],
        "of seeds": {0: 150 * "a", 1: 150 * "b"},
    }
    study.write_summary(tmp_path, summary)
    assert study.read_summary(tmp_path) == json.loads(json.dumps(summary))
    lines = (tmp_path / "summary.json").read_text().splitlines()
    assert ' "interval": {"mean": 1.5, "ci95": [1.0, 2.0]},' in lines
    assert len(lines) == 13


def test_update_leaves_the_other_sections(tmp_path: Path) -> None:
    assert study.read_summary(tmp_path / "none") == {}
    study.update_summary(tmp_path, "a", {"x": 1})
    study.update_summary(tmp_path, "b", {"x": 2})
    study.update_summary(tmp_path, "a", {"y": 3})
    assert study.read_summary(tmp_path) == {"a": {"y": 3}, "b": {"x": 2}}


def test_what_was_not_run_now_keeps_its_origin() -> None:
    before = {"origins": {"a": {"commit": "1"}, "b": {"commit": "1"}}}
    found = study.origins(before, study.Made({"commit": "3"}, {"b": {"commit": "2"}, "c": {"commit": "2"}}, {}))
    assert {name: origin["commit"] for name, origin in found.items()} == {"a": "1", "b": "2", "c": "2"}


@pytest.mark.slow
def test_from_the_command_line_to_the_files(tmp_path: Path) -> None:
    def command(*arguments: str) -> dict[str, Any]:
        common = ["--env", "Pendulum-v1", "--timesteps", "256", "--output", str(tmp_path), "--seeds", "0", "1"]
        from_scratch.main([*common, "--variants", *arguments])
        return study.read_summary(tmp_path)["Pendulum-v1"]

    first = command("sb3_sac", "scoreflow")
    assert set(first["variants"]) == set(first["origins"]) == {"sb3_sac", "scoreflow"}
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    curves = CurveTable(tmp_path).read()
    assert set(curves) == {Run(variant, "Pendulum-v1", seed) for variant in ("sb3_sac", "scoreflow") for seed in (0, 1)}
    last = curves[Run("sb3_sac", "Pendulum-v1", 1)]["return_deterministic"][-2:].mean()
    assert first["variants"]["sb3_sac"]["return_deterministic"]["per_seed"][1] == pytest.approx(last)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert command() == first  # nothing but the summary is made anew
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files
    command("sb3_sac", "--again")
    for seed in (0, 1):
        again = CurveTable(tmp_path).read()[Run("sb3_sac", "Pendulum-v1", seed)]
        before = curves[Run("sb3_sac", "Pendulum-v1", seed)]
        np.testing.assert_array_equal(again["return_deterministic"], before["return_deterministic"])

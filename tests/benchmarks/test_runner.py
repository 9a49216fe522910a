"""Runs one by one: result files, what is resumed and repeated, and what failures leave."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runner, study
from benchmarks.curves import FIELDS, CurveTable, Run
from sb3_scoreflow.common.files import atomic_path

VARIANTS = {"a": {"rate": 1.0}, "b": {"rate": 2.0}}


def options(folder: Path, *given: str, **defaults: Any) -> argparse.Namespace:
    arguments: dict[str, Any] = {"seeds": (0, 1), "variants": VARIANTS, "timesteps": 10, **defaults}
    return study.parser("", "study", **arguments).parse_args(["--output", str(folder), *given])


class Recorded:
    """A run that says when it was made, and fails as often as is asked for."""

    def __init__(self, failures: dict[tuple[str, int], int] | None = None) -> None:
        self.made: list[tuple[str, int]] = []
        self.failures = failures or {}

    def __call__(self, options: argparse.Namespace, variant: str, seed: int) -> study.Result:
        self.made.append((variant, seed))
        if self.made.count((variant, seed)) <= self.failures.get((variant, seed), 0):
            raise OverflowError(f"{variant} is\ntoo large")
        row = dict.fromkeys(FIELDS, str(seed))
        return {"curves": {"env": [row]}, "fact": [seed, options.timesteps], "versions": {"package": "1.0"}}


def test_seeds_are_outside_and_every_run_has_a_file(tmp_path: Path) -> None:
    run = Recorded()
    made = study.make_runs(options(tmp_path), run, VARIANTS)
    assert run.made == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert made.facts == {(variant, seed): {"fact": [seed, 10]} for variant in "ab" for seed in (0, 1)}
    assert set(CurveTable(tmp_path).read()) == {Run(variant, "env", seed) for variant in "ab" for seed in (0, 1)}
    files = sorted((tmp_path / "runs").iterdir())
    assert [path.name[:8] for path in files] == ["a_seed_0", "a_seed_1", "b_seed_0", "b_seed_1"]
    found = json.loads(files[2].read_text())
    assert found["settings"] == {"variant": "b", "seed": 0, "settings": "{'rate': 2.0}", "timesteps": 10}
    assert found["curves"] == {"env": [dict.fromkeys(FIELDS, "0")]} and found["fact"] == [0, 10]
    assert found["origin"] == made.origins["b"] and found["origin"]["versions"]["package"] == "1.0"
    assert {**found["origin"], "versions": None} == {**made.origin, "versions": None}


def test_what_has_a_result_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = study.make_runs(options(tmp_path), Recorded(), VARIANTS)
    (lost,) = (tmp_path / "runs").glob("b_seed_1_*.json")
    lost.unlink()
    (tmp_path / "curves.csv.gz").unlink()
    capsys.readouterr()
    run = Recorded()
    second = study.make_runs(options(tmp_path), run, VARIANTS)
    assert run.made == [("b", 1)] and second.facts == first.facts
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" has")[0] for line in printed] == [f"resumed: {run}" for run in ("a seed 0", "b seed 0", "a seed 1")]
    assert len(CurveTable(tmp_path).read()) == 4  # of resumed ones, too
    run = Recorded()
    study.make_runs(options(tmp_path, "--again", "--seeds", "1"), run, VARIANTS)
    assert run.made == [("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    "given, variants", [(["--timesteps", "20"], VARIANTS), ([], {"a": {"rate": 1.5}, "b": {"rate": 2.5}})]
)
def test_other_settings_are_other_runs(tmp_path: Path, given: list[str], variants: dict[str, Any]) -> None:
    study.make_runs(options(tmp_path), Recorded(), VARIANTS)
    run = Recorded()
    study.make_runs(options(tmp_path, *given), run, variants)
    assert len(run.made) == 4 and len(list((tmp_path / "runs").iterdir())) == 8


def test_seeds_workers_and_commit_do_not_make_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study.make_runs(options(tmp_path, "--seeds", "0"), Recorded(), VARIANTS)
    earlier = runner.provenance()
    monkeypatch.setattr(runner, "provenance", lambda: {**earlier, "commit": "another"})
    run = Recorded()
    given = ["--workers", "1", "--retries", "3", "--seeds", "0", "1", "2", "--variants", "a"]
    made = study.make_runs(options(tmp_path, *given), run, VARIANTS)
    assert run.made == [("a", 1), ("a", 2)]
    # What was made at another commit says so
    assert made.origins["a"]["commit"] == earlier["commit"]
    assert [other["commit"] for other in made.origins["a"]["others"]] == ["another"]


def test_a_failed_run_is_repeated(tmp_path: Path) -> None:
    run = Recorded({("b", 0): 2})
    made = study.make_runs(options(tmp_path, "--retries", "2"), run, VARIANTS)
    assert run.made == [("a", 0), *[("b", 0)] * 3, ("a", 1), ("b", 1)] and len(made.facts) == 4


def test_failures_are_named_and_nothing_is_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded({("b", 0): 2, ("a", 1): 9})
    with pytest.raises(SystemExit) as caught:
        study.make_runs(options(tmp_path), run, VARIANTS)
    assert run.made == [("a", 0), *[("b", 0)] * 2, *[("a", 1)] * 2, ("b", 1)]  # the others are made nevertheless
    text = str(caught.value.code)  # a text: the exit status is 1
    assert [line.split(" is")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"failed: {name}: OverflowError: {name[0]}" for name in ("b seed 0", "a seed 1")
    ]
    assert text.startswith("error: 2 of 4 runs failed (attempts: 2 each), so there is no summary.")
    logs = sorted((tmp_path / "runs").glob("*.error.txt"))
    for log, name in zip(logs, ("a seed 1", "b seed 0"), strict=True):
        assert f"\n  {name}: OverflowError: {name[0]} is ({log})" in text
        assert "Traceback" in log.read_text() and f"OverflowError: {name[0]} is\ntoo large" in log.read_text()
    with pytest.raises(SystemExit):
        study.make_runs(options(tmp_path), Recorded({("b", 0): 9}), VARIANTS)
    made = study.make_runs(options(tmp_path), again := Recorded(), VARIANTS)
    assert again.made == [("b", 0)] and len(made.facts) == 4
    assert not list((tmp_path / "runs").glob("*.error.txt"))


def test_an_interrupt_is_no_failure(tmp_path: Path) -> None:
    def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
        if variant == "b":
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        study.make_runs(options(tmp_path), run, VARIANTS)
    assert [path.name[:8] for path in (tmp_path / "runs").iterdir()] == ["a_seed_0"]


def test_tasks_of_one_command(tmp_path: Path) -> None:
    given = options(tmp_path)
    tasks = [argparse.Namespace(**{**vars(given), "task": task}) for task in ("x", "y")]
    order: list[tuple[str, str, int]] = []

    def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
        order.append((options.task, variant, seed))
        return {"task": options.task}

    made = study.make_all_runs(tasks, run, VARIANTS)
    assert order == [(task, variant, seed) for seed in (0, 1) for task in "xy" for variant in "ab"]
    assert [{fact["task"] for fact in of.facts.values()} for of in made] == [{"x"}, {"y"}]
    assert len(list((tmp_path / "runs").glob("y_b_seed_1_*.json"))) == 1


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    job = runner.Job("name", {}, dict)
    with atomic_path(job.file(tmp_path)) as path:
        path.write_text('{"half')
    with pytest.raises(SystemExit, match=r"name_\w+\.json is not a result of a run .* Delete it to make the run again"):
        runner.make([job], options(tmp_path), lambda *_: None)
    job.file(tmp_path).unlink()
    assert len(runner.make([job], options(tmp_path), lambda *_: None)) == 1


@pytest.mark.parametrize(
    "given, message",
    [
        (["--workers", "0"], "0 is less than 1"),
        (["--retries", "-1"], "-1 is less than 0"),
        (["--workers", "two"], "invalid number value: 'two'"),
    ],
)
def test_numbers_that_cannot_be(tmp_path: Path, given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options(tmp_path, *given)
    assert message in capsys.readouterr().err


def test_settings_of_studies_are_the_same_in_every_process() -> None:
    from benchmarks import clones, finetune, fpo_settings, from_scratch, identity, lift, modes, rldt_settings, tasks
    from benchmarks.score import arms
    from benchmarks.tasks import runs

    assert tasks
    for module in (clones, finetune, fpo_settings, from_scratch, identity, lift, modes, rldt_settings, runs):
        assert not [name for name, variant in module.VARIANTS.items() if " at 0x" in repr(variant)]
    for stage in ("search", "published", "ablation", "alternatives", "defaults"):
        assert " at 0x" not in repr([arms.settings(arm, "Hopper-v5") for arm in arms.names(stage)])

"""The study of tasks: what is run, all tasks at once, and the tables of the documentation."""

import argparse
import copy
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import finetune, learning, study
from benchmarks.curves import CurveTable, Run
from benchmarks.make_expert_demonstrations import record
from benchmarks.provenance import ROOT
from benchmarks.tasks import runs
from benchmarks.tasks.__main__ import main
from benchmarks.tasks.aggregate import AGGREGATE, AGGREGATES, Over, aggregate
from benchmarks.tasks.families import EASY, TASKS, TEN, MetaWorld, Robosuite
from benchmarks.tasks.report import statistics, summarize
from benchmarks.tasks.tables import aggregate_table, tables, task_table
from sb3_scoreflow import FlowMatchingPolicy, ScoReFlowPPO
from tests.benchmarks.test_expert_demonstrations import Expert

RESULTS = study.RESULTS / "tasks"


def success(start: tuple[float, ...], end: tuple[float, ...]) -> dict[str, Any]:
    """What a variant's runs write, one per seed."""
    return {
        str(seed): {when: dict.fromkeys(("deterministic", "exploring"), value) for when, value in (("start", a), ("end", b))}
        for seed, (a, b) in enumerate(zip(start, end, strict=True))
    }


#: Two tasks, of which the first is as it was written when all were measured by success, and one that is not complete
SUMMARY: dict[str, Any] = {
    "a": {
        "demonstrations": 5,
        "success": {"rldt": success((0.5, 0.5), (0.5, 1.0)), "no_score": success((0.5, 0.5), (0.48, 0.52))},
    },
    "b": {
        "measure": "return",
        "demonstrations": 30,
        "demonstrations_return": 1000.0,
        "success": {"rldt": success((1000, 1000), (500, 2000)), "no_score": success((2000, 2000), (1000, 1000))},
    },
    "c": {"demonstrations": 5, "success": {"rldt": success((0.0, 0.0), (1.0, 1.0))}},
    AGGREGATE: {"tasks": ["of before"]},
}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_N_RESAMPLES", 100)


def test_all_tasks_at_once() -> None:
    result = aggregate(SUMMARY, Over(("rldt", "no_score"), (0, 1), SUMMARY))
    assert result["tasks"] == ["a", "b"] and result["seeds"] == [0, 1]
    for kind in ("deterministic", "exploring"):
        found = result[kind]
        # Scores of RLDT are 0.5, 1 and 0.5, 2, those without score 0.48, 0.52 and 1, 1
        means = {variant: entry["value"] for variant, entry in found["interquartile_mean"].items()}
        assert means == {"rldt": pytest.approx((0.5 + 1.0) / 2), "no_score": pytest.approx((0.52 + 1.0) / 2)}
        of_clones = {variant: entry["value"] for variant, entry in found["interquartile_mean_of_clone"].items()}
        assert of_clones == {"rldt": pytest.approx((0.5 + 1.0) / 2), "no_score": pytest.approx((0.5 + 2.0) / 2)}
        assert found["improvement"]["rldt over no_score"]["value"] == pytest.approx((3 / 4 + 2 / 4) / 2)
        over_clone = {variant: entry["value"] for variant, entry in found["improvement_over_clone"].items()}
        assert over_clone == {"rldt": (0.5 + 1 + 0 + 1) / 4, "no_score": (0 + 1 + 0 + 0) / 4}
        assert found["tasks_over_clone"]["rldt"] == {"above": 2, "surely_above": 0, "below": 0, "surely_below": 0}
        # No change in the first task, and twice the same loss in the second
        assert found["tasks_over_clone"]["no_score"] == {"above": 0, "surely_above": 0, "below": 1, "surely_below": 1}
        profile = dict(zip(found["thresholds"], found["performance_profile"]["rldt"]["value"], strict=True))
        assert (profile[0.0], profile[1.0], profile[2.0]) == (1.0, 0.25, 0.0)


def test_statistics_of_one_variant() -> None:
    """There is no other one that it could be better than."""
    result = aggregate(SUMMARY, Over(("rldt",), (0, 1), ("a", "c")))
    assert result["tasks"] == ["a", "c"] and result["deterministic"]["improvement"] == {}
    assert result["deterministic"]["improvement_over_clone"]["rldt"]["value"] == (0.5 + 1 + 1 + 1) / 4
    assert aggregate_table(result).splitlines()[2].startswith("| RLDT | ")


def test_tasks_of_the_statistics() -> None:
    """
    Shares of the return of mediocre demonstrations may be far above 1, and tasks with ten demonstrations have their own
    section.
    """
    variants = AGGREGATES["aggregate"].variants
    runs = {variant: {seed: success((0.5,), (1.0,))["0"] for seed in "012"} for variant in variants}
    names = ["hopper-medium", "push-v3", "push-v3-ten", "hopper-precise"]
    summary = {name: {"demonstrations": 1, "success": runs} for name in names}
    assert aggregate(summary, AGGREGATES["aggregate"])["tasks"] == ["push-v3", "hopper-precise"]
    for name in ("aggregate_ten", "aggregate_score_ten"):
        assert aggregate(summary, AGGREGATES[name])["tasks"] == ["push-v3-ten"]
    assert aggregate(summary, AGGREGATES["aggregate_score_embedded"])["tasks"] == ["hopper-medium"]


def test_ten_demonstrations_of_the_same_tasks() -> None:
    task, same = TASKS["window-open-v3-ten"], MetaWorld("window-open-v3", 10)
    assert set(EASY) < set(TEN.values()) and len(TEN) == 13
    np.testing.assert_array_equal(task.demonstrations(Path(), 1).actions, same.demonstrations(Path(), 1).actions)
    envs = [of.make_env("test", 1, 3) for of in (task, same)]
    np.testing.assert_array_equal(*(env.reset() for env in envs))  # type: ignore[arg-type]
    for env in envs:
        env.close()


def test_nothing_at_once_without_a_complete_task() -> None:
    assert aggregate(SUMMARY, Over(("rldt", "no_score"), (0, 1, 2), SUMMARY)) == {}


def test_curves_and_results_of_other_seeds() -> None:
    """Lists per seed are in the order of the seeds; curves without a result do not count"""
    of_seed = {"start": {"deterministic": 1.0, "exploring": 0.0}, "end": {"deterministic": 2.0, "exploring": 1.0}}
    runs = {seed: copy.deepcopy(of_seed) for seed in ("2", "0")}
    runs["2"]["end"]["deterministic"] = 5.0
    table = {
        Run(variant, "a", seed): {
            "return_deterministic": np.array([9.0, 10.0 + seed, 11.0 + seed]),
            "return_exploring": np.array([0.0, 1.0, 1.0]),
            "env_steps": np.array([0.0, 100.0, 200.0]),
            "cpu_seconds": np.array([0.0, 1.0, 2.0]),
        }
        for variant in ("scoreflow_ppo", "no_score", "fpo")
        for seed in (0, 1, 2)
    }
    found = statistics("a", {"scoreflow_ppo": runs, "fpo": {"1": of_seed, "2": of_seed}}, table)
    assert found["lowest_deterministic"] == {"scoreflow_ppo": [10.0, 12.0], "fpo": [11.0, 12.0]}
    assert found["mean"]["scoreflow_ppo"]["end"]["deterministic"]["per_seed"] == [2.0, 5.0] and found["seeds"] == [2]
    assert found["steps_to_gain"]["50%"]["scoreflow_ppo"]["per_seed"] == [50.0, 50.0]
    unequal = statistics("a", {"scoreflow_ppo": runs, "no_score": {"1": of_seed}}, table)
    assert unequal["steps_to_gain"] == {} and unequal["seeds"] == []


def test_tables() -> None:
    table = aggregate_table(aggregate(SUMMARY, Over(("rldt", "no_score"), (0, 1), SUMMARY))).splitlines()
    assert [line.count("|") for line in table] == 4 * [8]
    assert table[2].startswith("| RLDT | 0.75 [") and table[2].endswith(" | 2 (0) | 0 (0) |")
    assert table[3].startswith("| ScoReFlowPPO, no score (ReinFlow) | 1.25 [") and table[3].endswith(" | | 0 (0) | 1 (1) |")
    gain = {"deterministic": {"mean": 1234.5, "ci95": [-10.0, 20.0]}, "exploring": {"mean": -3.0}}
    ends = {"deterministic": {"per_seed": [1999.6, -1.0]}}
    section = dict(
        measure="return",
        success={"fpo": {}},
        mean={"fpo": {"start": ends, "end": ends}},
        gain={"fpo": gain},
        lowest_deterministic={"fpo": [5.0]},
        cpu_seconds={"fpo": {"mean": 7.2}},
    )
    expected = "| FPO | 2000, -1 | 2000, -1 | +1234 [-10, +20] | -3 | 5* | 7 |"
    assert task_table(section).splitlines()[2:] == [expected]


def test_table_of_tasks_with_ten_demonstrations() -> None:
    section = dict(
        demonstrations=10,
        eval_episodes={"scoreflow_ppo": 20},
        success={"scoreflow_ppo": {}},
        mean={"scoreflow_ppo": {when: {"deterministic": {"per_seed": [0.5, 1.0]}} for when in ("start", "end")}},
        gain={"scoreflow_ppo": {kind: {"mean": 0.125} for kind in ("deterministic", "exploring")}},
        lowest_deterministic={"scoreflow_ppo": [0.45, 0.9]},
        cpu_seconds={"scoreflow_ppo": {"mean": 100.0}},
    )
    found = tables({"push-v3-ten": section, "soccer-v3-ten": section})
    assert list(found) == ["ten"]
    row = "| 0.50, 1.00 | 0.50, 1.00 | +0.12 | +0.12 | 0.45, 0.90 | 100 |"
    assert found["ten"].splitlines()[2:] == [f"| soccer-v3 {row}", f"| push-v3 {row}"]


@pytest.mark.parametrize("name", tables(study.read_summary(RESULTS)))
def test_documentation_has_the_tables_of_the_results(name: str) -> None:
    page = "docs/benchmarks.md" if name in AGGREGATES and name != "aggregate_ten" else "docs/tasks.md"
    assert tables(study.read_summary(RESULTS))[name] in (ROOT / page).read_text()


def test_only_summarizing_keeps_what_the_runs_have_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("summary.json", "curves.csv.gz"):
        shutil.copy(RESULTS / name, tmp_path)
    before = study.read_summary(tmp_path)
    main(["--variants", "--output", str(tmp_path)])
    after = study.read_summary(tmp_path)
    over_all, origin = after[AGGREGATE], before.get(AGGREGATE)
    without = [{name: section for name, section in summary.items() if name not in AGGREGATES} for summary in (after, before)]
    assert without[0] == without[1]
    assert "peg-insert-side-v3" in over_all["tasks"] and {"command", "commit", "versions"} <= set(over_all)
    assert origin is None or over_all["tasks"] == origin["tasks"]
    assert (tmp_path / "figure.png").exists() and (tmp_path / "aggregate.png").stat().st_size > 10_000
    main(["--variants", "--output", str(tmp_path)])  # with a section now that is no task
    assert study.read_summary(tmp_path) == after
    capsys.readouterr()
    main(["--tables", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{AGGREGATE}\n\n{aggregate_table(over_all)}\n\n") and "\n\npeg-insert-side-v3\n\n| |" in printed


def test_later_runs_keep_the_unit_of_scores(tmp_path: Path) -> None:
    options = argparse.Namespace(output=tmp_path, variants=["rldt"], seeds=[0])
    for unit, end in ((1000.0, 500.0), (990.0, 700.0)):
        about = {"measure": "return", "demonstrations": 30, "eval_episodes": 20, "demonstrations_return": unit}
        facts = {("rldt", 0): {"task": about, "success": success((400.0,), (end,))["0"]}}
        summarize(options, {"hopper-precise": study.Made({}, {}, facts)})
    section = study.read_summary(tmp_path)["hopper-precise"]
    assert section["demonstrations_return"] == 1000 and section["mean"]["rldt"]["end"]["exploring"]["mean"] == 700


def test_missing_expert_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"make_expert_demonstrations --env Walker2d-v5 --folder .*--data"):
        TASKS["walker2d-precise"].demonstrations(tmp_path, 0)


def test_robosuite_demonstrations_are_written_once_and_look_like_the_env(tmp_path: Path) -> None:
    task = Robosuite("lift", 2, max_steps=8)
    demonstrations = task.demonstrations(tmp_path, 0)
    assert isinstance(demonstrations.observations, np.ndarray)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    assert demonstrations.n_episodes == 2 and len(demonstrations) == 2 * 8
    np.testing.assert_array_equal(task.demonstrations(tmp_path, 1).observations, demonstrations.observations)
    assert path.stat().st_mtime_ns == written
    env = task.make_env("train", 1, 0)
    first = env.reset()
    assert isinstance(first, np.ndarray)
    np.testing.assert_allclose(first[0], demonstrations.observations[0], atol=1e-6)
    env.close()


def test_kept_clone_is_made_once_and_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "pretrain_bc", partial(runs.pretrain_bc, n_batches=20))
    record(Expert(), "Hopper-v5", 0.0, n_episodes=2, seed=0).save(tmp_path / "hopper-precise.hdf5")
    task = TASKS["hopper-precise"]
    runs.clone.cache_clear()
    made = runs.kept_clone(task, tmp_path, 3, None)
    path = runs.kept_clone(task, tmp_path, 3, tmp_path / "clones")
    runs.clone.cache_clear()
    monkeypatch.setattr(runs, "pretrain_bc", None)  # would fail
    assert runs.kept_clone(task, tmp_path, 3, tmp_path / "clones") == path
    assert isinstance(made, FlowMatchingPolicy) and isinstance(path, Path)
    observations, actions = np.random.default_rng(0).normal(size=(5, 11)), []
    for source in (made, path):
        model = ScoReFlowPPO("FlowPolicy", task.make_env("train", 1, 0), seed=0)
        model.load_clone(source)
        actions.append(model.predict(observations, deterministic=True)[0])
    np.testing.assert_array_equal(actions[0], actions[1])
    assert np.abs(actions[0]).max() > 0


@pytest.mark.slow
def test_from_the_command_line_to_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "CLONE_BATCHES", 20)
    monkeypatch.setattr(runs, "pretrain_bc", partial(runs.pretrain_bc, n_batches=20))
    monkeypatch.setattr(runs, "N_FINAL_EPISODES", 2)
    demonstrations = record(Expert(), "Hopper-v5", 0.0, n_episodes=3, seed=0)
    (tmp_path / "data").mkdir()
    demonstrations.save(tmp_path / "data" / "hopper-precise.hdf5")
    before = copy.deepcopy(SUMMARY["a"])
    study.update_summary(tmp_path, "a", before)
    variants = ("no_score", "gaussian_ppo")
    numbers = ["--seeds", "0", "--timesteps", "500"]
    main(["--task", "hopper-precise", "--output", str(tmp_path), *numbers, "--variants", *variants])
    section = study.read_summary(tmp_path)["hopper-precise"]
    assert (section["measure"], section["demonstrations"], section["seeds"]) == ("return", 3, [0])
    assert section["demonstrations_return"] == pytest.approx(demonstrations.episode_returns.mean())
    assert set(section["origins"]) == set(section["settings"]) == set(section["success"]) == set(variants)
    run = section["success"]["no_score"]["0"]
    assert section["gain"]["no_score"]["exploring"]["mean"] == run["end"]["exploring"] - run["start"]["exploring"]
    assert set(CurveTable(tmp_path).read()) == {Run(variant, "hopper-precise", 0) for variant in variants}
    assert study.read_summary(tmp_path)["a"]["success"] == before["success"]

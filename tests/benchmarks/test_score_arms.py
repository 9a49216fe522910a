"""The arms of the score benchmark: that they are what their names say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import runner, study
from benchmarks.curves import FIELDS, CurveTable, Run
from benchmarks.locomotion import DEMONSTRATIONS, N_ENVS
from benchmarks.score import arms, report, runs
from benchmarks.score.__main__ import record
from benchmarks.score.runs import Job
from sb3_scoreflow import ScoReFlowPPO
from sb3_scoreflow.scoreflow_ppo.defaults import DEFAULTS
from tests.conformance.envs import make_toy

FIXED = [name for stage in ("published", "search", "ablation", "alternatives", "defaults") for name in arms.names(stage)]


@pytest.mark.parametrize("arm", FIXED)
@pytest.mark.parametrize("env_id", DEMONSTRATIONS)
def test_settings_are_possible(arm: str, env_id: str) -> None:
    settings = dict(arms.settings(arm, env_id))
    settings.pop("critic_batches", 0)
    assert settings["n_steps"] * N_ENVS % settings["batch_size"] == 0
    settings["batch_size"] = settings["n_steps"]  # of one env
    ScoReFlowPPO("FlowPolicy", make_toy(), device="cpu", policy_kwargs=dict(net_arch=[4]), **settings)


def test_variants_differ_in_the_score_alone() -> None:
    for stage in ("published", "search"):
        for env_id in DEMONSTRATIONS:
            by_variant: dict[str, list[str]] = {}
            for arm in arms.names(stage):
                settings = dict(arms.settings(arm, env_id))
                by_variant.setdefault(settings.pop("score_drift"), []).append(repr(settings))
            assert set(by_variant) == set(arms.VARIANTS)
            assert len({tuple(settings) for settings in by_variant.values()}) == 1


def test_package_arm_leaves_to_the_package_what_it_can_decide() -> None:
    settings = arms.settings("package", "Hopper-v5")
    assert set(settings) == {"n_steps", "batch_size", "n_epochs", "critic_batches"}  # an iteration that 20 envs allow
    assert settings == {name: arms.settings("default", "Hopper-v5")[name] for name in settings}
    assert not set(settings) & set(DEFAULTS["pretrained"])


def test_normalized_scores() -> None:
    def curve(values: list[float]) -> dict[str, np.ndarray]:
        return {"return_exploring": np.array(values)}

    curves = {"env": {"a": [curve([0, 10, 10, 10])], "b": [curve([0, 5, 5, 5]), curve([0, 5, 5, 15])]}}
    scores = report.normalized(curves, "return_exploring", report.mean_return)
    np.testing.assert_allclose(scores["a"][0], [1.0])  # the best final return is a's, 10
    np.testing.assert_allclose(scores["b"][0], [0.5, 25 / 3 / 10])
    curves["not improved"] = {"a": [curve([100, 101, 101, 101])], "b": [curve([100, 99, 99, 99])] * 2}
    assert len(report.normalized(curves, "return_exploring", report.mean_return)["a"]) == 1


def test_run_that_is_too_short_is_made_again() -> None:
    job = Job("Hopper-v5", "arm", 0, {}, timesteps=100)
    curve = {"timesteps": np.array([0.0, 99.0])}
    assert not job.is_done({})
    assert not job.is_done({Run("arm", "Hopper-v5", 0): curve})
    curve["timesteps"][-1] = 100
    assert job.is_done({Run("arm", "Hopper-v5", 0): curve})
    assert not job.is_done({Run("arm", "Hopper-v5", 1): curve})


def test_what_the_table_has_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def execute(job: Job) -> dict[str, Any]:
        made.append(job.seed)
        return {"curve": [dict.fromkeys(FIELDS, "100")]}

    monkeypatch.setattr(runs, "execute", execute)
    parser = study.parser("", "score")
    runner.add_options(parser)
    jobs = [Job("Hopper-v5", "arm", seed, {}, timesteps=100, folder=tmp_path) for seed in (0, 1)]
    CurveTable(tmp_path).add({jobs[0].run: [dict.fromkeys(FIELDS, "100")]})
    runs.execute_all(jobs, parser.parse_args(["--output", str(tmp_path)]))
    assert made == [1] and set(CurveTable(tmp_path).read()) == {job.run for job in jobs}
    runs.execute_all(jobs, parser.parse_args(["--output", str(tmp_path), "--again"]))
    assert made == [1, 0, 1]


def test_record_keeps_what_was_made_before_while_settings_are_the_same(tmp_path: Path) -> None:
    settings = {"env": {"arm": "dict(clip_range=0.02)"}}
    record(tmp_path, "best", {"timesteps": 10, "settings": settings}, {"commit": "c", "seeds": [0, 1]})
    study.update_summary(tmp_path, "best", {**study.read_summary(tmp_path)["best"], "arms": ["statistics"]})
    record(tmp_path, "best", {"timesteps": 10, "settings": settings}, {"commit": "c", "seeds": [2]})
    found = study.read_summary(tmp_path)["best"]
    assert [origin["seeds"] for origin in found["origins"]] == [[0, 1], [2]]
    assert found["settings"] == settings and found["arms"] == ["statistics"]
    record(tmp_path, "best", {"timesteps": 20, "settings": settings}, {"commit": "d", "seeds": [0]})
    assert study.read_summary(tmp_path)["best"] == {
        "origins": [{"commit": "d", "seeds": [0]}],
        "timesteps": 20,
        "settings": settings,
    }


def test_settings_of_the_best_are_what_the_search_chose(tmp_path: Path) -> None:
    study.update_summary(tmp_path, "search", {"chosen": {"none": {"best": "lr1e-4_n50"}}})
    found = arms.settings("best_none", "Hopper-v5", tmp_path)
    assert repr(found) == repr(arms.settings("search_none_lr1e-4_n50", "Hopper-v5"))


def test_only_arms_that_every_task_has_are_reported() -> None:
    curve = {"timesteps": np.zeros(1)}
    runs = [("a", "one", 0), ("a", "other", 0), ("b", "one", 0)]
    found = report.of_all_envs({Run(*run): curve for run in runs}, ["one", "other"], ["a", "b"], [0])
    assert found == {"one": {"a": [curve]}, "other": {"a": [curve]}}

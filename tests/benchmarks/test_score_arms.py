"""The arms of the score benchmark: that they are what their names say."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.score import arms, report
from benchmarks.score.__main__ import write
from benchmarks.score.runs import DEMONSTRATIONS, N_ENVS, Job
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


def test_normalized_scores(tmp_path: object) -> None:
    def curve(values: list[float]) -> dict[str, np.ndarray]:
        return {"return_exploring": np.array(values)}

    curves = {"env": {"a": [curve([0, 10, 10, 10])], "b": [curve([0, 5, 5, 5]), curve([0, 5, 5, 15])]}}
    scores = report.normalized(curves, "return_exploring", report.mean_return)
    np.testing.assert_allclose(scores["a"][0], [1.0])  # the best final return is a's, 10
    np.testing.assert_allclose(scores["b"][0], [0.5, 25 / 3 / 10])
    curves["not improved"] = {"a": [curve([100, 101, 101, 101])], "b": [curve([100, 99, 99, 99])] * 2}
    assert len(report.normalized(curves, "return_exploring", report.mean_return)["a"]) == 1


def test_interrupted_run_is_made_again(tmp_path: object) -> None:
    job = Job("Hopper-v5", "arm", 0, {}, timesteps=100, folder=tmp_path)  # type: ignore[arg-type]
    assert not job.done
    header = "env_steps,timesteps,return_exploring,return_deterministic,wall_seconds,cpu_seconds\n"
    job.path.write_text(header + "400,99,1,1,1,1\n")
    assert not job.done
    job.path.write_text(header + "400,99,1,1,1,1\n404,100,1,1,1,1\n")
    assert job.done


def test_record_keeps_the_origin_of_earlier_seeds_while_settings_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    settings = {"env": {"arm": "dict(clip_range=0.02)"}}
    for seeds in ([0, 1], [2]):
        write(path, {"timesteps": 10, "settings": settings}, {"commit": "c", "seeds": seeds})
    record = json.loads(path.read_text())
    assert [origin["seeds"] for origin in record["origins"]] == [[0, 1], [2]]
    assert record["settings"] == settings
    write(path, {"timesteps": 20, "settings": settings}, {"commit": "d", "seeds": [0]})
    assert json.loads(path.read_text())["origins"] == [{"commit": "d", "seeds": [0]}]

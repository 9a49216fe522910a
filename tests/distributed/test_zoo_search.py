"""``optimize --workers``: trials are the zoo's, in whatever process; searches go on, and failures are repeated and shown."""

import importlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import optuna
import pytest
from filelock import FileLock
from optuna.trial import TrialState
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.provenance import ROOT
from sb3_scoreflow import ScoReFlowPPO, calibrate_noise
from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.scoreflow_ppo import NoiseCalibration
from sb3_scoreflow.zoo import main
from sb3_scoreflow.zoo.cloning import SettingsError
from sb3_scoreflow.zoo.sampling import ArgumentSampler
from tests.common.faulty_envs import time_limit
from tests.scoreflow_ppo.needle import demonstrations_of_zero
from tests.zoo.conftest import zoo
from tests.zoo.runs import Poison, small

assert zoo  # a fixture, of all tests here
#: sb3_scoreflow.zoo.search, which imports Ray: after the settings of Ray have been made
search: Any = None
pytestmark = [pytest.mark.usefixtures("ray_module"), pytest.mark.filterwarnings("ignore:batch_size=")]


@pytest.fixture(scope="module", autouse=True)
def _import_search(ray_module: None) -> None:
    global search
    search = importlib.import_module("sb3_scoreflow.zoo.search")


class KilledOnce(BaseCallback):
    """Ends the process of a trial, unless that has been done."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = Path(marker)

    def _on_training_start(self) -> None:
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def _on_step(self) -> bool:
        return True


class Wait(BaseCallback):
    """Says that a trial is at work, and lets it go on when it may."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def _on_training_start(self) -> None:
        (self.folder / f"started_{os.getpid()}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.05)

    def _on_step(self) -> bool:
        return True


def command(
    folder: Path, *options: str, algorithm: str = "fpo", env: str = "Corridor-v0", trials: int = 1, **more: Any
) -> list[str]:
    start = ["optimize", "--algo", algorithm, "--env", env, "-f", str(folder), "--seed", "5", "--device", "cpu"]
    size = ["-n", "64", "--n-trials", str(trials), "--eval-episodes", "1", "--n-startup-trials", "1", "--no-optim-plots"]
    packages = ["--n-evaluations", "2", "--gym-packages", "tests.zoo.runs", "tests.scoreflow_ppo.needle"]
    return [*start, *size, *packages, *options, *small(algorithm, **more)]


def study_of(folder: Path, algorithm: str = "fpo") -> optuna.Study:
    storage = search._storage(folder / algorithm / "optimize_Corridor-v0.log")
    return optuna.load_study(storage=storage, study_name="Corridor-v0")


@pytest.fixture
def managers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What would have been searched."""
    found: list[Any] = []
    monkeypatch.setattr(search.ParallelSearch, "_search", lambda self, path, left: found.append((self, path, left)))
    yield found


def prepare(managers: list[Any], folder: Path, *options: str, **more: Any) -> tuple[Any, Path, int]:
    try:
        main(command(folder, *options, "--workers", "2", **more))
    except SystemExit as error:
        assert "There is no best trial" in str(error)
    return managers[-1]


def draw(algorithm: str = "fpo") -> dict[str, Any]:
    """:return: parameters as a trial draws them"""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    ArgumentSampler(ALGORITHMS[algorithm]).sample(trial, 1, 1, {})
    return trial.params


def test_a_trial_is_the_zoos(managers: list[Any], tmp_path: Path) -> None:
    manager, _, _ = prepare(managers, tmp_path)
    reports: list[dict[str, Any]] = []
    search.run_trial({**draw(), "number": 3}, manager, reports.append)
    set_random_seed(5 + 3)
    reported: list[tuple[float, int]] = []

    class Trial(optuna.trial.FixedTrial):
        def report(self, value: float, step: int) -> None:
            reported.append((value, step))

    value = super(search.ParallelSearch, manager).objective(Trial(draw()))
    assert -2 <= value <= 2 and len(reported) >= 2
    assert [(r["value"], r["step"]) for r in reports[:-1]] == reported and not any(r["end"] for r in reports[:-1])
    assert reports[-1] == {"number": 3, "value": value, "step": 0, "end": "complete"}
    reports.clear()
    search.run_trial({**draw(), "number": 4}, manager, reports.append)
    assert reports[-1]["value"] != value, "trials are seeded by their numbers"


def test_a_trial_that_diverges(managers: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, _, _ = prepare(managers, tmp_path, callback="tests.zoo.runs.Poison")
    monkeypatch.setattr(Poison, "left", 1)
    reports: list[dict[str, Any]] = []
    search.run_trial({**draw(), "number": 0}, manager, reports.append)
    assert reports[-1]["end"] == "diverged" and math.isnan(reports[-1]["value"])


def test_a_trial_of_another_process_calibrates_its_noise(managers: list[Any], tmp_path: Path) -> None:
    """The function that makes the environment for that is sent along."""
    source, settings = str(tmp_path / "zeros.hdf5"), dict(n_batches=500, seed=0)
    demonstrations_of_zero().save(source)
    more: dict[str, Any] = dict(demonstrations=source, cloning=settings, calibrate_noise=True)
    manager, _, _ = prepare(managers, tmp_path, algorithm="scoreflow_ppo", env="Needle-v0", **more)
    config, scales = {**draw("scoreflow_ppo"), "number": 0}, []

    def calibrated(model: ScoReFlowPPO, env: VecEnv, **arguments: Any) -> NoiseCalibration:
        scales.append(calibrate_noise(model, env, **arguments).scale)
        assert env.num_envs == 1 and env is not model.env
        return NoiseCalibration(scales[-1], {}, 0.0)

    for where in (manager, cloudpickle.loads(cloudpickle.dumps(manager))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sb3_scoreflow.zoo.cloning.calibrate_noise", calibrated)
            search.run_trial(config, where, [].append)
    assert len(scales) == 2 and scales[0] == scales[1] < 1


def test_what_becomes_of_trials(managers: list[Any], tmp_path: Path) -> None:
    manager, path, _ = prepare(managers, tmp_path)
    draws = search.Search(manager, path)
    pruner = search.Pruner(draws, workers=2)
    configs = {name: draws.suggest(name) for name in ("complete", "stopped", "diverged", "failed", "nan", "open")}
    assert [config["number"] for config in configs.values()] == list(range(6))
    assert set(configs["open"]) - {"number"} == set(draw())

    def result(number: int, value: float, step: int, end: str = "") -> dict[str, Any]:
        return {"number": number, "value": value, "step": step, "end": end, "training_iteration": step}

    def finish(name: str, value: float, end: str = "complete") -> None:
        last = result(configs[name]["number"], value, 0, end)
        assert not pruner("trial", last)
        draws.on_trial_complete(name, last)

    assert not pruner("complete", result(0, 10.0, 1))
    draws.on_trial_result("complete", result(0, 10.0, 1))
    finish("complete", 11.0)
    assert pruner("stopped", result(1, -10.0, 1)), "it is below the median"
    draws.on_trial_complete("stopped", result(1, -10.0, 1))
    finish("diverged", math.nan, "diverged")
    draws.on_trial_complete("failed", error=True)
    finish("nan", math.nan)
    draws.on_trial_complete("open", result(5, 1.0, 1))  # an interrupt
    draws.save(str(tmp_path / "nothing"))
    trials = study_of(tmp_path).trials
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.state for trial in trials] == states
    assert trials[0].value == 11.0 and trials[0].intermediate_values == {1: 10.0}
    assert (draws.n_ended, draws.n_failed) == (3, 2) and not pruner.stop_all()
    draws.n_ended = 0
    assert pruner.stop_all(), "nothing but failures"
    # The next search begins with the one that was left open, and has the others drawn anew
    again, _, left = prepare(managers, tmp_path, trials=9)
    assert left == 9 - 3
    assert [trial.state for trial in study_of(tmp_path).trials[5:]] == [TrialState.FAIL, TrialState.WAITING]
    config = search.Search(again, path).suggest("first")
    assert config == {**configs["open"], "number": 6} and study_of(tmp_path).trials[6].user_attrs == {"again": 5}
    assert prepare(managers, tmp_path, "--max-total-trials", "5")[2] == 5 - 3


def test_a_search_that_goes_on_draws_something_else(managers: list[Any], tmp_path: Path) -> None:
    manager, path, _ = prepare(managers, tmp_path)
    first = search.Search(manager, path).suggest("a")
    manager, _, _ = prepare(managers, tmp_path / "other")
    assert search.Search(manager, managers[-1][1]).suggest("a") == first  # the sampler has the seed
    study = study_of(tmp_path / "other")
    study.tell(0, 1.0)
    manager, path, _ = prepare(managers, tmp_path / "other", trials=2)
    assert search.Search(manager, path).suggest("b")["learning_rate"] != first["learning_rate"]


def test_sampler_of_the_zoos_own_algorithms(managers: list[Any], tmp_path: Path) -> None:
    start = ["optimize", "--algo", "ppo", "--env", "Corridor-v0", "-f", str(tmp_path), "--seed", "0", "-n", "64"]
    numbers = ["--n-trials", "1", "--n-evaluations", "1", "--no-optim-plots", "--workers", "1"]
    with pytest.raises(SystemExit, match="There is no best trial"):
        main([*start, *numbers, "--hyperparams", "policy:'MlpPolicy'", "n_timesteps:64"])
    manager, path, left = managers[-1]
    assert left == 1 and {"learning_rate", "number"} <= set(search.Search(manager, path).suggest("a"))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--workers", "0"], "--workers 0 must be at least 1"),
        (["--workers", "2", "--retries", "-1"], "--retries -1 at least 0"),
        (["--address", "auto"], "--address and --retries need --workers"),
        (["--retries", "2"], "--address and --retries need --workers"),
        (["--workers", "many"], "invalid int value: 'many'"),
        (["--workers", "2", "--storage", "sqlite:///study.db"], "it must be a file whose name ends in .log"),
        (["--workers", "2", "--n-jobs", "3"], "--n-jobs 3 and --workers 2 set the same thing"),
        (["--workers", "2", "--address", "127.0.0.1:9"], "There is no Ray cluster at address='127.0.0.1:9'"),
    ],
)
def test_options_that_cannot_be(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with time_limit(60), pytest.raises(SystemExit) as caught:
        main(command(tmp_path, *options))
    assert message in str(caught.value.code) + capsys.readouterr().err


def test_help_has_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["optimize", "--help"])
    printed = capsys.readouterr().out
    assert "--workers" in printed and "--n-startup-trials" in printed


def test_without_tune(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "sb3_scoreflow.zoo.search")
    monkeypatch.setitem(sys.modules, "ray.tune", None)
    with pytest.raises(SystemExit, match=r'--workers needs Ray Tune .*: pip install .*"ray\[tune\]>=2.43"'):
        main(command(tmp_path, "--workers", "2"))


def test_a_study_of_other_settings(managers: list[Any], tmp_path: Path) -> None:
    prepare(managers, tmp_path, gamma=0.9)
    with pytest.raises(SystemExit, match=r"was made with other settings \(hyperparams: .*'0.9'.*, not .*'0.8'"):
        main(command(tmp_path, "--workers", "2", gamma=0.8))
    assert prepare(managers, tmp_path, "--study-name", "another", gamma=0.8)[2] == 1


def test_two_searches_at_once(managers: list[Any], tmp_path: Path) -> None:
    _, path, _ = prepare(managers, tmp_path)
    with FileLock(f"{path}.lock-of-search"), pytest.raises(SystemExit, match=r"Another search is running on .*wait for it"):
        main(command(tmp_path, "--workers", "2"))


def test_failures_are_shown(managers: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manager, path, _ = prepare(managers, tmp_path)
    results = [SimpleNamespace(error=None), SimpleNamespace(error=OverflowError("so\nlarge"), config={"number": 7})]
    manager._show_failures(path, results, 1)
    log = Path(f"{path}.trial_7.error.txt")
    assert f"failed: trial 7: large ({log})" in capsys.readouterr().out and log.read_text() == '{"number": 7}\nso\nlarge\n'
    with pytest.raises(SettingsError, match=r"All trials so far \(1\) failed, in 2 attempts each"):
        manager._show_failures(path, results, 0)
    manager._show_failures(path, results[:1], 0)  # an interrupt


def test_in_ray_as_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with time_limit(300):
        main(command(tmp_path, "--workers", "2"))
    (trial,) = study_of(tmp_path).trials
    assert trial.state == TrialState.COMPLETE and "Best trial:\nValue:  " in capsys.readouterr().out
    (report,) = (tmp_path / "fpo").glob("report_*.csv")
    assert len(report.read_text().splitlines()) == 2 and report.with_suffix(".pkl").exists()
    with pytest.MonkeyPatch.context() as patch:
        found: list[Any] = []
        patch.setattr(search.ParallelSearch, "_search", lambda self, path, left: found.append(self))
        main(command(tmp_path, "--workers", "2", trials=2))
        reports: list[dict[str, Any]] = []
        search.run_trial({**trial.params, "number": 0}, found[0], reports.append)
    assert trial.value == reports[-1]["value"]
    assert trial.intermediate_values == {r["step"]: r["value"] for r in reports[:-1]}
    capsys.readouterr()
    main(command(tmp_path, "--workers", "2"))  # nothing is left to do
    assert "resumed: 1 of 1 trials had ended before" in capsys.readouterr().out and len(study_of(tmp_path).trials) == 1


@pytest.mark.slow
def test_a_worker_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    callback = [{"tests.distributed.test_zoo_search.KilledOnce": {"marker": str(marker)}}]
    with time_limit(400):
        main(command(tmp_path, "--workers", "1", trials=2, callback=callback))
    assert marker.exists() and [trial.state for trial in study_of(tmp_path).trials] == [TrialState.COMPLETE] * 2


@pytest.mark.slow
def test_every_trial_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with time_limit(400), pytest.raises(SystemExit, match=r"All trials so far .1. failed, in 1 attempts each: see above"):
        main(command(tmp_path, "--workers", "1", "--retries", "0", trials=50, wrong_argument=1))
    printed = capsys.readouterr().out
    assert "failed: trial 0: " in printed and "wrong_argument" in Path(printed.split("(")[-1].split(")")[0]).read_text()
    assert study_of(tmp_path).trials[0].state == TrialState.FAIL


@pytest.mark.slow
def test_the_search_is_killed_and_started_again(tmp_path: Path) -> None:
    wait = [{"tests.distributed.test_zoo_search.Wait": {"folder": str(tmp_path)}}]
    given = [sys.executable, "-m", "sb3_scoreflow.zoo", *command(tmp_path, "--workers", "1", trials=2, callback=wait)]
    with time_limit(500):
        process = subprocess.Popen(given, cwd=ROOT)
        while not list(tmp_path.glob("started_*")):
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        (opened,) = study_of(tmp_path).trials
        assert opened.state == TrialState.RUNNING
        (tmp_path / "go").touch()
        printed = subprocess.run(given, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "resumed: 0 of 2 trials had ended before" in printed
    trials = study_of(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert trials[1].params == opened.params and trials[2].params != opened.params
    assert all(trial.value is not None and math.isfinite(trial.value) for trial in trials[1:])

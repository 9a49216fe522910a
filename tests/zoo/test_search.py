"""``optimize``: what is drawn, and what becomes of trials that diverge."""

import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sb3_scoreflow import FPO
from sb3_scoreflow.common.schedules import END, START, as_schedule
from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.zoo import main
from sb3_scoreflow.zoo.sampling import ArgumentSampler
from tests.zoo.runs import FEW, Corridor, Poison, small

POISON = "tests.zoo.runs.Poison"


def search(folder: Path, algorithm: str, env: str, trials: int, *options: str, **more: Any) -> optuna.Study:
    start = ["optimize", "--algo", algorithm, "--env", env, "-f", str(folder), "--seed", "0", "--device", "cpu"]
    size = ["-n", "64", "--n-trials", str(trials), "--eval-episodes", "1", "--n-startup-trials", "1", "--no-optim-plots"]
    main([*start, *size, "--n-evaluations", "1", *options, *small(algorithm, **more)])
    (report,) = (folder / algorithm).glob("report_*.pkl")
    study = pickle.loads(report.read_bytes())
    assert isinstance(study, optuna.Study)
    return study


@pytest.mark.filterwarnings("ignore:batch_size=")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_draws_make_models(algorithm: str) -> None:
    sampler, cls = ArgumentSampler(ALGORITHMS[algorithm]), ALGORITHMS[algorithm]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn: list[dict[str, Any]] = []
    for _ in range(6):
        trial = study.ask()
        arguments = sampler.sample(trial, 1, 1, {})
        assert ArgumentSampler.convert(trial.params) == arguments  # as the zoo reads a study with --trial-id
        cls("FlowPolicy", Corridor(), policy_kwargs=dict(net_arch=[8]), device="cpu", **arguments)
        drawn.append(arguments)
    assert {"learning_rate", "critic_learning_rate", "gamma", "n_steps", "batch_size", "denoising_steps"} <= set(drawn[0])
    for name in drawn[0]:
        assert len({arguments[name] for arguments in drawn}) > 1, name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ranges_hold_the_defaults(algorithm: str) -> None:
    cls = ALGORITHMS[algorithm]
    sampler = ArgumentSampler(cls)
    for name, value in cls.defaults["pretrained"].items():
        if name in sampler.rates or name in sampler.counts:
            low, high = {**sampler.rates, **sampler.counts}[name]
            assert all(low <= as_schedule(value)(progress) <= high for progress in (START, END)), name
        else:
            assert name in (
                "max_std",
                "critic_warmup_transitions",
                "averaging_horizon",
                "td_lambda",
                "max_shift",
                "noise_scale",
                "zero_noise_fraction",
                "deterministic_coef",
                "validation_fraction",
            )
    assert sampler.rates["learning_rate"][0] < 3e-4 < sampler.rates["learning_rate"][1]


@pytest.mark.filterwarnings("ignore:batch_size=")
def test_a_trial_that_diverges_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Poison, "left", 1)
    study = search(tmp_path, "fpo", "Corridor-v0", 2, callback=POISON)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED, TrialState.COMPLETE]
    assert -2 <= study.best_value <= 2  # the return of an episode


@pytest.mark.filterwarnings("ignore:batch_size=")
def test_nothing_but_pruned_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Poison, "left", 2)
    with pytest.raises(SystemExit, match="error: There is no best trial"):
        search(tmp_path, "scoreflow_ppo", "Corridor-v0", 2, callback=POISON)


@pytest.mark.filterwarnings("ignore:batch_size=")
def test_other_errors_of_a_search_are_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        search(tmp_path, "scoreflow_ppo", "Corridor-v0", 1, "--n-jobs", "0")


@pytest.mark.filterwarnings("ignore:batch_size=")
def test_every_trial_starts_from_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloned: list[FPO] = []
    on_pretrained = FPO.on_pretrained

    def recorded(model: FPO) -> None:
        cloned.append(model)
        on_pretrained(model)

    monkeypatch.setattr(FPO, "on_pretrained", recorded)
    study = search(tmp_path, "fpo", "Hopper-v5", 2, demonstrations=FEW, cloning=dict(n_batches=2, batch_size=16))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert len({id(model) for model in cloned}) == 2

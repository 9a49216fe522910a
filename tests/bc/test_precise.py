"""Clones of precise demonstrations take more gradient steps; clones of noisy ones do not change."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import Demonstrations
from sb3_scoreflow.bc import behavior_cloning, defaults
from tests.bc.helpers import ACTION, IMAGE, OBS, assert_same, clone, make_demonstrations, make_policy, state_of

N, PASS = 640, 10
SETTINGS: dict[str, Any] = dict(n_batches=None, batch_size=N // PASS, log_interval=50)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge after 150 steps of 300; precise demonstrations get 500 (400 passes would be 4,000)."""
    monkeypatch.setattr(behavior_cloning, "JUDGED_AFTER", 150)
    for name, value in (("_MIN_BATCHES", 100), ("_MAX_BATCHES", 300), ("_MAX_BATCHES_PRECISE", 500)):
        monkeypatch.setattr(defaults, name, value)


def demonstrations(noise: float) -> Demonstrations:
    """Actions are a smooth function of the observations, with Gaussian noise of this standard deviation."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(N, OBS)).astype(np.float32)
    actions = 0.3 * np.tanh(observations[:, :ACTION]) + noise * rng.normal(size=(N, ACTION))
    return make_demonstrations(N, observations=observations, actions=actions.clip(-1, 1))


@pytest.mark.parametrize(
    ("per_pass", "residual", "steps"),
    [
        (118, 0.07, 47_200),  # 400 passes over 30,000 transitions
        (118, 0.19, 47_200),
        (55, 0.16, 22_000),
        (55, 0.36, 10_000),
        (10, 0.36, 2000),
        (10, 0.16, 4000),
        (118, 0.36, 10_000),
        (118, math.inf, 10_000),  # not yet judged
        (4, math.inf, 1000),  # ends before it is judged
        (1000, 0.01, 60_000),
    ],
)
def test_number_of_steps(monkeypatch: pytest.MonkeyPatch, per_pass: int, residual: float, steps: int) -> None:
    monkeypatch.undo()
    assert defaults.default_batches(per_pass, residual) == steps


def test_precise_demonstrations_are_cloned_for_longer() -> None:
    history = clone(make_policy(net_arch=[64]), demonstrations(noise=0.0), **SETTINGS)
    assert history["batch"] == [*range(50, 501, 50)]
    # The rate follows the cosine of 300 steps, and after the judgment that of 500, to its end
    for step, total in ((100, 300), (150, 300), (200, 500), (500, 500)):
        cosine = 1e-4 + 0.5 * (3e-3 - 1e-4) * (1 + math.cos(math.pi * (step - 1) / total))
        assert history["bc/learning_rate"][step // 50 - 1] == pytest.approx(cosine, rel=1e-9), step


@pytest.mark.parametrize("case", ["noisy", "given"])
def test_other_clones_do_not_change(case: str) -> None:
    """With noise, or with a given number of steps, the clone equals one that is not judged, to the last bit."""
    data = demonstrations(noise=0.4 if case == "noisy" else 0.0)
    judged, plain = make_policy(), make_policy()
    clone(judged, data, **SETTINGS | (dict(n_batches=300) if case == "given" else {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behavior_cloning, "JUDGED_AFTER", -1)
        assert clone(plain, data, **SETTINGS | dict(n_batches=300))["batch"][-1] == 300
    assert_same(judged, state_of(plain))


def test_held_out_episodes_are_judged_if_there_are_any() -> None:
    """Only the held-out episodes tell that the actions are random; the clone fits those of the others."""
    rng, arguments = np.random.default_rng(0), SETTINGS | dict(validation_fraction=0.1)
    observations, actions = rng.normal(size=(N, OBS)).astype(np.float32), np.full((N, ACTION), 0.5)
    precise = make_demonstrations(N, observations=observations, actions=actions)
    assert clone(make_policy(), precise, **arguments)["batch"][-1] == 500
    held_out = precise.split(0.1, seed=int(np.random.default_rng(0).integers(2**31)))[1]
    rows = np.flatnonzero(np.isin(observations[:, 0], np.asarray(held_out.observations)[:, 0]))
    assert len(rows) == len(held_out) < N // 5
    actions[rows] = rng.uniform(-1, 1, (len(rows), ACTION))
    noisy = make_demonstrations(N, observations=observations, actions=actions)
    assert clone(make_policy(), noisy, **arguments)["batch"][-1] == 300


def test_policies_with_images_keep_the_smaller_maximum() -> None:
    images = np.stack([IMAGE.sample() for _ in range(N // 4)])
    data = make_demonstrations(N // 4, observations=images, actions=np.zeros((N // 4, ACTION)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(behavior_cloning, "JUDGED_AFTER", 1)
        patch.setattr(defaults, "_MIN_BATCHES", 1)
        patch.setattr(defaults, "_MAX_BATCHES", 3)
        arguments = SETTINGS | dict(batch_size=16, learning_rate=1e-3)
        assert clone(make_policy(IMAGE), data, **arguments)["batch"][-1] == 3


@pytest.mark.parametrize("kill_at", [2, 3, 8])  # before, at and after the judgment
def test_an_interrupted_clone_continues_to_the_same_end(kill_at: int, tmp_path: Path) -> None:
    data, path, calls = demonstrations(noise=0.0), tmp_path / "clone.pt", []

    def kill(metrics: dict[str, float]) -> None:
        calls.append(metrics)
        if len(calls) == kill_at:
            raise RuntimeError("killed")

    whole, resumed = make_policy(), make_policy()
    history = clone(whole, data, **SETTINGS)
    with pytest.raises(RuntimeError, match="killed"):
        clone(make_policy(), data, callback=kill, checkpoint=path, **SETTINGS)
    assert int(th.load(path, weights_only=True)["n_batches"]) == (300 if kill_at == 2 else 500)
    assert clone(resumed, data, checkpoint=path, **SETTINGS)["batch"] == history["batch"]
    assert_same(resumed, state_of(whole))


def test_the_bar_shows_the_new_total(capsys: pytest.CaptureFixture[str]) -> None:
    clone(make_policy(net_arch=[64]), demonstrations(noise=0.0), progress_bar=True, **SETTINGS)
    shown = capsys.readouterr().err
    assert "/300" in shown and "500/500" in shown

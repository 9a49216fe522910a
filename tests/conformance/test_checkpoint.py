"""Checkpoints of every release load, act as they did, and train on. They are written by make_checkpoint.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch as th

from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import make_toy, observe
from tests.conformance.make_checkpoint import DATA, make_checkpoint

FILES = sorted(DATA.glob("*.zip"))


def check(path: Path) -> None:
    algorithm = {str(each): each for each in ALGORITHMS}[path.name.split("-")[0]]
    expected = json.loads(path.with_suffix(".json").read_text())
    model = algorithm.cls.load(path, make_toy(n_envs=2), device="cpu")
    actions = model.predict(observe("flat", np.array(expected["states"])), deterministic=True)[0]
    np.testing.assert_allclose(actions, expected["deterministic_actions"], rtol=0, atol=1e-4)
    assert np.ptp(actions, axis=0).min() > 1e-3, "far more than the tolerance"
    assert model.num_timesteps == expected["num_timesteps"]
    assert model._n_updates == expected["n_updates"]
    assert model.lr_schedule(0.5) == pytest.approx(expected["learning_rate_at_half"])
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(algorithm.iteration(2), reset_num_timesteps=False)
    assert any(not th.equal(a, b) for a, b in zip(model.policy.parameters(), before, strict=True))
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_checkpoint_of_a_release(path: Path) -> None:
    assert path.stat().st_size < 60_000
    check(path)


def test_there_is_a_checkpoint() -> None:
    assert [path.name for path in FILES if path.name.startswith("ScoReFlowPPO-")], "run tests.conformance.make_checkpoint"


def test_script_writes_what_is_checked(tmp_path: Path) -> None:
    for algorithm in ALGORITHMS:
        path = tmp_path / f"{algorithm}-0_0_0.zip"
        make_checkpoint(algorithm, path)
        check(path)

"""The study of clones: its reference is a regression, and its command line leads to its summary."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import clones, study
from tests.bc.helpers import make_demonstrations, make_policy


def test_regression_is_the_mean_squared_error_of_the_action() -> None:
    demonstrations, policy = make_demonstrations(), make_policy(denoising_steps=1)
    arguments = dict(batch_size=60, seed=0, learning_rate=0.0, final_learning_rate=0.0)
    history = clones.Regression(policy, demonstrations, **arguments).train(n_batches=1)  # type: ignore[arg-type]
    actions = policy.predict(demonstrations.observations, deterministic=True)[0]  # type: ignore[arg-type]
    assert np.abs(actions).max() < 1, "none is clamped"
    assert history["bc/loss"] == [pytest.approx(np.square(actions - demonstrations.actions).mean(), rel=1e-5)]


def test_from_the_command_line_to_the_summary(tmp_path: Path) -> None:
    common = ["--task", "hopper-medium", "--seeds", "0", "--episodes", "1", "--output", str(tmp_path)]
    clones.main([*common, "--n-batches", "2", "--variants", "earlier", "regression"])
    clones.main([*common, "--n-batches", "3", "--variants", "earlier"])
    section = study.read_summary(tmp_path)["hopper-medium"]
    assert section["seeds"] == [0] and set(section["origins"]) == {"earlier", "regression"}
    assert section["runs"]["earlier"]["0"]["batches"] == 3 and section["runs"]["regression"]["0"]["batches"] == 2
    assert set(section["mean"]["earlier"]) - set(section["mean"]["regression"]) == {"random_x0"}
    assert section["mean"]["regression"]["deterministic"]["mean"] > 0

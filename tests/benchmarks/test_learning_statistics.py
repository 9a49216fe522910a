"""The statistics that the learning benchmarks report, on scores whose answers are known."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning import (
    FIELDS,
    final_return,
    interquartile_mean,
    probability_of_improvement,
    read_curve,
    steps_to,
    with_bootstrap_interval,
)


def test_interquartile_mean_ignores_the_outer_quarters() -> None:
    assert interquartile_mean(np.array([-1000.0, 1.0]), np.array([2.0, 1000.0])) == 1.5


def test_probability_of_improvement() -> None:
    low, high = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    assert probability_of_improvement(high, low) == 1.0
    assert probability_of_improvement(low, low) == 0.5
    # Better on the first task, worse on the second: tasks count alike whatever their numbers of seeds
    assert probability_of_improvement(high, np.array([0.0]), low, high) == 0.5


def test_bootstrap_draws_within_tasks() -> None:
    # Tasks of different levels without spread: no uncertainty, unless seeds were drawn across tasks
    constant = with_bootstrap_interval(interquartile_mean, [np.full(5, 1.0), np.full(5, 3.0)])
    assert constant == {"value": 2.0, "ci95": [2.0, 2.0]}


def test_bootstrap_interval_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    intervals = [with_bootstrap_interval(interquartile_mean, [rng.normal(size=20)])["ci95"] for _ in range(20)]
    assert 0.8 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 1.0
    assert 0.4 < np.mean([high - low for low, high in intervals]) < 1.6


def test_curve(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    rows: list[list[object]] = [[0, 0, "nan", 10, 0, 0], [100, 25, 20, 30, 1, 1], [200, 50, 40, 20, 2, 2]]
    path.write_text("\n".join([",".join(FIELDS), *(",".join(str(value) for value in row) for row in rows)]))
    curve = read_curve(path)
    assert steps_to(curve, "return_deterministic", 20) == 50
    assert steps_to(curve, "return_exploring", 30) == 150
    assert steps_to(curve, "return_exploring", 20) == 100
    assert steps_to(curve, "return_exploring", 41) == float("inf")
    assert final_return(curve, "return_exploring") == pytest.approx(30)

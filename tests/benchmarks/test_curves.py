"""Curves of runs, and the table that keeps them."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.curves import FIELDS, CurveTable, Run, as_curve, complete
from tests.conformance.envs import make_toy

ROWS = [
    dict(zip(FIELDS, ("0", "0", "nan", "10.5", "0", "0"), strict=True)),
    dict(zip(FIELDS, ("100", "25", "20", "30", "1", "1"), strict=True)),
]


class Interrupt(BaseCallback):
    def _on_step(self) -> bool:
        raise KeyboardInterrupt


def make_model() -> PPO:
    return PPO("MlpPolicy", make_toy(), n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0)


def test_table_keeps_the_numbers_as_they_were_written(tmp_path: Path) -> None:
    table = CurveTable(tmp_path)
    run, old = Run("a", "env", 0), Run("b", "env", 10)
    table.add({run: ROWS, old: [{name: row[name] for name in FIELDS[:-1]} for row in ROWS]})
    curves = table.read()
    assert set(curves) == {run, old}
    for name in FIELDS:
        np.testing.assert_array_equal(curves[run][name], [float(row[name]) for row in ROWS])
    assert np.isnan(curves[old]["cpu_seconds"]).all() and len(curves[old]["env_steps"]) == 2
    with gzip.open(table.path, "rt") as file:
        first, *_ = csv.DictReader(file)
    assert first == {"variant": "a", "env": "env", "seed": "0", **ROWS[0]}


def test_same_curves_are_the_same_bytes(tmp_path: Path) -> None:
    runs = [Run("a", "env", 2), Run("a", "env", 10), Run("b", "other", 0)]
    one, other = CurveTable(tmp_path / "one"), CurveTable(tmp_path / "other")
    for run in runs:
        one.add({run: ROWS})
    other.add({runs[0]: ROWS[:1]})
    for run in reversed(runs):
        other.add({run: ROWS})
    assert one.path.read_bytes() == other.path.read_bytes()
    assert one.path.read_bytes()[4:8] == bytes(4)  # no time


def test_run_is_recorded_before_it_enters_the_table(tmp_path: Path) -> None:
    table, run = CurveTable(tmp_path), Run("ppo", "toy", 3)
    rows = table.record(run, make_model(), 48, make_toy(), eval_every=16, n_eval_episodes=1)
    assert not table.read()
    table.add({run: rows})
    (found,), curve = table.read().values(), as_curve(rows)
    for name in FIELDS:
        np.testing.assert_array_equal(found[name], curve[name])
    np.testing.assert_array_equal(curve["env_steps"], [0, 16, 32, 48])
    np.testing.assert_array_equal(curve["timesteps"], curve["env_steps"])
    assert (np.diff(curve["wall_seconds"]) > 0).all()
    assert not list(table.runs.iterdir())


def test_interrupted_run_leaves_the_finished_ones(tmp_path: Path) -> None:
    table, finished = CurveTable(tmp_path), Run("ppo", "toy", 0)
    table.add({finished: ROWS})
    with pytest.raises(KeyboardInterrupt):
        table.record(Run("ppo", "toy", 1), make_model(), 16, make_toy(), callbacks=[Interrupt()])
    assert set(table.read()) == {finished}
    (partial,) = table.runs.iterdir()
    assert partial.read_text().startswith(",".join(FIELDS))  # what there is of it can be looked at
    second = Run("ppo", "toy", 1)
    table.add({second: table.record(second, make_model(), 16, make_toy(), n_eval_episodes=1)})
    assert set(table.read()) == {finished, second}


def test_complete_variants_have_every_seed() -> None:
    curve = {"env_steps": np.zeros(1)}
    curves = {run: curve for run in (Run("a", "env", 0), Run("a", "env", 1), Run("b", "env", 0), Run("b", "other", 1))}
    assert complete(curves, "env", ["a", "c"], [0, 1]) == {"a": [curve, curve]}
    assert list(complete(curves, "env", ["b", "a"], [0])) == ["b", "a"]
    with pytest.raises(SystemExit, match="There is no summary, because runs are missing: b seed 1, b seed 2, a seed 2"):
        complete(curves, "env", ["b", "a", "c"], [0, 1, 2])

"""Threads, files and memory do not pile up over calls of ``learn``."""

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import configure

from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy

DESCRIPTORS = Path("/proc/self/fd")


def held() -> tuple[int, int]:
    """Threads, and file descriptors where the system lists them."""
    gc.collect()  # what other tests have left behind
    return threading.active_count(), len(os.listdir(DESCRIPTORS)) if DESCRIPTORS.exists() else 0


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        raise RuntimeError("as any callback may")


def scalars(folder: Path, tag: str) -> list[Any]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events.Scalars(tag) if tag in events.Tags()["scalars"] else []


@pytest.mark.first_algorithm
def test_six_calls_of_learn_hold_what_three_hold(algorithm: Algorithm, tmp_path: Path) -> None:
    """With tensorboard, an evaluation, a file saved and an error in between."""
    pytest.importorskip("tensorboard")
    model = algorithm.make("FlowPolicy", make_toy(), tensorboard_log=str(tmp_path / "logs"))
    evaluation = EvalCallback(make_toy(), n_eval_episodes=1, eval_freq=5, log_path=str(tmp_path), verbose=0)
    before, after = held(), []
    for call in range(6):
        model.learn(algorithm.iteration(), callback=evaluation, reset_num_timesteps=call % 3 == 0)
        with pytest.raises(RuntimeError, match="as any callback may"):
            model.learn(algorithm.iteration(), callback=Stop())
        model.save(tmp_path / "model")
        model = algorithm.cls.load(tmp_path / "model", make_toy())
        after.append(held())
    assert after[5] == after[2] == before


def test_what_is_logged_after_learn_is_written_too(algorithm: Algorithm, tmp_path: Path) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), tensorboard_log=str(tmp_path)).learn(algorithm.iteration())
    threads = threading.active_count()
    model.logger.record("mine/afterwards", 3.0)
    model.logger.dump(1234)
    assert threading.active_count() == threads + 1
    model.logger.close()
    assert threading.active_count() == threads
    [folder] = tmp_path.iterdir()
    assert [(event.step, event.value) for event in scalars(folder, "mine/afterwards")] == [(1234, 3.0)]
    assert len(scalars(folder, "time/fps")) == 1
    model.learn(algorithm.iteration())  # though the user closed the logger


@pytest.mark.first_algorithm
def test_a_logger_of_the_users_stays_open(algorithm: Algorithm, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = algorithm.make("FlowPolicy", make_toy())
    logger = configure(str(tmp_path), ["csv", "tensorboard"])
    model.set_logger(logger)
    before = held()
    for _ in range(2):
        model.learn(algorithm.iteration())
    assert held() == before, "the files that the logger opened are open"
    logger.close()
    assert held()[0] == before[0] - 1
    assert (tmp_path / "progress.csv").read_text().count("\n") >= 3

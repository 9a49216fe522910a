"""Cores that may be used, and the warning when torch has more threads."""

import os
import warnings
from pathlib import Path

import pytest
import torch as th

from sb3_scoreflow.common.utils import usable_cores, warn_of_threads
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy


def test_usable_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    assert usable_cores(quota) == 8, "no control groups"
    for text, cores in (("max 100000", 8), ("150000 100000", 2), ("10000 100000", 1), ("6400000 100000", 8), ("", 8)):
        quota.write_text(text)
        assert usable_cores(quota) == cores, text
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores(tmp_path / "none") == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path / "none") == 1


def test_more_threads_than_cores_warn_once(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = algorithm.make("FlowPolicy", make_toy())
    warn_of_threads.cache_clear()
    monkeypatch.setattr(th, "get_num_threads", lambda: 10_000)
    message = r"PyTorch computes with 10000 threads on \d+ usable cores?: .* Set OMP_NUM_THREADS=1"
    with pytest.warns(UserWarning, match=message) as seen:
        model.learn(1)
    assert [Path(w.filename).name for w in seen if "threads" in str(w.message)] == ["test_threads.py"]
    monkeypatch.setattr(th, "get_num_threads", lambda: usable_cores())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="PyTorch computes")
        model.learn(1)
        warn_of_threads(10_000, usable_cores())

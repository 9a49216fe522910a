"""Page faults, which the system counts, tell whether memory is kept."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from sb3_scoreflow.common.kept_memory import kept_memory

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
MINE = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"}

#: Updates in minibatches whose layers' outputs are 35 MB; prints the pages that were faulted in during the last round,
#: first with a setting of the user's, then without
UPDATES = """
import os, resource
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from sb3_scoreflow import ScoReFlowPPO

th.set_num_threads(1)
faults = []

class Counter(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_start(self):
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

arguments = dict(n_steps=50, batch_size=1100, n_epochs=4, denoising_steps=4, device="cpu", seed=0)
env = make_vec_env("Pendulum-v1", n_envs=22)
model = ScoReFlowPPO("MlpPolicy", env, policy_kwargs=dict(net_arch=dict(pi=[2048], vf=[8])), **arguments)
for setting in (dict(MALLOC_TRIM_THRESHOLD_="67108864"), {}):  # after glibc has read its own
    os.environ.update(setting)
    model.learn(3 * 1100, callback=Counter())
    print(faults[-1] - faults[1])
    faults.clear()
    for name in setting:
        del os.environ[name]
"""

#: Blocks of 40 MB that are written to and freed, outside and inside ``kept_memory``; after it blocks of 400 MB, for which no
#: gap between objects that live on can be large enough: one of 40 MB may stay in the heap, empty, and be taken again.
BLOCKS = """
import resource
import torch as th
from sb3_scoreflow.common.kept_memory import kept_memory

def faults(n, megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        th.ones(megabytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

def grow():
    parts = [th.ones(10 * 2**20) for _ in range(5)]

start, outside = resident(), faults(10, 40)
try:
    with kept_memory():
        with kept_memory():
            faults(10, 40)
        inside = faults(10, 40)
        grow()
        kept = resident() - start
        raise KeyError
except KeyError:
    pass
left = resident() - start
print(outside, inside, faults(3, 400), kept, left, resident() - start)
"""


def run(script: str) -> list[float]:
    env = {name: value for name, value in os.environ.items() if name not in MINE}
    output = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=300
    ).stdout
    return [float(number) for number in output.split()]


@glibc
def test_updates_of_large_minibatches_fault_no_pages_in() -> None:
    left, kept = run(UPDATES)
    pages_of_a_layer = 4 * 1100 * 2048 * 4 / os.sysconf("SC_PAGE_SIZE")
    assert left > 4 * pages_of_a_layer  # in each of 4 gradient steps
    assert kept < 0.1 * left


@glibc
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="without /proc")
def test_memory_is_given_back_at_the_end_and_large_blocks_are_mapped_again() -> None:
    outside, inside, after, kept, left, end = run(BLOCKS)
    pages = 2**20 / os.sysconf("SC_PAGE_SIZE")  # of a megabyte
    assert outside >= 10 * 40 * pages and after >= 3 * 400 * pages
    assert inside < 0.1 * 40 * pages
    assert kept > 200 > 20 > max(left, end)  # megabytes


@pytest.mark.parametrize(
    "variable",
    [
        ("MALLOC_MMAP_THRESHOLD_", "1048576"),
        ("MALLOC_TRIM_THRESHOLD_", "1048576"),
        ("MALLOC_MMAP_MAX_", "0"),
        ("GLIBC_TUNABLES", "glibc.pthread.rseq=0:glibc.malloc.trim_threshold=1048576"),
    ],
    ids=lambda variable: variable[0],
)
def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]) -> None:
    assert calls(monkeypatch, variable) == []


def test_other_variables_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [(-3, 2**30), (-1, -1), (-3, 2**25), (-1, 2**26), "trimmed"]
    assert calls(monkeypatch, ("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")) == chosen
    assert calls(monkeypatch, ("MALLOC_ARENA_MAX", "1")) == chosen


def test_nothing_is_done_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calls(monkeypatch, libc="") == []


def calls(
    monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str] = ("GLIBC_TUNABLES", ""), libc: str = "glibc"
) -> list[object]:
    """:return: what ``kept_memory`` asks a library for that pretends to be glibc"""
    asked: list[object] = []

    class Library:
        def __init__(self, _: None) -> None: ...

        def mallopt(self, parameter: int, value: int) -> None:
            asked.append((parameter, value))

        def malloc_trim(self, _: int) -> None:
            asked.append("trimmed")

    with monkeypatch.context() as patch:
        for name in MINE:
            patch.delenv(name, raising=False)
        patch.setenv(*variable)
        patch.setattr(platform, "libc_ver", lambda: (libc, ""))
        patch.setattr(ctypes, "CDLL", Library)
        with kept_memory():
            pass
    return asked

"""docs/scaling.md says what was measured, and what follows from it."""

import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks import ray_scaling
from benchmarks.study import RESULTS

DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"
#: Processor cores of the plan on paper
CORES = (2, 16, 64, 128, 256)


def tables(summary: dict[str, Any]) -> list[str]:
    """:return: the lines of the tables"""
    lines = [
        "| Environment steps per second, over `DummyVecEnv` | `SubprocVecEnv` | 1 worker | 2 | 4 | 8 | MB per worker, of 2 |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, label in (("hopper", "Hopper-v5, 8 environments"), ("lift", "robosuite Lift, 2 environments")):
        found = summary[name]
        ratios = [f"{found['over_dummy'][way]:.2f}" if way in found["over_dummy"] else "" for way in ways()]
        lines.append(f"| {label} | {' | '.join(ratios)} | {found['worker_mb']['ray 2']} |")
    lines += ["| Bytes of an observation | 1 kB | 100 kB | 1 MB | 10 MB |", "|---|---|---|---|---|"]
    for way, label in (("subproc", "`SubprocVecEnv`, ms per step"), ("ray", "`RayVecEnv`, ms per step")):
        times = [f"{summary['sizes'][str(size)][way]:.1f}" for size in ray_scaling.SIZES]
        lines.append(f"| {label} | {' | '.join(times)} |")
    lines += ["| Environments that sleep | workers | ms per step, ideal | ms per step | efficiency |", "|---|---|---|---|---|"]
    for row in summary["sleepers"]:
        lines.append(
            f"| {row['n_envs']} | {row['workers']} | {row['ideal_ms']:.0f} | {row['ms']:.0f} | {row['efficiency']:.2f} |"
        )
    learner, simulated = summary["learner"]["cpu_ms_per_chunk"], chunk_ms(summary)
    lines += [f"| Cores that simulate Lift | {' | '.join(map(str, CORES))} |", "|---|" + "---|" * len(CORES)]
    lines.append(f"| simulation, ms per chunk | {' | '.join(f'{simulated / cores:.2f}' for cores in CORES)} |")
    lines.append(f"| learner, ms per chunk | {' | '.join(f'{learner:.2f}' for _ in CORES)} |")
    both = [(simulated / cores + learner) / max(simulated / cores, learner) for cores in CORES]
    lines.append(f"| both at once, at most times as fast | {' | '.join(f'{gain:.2f}' for gain in both)} |")
    return lines


def ways() -> list[str]:
    return ["subproc", *(f"ray {n}" for n in ray_scaling.WORKERS)]


def chunk_ms(summary: dict[str, Any]) -> float:
    """:return: milliseconds that a core simulates for a chunk of Lift"""
    return 1e3 * summary["horizon"] / summary["lift"]["env_steps_per_second"]["dummy"]


def test_docs() -> None:
    summary = json.loads((RESULTS / "ray_scaling" / "summary.json").read_text())
    text = DOCS.read_text()
    missing = [line for line in tables(summary) if line not in text.splitlines()]
    assert not missing, "\n".join(missing)
    learner = summary["learner"]["cpu_ms_per_chunk"]
    assert f"saturates at about {chunk_ms(summary) / learner:.0f} cores" in " ".join(text.split())
    assert f"{summary['repeats']} turns each" in text
    turns = [each for name in ("hopper", "lift") for each in summary[name]["seconds_per_step"].values()]
    assert f"differ by up to {max(max(each) / min(each) for each in turns):.1f} times" in " ".join(text.split())


def test_seconds_per_step() -> None:
    env = DummyVecEnv([ray_scaling.idle(10, 0.01)] * 2)
    (seconds,) = ray_scaling.take_turns({"dummy": env}, 4, repeats=1)["dummy"]
    assert 0.02 <= seconds < 0.2  # one after the other


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_memory() -> None:
    before = ray_scaling.memory_mb(os.getpid())
    block = mmap.mmap(-1, 30 * 2**20)  # not of memory that was freed before and kept
    for _ in range(30):
        block.write(bytes(2**20))
    assert 29 < ray_scaling.memory_mb(os.getpid()) - before < 40

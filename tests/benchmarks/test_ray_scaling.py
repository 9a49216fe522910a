"""docs/scaling.md says what was measured, and what follows from it."""

import json
import mmap
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks import ray_scaling
from benchmarks.study import RESULTS

DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"
#: Processor cores of the plan on paper
CORES = (2, 16, 64, 128, 256)
TASKS = {"hopper": "Hopper-v5", "lift": "robosuite Lift", "lift_images": "Lift with an image"}
OBSERVATIONS = {
    "hopper": "vectors, with the infos of Hopper-v5",
    "image_84": "an image of 84 x 84",
    "image_256": "an image of 256 x 256",
}


def tables(summary: dict[str, Any]) -> list[str]:
    """:return: the lines of the tables"""
    ways_of = " | ".join(["`DummyVecEnv`", "`SubprocVecEnv`, times that", "1 worker", "2", "4", "8"])
    lines = [f"| Environment steps per second | {ways_of} | MB per worker, of 2 |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, label in TASKS.items():
        found = summary[name]
        ratios = [f"{found['over_dummy'][way]:.2f}" if way in found["over_dummy"] else "" for way in ways()]
        rate = f"{found['env_steps_per_second']['dummy']:.0f}"
        lines.append(
            f"| {label}, {found['n_envs']} environments | {rate} | {' | '.join(ratios)} | {found['worker_mb']['ray 2']} |"
        )
    lines += ["| Bytes of an observation | 1 kB | 100 kB | 1 MB | 10 MB |", "|---|---|---|---|---|"]
    for way, label in (("subproc", "`SubprocVecEnv`, ms per step"), ("ray", "`RayVecEnv`, ms per step")):
        times = [f"{summary['sizes'][str(size)][way]:.1f}" for size in ray_scaling.SIZES]
        lines.append(f"| {label} | {' | '.join(times)} |")
    lines += ["| Nodes | environments that sleep | ms per step, ideal | ms per step | efficiency |", "|---|---|---|---|---|"]
    for row in summary["nodes"]["rows"]:
        share = f"{row['efficiency']:.2f} ({row['range'][0]:.2f} to {row['range'][1]:.2f})"
        lines.append(f"| {row['nodes']} | {row['n_envs']} | {row['ideal_ms']:.0f} | {row['ms']:.1f} | {share} |")
    learner, simulated = summary["learner"]["cpu_ms_per_chunk"], chunk_ms(summary)
    lines += [f"| Cores that simulate Lift | {' | '.join(map(str, CORES))} |", "|---|" + "---|" * len(CORES)]
    lines.append(f"| simulation, ms per chunk | {' | '.join(f'{simulated / cores:.2f}' for cores in CORES)} |")
    lines.append(f"| learner, ms per chunk | {' | '.join(f'{learner:.2f}' for _ in CORES)} |")
    both = [(simulated / cores + learner) / max(simulated / cores, learner) for cores in CORES]
    lines.append(f"| both at once, at most times as fast | {' | '.join(f'{gain:.2f}' for gain in both)} |")
    two = [(simulated / cores + learner) / (simulated / cores + learner / 2) for cores in CORES]
    lines.append(f"| two learners, at most times as fast | {' | '.join(f'{gain:.2f}' for gain in two)} |")
    volumes = {name: summary["network"][name]["bytes_per_env_step"] for name in OBSERVATIONS}
    lines += ["| Observations | bytes per step | MB/s where the learner saturates |", "|---|---|---|"]
    for name, label in OBSERVATIONS.items():
        lines.append(f"| {label} | {volumes[name]:,} | {volumes[name] / learner / 1e3:.1f} |")
    return lines


def ways() -> list[str]:
    return ["subproc", *(f"ray {n}" for n in ray_scaling.WORKERS)]


def chunk_ms(summary: dict[str, Any], task: str = "lift") -> float:
    """:return: milliseconds that a core simulates for a chunk"""
    return 1e3 * ray_scaling.HORIZON / summary[task]["env_steps_per_second"]["dummy"]


def test_docs() -> None:
    summary = json.loads((RESULTS / "ray_scaling" / "summary.json").read_text())
    text = DOCS.read_text()
    missing = [line for line in tables(summary) if line not in text.splitlines()]
    assert not missing, "\n".join(missing)
    learner, with_images = (summary[name]["cpu_ms_per_chunk"] for name in ("learner", "learner_images"))
    turns = [each for name in TASKS for each in summary[name]["seconds_per_step"].values()]
    parameters, with_image = (summary[name]["parameters"] for name in ("learner", "learner_images"))
    step, lift = summary["sizes"]["1000"]["ray"], 8 * chunk_ms(summary) / 1e3
    simulated, ends = chunk_ms(summary), [row["ms"] for row in summary["nodes"]["rows"] if row["ideal_ms"] == 20]
    sentences = [
        f"saturates at about {simulated / learner:.0f} cores of Lift",
        f"Lift's {simulated:.0f} ms per core for a chunk",
        f"the learner's {learner:.2f} ms per chunk",
        f"takes {with_images:.1f} ms of a core for a chunk",
        f"saturates at about {chunk_ms(summary, 'lift_images') / with_images:.0f} cores that render Lift",
        f"{summary['lift']['origin']['repeats']} turns each",
        f"differ by up to {max(max(each) / min(each) for each in turns):.1f} times",
        f"{parameters:,} parameters, or {parameters * 4 / 1e6:.1f} MB",
        f"the policy has {with_image * 4 / 1e6:.0f} MB",
        f"A worker that does nothing takes {step:.1f} ms per step",
        f"100 workers would cost {step / 10:.1f} seconds per step",
        f"8 environments of Lift in chunks of 4 ({lift:.1f} seconds)",
        f"each further node adds {(ends[-1] - ends[0]) / (ray_scaling.NODES[-1] - ray_scaling.NODES[0]):.0f} ms",
        f"At the {1e3 / learner:,.0f} chunks per second",
        f"1.2 from {simulated / learner / 2:.0f} cores of Lift on",  # where simulated / cores is 2 times learner: 3 / 2.5
        f"1.3 times from {0.3 * simulated / learner:.0f} cores of Lift on",
    ]
    missing = [sentence for sentence in sentences if sentence not in " ".join(text.split())]
    assert not missing, "\n".join(missing)


def test_seconds_per_step() -> None:
    env = DummyVecEnv([ray_scaling.idle(10, 0.01)] * 2)
    (seconds,) = ray_scaling.take_turns({"dummy": env}, 4, repeats=1)["dummy"]
    assert 0.02 <= seconds < 0.2  # one after the other


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="needs Linux")
def test_bytes() -> None:
    """What a socket of this machine gets from another one is counted; others may send at the same time."""
    before = ray_scaling.loopback_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            for _ in range(300):
                sender.sendall(bytes(10_000))
                assert len(receiver.recv(10_000, socket.MSG_WAITALL)) == 10_000
    assert 3e6 < ray_scaling.loopback_bytes() - before < 9e6


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_memory() -> None:
    before = ray_scaling.memory_mb(os.getpid())
    block = mmap.mmap(-1, 30 * 2**20)  # not of memory that was freed before and kept
    for _ in range(30):
        block.write(bytes(2**20))
    assert 29 < ray_scaling.memory_mb(os.getpid()) - before < 40

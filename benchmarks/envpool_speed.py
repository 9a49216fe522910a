"""
Env steps per second of EnvPool beside SB3's DummyVecEnv, in turns, with one thread each and random actions.

    python -m benchmarks.envpool_speed

Per turn, each of them takes the same number of env steps; ``cpu`` counts the process's own time, all threads together, and so
depends little on what else the machine does. Only the envs are timed: no policy, no learning.
Results: ``benchmarks/results/envpool_speed.json``.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import ActionChunking
from sb3_scoreflow.envs import EnvPoolVecEnv

TASKS = ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5")
N_ENVS, HORIZONS = 8, (None, 4)


def make(name: str, task_id: str, horizon: int | None) -> VecEnv:
    """:return: The env, seeded"""
    if name == "envpool":
        return EnvPoolVecEnv(task_id, N_ENVS, seed=0, horizon=horizon, num_threads=1)
    wrapper: Any = None if horizon is None else ActionChunking
    wrapper_kwargs = None if horizon is None else dict(horizon=horizon)
    return make_vec_env(task_id, N_ENVS, seed=0, wrapper_class=wrapper, wrapper_kwargs=wrapper_kwargs)


def env_steps_per_second(env: VecEnv, steps: int) -> dict[str, float]:
    """
    :param env: Stepped with random actions, the same in every call
    :param steps: Number of env steps, all envs together, at least; the last chunks are not cut
    :return: Env steps per second of the clock ("wall") and of the process ("cpu")
    """
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (256, N_ENVS, *(env.action_space.shape or ()))).astype(np.float32)
    env.reset()
    taken, turn = 0, 0
    wall, cpu = time.perf_counter(), time.process_time()
    while taken < steps:
        infos = env.step(actions[turn % len(actions)])[3]
        taken += sum(info.get("n_env_steps", 1) for info in infos)
        turn += 1
    return {"wall": taken / (time.perf_counter() - wall), "cpu": taken / (time.process_time() - cpu)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000, help="env steps per turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/envpool_speed.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {**provenance(), "steps": arguments.steps, "n_envs": N_ENVS, "tasks": {}}
    results["versions"]["envpool"] = version("envpool")
    for task_id in TASKS:
        for horizon in HORIZONS:
            envs = {name: make(name, task_id, horizon) for name in ("dummy", "envpool")}
            turns: dict[str, list[dict[str, float]]] = {name: [] for name in envs}
            for _ in range(arguments.repeats):
                for name, env in envs.items():
                    turns[name].append(env_steps_per_second(env, arguments.steps))
            for env in envs.values():
                env.close()
            medians = {
                clock: {name: float(np.median([turn[clock] for turn in values])) for name, values in turns.items()}
                for clock in ("wall", "cpu")
            }
            label = task_id if horizon is None else f"{task_id}, chunks of {horizon}"
            results["tasks"][label] = {
                "env_steps_per_second": turns,
                "medians": medians,
                "ratio_of_medians": {clock: values["envpool"] / values["dummy"] for clock, values in medians.items()},
            }
            print(label, {name: round(value) for name, value in medians["cpu"].items()}, "env steps per CPU second")
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

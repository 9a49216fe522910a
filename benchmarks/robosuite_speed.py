"""
Steps per second of ``make_robomimic`` beside robosuite's own ``step``, in turns, with random actions on one core.

    python -m benchmarks.robosuite_speed

Both step the same simulation to the same states (the tests compare them); only environments are timed. "cpu" counts the
process's own time and so depends little on what else the machine does. Results:
``benchmarks/results/robosuite_speed.json``.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow.envs import RobomimicEnv, make_robomimic

TASKS = ("lift", "can", "square", "transport", "tool_hang")
CAMERAS = {"one image": dict(), "one image, no reflections": dict(reflections=False)}


def steps_per_second(step: Callable[[np.ndarray], Any], env: RobomimicEnv, n_steps: int) -> dict[str, float]:
    """
    :param step: Takes an action
    :param env: What it steps, reset before
    :param n_steps: Number of steps, less than the horizon
    :return: Steps per second of the clock ("wall") and of the process ("cpu")
    """
    env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, (n_steps, *(env.action_space.shape or ())))
    wall, cpu = time.perf_counter(), time.process_time()
    for action in actions:
        step(action)
    return {"wall": n_steps / (time.perf_counter() - wall), "cpu": n_steps / (time.process_time() - cpu)}


def compare(
    steps: dict[str, tuple[Callable[[np.ndarray], Any], RobomimicEnv]], n_steps: int, n_repeats: int
) -> dict[str, Any]:
    """:return: All measurements of the named ways to step, taken in turns, and their medians"""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(n_repeats):
        for name, (step, env) in steps.items():
            turns[name].append(steps_per_second(step, env, n_steps))
    medians = {
        name: {clock: float(np.median([t[clock] for t in values])) for clock in ("wall", "cpu")}
        for name, values in turns.items()
    }
    return {"steps_per_second": turns, "medians": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="steps per turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/robosuite_speed.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {**provenance(), "tasks": {}}
    results["versions"]["robosuite"] = version("robosuite")
    results["environment"]["MUJOCO_GL"] = os.environ.get("MUJOCO_GL", "")
    for task in TASKS:
        env = make_robomimic(task, terminate_on_success=False)
        ways = {"ours": (env.step, env), "robosuite": (env.robosuite_env.step, env)}
        result = compare(ways, arguments.steps, arguments.repeats)
        medians = result["medians"]
        result["ratio_of_medians"] = {clock: medians["ours"][clock] / medians["robosuite"][clock] for clock in ("wall", "cpu")}
        results["tasks"][task] = result
        print(task, {name: round(median["cpu"]) for name, median in medians.items()}, "steps per CPU second", flush=True)
        env.close()
    envs = {
        name: make_robomimic("lift", cameras="agentview", terminate_on_success=False, **options)  # type: ignore[arg-type]
        for name, options in CAMERAS.items()
    }
    results["lift_images"] = compare({name: (env.step, env) for name, env in envs.items()}, 30, arguments.repeats)
    print({name: round(median["cpu"]) for name, median in results["lift_images"]["medians"].items()}, "steps per CPU second")
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

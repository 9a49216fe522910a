"""
Measure how much clones gain from three of RLDT's defaults: TD(lambda) targets, a bound on the change of the policy in an
iteration, and averaged weights for deterministic actions.

    python -m benchmarks.rldt_targets --task hopper-medium
    python -m benchmarks.rldt_targets --task halfcheetah-medium
    python -m benchmarks.rldt_targets --task hopper-precise --data FOLDER

The demonstrations are the embedded ones, which are noisy, or an expert's without noise, which
``benchmarks.make_expert_demonstrations`` writes to the folder. All variants of a seed start from the same clone. By default,
they train for 37,500 chunks of 4 actions, half as many as in ``benchmarks.finetune``.
"""

import argparse
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from benchmarks import study
from benchmarks.curves import RETURNS, CurveTable, Run, complete
from benchmarks.learning import final_return, lowest_over_clone, mean_and_interval
from benchmarks.locomotion import DEMONSTRATIONS, make_envs
from sb3_scoreflow import RLDT, Demonstrations, FlowMatchingPolicy, load_demonstrations, pretrain_bc

#: task -> environment
TASKS = {"hopper-medium": "Hopper-v5", "halfcheetah-medium": "HalfCheetah-v5", "hopper-precise": "Hopper-v5"}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one_step_targets": dict(td_lambda=0.0),
    "unbounded": dict(max_shift=math.inf),
    "neither": dict(td_lambda=0.0, max_shift=math.inf, averaging_horizon=0.0),
}
LABELS = {
    "defaults": "defaults",
    "one_step_targets": "`td_lambda=0`",
    "unbounded": "`max_shift=math.inf`",
    "neither": "`td_lambda=0`, no bound, no average (before)",
}


@lru_cache(maxsize=1)
def demonstrations_of(task: str, data: Path | None) -> Demonstrations:
    """The demonstrations of a task, which are the same for all seeds."""
    if task.endswith("medium"):
        return load_demonstrations(DEMONSTRATIONS[TASKS[task]])
    if data is None:
        raise SystemExit(f"--task {task} needs --data FOLDER with {task}.hdf5, see benchmarks.make_expert_demonstrations.")
    return load_demonstrations(data / f"{task}.hdf5")


@lru_cache(maxsize=1)
def clone(task: str, data: Path | None, seed: int) -> FlowMatchingPolicy:
    """The clone from which all variants start with this seed."""
    th.manual_seed(seed)
    env, _ = make_envs(TASKS[task], seed)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations_of(task, data), seed=seed)
    return policy


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    policy = clone(options.task, options.data, seed)
    env, eval_env = make_envs(TASKS[options.task], seed, n_eval_envs=10)
    model = RLDT("FlowPolicy", env, seed=seed, device="cpu", **VARIANTS[variant])
    model.load_clone(policy)
    rows = CurveTable(options.output).record(Run(variant, options.task, seed), model, options.timesteps, eval_env)
    print(options.task, variant, seed, rows[-1], flush=True)
    return {"curves": {options.task: rows}}


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    folder, task, seeds = options.output, options.task, options.seeds
    table = CurveTable(folder).read()
    curves = complete(table, task, VARIANTS, seeds)
    section = study.read_summary(folder).get(task, {})
    summary: dict[str, Any] = {"seeds": seeds, "origins": study.origins(section, made), "variants": {}}
    summary["demonstrations_return"] = float(demonstrations_of(task, options.data).episode_returns.mean())
    for variant, runs in curves.items():
        entry: dict[str, Any] = {"settings": repr(VARIANTS[variant]), "env_steps": float(runs[0]["env_steps"][-1])}
        for column in RETURNS:
            entry[column] = mean_and_interval([final_return(curve, column) for curve in runs])
        entry["clone"] = [float(curve["return_deterministic"][0]) for curve in runs]
        entry["lowest_deterministic_over_clone"] = [lowest_over_clone(curve) for curve in runs]
        entry["cpu_seconds"] = float(np.mean([curve["cpu_seconds"][-1] for curve in runs]))
        summary["variants"][variant] = entry
        print(variant, {column: entry[column]["per_seed"] for column in RETURNS}, entry["lowest_deterministic_over_clone"])
    study.update_summary(folder, task, summary)
    rows = []
    for name, of in study.read_summary(folder).items():
        labelled = {variant.replace("_", " "): runs for variant, runs in complete(table, name, VARIANTS, of["seeds"]).items()}
        rows.append(study.return_panels(name, labelled))
    study.plot(rows, folder / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "rldt_targets", seeds=(0, 1, 2), variants=VARIANTS, timesteps=37_500)
    parser.add_argument("--task", default="hopper-medium", choices=list(TASKS))
    parser.add_argument("--data", type=Path, help="folder with the experts' demonstrations")
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()

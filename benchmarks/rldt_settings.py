"""
Which of RLDT's settings matter on Hopper: one changed at a time, from the same clones as ``benchmarks.finetune``.

    python -m benchmarks.rldt_settings

The default's curves are those of ``benchmarks/results/finetune`` (its settings do not depend on the length of a run). One CSV
per run in ``benchmarks/results/rldt_settings/``, a summary as JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finetune import DEMONSTRATIONS, cloned_policy, curve_path, make_env
from benchmarks.learning import COLUMNS, Curve, CurveRecorder, mean_and_interval, read_curve
from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import RLDT, load_demonstrations

ENV_ID = "Hopper-v5"
RESULTS = ROOT / "benchmarks/results/rldt_settings"
CHANGES: dict[str, dict[str, Any]] = {
    "warmup_2_iterations": dict(critic_warmup_transitions=2_000),
    "critic_steps_64": dict(critic_steps=64),
    "kernel_delta": dict(kernel="delta"),
    "exploration_0": dict(exploration_scale=0.0),
    "learning_rate_1e-4": dict(learning_rate=1e-4),
    "denoising_steps_8": dict(denoising_steps=8),
}


def path_of(change: str, seed: int) -> Path:
    return RESULTS / f"{ENV_ID}_{change}_seed{seed}.csv"


def run(changes: list[str], seed: int, timesteps: int) -> None:
    torch.manual_seed(seed)
    policy = cloned_policy(ENV_ID, load_demonstrations(DEMONSTRATIONS[ENV_ID]), seed)
    for change in changes:
        env, eval_env = make_env(ENV_ID, 20, 1000 * seed), make_env(ENV_ID, 1, 1000 * seed + 500)
        model = RLDT("FlowPolicy", env, seed=seed, device="cpu", **CHANGES[change])
        model.load_clone(policy)
        model.learn(timesteps, callback=CurveRecorder(path_of(change, seed), eval_env, eval_every=20_000))
        print(change, seed, flush=True)


def last_until(curve: Curve, column: str, env_steps: float) -> float:
    """Mean of the last two evaluations up to a number of env steps."""
    return float(np.nanmean(curve[column][curve["env_steps"] <= 1.02 * env_steps][-2:]))


def summarize(seeds: list[int], origin: dict[str, Any]) -> None:
    runs = {change: {s: read_curve(path_of(change, s)) for s in seeds if path_of(change, s).exists()} for change in CHANGES}
    runs = {"default": {s: read_curve(curve_path(ENV_ID, "rldt", s)) for s in seeds}, **{c: r for c, r in runs.items() if r}}
    steps = min(float(curve["env_steps"][-1]) for curves in runs.values() for curve in curves.values())
    entries = {}
    for change, curves in runs.items():
        entry: dict[str, Any] = {"settings": repr(CHANGES.get(change, {})), "seeds": list(curves)}
        for column in COLUMNS:
            values = [last_until(curve, column, steps) for curve in curves.values()]
            entry[column] = mean_and_interval(values) if len(values) > 1 else {"mean": values[0], "per_seed": values}
        reached = [curve[COLUMNS[1]][curve["env_steps"] <= 1.02 * steps] for curve in curves.values()]
        entry["lowest_deterministic_over_clone"] = [float(values[1:].min() / values[0]) for values in reached]
        entries[change] = entry
        print(change, {column: round(entry[column]["mean"]) for column in COLUMNS}, entry["lowest_deterministic_over_clone"])
    summary = {**origin, "env": ENV_ID, "env_steps": steps, "changes": entries}
    (RESULTS / f"{ENV_ID}_summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=40_000, help="chunks of 4 actions (default 40000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--changes", nargs="*", default=list(CHANGES), choices=list(CHANGES), help="runs to make; none: only summarize"
    )
    arguments = parser.parse_args()
    origin = provenance()  # now: the working tree may be another one when the runs end
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        if arguments.changes:
            run(arguments.changes, seed, arguments.timesteps)
    summarize(arguments.seeds, origin)


if __name__ == "__main__":
    main()

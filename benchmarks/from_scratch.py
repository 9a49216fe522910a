"""
From scratch, without demonstrations: ScoReFlowPPO at its defaults and without the score, RLDT at its defaults but for
a wide prior, and Stable-Baselines3's PPO and SAC at theirs.

    python -m benchmarks.from_scratch --env HalfCheetah-v5 --variants scoreflow no_score sb3_ppo
    python -m benchmarks.from_scratch --env HalfCheetah-v5 --variants rldt sb3_sac --timesteps 25000
    python -m benchmarks.from_scratch --env Pendulum-v1 --variants scoreflow no_score sb3_ppo
    python -m benchmarks.from_scratch --env Pendulum-v1 --variants rldt sb3_sac --timesteps 10000

RLDT and SAC do many gradient steps per env step, so they get fewer env steps: the summary has every variant at the end of its
runs and at the number of env steps that all of them have. One CSV per run in ``benchmarks/results/from_scratch/``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.learning import Curve, CurveRecorder, final_return, mean_and_interval, read_curve
from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import RLDT, ScoReFlowPPO

RESULTS = ROOT / "benchmarks/results/from_scratch"
VARIANTS: dict[str, dict[str, Any]] = {
    "scoreflow": dict(algorithm=ScoReFlowPPO, policy="FlowPolicy", n_envs=8),
    "no_score": dict(algorithm=ScoReFlowPPO, policy="FlowPolicy", n_envs=8, score_drift="none"),
    # An untrained policy as wide as the action space: the critics learn nothing about actions that nobody tries.
    "rldt": dict(algorithm=RLDT, policy="FlowPolicy", n_envs=8, policy_kwargs=dict(prior_std=1.0)),
    "sb3_ppo": dict(algorithm=PPO, policy="MlpPolicy", n_envs=1),
    "sb3_sac": dict(algorithm=SAC, policy="MlpPolicy", n_envs=1),
}


def run(env_id: str, variant: str, seed: int, timesteps: int, path: Path) -> None:
    arguments = dict(VARIANTS[variant])
    algorithm, policy, n_envs = arguments.pop("algorithm"), arguments.pop("policy"), arguments.pop("n_envs")
    env = make_vec_env(env_id, n_envs=n_envs, seed=1000 * seed)
    eval_env = make_vec_env(env_id, n_envs=1, seed=1000 * seed + 500)
    model: BaseAlgorithm = algorithm(policy, env, seed=seed, device="cpu", **arguments)
    model.learn(timesteps, callback=CurveRecorder(path, eval_env, eval_every=timesteps // 10))


def return_at(curve: Curve, column: str, env_steps: float) -> float:
    """Interpolated between evaluations."""
    known = ~np.isnan(curve[column])
    return float(np.interp(env_steps, curve["env_steps"][known], curve[column][known]))


def summarize(env_id: str, seeds: list[int], origin: dict[str, Any]) -> None:
    paths = {v: [RESULTS / f"{env_id}_{v}_seed{seed}.csv" for seed in seeds] for v in VARIANTS}
    runs = {v: [read_curve(path) for path in files] for v, files in paths.items() if all(path.exists() for path in files)}
    common = min(float(curve["env_steps"][-1]) for curves in runs.values() for curve in curves)
    summary: dict[str, Any] = {"env": env_id, "seeds": seeds, **origin, "common_env_steps": common, "variants": {}}
    for variant, curves in runs.items():
        entry: dict[str, Any] = {}
        for column in ("return_exploring", "return_deterministic"):
            entry[column] = mean_and_interval([final_return(curve, column, 2) for curve in curves])
            entry[f"{column}_at_common"] = mean_and_interval([return_at(curve, column, common) for curve in curves])
        entry["env_steps"] = {"per_seed": [float(curve["env_steps"][-1]) for curve in curves]}
        entry["wall_seconds"] = mean_and_interval([float(curve["wall_seconds"][-1]) for curve in curves])
        summary["variants"][variant] = entry
    path = RESULTS / f"{env_id}_summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    for variant, entry in summary["variants"].items():
        print(variant, {name: round(value["mean"], 1) for name, value in entry.items() if "mean" in value})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--timesteps", type=int, default=250_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="runs to make; none: only summarize"
    )
    arguments = parser.parse_args()
    origin = provenance()  # now: the working tree may be another one when the runs end
    torch.set_num_threads(1)
    # Seeds outside, variants inside: variants that are compared run next to each other in time.
    for seed in arguments.seeds:
        for variant in arguments.variants:
            run(arguments.env, variant, seed, arguments.timesteps, RESULTS / f"{arguments.env}_{variant}_seed{seed}.csv")
    summarize(arguments.env, arguments.seeds, origin)


if __name__ == "__main__":
    main()

"""
Compare algorithms that learn from scratch, without demonstrations: ScoReFlowPPO at its defaults and without the score, RLDT at
its defaults except for a wide prior, and Stable-Baselines3's PPO and SAC at their defaults.

    python -m benchmarks.from_scratch --env HalfCheetah-v5 --variants scoreflow no_score sb3_ppo
    python -m benchmarks.from_scratch --env HalfCheetah-v5 --variants rldt sb3_sac --timesteps 25000
    python -m benchmarks.from_scratch --env Pendulum-v1 --variants scoreflow no_score sb3_ppo
    python -m benchmarks.from_scratch --env Pendulum-v1 --variants rldt sb3_sac --timesteps 10000

RLDT and SAC take many gradient steps per environment step, so they get fewer environment steps. The summary contains the
return of every variant at the end of its runs and at the number of environment steps that all variants reach.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env

from benchmarks import study
from benchmarks.curves import RETURNS, Curve, CurveTable, Run, complete
from benchmarks.learning import final_return, mean_and_interval
from benchmarks.study import Variant
from sb3_scoreflow import RLDT, ScoReFlowPPO

#: ``n_envs`` among the settings is the number of environments.
VARIANTS = {
    "scoreflow": Variant("ScoReFlowPPO", ScoReFlowPPO, dict(n_envs=8)),
    "no_score": Variant("ScoReFlowPPO, no score", ScoReFlowPPO, dict(n_envs=8, score_drift="none")),
    # An untrained policy must be as wide as the action space: the critics learn nothing about actions that are never tried.
    "rldt": Variant("RLDT, wide prior", RLDT, dict(n_envs=8, policy_kwargs=dict(prior_std=1.0))),
    "sb3_ppo": Variant("PPO", PPO, dict(n_envs=1)),
    "sb3_sac": Variant("SAC", SAC, dict(n_envs=1)),
}


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    _, algorithm, settings = VARIANTS[variant]
    arguments = dict(settings)
    env = make_vec_env(options.env, n_envs=arguments.pop("n_envs"), seed=1000 * seed)
    eval_env = make_vec_env(options.env, n_envs=1, seed=1000 * seed + 500)
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **arguments)
    table, steps = CurveTable(options.output), options.timesteps
    rows = table.record(Run(variant, options.env, seed), model, steps, eval_env, eval_every=steps // 10)
    return {"curves": {options.env: rows}}


def return_at(curve: Curve, column: str, env_steps: float) -> float:
    """Return at a number of environment steps, interpolated between evaluations; NaN if no episode has ended."""
    known = ~np.isnan(curve[column])
    if not known.any():
        return float("nan")
    return float(np.interp(env_steps, curve["env_steps"][known], curve[column][known]))


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    folder, env_id, seeds = options.output, options.env, options.seeds
    table = CurveTable(folder).read()
    runs = complete(table, env_id, VARIANTS, seeds)
    common = min(float(curve["env_steps"][-1]) for curves in runs.values() for curve in curves)
    variants: dict[str, Any] = {}
    for variant, curves in runs.items():
        entry: dict[str, Any] = {}
        for column in RETURNS:
            entry[column] = mean_and_interval([final_return(curve, column, 2) for curve in curves])
            entry[f"{column}_at_common"] = mean_and_interval([return_at(curve, column, common) for curve in curves])
        entry["env_steps"] = {"per_seed": [float(curve["env_steps"][-1]) for curve in curves]}
        entry["wall_seconds"] = mean_and_interval([float(curve["wall_seconds"][-1]) for curve in curves])
        variants[variant] = entry
        print(variant, {name: round(value["mean"], 1) for name, value in entry.items() if "mean" in value})
    sources = study.origins(study.read_summary(folder).get(env_id, {}), made)
    summary = {"env": env_id, "seeds": seeds, "origins": sources, "common_env_steps": common, "variants": variants}
    study.update_summary(folder, env_id, summary)
    rows = []
    for env, section in study.read_summary(folder).items():
        of_env = complete(table, env, VARIANTS, section["seeds"])
        rows.append(study.return_panels(env, {VARIANTS[name].label: curves for name, curves in of_env.items()}))
    study.plot(rows, folder / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "from_scratch", seeds=(0, 1, 2), variants=VARIANTS, timesteps=250_000)
    parser.add_argument("--env", default="HalfCheetah-v5")
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()

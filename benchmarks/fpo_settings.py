"""
Search FPO's settings on Hopper and HalfCheetah, with a separate seed. The search has twice as many settings as the search for
each variant of ScoReFlowPPO (``benchmarks.score``).

    python -m benchmarks.fpo_settings

``benchmarks.finetune`` compares the defaults and the best settings of the search with the other algorithms, on other seeds.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import study
from benchmarks.curves import RETURNS, CurveTable, Run, as_curve
from benchmarks.learning import final_return, lowest_over_clone
from benchmarks.locomotion import CLONE_BATCHES, DEMONSTRATIONS, clone, demonstrations_of, make_envs
from sb3_scoreflow import FPO
from sb3_scoreflow.common.schedules import HalfLifeSchedule

ENV_IDS = ("Hopper-v5", "HalfCheetah-v5")
ITERATION: dict[str, Any] = dict(n_steps=100, batch_size=250)


def rate(first: float) -> HalfLifeSchedule:
    """The default schedule with another initial value."""
    return HalfLifeSchedule(first, first / 10, half_life=25_000)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "learning_rate_1e-4": dict(learning_rate=rate(1e-4)),
    "learning_rate_4e-4": dict(learning_rate=rate(4e-4)),
    "clip_0.02": dict(clip_range=0.02),
    "clip_0.1": dict(clip_range=0.1),
    "iterations_of_1000": dict(n_steps=50, n_epochs=8),
    "pairs_16": dict(n_mc_samples=16),
    "mean_ratio_clip_0.02": dict(ratio="mean", clip_range=0.02),
}


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    curves = {}
    for env_id in options.envs:
        env, eval_env = make_envs(env_id, seed)
        model = FPO("FlowPolicy", env, seed=seed, device="cpu", **{**ITERATION, **VARIANTS[variant]})
        model.load_clone(clone(env_id, seed))
        model.pretrain_critic(demonstrations_of(env_id), CLONE_BATCHES // 5, seed=seed)
        curves[env_id] = CurveTable(options.output).record(Run(variant, env_id, seed), model, options.timesteps, eval_env)
        last = {name: round(final_return(as_curve(curves[env_id]), name)) for name in RETURNS}
        print(env_id, variant, seed, last, flush=True)
    return {"curves": curves}


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    table = CurveTable(options.output).read()
    entries: dict[str, Any] = {}
    for variant, settings in VARIANTS.items():
        entry: dict[str, Any] = {"settings": repr(settings)}
        for env_id in DEMONSTRATIONS:
            for seed in options.seeds:
                curve = table.get(Run(variant, env_id, seed))
                if curve is not None:
                    last = {name: final_return(curve, name) for name in RETURNS}
                    lowest = lowest_over_clone(curve)
                    mean = {name.replace("return", "mean"): float(np.nanmean(curve[name])) for name in RETURNS}
                    entry[f"{env_id}, seed {seed}"] = {**last, **mean, "lowest_deterministic_over_clone": lowest}
        if len(entry) > 1:
            entries[variant] = entry
    sources = study.origins(study.read_summary(options.output), made)
    study.write_summary(options.output, {"origins": sources, "seeds": options.seeds, "settings": entries})
    rows = []
    for env_id in ENV_IDS:
        of_env = {v: [curve for run, curve in table.items() if run[:2] == (v, env_id)] for v in VARIANTS}
        rows.append(study.return_panels(env_id, {v.replace("_", " "): runs for v, runs in of_env.items() if runs}))
    study.plot(rows, options.output / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "fpo_settings", seeds=(100,), variants=VARIANTS, timesteps=75_000)
    parser.add_argument("--envs", nargs="+", default=list(ENV_IDS), choices=ENV_IDS)
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()

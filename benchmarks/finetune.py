"""
Fine-tuning from one clone: RLDT, FPO and ScoReFlowPPO at their defaults, the last without score (ReinFlow) too, and a Gaussian
PPO cloned from the same data.

    python -m benchmarks.finetune --env Hopper-v5
    python -m benchmarks.finetune --env HalfCheetah-v5

For every seed one behavior-cloned flow policy is the common start of the three flow variants. All get the same env steps. One
CSV per run in ``benchmarks/results/finetune/``, a summary of all seeds as JSON (env steps to thresholds as ratios, confidence
intervals) and a plot.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.gaussian_baseline import clone, gaussian_ppo, normalized
from benchmarks.learning import (
    COLUMNS,
    Curve,
    CurveRecorder,
    evaluate,
    final_return,
    finite_or_none,
    mean_and_interval,
    read_curve,
    steps_to,
)
from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import (
    ALGORITHMS,
    ActionChunking,
    CosineSchedule,
    Demonstrations,
    FlowMatchingPolicy,
    ScoReFlowPPO,
    load_demonstrations,
    pretrain_bc,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DEMONSTRATIONS = {"Hopper-v5": "builtin:hopper-medium", "HalfCheetah-v5": "builtin:halfcheetah-medium"}
HORIZON = 4
RESULTS = ROOT / "benchmarks/results/finetune"
#: The defaults, their iteration of 2048 chunks rounded to what 20 environments allow.
ITERATION: dict[str, Any] = dict(n_steps=100, batch_size=250)
VARIANTS: dict[str, dict[str, Any]] = {
    "scoreflow_ppo": ITERATION,
    "no_score": dict(score_drift="none", **ITERATION),
    "gaussian_ppo": dict(n_steps=100, batch_size=500, n_epochs=8, learning_rate=CosineSchedule(2e-4, 2e-5), clip_range=0.2),
    "rldt": {},
    "fpo": ITERATION,
}
LABELS = dict(
    scoreflow_ppo="ScoReFlowPPO",
    no_score="ScoReFlowPPO, no score (ReinFlow)",
    gaussian_ppo="Gaussian PPO",
    rldt="RLDT",
    fpo="FPO",
)
CLONE_BATCHES = 10_000
GAUSSIAN_STD = 0.2


def curve_path(env_id: str, variant: str, seed: int) -> Path:
    return RESULTS / f"{env_id}_{variant}_seed{seed}.csv"


def make_env(env_id: str, n_envs: int, seed: int) -> VecEnv:
    return make_vec_env(env_id, n_envs=n_envs, seed=seed, wrapper_class=partial(ActionChunking, horizon=HORIZON))


def cloned_policy(env_id: str, demonstrations: Demonstrations, seed: int) -> FlowMatchingPolicy:
    """The clone that all flow variants of a seed start from."""
    env = make_env(env_id, 1, 1000 * seed)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations, n_batches=CLONE_BATCHES, seed=seed)
    return policy


def run(env_id: str, variants: list[str], seed: int, timesteps: int) -> None:
    demonstrations = load_demonstrations(DEMONSTRATIONS[env_id])
    torch.manual_seed(seed)
    policy = cloned_policy(env_id, demonstrations, seed)
    for variant in variants:
        env, eval_env = make_env(env_id, 20, 1000 * seed), make_env(env_id, 1, 1000 * seed + 500)
        model: Any
        if variant == "gaussian_ppo":
            eval_env = normalized(eval_env, demonstrations, training=False)
            model = gaussian_ppo(env, demonstrations, GAUSSIAN_STD, seed, **VARIANTS[variant])
            clone(model, demonstrations, HORIZON, CLONE_BATCHES, 256, seed)
        else:
            cls: Any = ALGORITHMS.get(variant, ScoReFlowPPO)
            model = cls("FlowPolicy", env, seed=seed, device="cpu", **VARIANTS[variant])
            model.load_clone(policy)
            if cls.capabilities.value_function:  # the part of pretrain_bc that is its algorithm's own
                model.pretrain_critic(demonstrations, CLONE_BATCHES // 5, seed=seed)
        recorder = CurveRecorder(curve_path(env_id, variant, seed), eval_env, eval_every=20_000)
        model.learn(timesteps, callback=recorder)
        final = evaluate(model, eval_env, 20)
        print(env_id, variant, seed, "final deterministic return over 20 episodes:", round(final), flush=True)


def speed(runs: list[Curve], reference: list[Curve], column: str, threshold: float) -> dict[str, Any]:
    """Env steps to a threshold, and how many times fewer than without score; each ratio is between runs of one clone."""
    steps = [steps_to(curve, column, threshold) for curve in runs]
    result: dict[str, Any] = {
        "threshold": threshold,
        "per_seed": [finite_or_none(x) for x in steps],
        "median": finite_or_none(float(np.median(steps))),
    }
    reference_steps = [steps_to(curve, column, threshold) for curve in reference]
    if np.isfinite([*steps, *reference_steps]).all():
        logs = mean_and_interval([float(np.log(max(r, 1) / max(s, 1))) for r, s in zip(reference_steps, steps, strict=True)])
        result["speedup_over_no_score"] = {
            "geometric_mean": float(np.exp(logs["mean"])),
            "ci95": np.exp(logs["ci95"]).tolist(),
        }
    return result


def summarize(env_id: str, seeds: list[int], made: list[str], origin: dict[str, Any]) -> None:
    """``made``: variants that ``origin`` made just now; the others keep theirs."""
    path = RESULTS / f"{env_id}_summary.json"
    before = json.loads(path.read_text())["origins"] if path.exists() else {}
    curves = {v: [read_curve(p) for seed in seeds if (p := curve_path(env_id, v, seed)).exists()] for v in VARIANTS}
    curves = {variant: runs for variant, runs in curves.items() if len(runs) == len(seeds)}
    summary: dict[str, Any] = {
        "env": env_id,
        "seeds": seeds,
        "origins": {**before, **dict.fromkeys(made, origin)},
        "settings": {v: repr(a) for v, a in VARIANTS.items()},
    }
    for column in COLUMNS:
        # Thresholds between the clones' level and the best final level of any variant, the same for all.
        start = float(np.mean([np.nanmean(curve[column][:2]) for runs in curves.values() for curve in runs]))
        best = max(float(np.mean([final_return(curve, column) for curve in runs])) for runs in curves.values())
        variants = {}
        for variant, runs in curves.items():
            entry = {"final": mean_and_interval([final_return(curve, column) for curve in runs])}
            for fraction in (0.5, 0.75, 0.9):
                threshold = start + fraction * (best - start)
                entry[f"steps_to_{fraction:.0%}"] = speed(runs, curves.get("no_score", runs), column, threshold)
            variants[variant] = entry
            print(column, variant, json.dumps({k: v.get("mean", v.get("median")) for k, v in entry.items()}))
        summary[column] = {"start": start, "best_final": best, "variants": variants}
    for column in ("wall_seconds", "cpu_seconds"):
        summary[column] = {v: mean_and_interval([float(c[column][-1]) for c in runs]) for v, runs in curves.items()}
    # The worst deterministic evaluation after the start, as a share of the clone's return
    lowest = {v: [float(c[COLUMNS[1]][1:].min() / c[COLUMNS[1]][0]) for c in runs] for v, runs in curves.items()}
    summary["lowest_deterministic_over_clone"] = lowest
    path.write_text(json.dumps(summary, indent=2) + "\n")
    plot(env_id, curves)


def plot(env_id: str, curves: dict[str, list[Curve]]) -> None:
    """Both returns over environment steps and over processor time; mean and range over seeds."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7.5), sharey=True)
    abscissas = {"env_steps": "environment steps", "cpu_seconds": "processor seconds"}
    for row, (x, label) in zip(panels, abscissas.items(), strict=True):
        for axes, column, title in zip(row, COLUMNS, ("while exploring", "deterministic"), strict=True):
            for variant, runs in curves.items():
                grid = np.linspace(0, min(c[x][-1] for c in runs), 50)
                values = np.array([np.interp(grid, c[x][(ok := ~np.isnan(c[column]))], c[column][ok]) for c in runs])
                (line,) = axes.plot(grid, values.mean(0), label=LABELS[variant])
                axes.fill_between(grid, values.min(0), values.max(0), color=line.get_color(), alpha=0.15)
            axes.set(xlabel=label, title=f"return {title}")
            axes.grid(alpha=0.3)
        row[0].set_ylabel(f"{env_id}, mean and range over seeds")
    panels[0, 0].legend()
    figure.tight_layout()
    figure.savefig(RESULTS / f"{env_id}.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Hopper-v5", choices=list(DEMONSTRATIONS))
    parser.add_argument("--timesteps", type=int, default=75_000, help="chunks of 4 actions (default 75000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="runs to make; none: only summarize"
    )
    arguments = parser.parse_args()
    origin = provenance()  # now: the working tree may be another one when the runs end
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        if arguments.variants:
            run(arguments.env, arguments.variants, seed, arguments.timesteps)
    summarize(arguments.env, arguments.seeds, arguments.variants, origin)


if __name__ == "__main__":
    main()

"""
Compare algorithms that fine-tune one clone: RLDT, FPO and ScoReFlowPPO at their defaults, variants of ScoReFlowPPO such as the
one without score (ReinFlow), FPO at the best settings of ``benchmarks.fpo_settings``, and a Gaussian PPO cloned from the same
data.

    python -m benchmarks.finetune --env Hopper-v5
    python -m benchmarks.finetune --env HalfCheetah-v5

For every seed, all flow variants start from the same behavior-cloned flow policy. All variants train for the same number of
chunks of 4 actions, by default 75,000. The summary contains returns, the environment steps to thresholds, and ratios of these
steps.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import gaussian_baseline, study
from benchmarks.curves import RETURNS, Curve, CurveTable, Run, as_curve, complete
from benchmarks.learning import all_steps_to, final_return, lowest_over_clone, mean_and_interval
from benchmarks.locomotion import CLONE_BATCHES, DEMONSTRATIONS, HORIZON, clone, demonstrations_of, make_envs
from benchmarks.study import Variant
from sb3_scoreflow import FPO, RLDT, CosineSchedule, Demonstrations, FlowMatchingPolicy, ScoReFlowPPO

#: The defaults, with an iteration of 2000 instead of 2048 chunks because of the 20 environments.
ITERATION: dict[str, Any] = dict(n_steps=100, batch_size=250)
#: Without validation and the loss that needs it
UNVALIDATED: dict[str, Any] = dict(validation_fraction=0.0, deterministic_coef=0.0, **ITERATION)
GAUSSIAN: dict[str, Any] = dict(
    n_steps=100, batch_size=500, n_epochs=8, learning_rate=CosineSchedule(2e-4, 2e-5), clip_range=0.2
)
VARIANTS = {
    "scoreflow_ppo": Variant("ScoReFlowPPO", ScoReFlowPPO, ITERATION),
    "no_score": Variant("ScoReFlowPPO, no score (ReinFlow)", ScoReFlowPPO, dict(score_drift="none", **ITERATION)),
    "single_steps": Variant("ScoReFlowPPO, half single steps", ScoReFlowPPO, dict(single_step_fraction=0.5, **ITERATION)),
    # Earlier defaults, with averages and without: the same training
    "unvalidated": Variant(
        "ScoReFlowPPO, averages without validation", ScoReFlowPPO, dict(averaging_horizon=40_000.0, **UNVALIDATED)
    ),
    "current_weights": Variant("ScoReFlowPPO, current weights", ScoReFlowPPO, dict(averaging_horizon=0.0, **UNVALIDATED)),
    "gaussian_ppo": Variant("Gaussian PPO", PPO, GAUSSIAN),
    "rldt": Variant("RLDT", RLDT, {}),
    "fpo": Variant("FPO", FPO, ITERATION),
    "fpo_normal_noise": Variant("FPO, only normal noise", FPO, dict(zero_noise_fraction=0.0, **ITERATION)),
    "fpo_published": Variant(
        "FPO, also without averages and rollback",
        FPO,
        dict(zero_noise_fraction=0.0, averaging_horizon=0.0, rollback=False, **ITERATION),
    ),
    "fpo_searched": Variant("FPO, searched", FPO, dict(n_steps=50, batch_size=250, n_epochs=8)),
}
#: Variants of the README's figure, overview.png
OVERVIEW = ("scoreflow_ppo", "rldt", "fpo", "gaussian_ppo")
GAUSSIAN_STD = 0.2


def start(
    variant: Variant,
    env: VecEnv,
    eval_env: VecEnv,
    demonstrations: Demonstrations,
    flow_clone: Callable[[], FlowMatchingPolicy | Path],
    seed: int,
) -> tuple[Any, VecEnv]:
    """
    :param variant: variant to fine-tune
    :param env: training environment
    :param eval_env: evaluation environment
    :param demonstrations: demonstrations to clone
    :param flow_clone: function that returns the clone from which the flow variants start, or its file; the Gaussian policy is
        cloned here
    :param seed: seed of the model and of the clone
    :return: the model before fine-tuning, and the evaluation environment with the wrappers that the model needs
    """
    _, algorithm, settings = variant
    if algorithm is PPO:
        gaussian = gaussian_baseline.make(env, demonstrations, GAUSSIAN_STD, seed, **settings)
        gaussian_baseline.clone(gaussian, demonstrations, HORIZON, CLONE_BATCHES, 256, seed)
        return gaussian, gaussian_baseline.normalized(eval_env, demonstrations, training=False)
    policy = flow_clone()  # before the model is created, which seeds the generators
    model: Any = algorithm("FlowPolicy", env, seed=seed, device="cpu", **settings)
    model.load_clone(policy)
    if model.capabilities.value_function:  # load_clone does not fit the critic, unlike pretrain_bc
        model.pretrain_critic(demonstrations, CLONE_BATCHES // 5, seed=seed)
    return model, eval_env


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    demonstrations, (env, eval_env) = demonstrations_of(options.env), make_envs(options.env, seed)
    model, eval_env = start(VARIANTS[variant], env, eval_env, demonstrations, lambda: clone(options.env, seed), seed)
    rows = CurveTable(options.output).record(Run(variant, options.env, seed), model, options.timesteps, eval_env)
    last = {name: f"{final_return(as_curve(rows), name):.0f}" for name in RETURNS}
    print(options.env, variant, seed, "last evaluations:", last, flush=True)
    return {"curves": {options.env: rows}}


def speed(runs: list[Curve], reference: list[Curve] | None, column: str, threshold: float) -> dict[str, Any]:
    """Environment steps to a threshold, and their ratio to the steps without score; each ratio compares runs of one clone."""
    result = all_steps_to(runs, column, threshold)
    if reference is None:
        return result
    steps, others = result["per_seed"], all_steps_to(reference, column, threshold)["per_seed"]
    if None not in steps and None not in others:
        logs = mean_and_interval([float(np.log(max(r, 1) / max(s, 1))) for r, s in zip(others, steps, strict=True)])
        ratios = {"geometric_mean": float(np.exp(logs["mean"]))}
        if "ci95" in logs:
            ratios["ci95"] = np.exp(logs["ci95"]).tolist()
        result["speedup_over_no_score"] = ratios
    return result


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    folder, env_id, seeds = options.output, options.env, options.seeds
    table = CurveTable(folder).read()
    curves = complete(table, env_id, VARIANTS, seeds)
    summary: dict[str, Any] = {
        "env": env_id,
        "seeds": seeds,
        "origins": study.origins(study.read_summary(folder).get(env_id, {}), made),
        "settings": {name: repr(variant.settings) for name, variant in VARIANTS.items()},
    }
    for column in RETURNS:
        # All variants have the same thresholds, between the clones' return and the best final return of any variant.
        start = float(np.mean([np.nanmean(curve[column][:2]) for runs in curves.values() for curve in runs]))
        best = max(float(np.mean([final_return(curve, column) for curve in runs])) for runs in curves.values())
        variants = {}
        for variant, runs in curves.items():
            entry = {"final": mean_and_interval([final_return(curve, column) for curve in runs])}
            for fraction in (0.5, 0.75, 0.9):
                threshold = start + fraction * (best - start)
                entry[f"steps_to_{fraction:.0%}"] = speed(runs, curves.get("no_score"), column, threshold)
            variants[variant] = entry
            print(column, variant, {name: value.get("mean", value.get("median")) for name, value in entry.items()})
        summary[column] = {"start": start, "best_final": best, "variants": variants}
    for column in ("wall_seconds", "cpu_seconds"):
        summary[column] = {v: mean_and_interval([float(c[column][-1]) for c in runs]) for v, runs in curves.items()}
    lowest = {variant: [lowest_over_clone(curve) for curve in runs] for variant, runs in curves.items()}
    summary["lowest_deterministic_over_clone"] = lowest
    study.update_summary(folder, env_id, summary)
    rows, overview = [], []
    for env, section in study.read_summary(folder).items():
        of_env = complete(table, env, VARIANTS, section["seeds"])
        labelled = {VARIANTS[name].label: runs for name, runs in of_env.items()}
        rows += [study.return_panels(env, labelled, x) for x in ("env_steps", "cpu_seconds")]
        few = {VARIANTS[name].label: runs for name, runs in of_env.items() if name in OVERVIEW}
        overview += [study.Panel(f"{env}, deterministic policy", few, "return_deterministic")] if few else []
    study.plot(rows, folder / "figure.png")
    if overview:
        study.plot([overview], folder / "overview.png", dpi=90, sharey=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "finetune", seeds=(0, 1, 2), variants=VARIANTS, timesteps=75_000)
    parser.add_argument("--env", default="Hopper-v5", choices=list(DEMONSTRATIONS))
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()

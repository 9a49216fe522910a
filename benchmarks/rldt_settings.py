"""
Measure which of RLDT's settings matter on Hopper, by changing one at a time, from the same clones as ``benchmarks.finetune``.

    python -m benchmarks.rldt_settings

The curves of the default come from ``benchmarks.finetune``; they were made with the defaults before ``td_lambda=0.95``. By
default, variants train for 40,000 chunks of 4 actions.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import study
from benchmarks.curves import RETURNS, Curve, CurveTable, Run, complete
from benchmarks.learning import lowest_over_clone, mean_and_interval
from benchmarks.locomotion import clone, make_envs
from sb3_scoreflow import RLDT

ENV_ID = "Hopper-v5"
VARIANTS: dict[str, dict[str, Any]] = {
    "warmup_2_iterations": dict(critic_warmup_transitions=2_000),
    "critic_steps_64": dict(critic_steps=64),
    "kernel_delta": dict(transport=dict(kernel="delta")),
    "exploration_0": dict(policy_kwargs=dict(exploration_scale=0.0)),
    "learning_rate_1e-4": dict(learning_rate=1e-4),
    "denoising_steps_8": dict(denoising_steps=8),
}


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    env, eval_env = make_envs(ENV_ID, seed)
    policy = clone(ENV_ID, seed)
    model = RLDT("FlowPolicy", env, seed=seed, device="cpu", **VARIANTS[variant])
    model.load_clone(policy)
    rows = CurveTable(options.output).record(Run(variant, ENV_ID, seed), model, options.timesteps, eval_env)
    print(variant, seed, flush=True)
    return {"curves": {ENV_ID: rows}}


def until(curve: Curve, env_steps: float) -> Curve:
    """The evaluations up to a number of environment steps."""
    return {name: values[curve["env_steps"] <= 1.02 * env_steps] for name, values in curve.items()}


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    folder, seeds = options.output, options.seeds
    defaults, changed = CurveTable(study.RESULTS / "finetune").read(), CurveTable(folder).read()
    runs = {"default": {seed: defaults[Run("rldt", ENV_ID, seed)] for seed in seeds}}
    for variant, of in complete(changed, ENV_ID, VARIANTS, seeds).items():
        runs[variant] = dict(zip(seeds, of, strict=True))
    steps = min(float(curve["env_steps"][-1]) for curves in runs.values() for curve in curves.values())
    runs = {variant: {seed: until(curve, steps) for seed, curve in curves.items()} for variant, curves in runs.items()}
    entries = {}
    for variant, curves in runs.items():
        entry: dict[str, Any] = {"settings": repr(VARIANTS.get(variant, {})), "seeds": list(curves)}
        for column in RETURNS:
            entry[column] = mean_and_interval([float(np.nanmean(curve[column][-2:])) for curve in curves.values()])
        entry["lowest_deterministic_over_clone"] = [lowest_over_clone(curve) for curve in curves.values()]
        entries[variant] = entry
        print(variant, {column: round(entry[column]["mean"]) for column in RETURNS}, entry["lowest_deterministic_over_clone"])
    sources = study.origins(study.read_summary(folder), made)
    study.write_summary(folder, {"origins": sources, "env": ENV_ID, "env_steps": steps, "changes": entries})
    labelled = {variant.replace("_", " "): list(curves.values()) for variant, curves in runs.items()}
    study.plot([study.return_panels(ENV_ID, labelled)], folder / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "rldt_settings", seeds=(0, 1, 2), variants=VARIANTS, timesteps=40_000)
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()

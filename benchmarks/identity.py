"""
The easiest task there is, Stable-Baselines3's IdentityEnvBox (the action has to equal the observation; 100 is all that can be
had): how many steps do algorithms at their defaults need? The hold-out tasks have a smaller target and other bounds.

    python -m benchmarks.identity

``env_steps`` are what the algorithms did: whole rollouts.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks import study
from benchmarks.curves import RETURNS
from benchmarks.learning import mean_and_interval
from benchmarks.provenance import provenance
from sb3_scoreflow import RLDT, ScoReFlowPPO

TASKS: dict[str, dict[str, Any]] = {
    "box": dict(low=-1, high=1, eps=0.5),
    "small target": dict(low=-1, high=1, eps=0.2),
    "other bounds": dict(low=0, high=20, eps=3.0),
}
#: name -> class, arguments, tasks
VARIANTS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "sb3_ppo": (PPO, {}, list(TASKS)),
    "scoreflow": (ScoReFlowPPO, {}, list(TASKS)),
    # the defaults before this benchmark
    "scoreflow_earlier": (ScoReFlowPPO, dict(n_steps=2048, batch_size=256, clip_range=0.02), ["box"]),
    "rldt": (RLDT, {}, ["box"]),
}
#: 3840 is the last whole rollout of ScoReFlowPPO's defaults below 4000.
STEPS = (1000, 2000, 3840, 8000)


def run(task: str, variant: str, seed: int, steps: tuple[int, ...]) -> list[dict[str, float]]:
    """Train, and evaluate where the first whole rollout reaches each of ``steps``."""
    cls, arguments, _ = VARIANTS[variant]
    model = cls("MlpPolicy", IdentityEnvBox(**TASKS[task]), seed=seed, device="cpu", **arguments)
    curve = []
    for total in steps:
        if model.num_timesteps < total:
            model.learn(total - model.num_timesteps, reset_num_timesteps=False)
        returns = {}
        for name, deterministic in (("return_deterministic", True), ("return_exploring", False)):
            mean, _ = evaluate_policy(model, IdentityEnvBox(**TASKS[task]), 20, deterministic=deterministic, warn=False)
            returns[name] = float(np.mean(mean))
        curve.append({"env_steps": model.num_timesteps, **returns})
    return curve


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "identity", seeds=(0, 1, 2, 3, 4))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    options = parser.parse_args(arguments)
    th.set_num_threads(1)
    warnings.simplefilter("ignore")
    summary: dict[str, Any] = {"seeds": options.seeds, **provenance(), "tasks": TASKS, "results": {}}
    for variant in options.variants:
        for task in VARIANTS[variant][2]:
            curves = [run(task, variant, seed, tuple(options.steps)) for seed in options.seeds]
            rows: list[dict[str, Any]] = []
            for points in zip(*curves, strict=True):
                returns = {name: mean_and_interval([point[name] for point in points]) for name in RETURNS}
                rows.append({"env_steps": points[0]["env_steps"], **returns})
            summary["results"].setdefault(task, {})[variant] = rows
            print(task, variant, *[f"{r['env_steps']}: {r['return_deterministic']['mean']:.1f}" for r in rows], flush=True)
            study.write_summary(options.output, summary)


if __name__ == "__main__":
    main()

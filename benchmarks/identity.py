"""
Measure how many steps algorithms at their defaults need on a very easy task, Stable-Baselines3's IdentityEnvBox: the action
must equal the observation, and the largest return is 100. The hold-out tasks have a smaller target and other bounds.

    python -m benchmarks.identity

``env_steps`` is the number of steps that the algorithms took, which is a multiple of their rollouts.
"""

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks import study
from benchmarks.curves import RETURNS
from benchmarks.learning import mean_and_interval
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
    # earlier defaults
    "scoreflow_earlier": (ScoReFlowPPO, dict(n_steps=2048, batch_size=256, clip_range=0.02), ["box"]),
    "rldt": (RLDT, {}, ["box"]),
}
#: 3840 is the last whole rollout of ScoReFlowPPO's defaults below 4000.
STEPS = (1000, 2000, 3840, 8000)


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    """Train, and evaluate after the first complete rollout that reaches each number in ``--steps``."""
    warnings.simplefilter("ignore")
    cls, arguments, _ = VARIANTS[variant]
    settings = TASKS[options.task]
    model = cls("MlpPolicy", IdentityEnvBox(**settings), seed=seed, device="cpu", **arguments)
    eval_env = IdentityEnvBox(**settings)
    eval_env.action_space.seed(seed)  # the environment draws observations from this space
    curve = []
    for total in options.steps:
        if model.num_timesteps < total:
            model.learn(total - model.num_timesteps, reset_num_timesteps=False)
        returns = {}
        for name, deterministic in (("return_deterministic", True), ("return_exploring", False)):
            mean, _ = evaluate_policy(model, eval_env, 20, deterministic=deterministic, warn=False)
            returns[name] = float(np.mean(mean))
        curve.append({"env_steps": model.num_timesteps, **returns})
    return {"points": curve}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "identity", seeds=(0, 1, 2, 3, 4))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    options = parser.parse_args(arguments)
    of_task = {task: [variant for variant in options.variants if task in VARIANTS[variant][2]] for task in TASKS}
    tasks = [argparse.Namespace(**{**vars(options), "task": task, "variants": of}) for task, of in of_task.items()]
    made = dict(zip(TASKS, study.make_all_runs(tasks, run, VARIANTS), strict=True))
    summary: dict[str, Any] = {"seeds": options.seeds, **made["box"].origin, "tasks": TASKS, "results": {}}
    for variant in options.variants:
        for task in VARIANTS[variant][2]:
            curves = [made[task].facts[variant, seed]["points"] for seed in options.seeds]
            rows: list[dict[str, Any]] = []
            for points in zip(*curves, strict=True):
                returns = {name: mean_and_interval([point[name] for point in points]) for name in RETURNS}
                rows.append({"env_steps": points[0]["env_steps"], **returns})
            summary["results"].setdefault(task, {})[variant] = rows
            print(task, variant, *[f"{r['env_steps']}: {r['return_deterministic']['mean']:.1f}" for r in rows], flush=True)
    study.write_summary(options.output, summary)


if __name__ == "__main__":
    main()

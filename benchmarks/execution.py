"""
Measure how many actions of each predicted chunk a clone should execute before it looks again.

    python -m benchmarks.execution --task lunar-lander bipedal-walker  # --data FOLDER, as in benchmarks.tasks

A clone that predicts chunks of four actions, that of ``benchmarks.tasks``, executes the first one, two, three or all four of
them. The script evaluates complete episodes, with the same starts for each number, once with deterministic actions (``x_0 =
0``) and once with random ``x_0``. Nothing is trained after cloning.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks import study
from benchmarks.clones import N_EPISODES
from benchmarks.curves import check_seeds
from benchmarks.learning import mean_and_interval
from benchmarks.locomotion import HORIZON
from benchmarks.tasks.families import TASKS, demonstrations_of
from benchmarks.tasks.runs import N_EVAL_ENVS, kept_clone
from sb3_scoreflow import FlowMatchingPolicy

#: Numbers of actions, as keys of the summary
NUMBERS = tuple(str(n) for n in range(1, HORIZON + 1))
KINDS = {"deterministic": True, "random_x0": False}
_VARIANT = "default"


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    task = TASKS[options.task]
    demonstrations = demonstrations_of(task, options.data, seed)
    policy = kept_clone(task, options.data, seed, options.clones)
    policy = FlowMatchingPolicy.load(str(policy)) if isinstance(policy, Path) else policy
    result: study.Result = {"demonstrations": float(demonstrations.episode_returns.mean())}
    for number in NUMBERS:
        env = task.make_env("test", N_EVAL_ENVS, 1000 * seed + 500, int(number))
        for kind, deterministic in KINDS.items():
            env.seed(1000 * seed + 700)
            th.manual_seed(seed)
            returns = evaluate_policy(policy, env, options.episodes, deterministic=deterministic)[0]
            result.setdefault(kind, {})[number] = float(np.mean(returns))
        env.close()
    print(task.name, seed, result, flush=True)
    return result


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    section = dict(study.read_summary(options.output).get(options.task, {}))
    runs = {**section.get("runs", {}), **{str(seed): facts for (_, seed), facts in made.facts.items()}}
    check_seeds({_VARIANT: map(int, runs)}, options.seeds)
    section = {
        "origins": study.origins(section, made),
        "measure": TASKS[options.task].measure,
        "episodes": options.episodes,
        "seeds": sorted(map(int, runs)),
        "runs": runs,
        "demonstrations": mean_and_interval([of["demonstrations"] for of in runs.values()]),
        **{kind: {n: mean_and_interval([of[kind][n] for of in runs.values()]) for n in NUMBERS} for kind in KINDS},
    }
    study.update_summary(options.output, options.task, section)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "execution", seeds=(0, 1, 2))
    parser.add_argument("--task", nargs="+", default=["bipedal-walker"], choices=list(TASKS), help="tasks to measure")
    parser.add_argument("--data", type=Path, default=Path("demonstrations"), help="folder with files of demonstrations")
    parser.add_argument("--clones", type=Path, help="folder in which clones are kept, for other commands with the same code")
    parser.add_argument("--episodes", type=int, help="evaluation episodes (default 20 for locomotion, else 50)")
    options = parser.parse_args(arguments)
    for task in options.task:
        episodes = options.episodes or N_EPISODES[TASKS[task].measure]
        chosen = argparse.Namespace(**{**vars(options), "task": task, "episodes": episodes, "variants": [_VARIANT]})
        summarize(chosen, study.make_runs(chosen, run, {_VARIANT: None}))


if __name__ == "__main__":
    main()

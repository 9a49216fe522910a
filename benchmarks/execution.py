"""
Measure how many actions a clone should execute before it looks again.

    python -m benchmarks.execution --task hopper-precise walker2d-precise halfcheetah-precise --data FOLDER  # of experts

A clone that predicts chunks of four actions, that of ``benchmarks.tasks``, executes the first one, two, three or all four of
them; another clone of the same demonstrations predicts single actions. The script evaluates complete episodes, with the same
starts for all of them, once with deterministic actions (``x_0 = 0``) and once with random ``x_0``. Nothing is trained after
cloning.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import study
from benchmarks.clones import N_EPISODES, add_runs, mean_returns
from benchmarks.curves import locked
from benchmarks.locomotion import CHUNKS, HORIZON, Chunks
from benchmarks.tasks.families import TASKS, demonstrations_of
from benchmarks.tasks.runs import N_EVAL_ENVS, kept_clone
from sb3_scoreflow import FlowMatchingPolicy

VARIANTS = {
    "no_chunks": Chunks(1, 1),
    **{f"executed_{n}": Chunks(HORIZON, n) for n in range(1, HORIZON)},
    "all": CHUNKS,
}


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    task, chunks = TASKS[options.task], VARIANTS[variant]
    demonstrations = demonstrations_of(task, options.data, seed)
    policy = kept_clone(task, options.data, seed, options.clones, chunks.horizon)
    policy = FlowMatchingPolicy.load(str(policy)) if isinstance(policy, Path) else policy
    env = task.make_env("test", N_EVAL_ENVS, 1000 * seed + 500, chunks)
    result: study.Result = {"demonstrations": float(demonstrations.episode_returns.mean())}
    result.update(mean_returns(policy, env, options.episodes, seed))
    env.close()
    print(task.name, variant, seed, {name: round(value, 3) for name, value in result.items()}, flush=True)
    return result


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    with locked(options.output):
        summary = study.read_summary(options.output)
        section = summary.setdefault(options.task, {})
        section["measure"] = TASKS[options.task].measure
        add_runs(section, options, made)
        study.write_summary(options.output, summary)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "execution", seeds=(0, 1, 2), variants=VARIANTS)
    parser.add_argument("--task", nargs="+", default=["bipedal-walker"], choices=list(TASKS), help="tasks to measure")
    parser.add_argument("--data", type=Path, default=Path("demonstrations"), help="folder with files of demonstrations")
    parser.add_argument("--clones", type=Path, help="folder in which clones are kept, for other commands with the same code")
    parser.add_argument("--episodes", type=int, help="evaluation episodes (default 20 for locomotion, else 50)")
    options = parser.parse_args(arguments)
    for task in options.task:
        episodes = options.episodes or N_EPISODES[TASKS[task].measure]
        chosen = argparse.Namespace(**{**vars(options), "task": task, "episodes": episodes})
        summarize(chosen, study.make_runs(chosen, run, VARIANTS))


if __name__ == "__main__":
    main()

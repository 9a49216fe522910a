"""
Measure how often exploration succeeds from those starts from which the deterministic clone fails.

    python -m benchmarks.starts --task peg-insert-side-v3 push-v3 lift

With success as the only reward, fine-tuning learns nothing about a start from which exploration never succeeds. The clones are
those of ``benchmarks.tasks``, with the default noise of ScoReFlowPPO before any training. From each of 40 starts (positions of
objects and goal that are not among the training's), the script runs one episode of the deterministic policy and ten of the
exploring policy. The figure compares the result with the gain of fine-tuning in the results of ``benchmarks.tasks``.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import study
from benchmarks.finetune import start
from benchmarks.learning import mean_and_interval
from benchmarks.tasks.families import TASKS, demonstrations_of
from benchmarks.tasks.runs import N_EVAL_ENVS, VARIANTS, clone

N_STARTS, N_EPISODES = 40, 10
CHOICES = [name for name, task in TASKS.items() if task.measure == "success"]
_VARIANT = "scoreflow_ppo"


def successes(model: Any, env: VecEnv, seed: int, deterministic: bool) -> tuple[np.ndarray, np.ndarray]:
    """
    :param model: model to evaluate
    :param env: ``n`` environments
    :param seed: seed of the first environment's start
    :return: first observations, and whether the episode of each environment succeeds, shape ``(n,)``
    """
    env.seed(seed)
    first = observations = env.reset()
    assert isinstance(first, np.ndarray)
    ended, returns = np.zeros(env.num_envs, np.bool_), np.zeros(env.num_envs)
    while not ended.all():
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, rewards, dones, _ = env.step(actions)
        returns += np.where(ended, 0.0, rewards)
        ended |= dones
    return first, returns > 0


def by_start(model: Any, env: VecEnv, seed: int, n_starts: int, n_episodes: int) -> tuple[list[bool], list[int]]:
    """
    :param model: model to evaluate
    :param env: ``n`` environments
    :param seed: seed of the first start
    :param n_starts: number of starts, a multiple of ``n``
    :param n_episodes: exploring episodes from each start
    :return: for each start, whether the deterministic episode succeeds, and how many exploring episodes do
    """
    of_mean: list[bool] = []
    counts: list[int] = []
    for offset in range(0, n_starts, env.num_envs):
        first, success = successes(model, env, seed + offset, deterministic=True)
        count = np.zeros(env.num_envs, np.int64)
        for _ in range(n_episodes):
            again, explored = successes(model, env, seed + offset, deterministic=False)
            np.testing.assert_array_equal(again, first)  # the seed determines the start
            count += explored
        of_mean += success.tolist()
        counts += count.tolist()
    return of_mean, counts


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    task = TASKS[options.task]
    demonstrations = demonstrations_of(task, options.data, seed)
    env, eval_env = task.make_env("train", 1, 1000 * seed), task.make_env("test", N_EVAL_ENVS, 1000 * seed + 500)
    shared = partial(clone, task, options.data, seed)
    model, eval_env = start(VARIANTS[variant]._replace(settings={}), env, eval_env, demonstrations, shared, seed)
    of_mean, counts = by_start(model, eval_env, 1000 * seed + 700, N_STARTS, N_EPISODES)
    env.close()
    eval_env.close()
    result = {"deterministic": of_mean, "exploring": counts}
    print(task.name, seed, shares(result), flush=True)
    return result


def shares(of: Mapping[str, Any]) -> dict[str, float]:
    """
    :param of: result of a run
    :return: rates of success of the deterministic and of the exploring policy; over the starts from which the deterministic
        policy fails, the exploring policy's rate of success, and the share from which any of its episodes succeeds; NaN if
        the deterministic policy always succeeds
    """
    of_mean, counts = np.array(of["deterministic"], np.bool_), np.array(of["exploring"])
    failed = counts[~of_mean]
    return {
        "deterministic": float(of_mean.mean()),
        "exploring": float(counts.mean() / N_EPISODES),
        "exploring_where_it_fails": float(failed.mean() / N_EPISODES) if len(failed) else float("nan"),
        "ever_where_it_fails": float((failed > 0).mean()) if len(failed) else float("nan"),
    }


def gain(fine_tuned: Mapping[str, Any]) -> float:
    """:return: how much fine-tuning raised the exploring policy's rate of success, in a run of ``benchmarks.tasks``"""
    return float(fine_tuned["end"]["exploring"] - fine_tuned["start"]["exploring"])


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    section = dict(study.read_summary(options.output).get(options.task, {}))
    runs = {**section.get("runs", {}), **{str(seed): facts for (_, seed), facts in made.facts.items()}}
    of_seeds = {seed: shares(of) for seed, of in runs.items()}
    names = next(iter(of_seeds.values()))
    statistics = {name: mean_and_interval([of[name] for of in of_seeds.values()]) for name in names}
    section = {"origins": study.origins(section, made), "seeds": [int(seed) for seed in runs], "runs": runs, **statistics}
    study.update_summary(options.output, options.task, section)
    _plot(options.output)


def _plot(folder: Path) -> None:
    """Plot the gain of every run's exploring policy over the success of exploration where the deterministic clone fails."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes, trained = figure.subplots(), study.read_summary(study.RESULTS / "tasks")
    for task, section in study.read_summary(folder).items():
        fine_tuned = trained.get(task, {}).get("success", {}).get(_VARIANT, {})
        points = [
            (shares(of)["exploring_where_it_fails"], gain(fine_tuned[seed]))
            for seed, of in section["runs"].items()
            if seed in fine_tuned
        ]
        if points:
            axes.plot(*np.transpose(points), "o", label=task)
    axes.set(xlabel="exploration's success where the deterministic clone fails", ylabel="gain of the exploring policy")
    axes.legend(fontsize="small")
    figure.savefig(folder / "figure.png", dpi=75)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "starts", seeds=(0, 1, 2))
    parser.add_argument("--task", nargs="+", default=CHOICES, choices=CHOICES, help="tasks to measure")
    parser.add_argument("--data", type=Path, help="folder with files of demonstrations (default data/ in the results' folder)")
    options = parser.parse_args(arguments)
    options.data = options.output / "data" if options.data is None else options.data
    for task in options.task:
        chosen = argparse.Namespace(**{**vars(options), "task": task, "variants": [_VARIANT]})
        summarize(chosen, study.make_runs(chosen, run, VARIANTS))


if __name__ == "__main__":
    main()

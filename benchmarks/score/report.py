"""Statistics of the curves (returns, steps to thresholds, interquartile means, probabilities of improvement) and a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import study
from benchmarks.curves import RETURNS, Curve, CurveTable, Run, complete
from benchmarks.learning import (
    all_steps_to,
    final_return,
    interquartile_means,
    lowest_over_clone,
    mean_and_interval,
    probabilities_of_improvement,
)
from benchmarks.score import arms

FRACTIONS = (0.5, 0.75, 0.9)
#: Smallest gain over the clone, as a share of the best final return, for which normalized scores are meaningful
_LEAST_GAIN = 0.05
#: Stages in the figure
FIGURE = ("best", "ablation")
#: env -> arm -> one curve per seed
Curves = dict[str, dict[str, list[Curve]]]


def of_all_envs(table: Mapping[Run, Curve], env_ids: Sequence[str], names: Sequence[str], seeds: Sequence[int]) -> Curves:
    """:return: curves of the arms that have a curve for every environment and seed"""
    found = {env: complete(table, env, names, seeds) for env in env_ids}
    everywhere = [name for name in names if all(name in of_env for of_env in found.values())]
    return {env: {name: of_env[name] for name in everywhere} for env, of_env in found.items()}


def mean_return(curve: Curve, column: str) -> float:
    """Mean over the whole training, which both fast learning and a high final return raise."""
    return float(np.nanmean(curve[column][1:]))


def start_and_best(of_task: Mapping[str, list[Curve]], column: str) -> tuple[float, float]:
    """The clones' return and the best final return of any arm, which are 0 and 1 on the scale of normalized scores."""
    start = float(np.mean([curve[column][~np.isnan(curve[column])][0] for runs in of_task.values() for curve in runs]))
    return start, max(float(np.mean([final_return(curve, column) for curve in runs])) for runs in of_task.values())


def summarize_task(of_task: Mapping[str, list[Curve]], column: str) -> dict[str, Any]:
    """
    Summarize one environment: the final and the mean return of every arm, and the environment steps to shares of the best
    arm's gain over the clone (if any arm improved on the clone).
    """
    start, best = start_and_best(of_task, column)
    fractions = FRACTIONS if best - start >= _LEAST_GAIN * best else ()
    entries: dict[str, Any] = {}
    for arm, runs in of_task.items():
        entries[arm] = {
            "final": mean_and_interval([final_return(curve, column) for curve in runs]),
            "mean_over_training": mean_and_interval([mean_return(curve, column) for curve in runs]),
            **{f"steps_to_{f:.0%}": all_steps_to(runs, column, start + f * (best - start)) for f in fractions},
        }
        if column == "return_deterministic":
            entries[arm]["lowest_over_clone"] = [lowest_over_clone(curve) for curve in runs]
    return {"start": start, "best_final": best, "arms": entries}


def normalized(curves: Curves, column: str, score: Any) -> dict[str, list[np.ndarray]]:
    """
    :return: arm -> scores on every task on which an arm improved; 0 is the clone's return, 1 the best final return of any arm
    """
    result: dict[str, list[np.ndarray]] = {}
    for of_task in curves.values():
        start, best = start_and_best(of_task, column)
        if best - start < _LEAST_GAIN * best:
            continue
        for arm, runs in of_task.items():
            scores = np.array([(score(curve, column) - start) / (best - start) for curve in runs])
            result.setdefault(arm, []).append(scores)
    return result


def summarize(curves: Curves, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """
    :param curves: curves of all environments
    :param pairs: pairs of arms to compare, the first with the second
    :return: statistics of each environment and over all environments
    """
    summary: dict[str, Any] = {}
    for column in RETURNS:
        over_all: dict[str, Any] = {}
        for name, score in (("final", final_return), ("mean_over_training", mean_return)):
            scores = {arm: np.column_stack(tasks) for arm, tasks in normalized(curves, column, score).items()}
            known = [pair for pair in pairs if scores.keys() >= set(pair)]
            over_all[name] = {
                "interquartile_mean": interquartile_means(scores),
                "probability_of_improvement": probabilities_of_improvement(scores, known),
            }
        tasks = {env: summarize_task(of_task, column) for env, of_task in curves.items()}
        summary[column] = {"tasks": tasks, "over_all_tasks": over_all}
    for name in ("wall_seconds", "cpu_seconds"):
        summary[name] = {
            env: {arm: mean_and_interval([float(c[name][-1]) for c in runs]) for arm, runs in of_task.items()}
            for env, of_task in curves.items()
        }
    return summary


def choose(folder: Path, env_ids: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """
    Choose the settings with the highest score for every variant. The score is the mean over training of both returns,
    normalized per task and averaged over tasks, returns and seeds.
    """
    curves = of_all_envs(CurveTable(folder).read(), env_ids, arms.names("search"), seeds)
    parts = [normalized(curves, column, mean_return) for column in RETURNS]
    scores = {arm: float(np.mean([np.concatenate(part[arm]) for part in parts])) for arm in parts[0]}
    chosen: dict[str, Any] = {}
    for variant in arms.VARIANTS:
        candidates: dict[str, float] = {
            name: scores[arm] for name in arms.SEARCH if (arm := arms.search_name(variant, name)) in scores
        }
        if candidates:
            chosen[variant] = {"best": max(candidates, key=candidates.__getitem__), "scores": candidates}
    return chosen


def report(folder: Path, env_ids: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the statistics of all stages that have been run, over the seeds that were run, and the figure."""
    table, rows = CurveTable(folder).read(), []
    for stage, pairs in arms.COMPARISONS.items():
        record = study.read_summary(folder).get(stage, {"origins": []})
        made = [seed for seed in seeds if any(seed in origin["seeds"] for origin in record["origins"])]
        names = list(dict.fromkeys(name for pair in pairs for name in pair))
        curves = of_all_envs(table, env_ids, names, made)
        present = next(iter(curves.values()))
        if not made or len(present) < 2:
            continue
        summary = {"seeds": made, "arms": list(present), **summarize(curves, pairs)}
        study.update_summary(folder, stage, {**record, **summary})
        print_table(stage, summary)
        if stage in FIGURE:
            rows += figure_rows(curves)
    if rows:
        study.plot(rows, folder / "figure.png", sharey=False)


def figure_rows(curves: Curves) -> list[list[study.Panel]]:
    """:return: panels, with a row for each return and a column for each environment"""
    labelled = {env: {arm.replace("_", " "): runs for arm, runs in of_env.items()} for env, of_env in curves.items()}
    return [list(row) for row in zip(*(study.return_panels(*item) for item in labelled.items()), strict=True)]


def print_table(stage: str, summary: Mapping[str, Any]) -> None:
    """Print the most important numbers of a summary."""
    for column in RETURNS:
        print(f"\n{stage}, {column}")
        for env, task in summary[column]["tasks"].items():
            print(f"  {env}: clone {task['start']:.0f}, best {task['best_final']:.0f}")
            for arm, entry in task["arms"].items():
                low, high = entry["final"]["ci95"]
                steps = [entry[key]["median"] for f in FRACTIONS if (key := f"steps_to_{f:.0%}") in entry]
                reached = " ".join("     -" if x is None else f"{x / 1000:5.0f}k" for x in steps)
                cpu = summary["cpu_seconds"][env][arm]["mean"]
                print(f"    {arm:28s} {entry['final']['mean']:6.0f} [{low:.0f}, {high:.0f}]  steps {reached}  {cpu:.0f} s")
        for name, part in summary[column]["over_all_tasks"].items():
            for kind, entries in part.items():
                for arm, entry in entries.items():
                    low, high = entry["ci95"]
                    print(f"  {name} {kind} {arm}: {entry['value']:.2f} [{low:.2f}, {high:.2f}]")

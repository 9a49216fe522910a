"""Statistics over all tasks (arXiv 2108.13264), and their figure."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.learning import (
    Scores,
    interquartile_means,
    mean_and_interval,
    performance_profiles,
    probabilities_of_gain,
    probabilities_of_improvement,
)
from benchmarks.tasks.families import TASKS, TEN, Embedded, Heuristic
from benchmarks.tasks.runs import VARIANTS

#: Variant with which the others are compared
REFERENCE = "no_score"
#: Variants that differ in the score alone
SCORES = ("scoreflow_ppo", "constant_score", "no_score")


class Over(NamedTuple):
    """What a section of the summary with statistics over several tasks covers."""

    variants: Sequence[str]
    seeds: Sequence[int]
    """A task is included if every variant has a run with every one of these seeds"""
    tasks: Collection[str]


#: Shares of the return of mediocre demonstrations say little beside shares of an expert's
EXPERTS = [name for name, task in TASKS.items() if name not in TEN and not isinstance(task, Embedded | Heuristic)]
EMBEDDED = [name for name, task in TASKS.items() if isinstance(task, Embedded)]
#: Section of the summary -> what it covers
AGGREGATES = {
    "aggregate": Over((*SCORES, "rldt", "fpo", "gaussian_ppo"), (0, 1, 2), EXPERTS),
    "aggregate_five_seeds": Over(SCORES, (0, 1, 2, 3, 4), EXPERTS),
    "aggregate_ten": Over(["scoreflow_ppo"], (0, 1, 2), TEN),
    "aggregate_score_ten": Over(SCORES, (0, 1, 2), TEN),
    "aggregate_score_embedded": Over(SCORES, (0, 1, 2), EMBEDDED),
}
#: The section over all tasks
AGGREGATE = "aggregate"
KINDS = ("deterministic", "exploring")
_N_THRESHOLDS = 61


def tasks_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param summary: summary of the study
    :return: task -> its section
    """
    return {name: section for name, section in summary.items() if name not in AGGREGATES}


def complete_tasks(summary: Mapping[str, Any], over: Over) -> list[str]:
    """
    :param summary: summary of the study
    :param over: tasks, variants and seeds
    :return: the tasks for which every variant has a run with every seed
    """
    wanted = {(variant, str(seed)) for variant in over.variants for seed in over.seeds}
    runs = {task: {(v, s) for v, of in section["success"].items() for s in of} for task, section in tasks_of(summary).items()}
    return [task for task in runs if task in over.tasks and wanted <= runs[task]]


def scores_of(
    summary: Mapping[str, Any], tasks: Sequence[str], variant: str, seeds: Sequence[int], when: str, kind: str
) -> Scores:
    """
    :param summary: summary of the study
    :param tasks: names of complete tasks
    :param variant: name of the variant
    :param seeds: seeds of the runs
    :param when: ``"start"``, which is the clone, or ``"end"``
    :param kind: kind of policy, ``"deterministic"`` or ``"exploring"``
    :return: success rates, or returns as shares of the demonstrations' mean return, shape ``(n_seeds, n_tasks)``
    """
    columns = []
    for task in tasks:
        section = summary[task]
        unit = section["demonstrations_return"] if section.get("measure") == "return" else 1.0
        columns.append([section["success"][variant][str(seed)][when][kind] / unit for seed in seeds])
    return np.array(columns).T


def aggregate(summary: Mapping[str, Any], over: Over) -> dict[str, Any]:
    """
    :param summary: summary of the study
    :param over: tasks, variants and seeds
    :return: statistics over all complete tasks; empty if no task is complete
    """
    variants, seeds, tasks = over.variants, over.seeds, complete_tasks(summary, over)
    if not tasks:
        return {}
    result: dict[str, Any] = {"seeds": list(seeds), "tasks": tasks}
    pairs = [(variant, REFERENCE) for variant in variants if REFERENCE in variants and variant != REFERENCE]
    pairs += [SCORES[:2]] if {*SCORES} <= {*variants} else []
    for kind in KINDS:
        starts, ends = (
            {variant: scores_of(summary, tasks, variant, seeds, when, kind) for variant in variants}
            for when in ("start", "end")
        )
        # Each run is compared with its own clone, because other seeds may have cloned other demonstrations
        gains = {variant: ends[variant] - starts[variant] for variant in variants}
        thresholds = np.linspace(0, max(1.0, *(float(scores.max()) for scores in ends.values())), _N_THRESHOLDS)
        result[kind] = {
            "interquartile_mean": interquartile_means(ends),
            "interquartile_mean_of_clone": interquartile_means(starts),
            "improvement": probabilities_of_improvement(ends, pairs),
            "improvement_over_clone": probabilities_of_gain(gains),
            "tasks_over_clone": {variant: _count(gains[variant]) for variant in variants},
            "thresholds": thresholds.tolist(),
            "performance_profile": performance_profiles(ends, thresholds.tolist()),
        }
    return result


def _count(gains: Scores) -> dict[str, int]:
    """Count the tasks whose mean gain is above or below 0, and the tasks among them whose whole interval is."""
    intervals = [mean_and_interval(of_task) for of_task in gains.T]
    ends = np.array([[interval["mean"], *interval["ci95"]] for interval in intervals])
    ends = ends.round(9)  # 0.02 and -0.02 may not cancel
    return {
        "above": int((ends[:, 0] > 0).sum()),
        "surely_above": int((ends[:, 1] > 0).sum()),
        "below": int((ends[:, 0] < 0).sum()),
        "surely_below": int((ends[:, 2] < 0).sum()),
    }


def plot(result: Mapping[str, Any], path: Path) -> None:
    """
    Plot interquartile means (hollow: of the clones) and performance profiles in the same colors.

    :param result: output of :func:`aggregate`
    :param path: path of the image
    """
    figure = Figure(figsize=(12, 3.9 * len(KINDS)), layout="constrained")
    for kind, (means, profiles) in zip(KINDS, figure.subplots(len(KINDS), 2), strict=True):
        of_kind, variants = result[kind], list(result[kind]["interquartile_mean"])
        for row, variant in enumerate(variants):
            entry, start = of_kind["interquartile_mean"][variant], of_kind["interquartile_mean_of_clone"][variant]
            (line,) = means.plot(entry["ci95"], [row, row], linewidth=6, alpha=0.4, solid_capstyle="butt")
            means.plot(entry["value"], row, "o", color=line.get_color())
            means.plot(start["value"], row, "o", color=line.get_color(), markerfacecolor="white")
            profile, x = of_kind["performance_profile"][variant], of_kind["thresholds"]
            profiles.plot(x, profile["value"], color=line.get_color())
            profiles.fill_between(x, *profile["ci95"], color=line.get_color(), alpha=0.13)
        means.set(title=f"{kind}, interquartile mean over {len(result['tasks'])} tasks", xlabel="score (hollow: clone)")
        means.set_yticks(range(len(variants)), [VARIANTS[variant].label for variant in variants])
        means.invert_yaxis()
        profiles.set(title=f"{kind}, performance profile", xlabel="score", ylabel="share of runs above it")
        for axes in (means, profiles):
            axes.grid(alpha=0.3)
    figure.savefig(path, dpi=75)

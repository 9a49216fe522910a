"""The summary and the figures, from the table of curves and the results of the runs."""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import study
from benchmarks.curves import Curve, CurveTable, Run, check_seeds, locked
from benchmarks.learning import all_steps_to, mean_and_interval
from benchmarks.study import Panel
from benchmarks.tasks.aggregate import AGGREGATE, AGGREGATES, KINDS, SCORES, aggregate, plot, tasks_of
from benchmarks.tasks.runs import VARIANTS


def summarize(options: argparse.Namespace, made: Mapping[str, study.Made]) -> None:
    """
    :param options: options of the command line
    :param made: task -> results of its runs
    """
    folder = options.output
    with locked(folder):
        summary = study.read_summary(folder)
        table = CurveTable(folder).read()
        for task, of_task in made.items():
            section = summary.setdefault(task, {}) if of_task.facts else summary.get(task)
            if section is None:
                continue
            for (variant, seed), facts in of_task.facts.items():
                about = dict(facts["task"])
                section["eval_episodes"] = {**section.get("eval_episodes", {}), variant: about.pop("eval_episodes")}
                # The unit of all variants' scores stays the first: an expert's episodes differ slightly between machines
                unit = section.get("demonstrations_return", about["demonstrations_return"])
                section.update(about, demonstrations_return=unit)
                # The entry has this name for every measure
                section.setdefault("success", {}).setdefault(variant, {})[str(seed)] = facts["success"]
            check_seeds({name: map(int, section["success"].get(name, {})) for name in options.variants}, options.seeds)
            section["origins"] = study.origins(section, of_task)
            settings = {name: repr(VARIANTS[name].settings) for name in options.variants}
            section["settings"] = {**section.get("settings", {}), **settings}
        for task, entry in tasks_of(summary).items():
            entry.update(statistics(task, entry["success"], table))
        for name, over in AGGREGATES.items():
            summary.pop(name, None)
            over_all = aggregate(summary, over)
            if over_all:
                summary[name] = {**next(iter(made.values())).origin, **over_all}
        study.write_summary(folder, summary)
    rows = []
    for task, section in tasks_of(summary).items():
        curves = curves_of(task, section["success"], table)
        labelled = {VARIANTS[name].label: runs for name, runs in curves.items()}
        columns = ("return_exploring", "return_deterministic")
        if labelled:
            rows.append([Panel(f"{task}, {column.removeprefix('return_')}", labelled, column) for column in columns])
    if rows:
        study.plot(rows, folder / "figure.png")
    if AGGREGATE in summary:
        plot(summary[AGGREGATE], folder / "aggregate.png")


def statistics(task: str, success: Mapping[str, Any], table: Mapping[Run, Curve]) -> dict[str, Any]:
    """
    :param task: name of the task
    :param success: results of the runs: ``success[variant][seed]["start" or "end"][kind]``
    :param table: table of curves
    :return: name of the statistic -> variant -> its value over seeds, and the list of seeds
    """
    success = {variant: {seed: runs[seed] for seed in sorted(runs, key=int)} for variant, runs in success.items()}
    curves = curves_of(task, success, table)
    return {
        "seeds": sorted(set.intersection(*({int(seed) for seed in runs} for runs in success.values()))),
        "mean": {
            variant: {
                when: {kind: mean_and_interval([run[when][kind] for run in runs.values()]) for kind in KINDS}
                for when in ("start", "end")
            }
            for variant, runs in success.items()
        },
        # The gain over the clone of the same seed; clones differ, because seeds may have different demonstrations
        "gain": {
            variant: {
                kind: mean_and_interval([run["end"][kind] - run["start"][kind] for run in runs.values()]) for kind in KINDS
            }
            for variant, runs in success.items()
        },
        "steps_to_gain": _steps_to_gain(success, curves),
        # The return itself, because the clone's may be 0 and cannot be a divisor
        "lowest_deterministic": {v: [float(c["return_deterministic"][1:].min()) for c in of] for v, of in curves.items()},
        "cpu_seconds": {v: mean_and_interval([float(c["cpu_seconds"][-1]) for c in of]) for v, of in curves.items()},
    }


def curves_of(task: str, success: Mapping[str, Any], table: Mapping[Run, Curve]) -> dict[str, list[Curve]]:
    """
    :param task: name of the task
    :param success: results of the runs
    :param table: table of curves
    :return: variant -> curves of its runs, in the order of the seeds; without variants whose curves are missing
    """
    runs = {variant: [Run(variant, task, seed) for seed in sorted(map(int, of))] for variant, of in success.items()}
    return {v: [table[run] for run in runs[v]] for v in VARIANTS if v in runs and all(run in table for run in runs[v])}


def _steps_to_gain(success: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    """
    :return: share of the gain while exploring -> variant -> environment steps to it; from the mean return of all clones to the
        mean return of the best variant in the end, for the variants that differ in the score; empty if their seeds differ
    """
    variants = [variant for variant in SCORES if variant in curves]
    if len({tuple(success[variant]) for variant in variants}) != 1:
        return {}
    start, end = (
        {variant: np.mean([run[when]["exploring"] for run in success[variant].values()]) for variant in variants}
        for when in ("start", "end")
    )
    if max(end.values()) <= np.mean(list(start.values())):
        return {}
    first = float(np.mean(list(start.values())))
    thresholds = {f"{share:.0%}": first + share * (float(max(end.values())) - first) for share in (0.5, 0.75, 0.9)}
    return {
        share: {variant: all_steps_to(curves[variant], "return_exploring", threshold) for variant in variants}
        for share, threshold in thresholds.items()
    }

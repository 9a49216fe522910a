"""The summary and the figure, from the table of curves and what the runs have written."""

import argparse
from typing import Any

from benchmarks import study
from benchmarks.curves import CurveTable, complete, locked
from benchmarks.learning import mean_and_interval
from benchmarks.study import Panel
from benchmarks.tasks.runs import VARIANTS


def summarize(options: argparse.Namespace, origin: dict[str, Any]) -> None:
    with locked(options.output):
        summary = study.read_summary(options.output)
        table = CurveTable(options.output).read()
        if options.task in summary:
            section = summary[options.task]
            section["origins"] = study.origins(section, options.variants, origin)
            made = {name: repr(VARIANTS[name].settings) for name in options.variants}
            section["settings"] = {**section.get("settings", {}), **made}
        for task, entry in summary.items():
            entry["seeds"] = sorted({run.seed for run in table if run.env == task})
            entry["mean"] = {
                variant: {
                    when: {kind: mean_and_interval([run[when][kind] for run in runs.values()]) for kind in run_kinds(runs)}
                    for when in ("start", "end")
                }
                for variant, runs in entry["success"].items()
            }
            # Over the clone of the same seed: clones differ, as every seed has other demonstrations
            entry["gain"] = {
                variant: {
                    kind: mean_and_interval([run["end"][kind] - run["start"][kind] for run in runs.values()])
                    for kind in run_kinds(runs)
                }
                for variant, runs in entry["success"].items()
            }
            curves = {variant: [table[each] for each in sorted(table) if each[:2] == (variant, task)] for variant in VARIANTS}
            # Not over the clone's, which may be 0
            deterministic = {v: [c["return_deterministic"] for c in of] for v, of in curves.items() if of}
            entry["lowest_deterministic"] = {v: [float(d[1:].min()) for d in of] for v, of in deterministic.items()}
            entry["cpu_seconds"] = {
                v: mean_and_interval([float(c["cpu_seconds"][-1]) for c in of]) for v, of in curves.items() if of
            }
        study.write_summary(options.output, summary)
    rows = []
    for task in summary:
        curves = complete(table, task, VARIANTS, options.seeds)
        labelled = {VARIANTS[name].label: runs for name, runs in curves.items()}
        columns = ("return_exploring", "return_deterministic")
        if labelled:
            rows.append([Panel(f"{task}, {column.removeprefix('return_')}", labelled, column) for column in columns])
    if rows:
        study.plot(rows, options.output / "figure.png")


def run_kinds(runs: dict[str, Any]) -> list[str]:
    """Which successes were measured."""
    return list(next(iter(runs.values()))["end"])

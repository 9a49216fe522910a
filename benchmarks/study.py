"""Functions that the studies share: command line, runs, summary and figure."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks import runner
from benchmarks.curves import RETURNS, Curve, CurveTable, Run, locked
from benchmarks.provenance import ROOT, provenance
from benchmarks.runner import Job, Result
from sb3_scoreflow import plotting

RESULTS = ROOT / "benchmarks/results"
_WIDTH = 200


class Variant(NamedTuple):
    """One of the variants that a study compares."""

    label: str
    """Label in the figure"""
    algorithm: type[BaseAlgorithm]
    settings: dict[str, Any]
    """Arguments of the algorithm"""


def parser(
    doc: str | None,
    study: str,
    *,
    seeds: Sequence[int] | None = None,
    variants: Iterable[str] | None = None,
    timesteps: int | None = None,
    repeats: int | None = None,
) -> argparse.ArgumentParser:
    """
    Create the command line of a study. It has the option ``--output``, and an option for every argument that is not None.

    :param doc: docstring of the script
    :param study: name of the folder with the results
    :param seeds: default of ``--seeds``
    :param variants: choices of ``--variants``; the default is all of them
    :param timesteps: default of ``--timesteps``
    :param repeats: default of ``--repeats``
    """
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    meaning = f"folder for the results (default benchmarks/results/{study})"
    result.add_argument("--output", type=Path, default=RESULTS / study, help=meaning)
    if seeds is not None:
        meaning = f"seeds of the runs (default {' '.join(map(str, seeds))})"
        result.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help=meaning)
    if variants is not None:
        names = list(variants)
        result.add_argument(
            "--variants", nargs="*", default=names, choices=names, help="variants to run; no name: only summarize"
        )
    if timesteps is not None:
        result.add_argument("--timesteps", type=int, default=timesteps, help=f"time steps of training (default {timesteps})")
    if repeats is not None:
        result.add_argument("--repeats", type=int, default=repeats, help=f"repeats of each measurement (default {repeats})")
    if seeds is not None:
        runner.add_options(result)
    return result


class Made(NamedTuple):
    """Results of a command's runs, except their curves, which are in the table."""

    origin: dict[str, Any]
    """Provenance of the command"""
    origins: dict[str, dict[str, Any]]
    """Variant -> provenance of its first run; different provenance of its other runs is in the entry ``others``"""
    facts: dict[tuple[str, int], dict[str, Any]]
    """Variant and seed -> result of the run, without its curves"""


#: Function that makes the run of a variant and a seed. The result may have an entry ``curves``: environment -> recorded rows
RunFunction = Callable[[argparse.Namespace, str, int], Result]


def make_runs(options: argparse.Namespace, run: RunFunction, variants: Mapping[str, Any]) -> Made:
    """
    :param options: options of :func:`parser`, with ``seeds`` and ``variants``
    :param run: function that makes one run
    :param variants: variant -> its settings; if their ``repr`` has changed, the variant is run again
    :return: results of the runs
    :raises SystemExit: if runs failed
    """
    return make_all_runs([options], run, variants)[0]


def make_all_runs(tasks: Sequence[argparse.Namespace], run: RunFunction, variants: Mapping[str, Any]) -> list[Made]:
    """
    Same as :func:`make_runs`, for several tasks.

    :param tasks: options of each task; all have the same seeds
    :return: results of each task
    """
    options, made = tasks[0], [Made(provenance(), {}, {}) for _ in tasks]
    # Loop over seeds first, so that the compared variants of a seed run close together in time.
    keys = {
        _job(task, run, variants[variant], variant, seed): (i, variant, seed)
        for seed in options.seeds
        for i, task in enumerate(tasks)
        for variant in task.variants
    }

    def ended(job: Job, result: Result) -> None:
        _, variant, seed = keys[job]
        curves = {Run(variant, env, seed): rows for env, rows in result.get("curves", {}).items()}
        if curves:
            CurveTable(options.output).add(curves)

    for (i, variant, seed), result in zip(keys.values(), runner.make(list(keys), options, ended), strict=True):
        made[i].facts[variant, seed] = {k: v for k, v in result.items() if k not in ("settings", "origin", "curves")}
        first = made[i].origins.setdefault(variant, dict(result["origin"]))
        if result["origin"] not in ({k: v for k, v in first.items() if k != "others"}, *first.get("others", [])):
            first.setdefault("others", []).append(result["origin"])
    return made


#: Options that do not affect the result of a run
_OF_THE_COMMAND = ("output", "seeds", "variants", "workers", "address", "retries", "again", "clones")


def _job(options: argparse.Namespace, run: RunFunction, settings: Any, variant: str, seed: int) -> Job:
    given = {name: value for name, value in vars(options).items() if name not in _OF_THE_COMMAND}
    known = json.loads(json.dumps({**given, "variant": variant, "seed": seed, "settings": repr(settings)}, default=str))
    task = [name for name in (given.get("task") or given.get("env"),) if name]
    return Job(" ".join([*task, variant, "seed", str(seed)]), known, partial(run, options, variant, seed))


def read_summary(folder: Path) -> dict[str, Any]:
    """
    :param folder: folder of the study
    :return: content of its ``summary.json``; empty if the file does not exist
    """
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """
    Write ``summary.json``, with short entries on one line, which are easier to read and to compare.

    :param folder: folder of the study
    :param summary: content of the file
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(_json(summary) + "\n")


def _json(value: Any, indent: int = 0) -> str:
    """JSON in which short entries, such as an interval, and lists of numbers are on one line."""
    line, inner = json.dumps(value), " " * (indent + 1)
    if isinstance(value, Mapping) and indent + len(line) > _WIDTH:
        entries = [f"{json.dumps(str(key))}: {_json(entry, indent + 1)}" for key, entry in value.items()]
    elif isinstance(value, list) and indent + len(line) > _WIDTH and not all(isinstance(x, int | float | None) for x in value):
        entries = [_json(entry, indent + 1) for entry in value]
    else:
        return line
    return f"{line[0]}\n{inner}" + f",\n{inner}".join(entries) + f"\n{inner[1:]}{line[-1]}"


def update_summary(folder: Path, section: str, entry: Mapping[str, Any]) -> None:
    """
    Replace one section of the summary and keep the others.

    :param folder: folder of the study
    :param section: name of the section, such as an environment
    :param entry: new content of the section
    """
    with locked(folder):
        write_summary(folder, {**read_summary(folder), section: entry})


def origins(before: Mapping[str, Any], made: Made) -> dict[str, Any]:
    """
    :param before: section of a summary
    :param made: results of this command
    :return: variant -> origin; variants that this command did not run keep their origin
    """
    return {**before.get("origins", {}), **made.origins}


# ---------------------------------------------------------------- figures

_AXES = {"env_steps": ("thousands of environment steps", 1000), "cpu_seconds": ("processor seconds", 1)}


class Panel(NamedTuple):
    """One plot of a figure, which shows one column of curves against another."""

    title: str
    curves: Mapping[str, Sequence[Curve]]
    """Label -> one curve per seed"""
    column: str
    x: str = "env_steps"


def return_panels(title: str, curves: Mapping[str, Sequence[Curve]], x: str = "env_steps") -> list[Panel]:
    """:return: two panels, for the exploring and for the deterministic return"""
    return [Panel(f"{title}, {column.removeprefix('return_')}", curves, column, x) for column in RETURNS]


def plot(rows: Sequence[Sequence[Panel]], path: Path, dpi: int = 75, sharey: bool = True) -> None:
    """
    Plot mean and range over seeds. Curves whose label contains "published" are dashed.

    :param rows: rows with the same number of panels
    :param path: path of the image
    :param dpi: dots per inch
    :param sharey: whether the panels of a row have the same scale
    """
    figure = Figure(figsize=(5.2 * len(rows[0]), 3.9 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharey="row" if sharey else False)
    for row, axes_of_row in zip(rows, grid, strict=True):
        for panel, axes in zip(row, axes_of_row, strict=True):
            label, unit = _AXES[panel.x]
            for name, runs in panel.curves.items():
                drawn = [plotting.Curve(curve[panel.x], curve[panel.column]) for curve in runs]
                if all(np.isfinite(curve.y).any() for curve in drawn):  # not so if a run is too short for an episode to end
                    style = "--" if "published" in name else "-"
                    plotting.plot_curves(drawn, axes, unit=unit, label=name, linestyle=style)
            axes.set(title=panel.title, xlabel=label)
        axes_of_row[0].set_ylabel("return")
        axes_of_row[0].legend(fontsize="small")
    figure.savefig(path, dpi=dpi)

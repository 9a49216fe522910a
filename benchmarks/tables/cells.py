"""Functions that read results and format tables and numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT
from benchmarks.study import RESULTS

#: Name -> page and table
Tables = dict[str, tuple[Path, Callable[[], str]]]
#: Tasks of ``benchmarks.tasks`` with demonstrations of an expert without noise
PRECISE = ("hopper-precise", "walker2d-precise", "halfcheetah-precise")
#: Numbers in sentences
WORDS = ("none", *"one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split())


def page(name: str) -> Path:
    """:return: path of a page of the documentation"""
    return ROOT / "docs" / f"{name}.md"


def result(name: str) -> Any:
    """
    :param name: name of a study or of a file
    :return: content of the committed result
    """
    path = RESULTS / name
    return json.loads((path if path.suffix else path / "summary.json").read_text(encoding="utf-8"))


def above_clone(tasks: Sequence[str], *variants: str) -> list[bool]:
    """:return: for every run of the variants in ``benchmarks.tasks``, whether its deterministic policy ends above its clone"""
    sections = [result("tasks")[task]["success"] for task in tasks]
    runs = [run for section in sections for variant in variants for run in section[variant].values()]
    return [run["end"]["deterministic"] > run["start"]["deterministic"] for run in runs]


def lowest_shares(tasks: Sequence[str], variant: str) -> list[float]:
    """:return: the lowest evaluation of every run of a variant in ``benchmarks.tasks``, in percent of its clone's return"""
    shares: list[float] = []
    for section in (result("tasks")[task] for task in tasks):
        starts = section["mean"][variant]["start"]["deterministic"]["per_seed"]
        lowest = section["lowest_deterministic"][variant]
        shares += [100 * least / start for least, start in zip(lowest, starts, strict=True)]
    return shares


def with_interval(entry: Mapping[str, Any], places: int = 0, name: str = "mean", factor: float = 1) -> str:
    """
    :param entry: entry of a summary
    :param places: digits after the decimal point
    :param name: key of the number in the entry; the key of the interval is ``ci95``
    :param factor: factor that converts units
    :return: the number and its 95% confidence interval
    """
    number, low, high = (f"{factor * value:.{places}f}" for value in (entry[name], *entry["ci95"]))
    return f"{number} [{low}, {high}]"


def listed(numbers: Sequence[float], places: int = 0) -> str:
    return ", ".join(f"{number:.{places}f}" for number in numbers)


def range_of(numbers: Sequence[float], places: int = 0) -> str:
    return f"{min(numbers):.{places}f} to {max(numbers):.{places}f}"


def thousands(steps: float) -> str:
    """:return: number of steps, rounded to thousands"""
    return f"{steps / 1000:.0f},000"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [("| " + " | ".join(cells) + " |").replace("|  |", "| |") for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])

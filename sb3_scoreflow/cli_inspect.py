"""The command ``sb3-scoreflow inspect``, which shows the content of demonstrations."""

import argparse
import warnings

import numpy as np

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations
from sb3_scoreflow.demonstrations.arrays import named_observations
from sb3_scoreflow.demonstrations.success import first_successes

#: Largest number of table rows that are printed; further rows are only counted
_MAX_ROWS = 20


def one_line(text: str) -> str:
    """:return: the text without line breaks"""
    return " ".join(text.split())


def inspect(args: argparse.Namespace) -> None:
    """
    Print a description, tables of episodes and ranges, and warnings about suspicious values.

    :param args: parsed arguments of the command: source
    """
    with warnings.catch_warnings(record=True) as caught:
        demonstrations = load_demonstrations(args.source)
    print(demonstrations.describe())
    _print_table("episodes", *_episodes(demonstrations))
    arrays = {**named_observations(demonstrations.observations), "actions": demonstrations.actions}
    vectors = {name: np.asarray(array) for name, array in arrays.items() if len(array.shape) == 2}
    for name, vector in vectors.items():
        _print_table(name, *_ranges(vector))
    for text in [*(str(warning.message) for warning in caught), *_suspicions(vectors, demonstrations.rewards)]:
        print(f"\nwarning: {one_line(text)}")


def _episodes(demonstrations: Demonstrations) -> tuple[list[str], list[list[str]]]:
    """:return: header and rows of a table of episodes, with successes if the rewards mark them"""
    head = ["number", "length", "return"]
    lengths, returns = demonstrations.episode_lengths, demonstrations.episode_returns
    rows = [[str(i), str(length), f"{total:.2f}"] for i, (length, total) in enumerate(zip(lengths, returns, strict=True))]
    stops = np.cumsum(lengths)
    try:
        successes = first_successes(demonstrations.rewards, stops - lengths, stops)
    except ValueError:
        return head, rows
    if len(successes) == 0:  # for example if all rewards are 0
        return head, rows
    succeeded = set(np.searchsorted(stops, successes, side="right").tolist())
    return [*head, "success"], [[*row, "yes" if i in succeeded else "no"] for i, row in enumerate(rows)]


def _ranges(vector: np.ndarray) -> tuple[list[str], list[list[str]]]:
    statistics = (vector.min(0), vector.max(0), vector.mean(0, dtype=np.float64), vector.std(0, dtype=np.float64))
    rows = [[str(i), *(f"{value:.4g}" for value in row)] for i, row in enumerate(zip(*statistics, strict=True))]
    return ["component", "min", "max", "mean", "std"], rows


def _suspicions(vectors: dict[str, np.ndarray], rewards: np.ndarray) -> list[str]:
    """:return: descriptions of suspicious properties that are not errors"""
    found = []
    for name, vector in vectors.items():
        constant = np.flatnonzero(vector.min(0) == vector.max(0)).tolist()
        if constant:
            found.append(f"{name}: {len(constant)} of {vector.shape[1]} components never change: {constant[:_MAX_ROWS]}")
    if not rewards.any():
        found.append("All rewards are 0: actions can be cloned, but a critic cannot be fitted.")
    return found


def _print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    shown = [head, *rows[:_MAX_ROWS]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    print(f"\n{title}")
    for row in shown:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if len(rows) > _MAX_ROWS:
        print(f"  and {len(rows) - _MAX_ROWS:,} more")

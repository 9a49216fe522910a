"""Learning curves: reading the files of Stable-Baselines3 and its zoo, and drawing the mean over seeds with a band."""

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from stable_baselines3.common.monitor import load_results

from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.common.utils import ArgumentError, check_choice
from sb3_scoreflow.plotting.axes import axes_of

Band = Literal["range", "std", "none"]


class Curve(NamedTuple):
    """Curve of one run."""

    x: np.ndarray  #: positions, ascending, shape ``(n,)``
    y: np.ndarray  #: values, NaN where unknown, same shape


def read_monitor(folder: AnyPath, x: Literal["steps", "seconds"] = "steps", window: int = 100) -> Curve:
    """
    Read the returns of the episodes in the ``monitor.csv`` files of one run, in the order of their ends.

    :param folder: folder of the files
    :param x: "steps": steps of the environments; "seconds": wall-clock time
    :param window: number of episodes of the moving average; all episodes, if there are fewer
    :return: the curve, from the first complete window on
    :raises ArgumentError: if no episode has ended, or an argument is invalid
    """
    check_choice("x", x, ("steps", "seconds"))
    if window < 1:
        raise ArgumentError(f"window must be at least 1 episode, got {window!r}: pass 100.")
    folder = as_path(folder)
    results = load_results(str(folder))
    if len(results) == 0:
        raise ArgumentError(f"folder={str(folder)!r} has monitor files without episodes: wait until one has ended.")
    window = min(window, len(results))
    position = results["l"].cumsum() if x == "steps" else results["t"]
    means = np.convolve(results["r"], np.full(window, 1 / window), mode="valid")
    return Curve(position.to_numpy(dtype=float)[window - 1 :], means)


def read_progress(path: AnyPath, y: str = "rollout/ep_rew_mean", x: str = "time/total_timesteps") -> Curve:
    """
    Read a column of ``progress.csv``, which Stable-Baselines3's logger writes with the format "csv".

    :param path: path of the file or its folder
    :param y: name of the column with the values
    :param x: name of the column with the positions, such as ``time/env_steps``
    :return: the curve, from the rows with both columns
    :raises ArgumentError: if a column does not exist
    """
    rows = read_rows(path)
    for name in (y, x):
        if not any(name in row for row in rows):
            known = sorted({key for row in rows for key in row})
            raise ArgumentError(f"{os.fsdecode(path)} has no column {name!r}; it has {', '.join(known)}.")
    pairs = [(row[x], row[y]) for row in rows if x in row and y in row]
    return Curve(*np.array(pairs, float).reshape(-1, 2).T)


def read_rows(path: AnyPath) -> list[dict[str, float]]:
    """
    :param path: path of ``progress.csv``, or its folder
    :return: the rows of the file, without empty cells
    """
    path = as_path(path)
    with (path / "progress.csv" if path.is_dir() else path).open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def read_evaluations(path: AnyPath, key: str = "results") -> Curve:
    """
    Read the mean over the episodes of every evaluation from ``evaluations.npz``, which EvalCallback and the zoo write.

    :param path: the file, or its folder
    :param key: "results" (returns), "ep_lengths", "successes", or "stochastic_results" of
        :class:`~sb3_scoreflow.callbacks.FlowEvalCallback`
    :return: the curve over timesteps
    :raises ArgumentError: if the file has no such key
    """
    path = as_path(path)
    with np.load(path / "evaluations.npz" if path.is_dir() else path) as file:
        if key not in file:
            raise ArgumentError(f"{path} has no {key!r}; it has {', '.join(sorted(file))}.")
        return Curve(file["timesteps"].astype(float), file[key].reshape(len(file["timesteps"]), -1).mean(1))


def plot_curves(
    runs: Sequence[Curve] | Mapping[str, Sequence[Curve]],
    ax: Any = None,
    band: Band = "range",
    n_points: int = 50,
    unit: float = 1.0,
    **line: Any,
) -> Any:
    """
    Draw the mean over runs (seeds) as a line with a band. Runs are interpolated in the range that all of them cover; for a
    single run, the band has no width.

    :param runs: curves of the seeds, or label -> curves of the seeds
    :param ax: axes
    :param band: "range": from the lowest to the highest run; "std": one standard deviation on both sides; "none"
    :param n_points: number of points of the line
    :param unit: number by which ``x`` is divided
    :param line: keyword arguments of ``ax.plot``
    :return: the axes
    :raises ArgumentError: if there is nothing to draw
    """
    check_choice("band", band, get_args(Band))
    ax = axes_of(ax)
    for label, curves in (runs if isinstance(runs, Mapping) else {None: runs}).items():
        x, values = _common(curves, n_points)
        mean, std = values.mean(0), values.std(0)
        (drawn,) = ax.plot(x / unit, mean, **({"label": label} | line))
        if band != "none":
            low, high = (values.min(0), values.max(0)) if band == "range" else (mean - std, mean + std)
            ax.fill_between(x / unit, low, high, color=drawn.get_color(), alpha=0.13)
    ax.grid(alpha=0.3)
    if isinstance(runs, Mapping):
        ax.legend(fontsize="small")
    return ax


def _common(curves: Sequence[Curve], n_points: int) -> tuple[np.ndarray, np.ndarray]:
    """:return: points at which all curves are known, and their values there, shape ``(n_curves, n_points)``"""
    known = [(curve.x[~np.isnan(curve.y)], curve.y[~np.isnan(curve.y)]) for curve in curves]
    if not known or any(len(x) == 0 for x, _ in known):
        raise ArgumentError(
            f"runs has {len(known)} curves, and at least one has no values: leave out runs that have not started."
        )
    start, end = max(x[0] for x, _ in known), min(x[-1] for x, _ in known)
    if start > end:
        raise ArgumentError(f"runs do not overlap: one begins at {start:g}, and another ends at {end:g}.")
    grid = np.linspace(start, end, n_points)
    return grid, np.array([np.interp(grid, x, y) for x, y in known])

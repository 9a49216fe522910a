"""The statistics of the learning benchmarks: of curves, over seeds, and over several tasks at once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.curves import Curve


def final_return(curve: Curve, column: str, n_last: int = 3) -> float:
    """Mean of the last evaluations, which a single lucky evaluation does not decide."""
    return float(np.nanmean(curve[column][-n_last:]))


def steps_to(curve: Curve, column: str, threshold: float) -> float:
    """Env steps at which the curve first reaches a threshold, interpolated linearly; infinity if it never does."""
    x, y = curve["env_steps"], curve[column]
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    above = np.flatnonzero(y >= threshold)
    if len(above) == 0:
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (threshold - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


def all_steps_to(curves: Sequence[Curve], column: str, threshold: float) -> dict[str, Any]:
    """
    :param curves: one per seed
    :param column: the return
    :param threshold: of it
    :return: env steps to the threshold, null where it is not reached; their median, if more than half of the seeds reach it
    """
    steps = [steps_to(curve, column, threshold) for curve in curves]
    # JSON has no infinity
    reached = [value if np.isfinite(value) else None for value in (*steps, float(np.median(steps)))]
    return {"threshold": threshold, "per_seed": reached[:-1], "median": reached[-1]}


def lowest_over_clone(curve: Curve) -> float:
    """The worst deterministic evaluation after the start, as a share of the one at the start."""
    returns = curve["return_deterministic"]
    return float(returns[1:].min() / returns[0])


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """
    Mean over seeds with its 95% confidence interval (Student's t: for a handful of seeds a bootstrap is too narrow).

    :param values: one per seed; a single one has no interval
    """
    array = np.asarray(values, dtype=float)
    result: dict[str, Any] = {"mean": float(array.mean())}
    if len(array) > 1:
        half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
        result["ci95"] = [float(array.mean() - half), float(array.mean() + half)]
    return {**result, "per_seed": array.tolist()}


# ---------------------------------------------------------------- several tasks at once (arXiv 2108.13264)
# rliable is imported where it is used: it takes seconds.

#: Scores, shape ``(n_seeds, n_tasks)``
Scores = np.ndarray
_N_RESAMPLES = 2000


def interquartile_means(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """
    Mean of the middle half of all runs of all tasks, with its 95% confidence interval by a bootstrap that draws seeds within
    every task.

    :param scores: of each algorithm
    :return: "value" and "ci95" by algorithm
    """
    from rliable import metrics

    return _with_intervals(scores, lambda runs: np.array([metrics.aggregate_iqm(runs)]))


def probabilities_of_improvement(scores: Mapping[str, Scores], pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """
    Probability that a run of the first beats a run of the second on the same task, ties counting half; mean over tasks.

    :param scores: of each algorithm
    :param pairs: of algorithms
    :return: "value" and "ci95", 95% by a bootstrap as above, by "first over second"
    """
    both: dict[str, Any] = {f"{first} over {second}": (scores[first], scores[second]) for first, second in pairs}
    # rliable's own computes p-values on the way, which takes a hundred times as long
    return _with_intervals(both, lambda x, y: np.array([_wins(x[:, None] - y[None]).mean()]))


def probabilities_of_gain(gains: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """
    Probability that a run ends above where it began, no change counting half; mean over tasks.

    :param gains: of each algorithm's runs, each over its own beginning
    :return: "value" and "ci95", 95% by a bootstrap as above, by algorithm
    """
    return _with_intervals(gains, lambda runs: np.array([_wins(runs).mean()]))


def performance_profiles(scores: Mapping[str, Scores], thresholds: Sequence[float]) -> dict[str, dict[str, Any]]:
    """
    Share of all runs of all tasks that are above each threshold.

    :param scores: of each algorithm
    :param thresholds: of them, several
    :return: "value", one per threshold, and "ci95", all lower and all upper ends, 95% by a bootstrap as above, by algorithm
    """
    return _with_intervals(scores, lambda runs: (runs[..., None] > np.asarray(thresholds)).mean((0, 1)))


def _wins(differences: np.ndarray) -> np.ndarray:
    return (np.sign(differences) + 1) / 2


def _with_intervals(scores: Mapping[str, Any], statistic: Callable[..., np.ndarray]) -> dict[str, dict[str, Any]]:
    from rliable import library

    # rliable draws from NumPy's global generator, whatever `random_state` it is given
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        values, intervals = library.get_interval_estimates(scores, statistic, reps=_N_RESAMPLES)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return {name: {"value": values[name].squeeze().tolist(), "ci95": intervals[name].squeeze().tolist()} for name in scores}

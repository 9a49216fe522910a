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
    from rliable import metrics

    both: dict[str, Any] = {f"{first} over {second}": (scores[first], scores[second]) for first, second in pairs}
    return _with_intervals(both, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]))


def _with_intervals(scores: Mapping[str, Any], statistic: Callable[..., np.ndarray]) -> dict[str, dict[str, Any]]:
    from rliable import library

    generator = np.random.RandomState(0)  # what rliable takes
    values, intervals = library.get_interval_estimates(scores, statistic, reps=_N_RESAMPLES, random_state=generator)
    return {name: {"value": float(values[name][0]), "ci95": intervals[name][:, 0].tolist()} for name in scores}

"""The statistics of the learning benchmarks: of curves, over seeds, and over several tasks at once."""

from collections.abc import Callable, Sequence
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

#: One array of scores, one per seed, for every task
Scores = Sequence[np.ndarray]
Statistic = Callable[..., float]


def interquartile_mean(*tasks: np.ndarray) -> float:
    """Mean of the middle half of all runs of all tasks."""
    return float(stats.trim_mean(np.concatenate(tasks), 0.25))


def probability_of_improvement(*tasks: np.ndarray) -> float:
    """
    Probability that a run of the first beats a run of the second on the same task, ties counting half; mean over tasks.

    :param tasks: the scores of the first on every task, then those of the second
    """
    first, second = tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]
    wins = [np.sign(a[:, None] - b[None, :]) / 2 + 0.5 for a, b in zip(first, second, strict=True)]
    return float(np.mean([w.mean() for w in wins]))


def with_bootstrap_interval(statistic: Statistic, tasks: Scores) -> dict[str, Any]:
    """
    A statistic of the scores with its 95% confidence interval, by a percentile bootstrap that draws seeds within every task.

    :param statistic: of one array per task
    :param tasks: the arrays, at least two scores each
    """
    drawn = stats.bootstrap(tuple(tasks), statistic, n_resamples=2000, vectorized=False, method="percentile", rng=0)
    return {
        "value": statistic(*tasks),
        "ci95": [float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)],
    }

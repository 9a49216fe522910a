"""Statistics for the learning benchmarks: of single curves, over seeds, and over several tasks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.curves import Curve


def final_return(curve: Curve, column: str, n_last: int = 3) -> float:
    """Mean of the last evaluations, so that a single lucky evaluation does not decide."""
    return float(np.nanmean(curve[column][-n_last:]))


def steps_to(curve: Curve, column: str, threshold: float) -> float:
    """Environment steps at which the curve first reaches a threshold, interpolated linearly; infinity if it never does."""
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
    :param curves: one curve per seed
    :param column: column of the return
    :param threshold: return to reach
    :return: ``threshold``; ``per_seed``: the environment steps to the threshold, None if a seed does not reach it; ``median``:
        the median of these steps, None if too few seeds reach the threshold
    """
    steps = [steps_to(curve, column, threshold) for curve in curves]
    # JSON has no infinity
    reached = [value if np.isfinite(value) else None for value in (*steps, float(np.median(steps)))]
    return {"threshold": threshold, "per_seed": reached[:-1], "median": reached[-1]}


def lowest_over_clone(curve: Curve) -> float:
    """The lowest deterministic return after the start, as a share of the return at the start."""
    returns = curve["return_deterministic"]
    return float(returns[1:].min() / returns[0])


def chance_of_lower(successes: int, n_known: int, n_episodes: int, n_evaluations: int, share: float) -> float:
    """
    Probability that the lowest of several evaluations of an unchanged policy is below a share of its known success rate.

    :param successes: successes in the known episodes
    :param n_known: number of known episodes
    :param n_episodes: episodes per evaluation
    :param n_evaluations: number of evaluations
    :param share: share of the known rate
    :return: the probability, for a policy whose rate has Jeffreys' posterior, ``Beta(successes + 1/2, failures + 1/2)``
    """
    posterior = stats.beta(successes + 0.5, n_known - successes + 0.5)
    rates = posterior.ppf((np.arange(1000) + 0.5) / 1000)
    enough = np.ceil(share * n_episodes * successes / n_known - 1e-9)  # successes of an evaluation that is not below
    return float(np.mean(1 - stats.binom.sf(enough - 1, n_episodes, rates) ** n_evaluations))


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """
    Mean over seeds with its 95% confidence interval (Student's t, because a bootstrap is too narrow for few seeds).

    :param values: one value per seed; a single value has no interval
    """
    array = np.asarray(values, dtype=float)
    result: dict[str, Any] = {"mean": float(array.mean())}
    if len(array) > 1:
        half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
        result["ci95"] = [float(array.mean() - half), float(array.mean() + half)]
    return {**result, "per_seed": array.tolist()}


# ---------------------------------------------------------------- several tasks (arXiv 2108.13264)
# The functions import rliable themselves, because the import takes seconds.

#: Scores, shape ``(n_seeds, n_tasks)``
Scores = np.ndarray
_N_RESAMPLES = 2000


def interquartile_means(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """
    Mean of the middle half of all runs of all tasks, with its 95% confidence interval from a bootstrap that draws seeds within
    every task.

    :param scores: algorithm -> scores
    :return: algorithm -> "value" and "ci95"
    """
    from rliable import metrics

    return _with_intervals(scores, lambda runs: np.array([metrics.aggregate_iqm(runs)]))


def probabilities_of_improvement(scores: Mapping[str, Scores], pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """
    Probability that a run of the first algorithm beats a run of the second on the same task, averaged over tasks. Ties count
    half.

    :param scores: algorithm -> scores
    :param pairs: pairs of algorithms
    :return: "first over second" -> "value" and "ci95", which comes from the same bootstrap as in :func:`interquartile_means`
    """
    both: dict[str, Any] = {f"{first} over {second}": (scores[first], scores[second]) for first, second in pairs}
    # rliable's own function also computes p-values, which takes a hundred times as long
    return _with_intervals(both, lambda x, y: np.array([_wins(x[:, None] - y[None]).mean()]))


def probabilities_of_gain(gains: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """
    Probability that a run ends with a higher score than at its start, averaged over tasks. Runs without a change count half.

    :param gains: algorithm -> gains of its runs over their own start
    :return: algorithm -> "value" and "ci95", which comes from the same bootstrap as in :func:`interquartile_means`
    """
    return _with_intervals(gains, lambda runs: np.array([_wins(runs).mean()]))


def performance_profiles(scores: Mapping[str, Scores], thresholds: Sequence[float]) -> dict[str, dict[str, Any]]:
    """
    Share of the runs of all tasks whose score is above each threshold.

    :param scores: algorithm -> scores
    :param thresholds: several thresholds
    :return: algorithm -> "value", one number per threshold, and "ci95", the list of lower bounds and the list of upper bounds,
        which come from the same bootstrap as in :func:`interquartile_means`
    """
    return _with_intervals(scores, lambda runs: (runs[..., None] > np.asarray(thresholds)).mean((0, 1)))


def _wins(differences: np.ndarray) -> np.ndarray:
    return (np.sign(differences) + 1) / 2


def _with_intervals(scores: Mapping[str, Any], statistic: Callable[..., np.ndarray]) -> dict[str, dict[str, Any]]:
    from rliable import library

    # rliable draws from NumPy's global generator, even if it gets a `random_state`
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        values, intervals = library.get_interval_estimates(scores, statistic, reps=_N_RESAMPLES)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return {name: {"value": values[name].squeeze().tolist(), "ci95": intervals[name].squeeze().tolist()} for name in scores}

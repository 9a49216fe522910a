"""Checks for numbers that are too large to learn from, and bounds on the effect of outliers on running statistics (ours)."""

from typing import Any

import numpy as np
import torch as th
from torch import Tensor

from sb3_scoreflow.common.utils import DivergenceError, warn

#: Numbers of at least this size have an infinite square in float32, the type of statistics and networks.
LIMIT = float(np.sqrt(np.finfo(np.float32).max))
#: Smallest number of samples with which statistics serve as a reference.
ESTABLISHED = 100
#: Distance from the mean beyond which a single number is an outlier: this many times the largest of standard deviation, mean
#: and 1. Sparse signals are also far from the mean, so without established statistics the threshold is larger.
_FAR, ABSURD = 1e3, 1e6
#: An outlier counts as if it were this many standard deviations from the mean, where the normalizer clips observations.
COUNTS_AS = 10.0


def entry(index: tuple[int, ...], n_leading: int, n_steps: int | None = None) -> str:
    """
    Name an entry in words.

    :param index: index of the entry
    :param n_leading: axes before those of a single observation or reward: 2 for a rollout, else 1
    :param n_steps: number of steps of a rollout with one axis, in which environments come one after the other; None
        for demonstrations
    :return: name of the entry, such as "component 3 at step 5 of environment 1"
    """
    leading, own = index[:n_leading], index[n_leading:]
    if n_steps is not None and n_leading == 1:
        leading = leading[0] % n_steps, leading[0] // n_steps
    where = f"step {leading[0]} of environment {leading[1]}" if len(leading) == 2 else f"transition {leading[0]}"
    return f"component {own[0] if len(own) == 1 else own} at {where}" if own else where


def check_magnitudes(name: str, values: Any, n_leading: int, remedy: str) -> None:
    """
    :param name: name of the values, for the message
    :param values: finite numbers
    :param n_leading: see :func:`entry`
    :param remedy: remedy, for the message
    :raises DivergenceError: if a number is so large that its square overflows float32
    """
    array = np.asarray(values)
    if array.dtype.kind != "f" or array.size == 0 or max(array.max(), -array.min()) < LIMIT:
        return
    huge = np.argwhere((array >= LIMIT) | (array <= -LIMIT))
    first = tuple(int(i) for i in huge[0])
    raise DivergenceError(
        f"{name} are too large to learn from: {entry(first, n_leading)} is {array[first]:.4g} ({len(huge)} such entries), and "
        f"its square overflows float32. {remedy}"
    )


def bound_outliers(values: Tensor, mean: Tensor, var: Tensor, count: float, far: float = _FAR) -> tuple[Tensor, Tensor | None]:
    """
    Bound the effect of single numbers on running statistics.

    With established statistics, up to one in twenty samples of a batch may count as outliers (more of them indicate a change
    of the observations). Without them, up to one in ten thousand may, compared with the other samples. In both cases, at least
    one sample may count as an outlier.

    :param values: batch of samples, float64, shape ``(n, ...)``
    :param mean: mean of the statistics so far, shape ``(...)``
    :param var: variance of the statistics so far, same shape
    :param count: number of samples of the statistics so far
    :param far: distance of an outlier from the established mean
    :return: the values with replaced outliers; mask of the outliers, None if there are none
    """
    n = len(values)
    if values.numel() == 0 or max(n, count) < ESTABLISHED:
        return values, None
    factor, most = (far, max(n // 20, 1)) if count >= ESTABLISHED else (ABSURD, max(n // 10_000, 1))
    if count < ESTABLISHED:
        middle = values.median(0).values
        if not bool(((values - middle).abs() > factor).any()):
            return values, None
        mean, var = _without_farthest(values, middle, most)
    deviation = values - mean
    outliers = deviation.abs() > factor * th.maximum(var.sqrt(), mean.abs()).clamp(min=1.0)
    outliers &= outliers.sum(0) <= most
    if not bool(outliers.any()):
        return values, None
    return th.where(outliers, mean + COUNTS_AS * var.sqrt() * deviation.sign(), values), outliers


def _without_farthest(values: Tensor, middle: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each component without the numbers that are farthest from its median."""
    distance = (values - middle).abs()
    kept = distance <= distance.kthvalue(len(values) - most, dim=0).values
    mean = th.where(kept, values, 0.0).sum(0) / kept.sum(0)
    return mean, th.where(kept, (values - mean) ** 2, 0.0).sum(0) / kept.sum(0)


def warn_of_outlier(what: str, value: float) -> None:
    """
    :param what: name of an outlier
    :param value: its value
    """
    warn(
        f"{what} is {value:.4g}, far from all others: running statistics count it as {COUNTS_AS:g} standard deviations. "
        "If it is an error of the environment or the data, correct it there; otherwise, scale or clip it. Later outliers are "
        "bounded without a warning."
    )

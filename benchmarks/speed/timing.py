"""Processor time of functions that take turns."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def in_turns(functions: dict[str, Callable[[], Any]], repeats: int, calls: int = 1, warmup: int = 2) -> dict[str, np.ndarray]:
    """
    Time functions alternately: a busy moment of the machine hits all of them alike. Each round has its own order: what ran
    before a function leaves the caches in its own state, which was seen to move a time by a tenth.

    :param functions: what is compared, by name
    :param repeats: rounds that count
    :param calls: calls per round of each; a call far shorter than the clock's tick needs several
    :param warmup: rounds before those
    :return: milliseconds of processor time per call, shape ``(repeats,)`` each
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(0)
    for repeat in range(warmup + repeats):
        for name in order.sample(list(functions), len(functions)):
            function = functions[name]
            start = time.process_time()
            for _ in range(calls):
                function()
            if repeat >= warmup:
                times[name].append(1e3 * (time.process_time() - start) / calls)
    return {name: np.array(values) for name, values in times.items()}


def medians(times: dict[str, np.ndarray]) -> dict[str, float]:
    """Median of each, rounded to microseconds."""
    return {name: round(float(np.median(values)), 3) for name, values in times.items()}


def ratio(times: np.ndarray, reference: np.ndarray) -> float:
    """Median over the rounds of one's time over the other's in the same round."""
    return round(float(np.median(times / reference)), 3)


def target(measured: float, limit: float, at_least: bool = False) -> dict[str, Any]:
    """What was wanted and what was measured; a limit is an upper one unless ``at_least``."""
    passed = measured >= limit if at_least else measured <= limit
    return {"at_least" if at_least else "at_most": limit, "measured": measured, "passed": passed}

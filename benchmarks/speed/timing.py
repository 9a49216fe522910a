"""Processor time of functions that take turns."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def in_turns(functions: dict[str, Callable[[], Any]], repeats: int, calls: int = 1, warmup: int = 2) -> dict[str, np.ndarray]:
    """
    Time functions in turns, so that a busy moment of the machine affects all of them equally. Each round has a random order,
    because the function that ran before affects the caches, which changed a time by a tenth.

    :param functions: name -> function to time
    :param repeats: number of rounds that count
    :param calls: calls of each function per round; a call that is far shorter than the clock's tick needs several
    :param warmup: number of rounds before the counted rounds
    :return: name -> milliseconds of processor time per call, shape ``(repeats,)``
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
    """:return: name -> median time, rounded to microseconds"""
    return {name: round(float(np.median(values)), 3) for name, values in times.items()}


def ratio(times: np.ndarray, reference: np.ndarray) -> float:
    """:return: median over the rounds of the ratio of both times in the same round"""
    return round(float(np.median(times / reference)), 3)


def target(measured: float, limit: float, at_least: bool = False) -> dict[str, Any]:
    """:return: the limit, the measured number, and whether it passes; the limit is an upper one unless ``at_least`` is set"""
    passed = measured >= limit if at_least else measured <= limit
    return {"at_least" if at_least else "at_most": limit, "measured": measured, "passed": passed}

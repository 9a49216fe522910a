"""Steps per second of environments that take turns, without a policy and without learning."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: The process's own time, summed over its threads, depends little on other load of the machine.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Rates = dict[str, float]


def rates(take: Callable[[], int]) -> Rates:
    """
    :param take: function that takes steps and returns their number
    :return: clock -> steps per second
    """
    starts = {name: clock() for name, clock in CLOCKS.items()}
    taken = take()
    return {name: taken / (clock() - starts[name]) for name, clock in CLOCKS.items()}


def compare(what: str, ways: Mapping[str, Callable[[], Rates]], repeats: int) -> dict[str, Any]:
    """
    :param what: label of the comparison
    :param ways: name -> function that measures the rates; exactly two
    :param repeats: turns of each
    :return: all rates, their medians, and the ratios of the first function's medians to the second's
    """
    turns: dict[str, list[Rates]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            turns[name].append(way())
    medians = {
        name: {clock: float(np.median([turn[clock] for turn in values])) for clock in CLOCKS} for name, values in turns.items()
    }
    print(what, {name: round(median["cpu"]) for name, median in medians.items()}, "steps per CPU second", flush=True)
    first, second = medians.values()
    ratio = {clock: first[clock] / second[clock] for clock in CLOCKS}
    return {"steps_per_second": turns, "medians": medians, "ratio_of_medians": ratio}

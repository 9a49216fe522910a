"""Steps per second of environments that take turns; environments alone, without policy and learning."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: The process's own time, all threads together, depends little on what else the machine does.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
Rates = dict[str, float]


def rates(take: Callable[[], int]) -> Rates:
    """
    :param take: takes steps and returns how many
    :return: steps per second of each clock
    """
    starts = {name: clock() for name, clock in CLOCKS.items()}
    taken = take()
    return {name: taken / (clock() - starts[name]) for name, clock in CLOCKS.items()}


def compare(what: str, ways: Mapping[str, Callable[[], Rates]], repeats: int) -> dict[str, Any]:
    """
    :param what: label of the comparison
    :param ways: what is compared, by name
    :param repeats: turns of each
    :return: all rates, their medians, and the ratios of the first one's medians to the second's
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

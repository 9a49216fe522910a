"""
Schedules over ``progress_remaining`` (1 at the start of ``learn``, 0 at its end), as Stable-Baselines3 defines them, and one
over the number of transitions trained with, which does not depend on how training is cut into calls of ``learn``.

They are objects with plain attributes, not lambdas, so that a saved model loads in any Python version.
"""

import math
from typing import Any

from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from sb3_scoreflow.common.plain import describable


class Progress(float):
    """
    ``progress_remaining`` as the algorithms of this package pass it to schedules: a float in [0, 1] that also knows how many
    transitions the policy has been trained with.

    :param remaining: share of training that remains; brought into [0, 1], because the last rollout may pass the end
    :param n_transitions: calls of ``env.step`` over all environments, since construction or pretraining
    """

    n_transitions: int

    def __new__(cls, remaining: float, n_transitions: int = 0) -> "Progress":
        progress = super().__new__(cls, min(max(float(remaining), 0.0), 1.0))
        progress.n_transitions = n_transitions
        return progress


#: Where schedules begin and end, those over transitions included
START, END = Progress(1.0), Progress(0.0, 10**15)


@describable("initial_value", "final_value", "half_life")
class HalfLifeSchedule:
    """
    Exponential decay over the transitions that the policy has been trained with since construction or pretraining: ``final +
    (initial - final) 2^(-n / half_life)``.

    It does not depend on the length of training: one long ``learn``, many short ones and a run that continues from a file have
    the same values.

    :param initial_value: value at the start
    :param final_value: limit of the value
    :param half_life: number of transitions (steps summed over all environments) in which the distance to the final value
        halves, positive
    :raises ValueError: if ``half_life`` is not a positive, finite number
    """

    def __init__(self, initial_value: float, final_value: float, half_life: float) -> None:
        if not 0 < half_life < math.inf:
            raise ValueError(f"half_life must be a positive number of transitions, got {half_life}: try 25_000.")
        self.initial_value = float(initial_value)
        self.final_value = float(final_value)
        self.half_life = float(half_life)

    def __call__(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: a :class:`Progress`; a plain number stands for the start of training
        :return: the value
        """
        n = getattr(progress_remaining, "n_transitions", 0)
        return self.final_value + (self.initial_value - self.final_value) * 0.5 ** (n / self.half_life)

    def __repr__(self) -> str:
        return f"HalfLifeSchedule({self.initial_value}, {self.final_value}, half_life={self.half_life})"


@describable("initial_value", "final_value", "warmup_fraction")
class CosineSchedule:
    """
    Linear warm-up from 0, then cosine decay.

    :param initial_value: value reached at the end of the warm-up
    :param final_value: value at the end of training
    :param warmup_fraction: share of training spent warming up, in [0, 1)
    :raises ValueError: if ``warmup_fraction`` is outside [0, 1)
    """

    def __init__(self, initial_value: float, final_value: float = 0.0, warmup_fraction: float = 0.0) -> None:
        if not 0 <= warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must be in [0, 1), got {warmup_fraction}.")
        self.initial_value = float(initial_value)
        self.final_value = float(final_value)
        self.warmup_fraction = float(warmup_fraction)

    def __call__(self, progress_remaining: float) -> float:
        progress = 1.0 - progress_remaining
        if progress < self.warmup_fraction:
            return self.initial_value * progress / self.warmup_fraction
        decayed = (progress - self.warmup_fraction) / (1.0 - self.warmup_fraction)
        return self.final_value + 0.5 * (self.initial_value - self.final_value) * (1.0 + math.cos(math.pi * min(decayed, 1.0)))

    def __repr__(self) -> str:
        return f"CosineSchedule({self.initial_value}, {self.final_value}, warmup_fraction={self.warmup_fraction})"


@describable("initial_value", "final_value", "hold_fraction")
class HoldCosineSchedule:
    """
    Hold a value, then let it decay along a cosine: the noise schedule "learn_decay" of ScoRe-Flow and ReinFlow.

    The published schedule of ``max_std`` holds it for 35% of training and ends at ``min_std + 0.7 (max_std - min_std)``.

    :param initial_value: value held
    :param final_value: value at the end of training
    :param hold_fraction: share of training for which ``initial_value`` is held, in [0, 1)
    :raises ValueError: if ``hold_fraction`` is outside [0, 1)
    """

    def __init__(self, initial_value: float, final_value: float, hold_fraction: float = 0.35) -> None:
        if not 0 <= hold_fraction < 1:
            raise ValueError(f"hold_fraction must be in [0, 1), got {hold_fraction}.")
        self.initial_value = float(initial_value)
        self.final_value = float(final_value)
        self.hold_fraction = float(hold_fraction)

    def __call__(self, progress_remaining: float) -> float:
        decayed = (1.0 - progress_remaining - self.hold_fraction) / (1.0 - self.hold_fraction)
        weight = 0.5 * (1.0 + math.cos(math.pi * min(max(decayed, 0.0), 1.0)))
        return self.final_value + (self.initial_value - self.final_value) * weight

    def __repr__(self) -> str:
        return f"HoldCosineSchedule({self.initial_value}, {self.final_value}, hold_fraction={self.hold_fraction})"


def parse_schedule(value: Any) -> Any:
    """
    Parse a value from rl_zoo3's YAML files or command lines.

    :param value: a number, a schedule or a string
    :return: the number of a numeric string; for "lin_" and a number, the schedule from that number to 0; any other value
        unchanged
    """
    if not isinstance(value, str):
        return value
    linear, text = value.startswith("lin_"), value.removeprefix("lin_")
    try:
        number = float(text)
    except ValueError:
        return value
    return LinearSchedule(number, 0.0, 1.0) if linear else number


def as_schedule(value: Any) -> FloatSchedule:
    """
    :param value: a number, a schedule, or one written as a string
    :return: the schedule
    """
    return FloatSchedule(parse_schedule(value))

"""
Rules for the arguments of an algorithm. Each algorithm declares a table with one rule per argument.

A rule describes valid values in words, for messages, and converts a value to the algorithm's form (NumPy's numbers become
Python's, a schedule written as a string becomes a schedule).
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_scoreflow.common.schedules import END, START, parse_schedule
from sb3_scoreflow.common.utils import ArgumentError


class Rule(ABC):
    """A rule for the values of one argument."""

    @property
    @abstractmethod
    def wanted(self) -> str:
        """Description of valid values, which continues "it must be ..."."""

    @abstractmethod
    def accepts(self, value: Any) -> bool:
        """
        :param value: value after :meth:`convert`
        :return: whether the value is valid
        """

    def convert(self, name: str, value: Any) -> Any:
        """
        :param name: name of the argument, for messages
        :param value: value passed by the user
        :return: value in the algorithm's form
        """
        value = value.item() if isinstance(value, np.generic) else value
        return float(value) if isinstance(value, Real) and not isinstance(value, (int, float)) else value


@dataclass(frozen=True)
class OrNone(Rule):
    """None, or a value that satisfies another rule."""

    rule: Rule

    @property
    def wanted(self) -> str:
        return f"None or {self.rule.wanted}"

    def accepts(self, value: Any) -> bool:
        return value is None or self.rule.accepts(value)

    def convert(self, name: str, value: Any) -> Any:
        return None if value is None else self.rule.convert(name, value)


@dataclass(frozen=True)
class Count(Rule):
    """A whole number."""

    least: int = 1
    most: float = math.inf

    @property
    def wanted(self) -> str:
        return f"a whole number of at least {self.least}" + ("" if self.most == math.inf else f" and at most {self.most}")

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and self.least <= int(value) <= self.most


@dataclass(frozen=True)
class Number(Rule):
    """A number within an interval. With ``bound``, infinity is also valid and stands for "no bound"."""

    low: float = 0.0
    high: float = math.inf
    open_low: bool = False
    bound: bool = False

    @property
    def wanted(self) -> str:
        if self.high < math.inf:
            return f"a number in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}]"
        return "a positive number" if self.open_low else f"a number of at least {self.low:g}"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number = float(value)
        above = self.low < number if self.open_low else self.low <= number
        return above and number <= self.high and (self.bound or number < math.inf)


@dataclass(frozen=True)
class Schedule(Number):
    """A number, or a schedule of numbers that are not negative (even if a plain number must be positive)."""

    @property
    def wanted(self) -> str:
        return f"{super().wanted}, a schedule, or a string such as 'lin_3e-4'"

    def accepts(self, value: Any) -> bool:
        return callable(value) or super().accepts(value)

    def convert(self, name: str, value: Any) -> Any:
        value = parse_schedule(super().convert(name, value))
        if callable(value):
            for when, progress in (("start", START), ("end", END)):
                try:
                    result = value(progress)
                except Exception as error:
                    raise ArgumentError(
                        f"{name}, a schedule, fails at the {when} of training with {type(error).__name__}: {error}. It is "
                        f"called with one float, the share of training that remains: here {progress}."
                    ) from error
                check_scheduled(name, result, f"at the {when} of training")
        return value


def check_scheduled(name: str, value: Any, when: str) -> float:
    """
    :param name: name of the argument that is a schedule
    :param value: value of the schedule
    :param when: point of training, for the message
    :return: the value
    :raises ValueError: if the value is negative or not a finite number
    """
    single = isinstance(value, (np.generic, np.ndarray, th.Tensor)) and value.ndim == 0
    number: Any = value.item() if single else value
    if not Number().accepts(number):
        raise ArgumentError(
            f"{name} must be a number of at least 0, but {when} its schedule gives {value!r}: correct the schedule. Its "
            "argument is the share of training that remains, in [0, 1]."
        )
    return float(number)


@dataclass(frozen=True)
class Flag(Rule):
    """True or False."""

    wanted = "True or False"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Choice(Rule):
    """One of several names."""

    choices: tuple[str, ...]

    @property
    def wanted(self) -> str:
        names = ", ".join(repr(choice) for choice in self.choices)
        return f"one of {names}" if len(self.choices) > 1 else names

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.choices


@dataclass(frozen=True)
class Instance(Rule):
    """An instance of one of several classes."""

    classes: tuple[type, ...]
    words: str

    @property
    def wanted(self) -> str:
        return self.words

    def accepts(self, value: Any) -> bool:
        return isinstance(value, self.classes)


@dataclass(frozen=True)
class Interval(Rule):
    """Two numbers, of which the first is smaller."""

    wanted = "two numbers (low, high) with low < high"

    def accepts(self, value: Any) -> bool:
        number = Number(-math.inf, bound=True)
        return isinstance(value, tuple) and len(value) == 2 and all(map(number.accepts, value)) and value[0] < value[1]

    def convert(self, name: str, value: Any) -> Any:
        # A file or YAML returns the tuple as a list.
        if not isinstance(value, (list, tuple, np.ndarray)):
            return value
        return tuple(part.item() if isinstance(part, np.generic) else part for part in value)


@dataclass(frozen=True)
class Either(Rule):
    """A value that satisfies one of two rules."""

    first: Rule
    second: Rule

    @property
    def wanted(self) -> str:
        return f"{self.first.wanted} or {self.second.wanted}"

    def accepts(self, value: Any) -> bool:
        return self.first.accepts(value) or self.second.accepts(value)


#: Arguments that Stable-Baselines3 uses before the algorithm has them
SB3_RULES: dict[str, Rule] = {
    "stats_window_size": Count(),
    "tensorboard_log": OrNone(Instance((str, Path), "a path")),
    "policy_kwargs": OrNone(Instance((dict,), "a dict")),
    "rollout_buffer_kwargs": OrNone(Instance((dict,), "a dict")),
    "verbose": Count(0),
    "seed": OrNone(Count(0, 2**32 - 1)),
}


def check_argument(rule: Rule, name: str, value: Any, default: Any = None) -> Any:
    """
    :param rule: rule for the argument
    :param name: name of the argument
    :param value: value of the argument
    :param default: default of the argument, for the message
    :return: the value in the algorithm's form
    :raises ValueError: if the rule does not accept it; the message names argument, value and remedy
    """
    converted = rule.convert(name, value)
    if not rule.accepts(converted):
        raise ArgumentError(f"{name} must be {rule.wanted}, got {value!r}: {_remedy(rule, value, default)}.")
    return converted


def _remedy(rule: Rule, value: Any, default: Any) -> str:
    if isinstance(value, str):
        try:
            number: Any = float(value)
            number = int(number) if number.is_integer() and rule.accepts(int(number)) else number
        except ValueError:
            number = None
        if number is not None and rule.accepts(number):
            return f"pass the number {number}, not a string"
    if isinstance(value, float) and value.is_integer() and rule.accepts(int(value)):
        return f"pass {int(value)}, an int"
    if isinstance(value, str) and rule.accepts(value.lower()):
        return f"pass {value.lower()!r}"
    return "leave it out for its default" + ("" if default is None else f", {default!r}")


def check_arguments(rules: Mapping[str, Rule], owner: Any, may_be_none: Collection[str]) -> dict[str, Any]:
    """
    :param rules: argument -> rule
    :param owner: an object with an attribute for each argument
    :param may_be_none: arguments that may be None, because they get a default later; they are skipped if they are None
    :return: argument -> value in the algorithm's form
    :raises ValueError: if a rule does not accept its argument
    """
    signature = inspect.signature(type(owner)).parameters
    values = {}
    for name, rule in rules.items():
        value, default = getattr(owner, name), signature[name].default if name in signature else None
        if value is not None or name not in may_be_none:
            values[name] = check_argument(rule, name, value, default)
    return values

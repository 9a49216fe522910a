"""
Constructor arguments of 0.1.0 that are now entries of another argument.

They work, with a DeprecationWarning, until the release after 0.2.0. Then remove this module and every line that names it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sb3_scoreflow.common.utils import warn


@dataclass
class MovedArgument:
    """
    An attribute of an algorithm's class with the argument's old name, which reads and sets the value at its new place.

    :param argument: argument that now contains it as an entry
    :param part: attribute of the model that now has it as an attribute
    :param default: its value if it is left out
    :param fixed: whether the part was built with it, so that it can no longer be set
    """

    argument: str
    part: str
    default: Any
    fixed: bool = False

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self
        self.warn(f"read it as model.{self.part}.{self.name}")
        return getattr(getattr(model, self.part), self.name)

    def __set__(self, model: Any, value: Any) -> None:
        if self.fixed:
            raise AttributeError(
                f"{self.name} cannot be set to {value!r}: the model was built with it. Pass {self.argument}=dict({self.name}="
                f"{value!r}) to {type(model).__name__}()."
            )
        self.warn(f"set model.{self.part}.{self.name}")
        setattr(getattr(model, self.part), self.name, value)

    def warn(self, instead: str) -> None:
        """
        :param instead: remedy
        """
        where = f"is an entry of {self.argument} since 0.2.0, and will work only there"
        warn(f"{self.name} {where}: {instead}.", DeprecationWarning)


def moved_arguments(cls: type) -> dict[str, MovedArgument]:
    """
    :param cls: class of an algorithm
    :return: its moved arguments by their names
    """
    return {name: value for each in cls.__mro__ for name, value in vars(each).items() if isinstance(value, MovedArgument)}


def take_moved(model: Any, arguments: Mapping[str, Any]) -> None:
    """
    Store moved arguments as a file of 0.1.0 does, for :func:`adopt_moved`.

    :param model: model under construction
    :param arguments: arguments that its constructor does not name
    :raises TypeError: if a name was never an argument, as in Python
    """
    moved = moved_arguments(type(model))
    for name, value in arguments.items():
        if name not in moved:
            raise TypeError(f"{type(model).__name__}.__init__() got an unexpected keyword argument {name!r}")
        moved[name].warn(f"pass {moved[name].argument}=dict({name}={value!r})")
        vars(model)[name] = value


def adopt_moved(model: Any) -> None:
    """
    Move moved arguments of a constructor call, of a file of 0.1.0 or of ``load`` to their new places.

    :param model: model that is about to be set up
    """
    for name, moved in moved_arguments(type(model)).items():
        if name not in vars(model):
            continue
        value = vars(model).pop(name)
        if name in vars(model).get("_given", ()):
            moved.warn(f"pass {moved.argument}=dict({name}={value!r})")
        elif value == moved.default:  # files of 0.1.0 contain every argument
            continue
        entries: Any = getattr(model, moved.argument) or {}
        if not isinstance(entries, Mapping):
            entries = dataclasses.asdict(entries)
        vars(model)[moved.argument] = {**entries, name: value}

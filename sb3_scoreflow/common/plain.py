"""
Conversion of values to JSON and back. Unlike a pickle, the JSON contains no code, and reading it executes none.

Numbers, strings, lists, dictionaries, arrays and Gymnasium's spaces are described by their content, and objects of classes
registered with :func:`describable` by their attributes. Classes are described by their names; only classes that a policy may
consist of are restored: networks and optimizers of PyTorch, and networks, buffers and policies of Stable-Baselines3 and this
package.
"""

import base64
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn
from torch.optim import Optimizer

Class = TypeVar("Class", bound=type)

#: Key with the kind of value that a JSON object describes
_KIND = "kind"
#: Modules that classes may come from -> base classes of which they must be subclasses
_MODULES = ("torch.nn.modules.", "torch.optim.", "stable_baselines3.common.", "sb3_scoreflow.")
_BASES = (nn.Module, Optimizer, BaseBuffer)

#: Name of a class -> the class, and the attributes that define an object of it
_OBJECTS: dict[str, tuple[Any, tuple[str, ...]]] = {}


class NotPlainError(ValueError):
    """A value that cannot be restored from JSON; the message names it."""


def _name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def describable(*attributes: str) -> Callable[[Class], Class]:
    """
    Decorate a class whose objects are restored by setting their attributes. Setting an attribute must have no side effects.

    :param attributes: all attributes that an object may have; attributes with a class-level value may be missing
    :return: decorator
    """

    def register(cls: Class) -> Class:
        _OBJECTS[_name_of(cls)] = cls, attributes
        return cls

    return register


describable("val")(ConstantSchedule)
describable("value_schedule")(FloatSchedule)
describable("start", "end", "end_fraction")(LinearSchedule)
describable("mean", "var", "count")(RunningMeanStd)


def describe(value: Any) -> Any:
    """
    :param value: anything
    :return: a description that ``json`` can write; it names values that have no description, which :func:`restore` refuses
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [describe(each) for each in value]
    if kind is tuple:
        return {_KIND: "tuple", "items": describe(list(value))}
    if kind is deque:
        return {_KIND: "deque", "items": describe(list(value)), "maxlen": value.maxlen}
    if kind is dict and all(type(key) is str and key != _KIND for key in value):
        return {key: describe(each) for key, each in value.items()}
    if kind in (dict, OrderedDict):  # Stable-Baselines3 keeps observations in the latter
        return {_KIND: kind.__name__, "items": [[describe(key), describe(each)] for key, each in value.items()]}
    if kind is np.ndarray or isinstance(value, np.generic):
        return _describe_array(value)
    if isinstance(value, spaces.Space):
        return _describe_space(value)
    if isinstance(value, type):
        name = _name_of(value)
        return {_KIND: "class" if _find_class(name) is value else "other", "name": name}
    name = _name_of(kind)
    registered, attributes = _OBJECTS.get(name, (None, ()))
    if registered is kind and vars(value).keys() <= set(attributes):
        return {_KIND: "object", "name": name, "attributes": {key: describe(each) for key, each in vars(value).items()}}
    return {_KIND: "other", "name": name}


def restore(description: Any, name: str) -> Any:
    """
    :param description: result of :func:`describe`, or any other JSON value
    :param name: name of the value in messages
    :return: the value
    :raises NotPlainError: if this module cannot restore the value
    """
    if isinstance(description, list):
        return [restore(each, f"{name}[{index}]") for index, each in enumerate(description)]
    if not isinstance(description, dict):
        return description
    if _KIND not in description:
        return {key: restore(each, f"{name}[{key!r}]") for key, each in description.items()}
    kind = description[_KIND]
    try:
        if kind == "tuple":
            return tuple(restore(description["items"], name))
        if kind == "deque":
            return deque(restore(description["items"], name), description["maxlen"])
        if kind in ("dict", "OrderedDict"):
            pairs = [(key := restore(k, name), restore(each, f"{name}[{key!r}]")) for k, each in description["items"]]
            return dict(pairs) if kind == "dict" else OrderedDict(pairs)
        if kind in ("array", "number"):
            return _restore_array(description)
        if kind == "space":
            return _restore_space(description, name)
        if kind == "class":
            return _restore_class(description["name"], name)
        if kind == "object":
            return _restore_object(description["name"], description["attributes"], name)
    except NotPlainError:
        raise
    except Exception as error:  # a damaged or forged description may cause any error
        raise NotPlainError(f"{name} ({type(error).__name__}: {error})") from error
    raise NotPlainError(f"{name} ({description.get('name', description)!s:.200})")


def _describe_array(value: Any) -> dict[str, Any]:
    if value.dtype.kind not in "biuf":  # objects would be pickles, and models contain no text arrays
        return {_KIND: "other", "name": f"array of {value.dtype}"}
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    kind = "array" if isinstance(value, np.ndarray) else "number"
    return {_KIND: kind, "dtype": value.dtype.str, "shape": list(value.shape), "data": data}


def _restore_array(description: dict[str, Any]) -> Any:
    dtype = np.dtype(str(description["dtype"]))
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of {dtype}")
    array = np.frombuffer(base64.b64decode(description["data"]), dtype).reshape(description["shape"]).copy()
    return array if description[_KIND] == "array" else array[()]


def _describe_space(space: spaces.Space) -> dict[str, Any]:
    """The space without the state of its generator, because nothing samples from the spaces of a model."""
    values: dict[str, Any]
    if type(space) is spaces.Box:
        values = dict(low=space.low, high=space.high)
    elif type(space) is spaces.Discrete:
        values = dict(n=int(space.n), start=int(space.start))
    elif type(space) is spaces.MultiDiscrete:
        values = dict(nvec=space.nvec, start=space.start, dtype=np.dtype(space.dtype).str)
    elif type(space) is spaces.MultiBinary:
        values = dict(n=[int(n) for n in space.shape] if isinstance(space.n, tuple) else int(space.n))
    elif type(space) is spaces.Dict:
        values = dict(spaces=dict(space.spaces))
    elif type(space) is spaces.Tuple:
        values = dict(spaces=tuple(space.spaces))
    else:
        return {_KIND: "other", "name": _name_of(type(space))}
    return {_KIND: "space", "name": type(space).__name__, "values": {key: describe(each) for key, each in values.items()}}


def _restore_space(description: dict[str, Any], name: str) -> spaces.Space:
    values = {key: restore(each, f"{name}.{key}") for key, each in description["values"].items()}
    kind = description["name"]
    if kind == "Box":
        return spaces.Box(values["low"], values["high"], dtype=values["low"].dtype)
    if kind == "Discrete":
        return spaces.Discrete(values["n"], start=values["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(values["nvec"], dtype=np.dtype(values["dtype"]).type, start=values["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(values["n"])
    if kind == "Dict":
        return spaces.Dict(list(values["spaces"].items()))  # Gymnasium sorts the keys of dictionaries
    if kind == "Tuple":
        return spaces.Tuple(values["spaces"])
    raise NotPlainError(f"{name} (a space {kind})")


def _find_class(name: str) -> type | None:
    """:return: the class of that name, if it is one of the permitted classes; nothing is imported"""
    module, _, qualname = name.partition(":")
    if not f"{module}.".startswith(_MODULES):
        return None
    found = getattr(sys.modules.get(module), qualname, None)
    return found if isinstance(found, type) and issubclass(found, _BASES) and _name_of(found) == name else None


def _restore_class(class_name: str, name: str) -> type:
    found = _find_class(str(class_name))
    if found is None:
        raise NotPlainError(f"{name} (the class {class_name})")
    return found


def _restore_object(class_name: str, attributes: dict[str, Any], name: str) -> Any:
    cls, known = _OBJECTS.get(class_name, (None, ()))
    needed = {each for each in known if not hasattr(cls, each)}
    if cls is None or not needed <= attributes.keys() <= set(known):
        raise NotPlainError(f"{name} (an object of {class_name} with {sorted(attributes)})")
    restored = object.__new__(cls)
    for key, each in attributes.items():
        setattr(restored, key, restore(each, f"{name}.{key}"))
    return restored

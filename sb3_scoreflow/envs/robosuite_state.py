"""
The state of a robosuite environment within an episode: the arrays of its simulation, and the numbers stored in its robots,
controllers, grippers and observables.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from sb3_scoreflow.envs.state import mujoco_arrays, set_mujoco_arrays

_PLAIN = (bool, int, float, str, bytes, type(None), np.ndarray, np.generic, np.random.Generator, np.random.RandomState)
#: The model as MJCF, its renderers, and the simulation, whose arrays are saved separately
_NOT_STATE = frozenset({"sim", "model", "robot_model", "viewer", "placement_initializer", "deterministic_reset"})
#: Descriptions of models; among them, only grippers have a state, their last command
_DESCRIPTIONS = tuple(f"robosuite.models.{part}" for part in ("tasks", "arenas", "objects", "robots", "bases", "base"))


def robosuite_state(env: Any) -> dict[str, Any]:
    """
    :param env: robosuite's environment
    :return: its state within the episode, which can be pickled
    """
    simulation = env.sim.model._model, env.sim.data._data
    return dict(arrays=[mujoco_arrays(each) for each in simulation], numbers={name: own for name, _, own in _objects(env)})


def set_robosuite_state(env: Any, state: dict[str, Any]) -> None:
    """
    :param env: robosuite's environment, whose episode started in the same way as the episode of the state
    :param state: result of :func:`robosuite_state`
    """
    for target, arrays in zip((env.sim.model._model, env.sim.data._data), state["arrays"], strict=True):
        set_mujoco_arrays(target, arrays)
    for name, owner, _ in list(_objects(env)):
        set_numbers(owner, state["numbers"][name])


def numbers_of(owner: Any) -> dict[str, Any]:
    """
    :param owner: any object
    :return: attributes that are numbers, strings, arrays, random number generators, or collections of them
    """
    return {name: value for name, value in vars(owner).items() if name not in _NOT_STATE and _is_plain(value)}


def set_numbers(owner: Any, numbers: dict[str, Any]) -> None:
    """
    :param owner: object whose attributes are set
    :param numbers: result of :func:`numbers_of`
    """
    for name, value in numbers.items():
        setattr(owner, name, value)


def _objects(env: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """:return: path of every robosuite object in an environment, the object, and its numbers"""
    seen: set[int] = set()
    rest: list[tuple[str, Any]] = [("env", env)]
    while rest:
        name, owner = rest.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        yield name, owner, numbers_of(owner)
        for key, value in vars(owner).items():
            if key not in _NOT_STATE and not _is_plain(value):
                rest += [(f"{name}.{key}{place}", part) for place, part in _parts(value) if _is_robosuites(part)]


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"[{key}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    return [("", value)]


def _is_robosuites(value: Any) -> bool:
    module = type(value).__module__
    return module.startswith("robosuite.") and not module.startswith(("robosuite.utils.binding", *_DESCRIPTIONS))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, deque)):
        return all(_is_plain(part) for part in value)
    return isinstance(value, _PLAIN) and getattr(value, "dtype", None) != np.dtype(object)

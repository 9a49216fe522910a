"""A wrapper that selects entries of ``Dict`` observations; recorded data follow the same rules."""

import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium import spaces

_NUMERIC_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class SelectObservations(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """
    Selects entries of ``Dict`` observations and flattens nested ones to one level.

    The keys of nested ``Dict`` spaces are joined by ``_``: SB3 only supports one level, and its ``CombinedExtractor`` names
    modules by the keys, which must not contain a dot.

    :param env: Environment with a ``Dict`` observation space, which may be nested
    :param observation_keys: Entries to keep, nested ones by their joined keys: several keys for dict observations, or one str
        for plain arrays; None: all entries
    :raises ValueError: if a key is unknown, or an observation is not numeric
    """

    def __init__(self, env: gym.Env, observation_keys: str | Sequence[str] | None = None) -> None:
        # Recorded arguments become part of the environment's spec, so that a dataset can recreate the environment with this
        # wrapper
        gym.utils.RecordConstructorArgs.__init__(self, observation_keys=observation_keys)
        gym.ObservationWrapper.__init__(self, env)
        self._selection = select(env.observation_space, observation_keys, f"The environment {env}")
        picked = self._selection.pick(env.observation_space)
        self.observation_space = spaces.Dict(picked) if isinstance(picked, dict) else picked

    def observation(self, observation: Any) -> Any:
        return self._selection.pick(observation)


class Selection(NamedTuple):
    """Selected leaves of an observation."""

    paths: dict[str, tuple[str, ...]]
    """Name of each leaf -> the keys that lead to it."""
    is_dict: bool
    """Whether the result is a dict; otherwise, the result is the only leaf."""

    def pick(self, tree: Any) -> Any:
        """
        :param tree: An observation, a batch of them, or their space
        :return: The leaves
        """
        leaves = {name: _descend(tree, path) for name, path in self.paths.items()}
        return leaves if self.is_dict else next(iter(leaves.values()))


def select(space: spaces.Space, observation_keys: str | Sequence[str] | None, owner: str) -> Selection:
    """
    :param space: Space of the observations
    :param observation_keys: The value passed by the user
    :param owner: Name of the object with this space, for error messages
    :return: The selected leaves
    :raises ValueError: if the keys do not fit the space, or a selected leaf is not numeric
    """
    if isinstance(space, spaces.Dict):
        paths = _named_paths(space, owner)
        keys = (
            [observation_keys]
            if isinstance(observation_keys, str)
            else list(paths if observation_keys is None else observation_keys)
        )
        unknown = [key for key in keys if key not in paths]
        if unknown or not keys:
            raise ValueError(f"{owner} has the observation keys {list(paths)}; got `observation_keys`={observation_keys!r}.")
        selection = Selection({key: paths[key] for key in keys}, is_dict=not isinstance(observation_keys, str))
    elif observation_keys is not None:
        raise ValueError(
            f"{owner} has observations without keys ({space}); got `observation_keys`={observation_keys!r}. Leave it out."
        )
    else:
        selection = Selection({"observations": ()}, is_dict=False)
    for key, path in selection.paths.items():
        leaf = _descend(space, path)
        if not isinstance(leaf, _NUMERIC_SPACES):
            raise ValueError(
                f"{owner} has observations of type {type(leaf).__name__} ({key!r}), which are not arrays of numbers. "
                "If there are other keys, choose them with `observation_keys`."
            )
    return selection


def _descend(tree: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(operator.getitem, path, tree)


def _named_paths(space: spaces.Dict, owner: str) -> dict[str, tuple[str, ...]]:
    """
    :param space: Space, which may be nested
    :param owner: Name of the object with this space, for error messages
    :return: Joined name of each leaf -> the keys that lead to it
    :raises ValueError: if two leaves have the same name
    """

    def walk(node: spaces.Space, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if not isinstance(node, spaces.Dict):
            yield path
            return
        for key, child in node.spaces.items():
            yield from walk(child, (*path, key))

    paths: dict[str, tuple[str, ...]] = {}
    for path in walk(space, ()):
        name = "_".join(path)
        if name in paths:
            raise ValueError(
                f"{owner} has the observations {paths[name]} and {path}, and both would be named {name!r}. Rename one."
            )
        paths[name] = path
    return paths

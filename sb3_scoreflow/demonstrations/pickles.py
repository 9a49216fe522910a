"""Pickled demonstrations. Unpickling executes code that the file names, so the user has to allow it."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.layouts import describe_layouts, find_layout, warn_if_scaled
from sb3_scoreflow.demonstrations.recognize import UNPICKLING
from sb3_scoreflow.demonstrations.sources import register_source


@register_source("pickle")
def load_pickle(spec: str, *, allow_pickle: bool = False) -> Demonstrations:
    """The source ``pickle:PATH``, with any suffix; see :func:`read_pickle`."""
    return read_pickle(spec, allow_pickle=allow_pickle)


def read_pickle(path: AnyPath, *, allow_pickle: bool = False) -> Demonstrations:
    """
    Unpickle demonstrations, which **executes any code that the file names**: do it only if you trust the source of the file.

    :param path: Path of the file; ``~`` is expanded. It contains a list or a dict of episodes in a form that
        :meth:`~sb3_scoreflow.demonstrations.container.Demonstrations.from_trajectories` accepts (dicts, or trajectories of
        imitation, which then must be installed), or a dict of arrays in a layout of
        :func:`~sb3_scoreflow.demonstrations.npz.read_npz`. Scaling is not undone
    :param allow_pickle: Must be True to confirm that you trust the file
    :return: The demonstrations
    :raises FileNotFoundError: if the file does not exist
    :raises OSError: if it cannot be unpickled
    :raises ValueError: if ``allow_pickle`` is not True, or the file contains other objects
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} (seen from {Path.cwd()}). Check the path.")
    if allow_pickle is not True:
        raise ValueError(
            f"The demonstration file {path} is a pickle and is not read. {UNPICKLING} Then pass `allow_pickle=True`."
        )
    try:
        with open(path, "rb") as file:
            data = pickle.load(file)
    except Exception as error:  # the code in it may raise anything
        raise OSError(
            f"The demonstration file {path} cannot be unpickled ({type(error).__name__}: {error}). It is damaged, or needs "
            "a package that is not installed."
        ) from error
    try:
        return _from_objects(data)
    except ValueError as error:
        raise ValueError(f"The demonstration file {path} does not fit: {error}") from error


def _from_objects(data: Any) -> Demonstrations:
    """
    :param data: Unpickled object
    :return: Its demonstrations
    :raises ValueError: if it does not contain demonstrations
    """
    if isinstance(data, Mapping):
        layout = find_layout([name for name in data if isinstance(name, str)])
        if layout is not None:
            names = (*layout.needed, *(name for name in layout.optional if name in data))
            arrays = {name: np.asarray(data[name]) for name in names}
            if layout.is_scaled:
                warn_if_scaled(arrays)
                return layout.make(arrays, None)
            return layout.make(arrays)
        if not data or not all(isinstance(episode, Mapping) for episode in data.values()):
            raise ValueError(
                f"it has a dict with {list(data)[:20]}, neither of episodes, which are dicts, nor of arrays in a known layout "
                f"({describe_layouts()}). Unpickle it, and pass its content to Demonstrations(...)."
            )
        data = list(data.values())
    if isinstance(data, np.ndarray) and data.dtype == np.object_:
        data = data.ravel().tolist()
    if not isinstance(data, (list, tuple)):
        raise ValueError(
            f"it has an object of type {type(data).__name__}, neither a list nor a dict. Unpickle it, and pass its content "
            "to Demonstrations(...) or Demonstrations.from_trajectories(...)."
        )
    return Demonstrations.from_trajectories(data)

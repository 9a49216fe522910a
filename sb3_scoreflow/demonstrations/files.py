"""Demonstrations from a path, whose suffix determines the format."""

from collections.abc import Callable
from typing import Any

from sb3_scoreflow.common.files import as_path
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.hdf5 import read_hdf5
from sb3_scoreflow.demonstrations.imitation_folder import is_imitation_folder, read_imitation_folder
from sb3_scoreflow.demonstrations.npz import read_npz
from sb3_scoreflow.demonstrations.pickles import read_pickle
from sb3_scoreflow.demonstrations.sources import register_source

_READERS: dict[str, Callable[..., Demonstrations]] = {".npz": read_npz, ".pkl": read_pickle, ".pickle": read_pickle}


@register_source("file")
def load_file(spec: str, **kwargs: Any) -> Demonstrations:
    """
    The source ``file:PATH``: an HDF5 file with D4RL's layout, see :func:`~sb3_scoreflow.demonstrations.hdf5.read_hdf5`; or,
    according to the suffix, ``.npz`` (:func:`~sb3_scoreflow.demonstrations.npz.read_npz`), ``.pkl`` and ``.pickle``
    (:func:`~sb3_scoreflow.demonstrations.pickles.read_pickle`); or a folder that imitation has saved
    (:func:`~sb3_scoreflow.demonstrations.imitation_folder.read_imitation_folder`).

    :param spec: The path; ``~`` is expanded
    :param kwargs: Further arguments of the reader
    :return: The demonstrations
    """
    path = spec.removeprefix("//")
    expanded = as_path(path)
    if is_imitation_folder(expanded):
        return read_imitation_folder(path, **kwargs)
    # read_hdf5 reports missing paths and folders
    read = _READERS.get(expanded.suffix.lower(), read_hdf5) if expanded.is_file() else read_hdf5
    return read(path, **kwargs)

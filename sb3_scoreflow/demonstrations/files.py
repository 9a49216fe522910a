"""Demonstrations from a path: what the file or folder is, its suffix says."""

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
    The source ``file:PATH``: HDF5 with D4RL's layout, see :func:`~sb3_scoreflow.demonstrations.hdf5.read_hdf5`; or, by its
    suffix, ``.npz`` (:func:`~sb3_scoreflow.demonstrations.npz.read_npz`), ``.pkl`` and ``.pickle``
    (:func:`~sb3_scoreflow.demonstrations.pickles.read_pickle`); or a folder that imitation has saved
    (:func:`~sb3_scoreflow.demonstrations.imitation_folder.read_imitation_folder`).

    :param spec: The path; ``~`` is expanded
    :param kwargs: Passed on to the reader
    :return: The demonstrations
    """
    path = spec.removeprefix("//")
    expanded = as_path(path)
    if is_imitation_folder(expanded):
        return read_imitation_folder(path, **kwargs)
    # What is not there, or no file, is told in one place
    read = _READERS.get(expanded.suffix.lower(), read_hdf5) if expanded.is_file() else read_hdf5
    return read(path, **kwargs)

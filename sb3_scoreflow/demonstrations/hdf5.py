"""
Demonstrations in HDF5 files with D4RL's layout.

Five flat arrays with one entry per transition: ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``.
Rewards may be missing; so may ``timeouts``, where the step limit is known.
"""

import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sb3_scoreflow.demonstrations.arrays import Array, LoadedObservations
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.lazy import READ_ERRORS, LazyImages
from sb3_scoreflow.demonstrations.recognize import describe_file, describe_folder, describe_hdf5
from sb3_scoreflow.demonstrations.sources import register_source

FORMAT_VERSION = 1
_VERSION_ATTRIBUTE = "sb3_scoreflow_format"
# Of images that are copied out of a file: what one chunk has at most, unless an image is larger, and what is held at once
_CHUNK_BYTES = 2**16
_WRITE_BYTES = 2**24
_TIMEOUTS = "timeouts"
_REQUIRED_KEYS = ("observations", "actions", "terminals")
_KEYS = ("observations", "actions", "rewards", "terminals", _TIMEOUTS)


@register_source("file")
def load_file(spec: str, max_episode_steps: int | None = None, ends: str | None = None) -> Demonstrations:
    """The source ``file:PATH``; see :func:`read_hdf5`."""
    return read_hdf5(spec.removeprefix("//"), max_episode_steps, ends)


def read_hdf5(path: str | os.PathLike[str], max_episode_steps: int | None = None, ends: str | None = None) -> Demonstrations:
    """
    :param path: The file; ``~`` is expanded. Anything in it but the five arrays above is ignored; ``observations`` may be a
        group with one array per key of a ``Dict`` observation space
    :param max_episode_steps: The env's step limit, to cut episodes where the file has no ``timeouts`` (else it is not used).
        Files may give it in an attribute of this name
    :param ends: ``"timeouts"`` if only these end episodes: ``terminals`` that mark steps at a goal, as in D4RL's AntMaze, are
        not read then. If None, both end them
    :return: The demonstrations; the file's attributes become their metadata
    :raises FileNotFoundError: if there is no such file
    :raises OSError: if it cannot be read: empty, truncated, not HDF5
    :raises ValueError: if an array is missing or does not fit the others, or ``ends`` is unknown
    """
    if ends not in (None, _TIMEOUTS):
        raise ValueError(f"`ends` must be {_TIMEOUTS!r}, or None for `terminals` and `timeouts`, got {ends!r}.")
    path = Path(path).expanduser()
    with open_hdf5(path) as file:
        _check_keys(file, path)
        arrays = {key: _read(file[key], f"{path}: {key}") for key in _KEYS if key in file}
        metadata = _read_metadata(file)
    version = metadata.pop(_VERSION_ATTRIBUTE, FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"The demonstration file {path} has format {version}, this version of sb3_scoreflow reads {FORMAT_VERSION}. "
            "Upgrade sb3_scoreflow."
        )
    terminals = _as_vector(arrays["terminals"])
    if ends == _TIMEOUTS:
        terminals = np.zeros_like(terminals)
    timeouts = arrays.get(_TIMEOUTS)
    if timeouts is None:
        timeouts = _infer_timeouts(terminals, max_episode_steps or metadata.get("max_episode_steps"), path)
    try:
        return Demonstrations(
            arrays["observations"], arrays["actions"], arrays.get("rewards"), terminals, timeouts, metadata=metadata
        )
    except ValueError as error:
        raise ValueError(f"The demonstration file {path} does not fit: {error}") from error


def write_hdf5(demonstrations: Demonstrations, path: str | os.PathLike[str]) -> None:
    """
    :param demonstrations: What to write; their metadata become attributes of the file
    :param path: Where to; missing folders are made, ``~`` is expanded, an existing file is replaced in one step
    :raises ValueError: if an observation key has a slash, which HDF5 reserves, or a metadata key is reserved
    """
    h5py = import_h5py()
    path = Path(path).expanduser()
    arrays: dict[str, Array] = {
        "actions": demonstrations.actions,
        "rewards": demonstrations.rewards,
        "terminals": demonstrations.terminations,
        "timeouts": demonstrations.truncations,
    }
    if isinstance(demonstrations.observations, dict):
        for key, value in demonstrations.observations.items():
            if "/" in key or key in ("", "."):
                raise ValueError(f"The observation key {key!r} cannot name an HDF5 dataset. Rename it.")
            arrays[f"observations/{key}"] = value
    else:
        arrays["observations"] = demonstrations.observations
    if _VERSION_ATTRIBUTE in demonstrations.metadata:
        raise ValueError(f"The metadata key {_VERSION_ATTRIBUTE!r} is reserved. Rename it.")

    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, hence on the same file system, where a rename is atomic
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with h5py.File(temporary, "x") as file:
            for name, array in arrays.items():
                if isinstance(array, LazyImages):
                    _write_images(file, name, array)
                else:
                    file.create_dataset(name, data=array, compression="gzip", shuffle=True)
            file.attrs.update({**demonstrations.metadata, _VERSION_ATTRIBUTE: FORMAT_VERSION})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def import_h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            'Demonstration files need h5py, which is not installed: pip install "sb3-scoreflow[demonstrations]"'
        ) from error
    return h5py


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """
    :param path: The file
    :return: The open ``h5py.File``, to read inside a ``with`` block
    :raises ImportError: if h5py is not installed
    :raises FileNotFoundError: if there is no such file
    :raises OSError: if it cannot be opened, or read inside the block: empty, truncated, not HDF5
    """
    h5py = import_h5py()
    if not path.exists():
        raise FileNotFoundError(
            f"There is no demonstration file {path} (seen from {Path.cwd()}). Check the path. "
            "Data that come with the package are named like 'builtin:hopper-medium'."
        )
    if path.is_dir():
        kind = describe_folder(path)
        advice = "Pass the path of an HDF5 file in it." if kind is None else f"It seems to be {kind}"
        raise IsADirectoryError(f"{path} is a folder. {advice}")
    if path.stat().st_size == 0:
        raise OSError(f"The demonstration file {path} is empty (0 bytes): its download or copy failed. Fetch it again.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except READ_ERRORS as error:
        kind = describe_file(path)
        if kind is not None:
            raise OSError(f"The demonstration file {path} cannot be read: it is not HDF5. It seems to be {kind}") from error
        raise OSError(
            f"The demonstration file {path} cannot be read: {error}. It is truncated, damaged or not HDF5. Fetch it again."
        ) from error


def _check_keys(file: Any, path: Path) -> None:
    """:raises ValueError: if an array is missing from the HDF5 file"""
    if any(key not in file for key in _REQUIRED_KEYS):
        missing = [key for key in _KEYS if key not in file and key != _TIMEOUTS]
        raise ValueError(
            f"The demonstration file {path} lacks {missing}; it has {sorted(file)}. "
            f"D4RL's layout needs {list(_REQUIRED_KEYS)}, and `timeouts` unless the step limit is known. It seems to be "
            f"{describe_hdf5(file, path)}"
        )


def _read(node: Any, name: str) -> LoadedObservations:
    """
    :param node: HDF5 dataset or group of datasets
    :param name: What error messages call it
    :return: Its content, see :func:`read_dataset`
    """
    if hasattr(node, "keys"):
        if any(hasattr(child, "keys") for child in node.values()):
            raise ValueError(f"{name} has groups inside groups; only one level of keys is supported. Flatten it.")
        return {key: read_dataset(child) for key, child in node.items()}
    return read_dataset(node)


def read_dataset(dataset: Any) -> np.ndarray:
    """
    :param dataset: HDF5 dataset
    :return: Its content; floating-point numbers as float32, converted while reading so that no float64 copy is made
    """
    is_float = dataset.dtype.kind == "f" and dataset.shape
    return np.asarray(dataset.astype(np.float32)[()] if is_float else dataset[()])


def _write_images(file: Any, name: str, images: LazyImages) -> None:
    """
    :param file: The open ``h5py.File``
    :param name: Of the new dataset
    :param images: To copy, a block of chunks at a time
    """
    image_bytes = math.prod(images.shape[1:])
    # Chunks of whole images: h5py's own choice has parts of many images in a chunk, which would be compressed many times over
    chunk_rows = min(max(1, _CHUNK_BYTES // image_bytes), len(images))
    block_rows = chunk_rows * max(1, _WRITE_BYTES // (chunk_rows * image_bytes))
    dataset = file.create_dataset(
        name, images.shape, images.dtype, chunks=(chunk_rows, *images.shape[1:]), compression="gzip", shuffle=True
    )
    for start in range(0, len(images), block_rows):
        dataset[start : start + block_rows] = images[start : start + block_rows]


def _read_metadata(file: Any) -> dict[str, str | int | float | bool]:
    """:return: The file's attributes that are scalars; other programs may have written attributes of any kind"""
    metadata = {}
    for key, value in file.attrs.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, (str, int, float, bool)):
            metadata[key] = value
    return metadata


def _as_vector(values: LoadedObservations) -> np.ndarray:
    """:return: ``values`` without the trailing dimension of size 1 that some files give to rewards and flags"""
    array = np.asarray(values)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _infer_timeouts(terminals: np.ndarray, max_episode_steps: Any, path: Path) -> np.ndarray:
    """
    :param terminals: ``(N,)`` flags
    :param max_episode_steps: The env's step limit
    :param path: For the error message
    :return: ``(N,)`` flags, True where an episode reaches the limit
    :raises ValueError: if the limit is unknown
    """
    if max_episode_steps is None:
        raise ValueError(
            f"The demonstration file {path} has no `timeouts`, so episodes that did not terminate have no end. "
            "Pass `max_episode_steps`, the step limit of the env that the data is from."
        )
    if max_episode_steps < 1:
        raise ValueError(f"`max_episode_steps` must be at least 1, got {max_episode_steps}.")
    ends = np.flatnonzero(terminals)
    starts = np.concatenate([[0], ends + 1])
    stops = np.append(ends + 1, len(terminals))
    steps_done = np.arange(len(terminals)) - np.repeat(starts, stops - starts) + 1
    return steps_done % int(max_episode_steps) == 0

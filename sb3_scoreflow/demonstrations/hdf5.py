"""
Demonstrations in HDF5 files with D4RL's layout.

A file has five flat arrays with one entry per transition: ``observations``, ``actions``, ``rewards``, ``terminals``,
``timeouts``. Rewards may be missing, and so may ``timeouts`` if the step limit is known.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sb3_scoreflow.common.files import AnyPath, as_path, atomic_path
from sb3_scoreflow.demonstrations.arrays import Array, LoadedObservations
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.hdf5_target import HDF5Target, hdf5_target
from sb3_scoreflow.demonstrations.lazy import READ_ERRORS, LazyImages
from sb3_scoreflow.demonstrations.recognize import describe_file, describe_folder, describe_hdf5
from sb3_scoreflow.safe_hdf5.arrays import Array as HDF5Array
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError, check_size
from sb3_scoreflow.safe_hdf5.groups import Group, import_h5py, open_root

FORMAT_VERSION = 1
_VERSION_ATTRIBUTE = "sb3_scoreflow_format"
# For images copied from a file: largest size of a chunk, unless an image is larger, and of the copied block, in bytes
_CHUNK_BYTES = 2**16
_WRITE_BYTES = 2**24
_MAX_NAME = 2**12
_TIMEOUTS = "timeouts"
_REQUIRED_KEYS = ("observations", "actions", "terminals")
_KEYS = ("observations", "actions", "rewards", "terminals", _TIMEOUTS)


def read_hdf5(
    path: AnyPath,
    max_episode_steps: int | None = None,
    ends: str | None = None,
    max_bytes: int | None = None,
) -> Demonstrations:
    """
    :param path: Path of the file; ``~`` is expanded. Content other than the five arrays above is ignored; ``observations`` may
        be a group with one array per key of a ``Dict`` observation space
    :param max_episode_steps: The environment's step limit, which ends episodes if the file has no ``timeouts``, and is not
        used otherwise; None: the file's attribute of this name, if there is one
    :param ends: ``"timeouts"`` if only these end episodes: ``terminals`` are then not read, because they mark steps at a goal,
        as in D4RL's AntMaze. None: both end episodes
    :param max_bytes: Largest memory for the arrays, in bytes; None: 64 times the size of the file, but at least 256 MiB. Data
        that are compressed more strongly or were never written need more
    :return: The demonstrations; their metadata are those attributes of the file that are single numbers or strings
    :raises FileNotFoundError: if the file does not exist
    :raises OSError: if it cannot be read, because it is empty, truncated or not HDF5
    :raises ValueError: if an array is missing, does not fit the others, takes its data from another file or is larger than
        ``max_bytes``, or if ``ends`` is unknown
    """
    if ends not in (None, _TIMEOUTS):
        raise ValueError(f"`ends` must be {_TIMEOUTS!r}, or None for `terminals` and `timeouts`, got {ends!r}.")
    path = as_path(path)
    with open_hdf5(path) as file:
        try:
            _check_keys(file, path)
            nodes = {key: _open(file, key) for key in _KEYS if key in file}
            _check_arrays(nodes, max_bytes, path)
            arrays = {key: _read(node) for key, node in nodes.items()}
            metadata = _read_metadata(file, path)
        except UnusableFileError as error:
            raise ValueError(f"The demonstration file {path} does not fit: {error}") from error
    version = metadata.pop(_VERSION_ATTRIBUTE, FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"The demonstration file {path} has format {version}, but this version of sb3_scoreflow reads {FORMAT_VERSION}. "
            "Upgrade sb3_scoreflow."
        )
    terminals = _as_vector(arrays["terminals"])
    if ends == _TIMEOUTS:
        terminals = np.zeros_like(terminals)
    timeouts = arrays.get(_TIMEOUTS)
    if timeouts is None:
        limit = metadata.get("max_episode_steps") if max_episode_steps is None else max_episode_steps
        timeouts = _infer_timeouts(terminals, limit, path)
    try:
        return Demonstrations(
            arrays["observations"], arrays["actions"], arrays.get("rewards"), terminals, timeouts, metadata=metadata
        )
    except ValueError as error:
        raise ValueError(f"The demonstration file {path} does not fit: {error}") from error


def write_hdf5(demonstrations: Demonstrations, path: AnyPath) -> None:
    """
    :param demonstrations: Demonstrations to write; their metadata become attributes of the file
    :param path: Path of the file; missing folders are created, ``~`` is expanded, an existing file is replaced in one step
    :raises OSError: if it cannot be written, for example because the disk is full; an existing file then stays unchanged
    :raises ValueError: if an observation key or an entry of the metadata cannot be stored in HDF5, or is reserved
    """
    h5py = import_h5py()
    path = as_path(path)
    arrays: dict[str, Array] = {
        "actions": demonstrations.actions,
        "rewards": demonstrations.rewards,
        "terminals": demonstrations.terminations,
        "timeouts": demonstrations.truncations,
    }
    if isinstance(demonstrations.observations, dict):
        for key, value in demonstrations.observations.items():
            check_key(key)
            arrays[f"observations/{key}"] = value
    else:
        arrays["observations"] = demonstrations.observations
    _check_metadata(demonstrations.metadata)
    with atomic_path(path) as temporary, hdf5_target(temporary) as target, h5py.File(target, "w") as file:
        for name, array in arrays.items():
            _write(file, name, array, target)
        file.attrs.update({**demonstrations.metadata, _VERSION_ATTRIBUTE: FORMAT_VERSION})


def check_key(key: str) -> None:
    """
    :param key: Key of the observations
    :raises ValueError: if it cannot name an HDF5 dataset, because HDF5 would interpret it as a path or another name
    """
    if "/" in key or key in ("", ".") or not _is_storable(key):
        raise ValueError(f"The observation key {key!r} cannot name an HDF5 dataset. Rename it.")


def _check_metadata(metadata: dict[str, str | int | float | bool]) -> None:
    """:raises ValueError: if HDF5 cannot store an entry, or would change it"""
    if _VERSION_ATTRIBUTE in metadata:
        raise ValueError(f"The metadata key {_VERSION_ATTRIBUTE!r} is reserved. Rename it.")
    for key, value in metadata.items():
        if not key or not _is_storable(key):
            raise ValueError(
                f"The metadata key {key[:99]!r} cannot name an HDF5 attribute: it is empty, very long, or contains NUL or "
                "incomplete characters. Rename it."
            )
        if isinstance(value, str) and not _is_text(value):
            raise ValueError(
                f"`metadata[{key!r}]` contains NUL or incomplete characters, which HDF5 does not store. Remove them."
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise ValueError(
                f"`metadata[{key!r}]` is an integer of more than 64 bits, which HDF5 does not store. Make it a str."
            )


def _is_storable(name: str) -> bool:
    return _is_text(name) and len(name) <= _MAX_NAME


def _is_text(text: str) -> bool:
    return "\0" not in text and text == text.encode("utf-8", "replace").decode()


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Group]:
    """
    :param path: The file
    :return: The root of the open file, to read inside a ``with`` block
    :raises ImportError: if h5py is not installed
    :raises FileNotFoundError: if the file does not exist
    :raises OSError: if it cannot be opened, or read inside the block, because it is empty, truncated or not HDF5
    """
    import_h5py()  # report a missing package before a missing file
    if not path.exists():
        raise FileNotFoundError(
            f"There is no demonstration file {path} (seen from {Path.cwd()}). Check the path. "
            "Built-in data have names such as 'builtin:hopper-medium'."
        )
    if path.is_dir():
        kind = describe_folder(path)
        advice = "Pass the path of an HDF5 file in it." if kind is None else f"It seems to be {kind}"
        raise IsADirectoryError(f"{path} is a folder. {advice}")
    if not path.is_file():
        raise OSError(f"{path} is a device or a pipe. Pass the path of an HDF5 file.")
    if path.stat().st_size == 0:
        raise OSError(f"The demonstration file {path} is empty (0 bytes): its download or copy failed. Fetch it again.")
    try:
        with open_root(path) as file:
            yield file
    except READ_ERRORS as error:
        kind = describe_file(path)
        if kind is not None:
            raise OSError(f"The demonstration file {path} cannot be read: it is not HDF5. It seems to be {kind}") from error
        raise OSError(
            f"The demonstration file {path} cannot be read: {error}. It is truncated, damaged or not HDF5. Fetch it again."
        ) from error


def _check_keys(file: Group, path: Path) -> None:
    """:raises ValueError: if an array is missing from the HDF5 file"""
    if any(key not in file for key in _REQUIRED_KEYS):
        missing = [key for key in _KEYS if key not in file and key != _TIMEOUTS]
        raise ValueError(
            f"The demonstration file {path} lacks {missing}; it has {sorted(file)}. "
            f"D4RL's layout needs {list(_REQUIRED_KEYS)}, and `timeouts` unless the step limit is known. It seems to be "
            f"{describe_hdf5(file, path)}"
        )


def _open(file: Group, key: str) -> HDF5Array | dict[str, HDF5Array]:
    """
    :param file: The open file
    :param key: Key of an array, or of a group of arrays
    :return: The array, or the arrays in the group; nothing is read
    :raises UnusableFileError: if it is neither
    """
    node = file[key]
    if isinstance(node, HDF5Array):
        return node
    children = dict(node.items())
    if key != "observations" or not children:
        raise UnusableFileError(f"`{key}` is a group with {sorted(children)}, not an array. Write it as an array.")
    if not all(isinstance(child, HDF5Array) for child in children.values()):
        raise UnusableFileError("observations has groups inside groups; only one level of keys is supported. Flatten it.")
    return children


def _check_arrays(nodes: dict[str, HDF5Array | dict[str, HDF5Array]], max_bytes: int | None, path: Path) -> None:
    """
    Checks before anything is read.

    :param nodes: Arrays to read
    :param max_bytes: See :func:`read_hdf5`
    :param path: The file
    :raises UnusableFileError: if arrays do not fit each other, or are larger than the limit
    """
    arrays = [array for node in nodes.values() for array in (node.values() if isinstance(node, dict) else (node,))]
    actions = nodes["actions"]
    assert isinstance(actions, HDF5Array)
    for array in arrays:
        if len(array) != len(actions):
            raise UnusableFileError(
                f"`{array.name}` has length {len(array)} but `actions` has length {len(actions)}; both must have one entry "
                "per transition."
            )
    check_size(arrays, max_bytes, path.stat().st_size)


def _read(node: HDF5Array | dict[str, HDF5Array]) -> LoadedObservations:
    """:return: The content of an array, or of all arrays in a group"""
    return {key: array.read() for key, array in node.items()} if isinstance(node, dict) else node.read()


def _write(file: Any, name: str, array: Array, target: HDF5Target) -> None:
    """
    :param file: The open ``h5py.File``
    :param name: Name of the new dataset
    :param array: Array to copy, one block of chunks at a time
    :param target: Target to which HDF5 writes the file
    :raises OSError: if writing fails
    """
    row_bytes = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    chunks: Any = True
    if isinstance(array, LazyImages):
        # Chunks consist of whole images: h5py's default puts parts of many images into a chunk, which would be compressed
        # again for each image
        chunks = (min(max(1, _CHUNK_BYTES // row_bytes), len(array)), *array.shape[1:])
    dataset = file.create_dataset(name, array.shape, array.dtype, chunks=chunks, compression="gzip", shuffle=True)
    block_rows = dataset.chunks[0] * max(1, _WRITE_BYTES // (dataset.chunks[0] * row_bytes))
    for start in range(0, len(array), block_rows):
        dataset[start : start + block_rows] = array[start : start + block_rows]
        target.check()


def _read_metadata(file: Group, path: Path) -> dict[str, str | int | float | bool]:
    """:return: The file's attributes that are scalars; other programs may have written attributes of any kind"""
    metadata, others = file.attrs.scalars()
    if others:
        warnings.warn(
            f"The attributes {sorted(others)} of the demonstration file {path} are not single numbers or strings: left "
            "out of the metadata."
        )
    return metadata


def _as_vector(values: LoadedObservations) -> np.ndarray:
    """:return: ``values`` without the trailing dimension of size 1 that some files give to rewards and flags"""
    array = np.asarray(values)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _infer_timeouts(terminals: np.ndarray, max_episode_steps: Any, path: Path) -> np.ndarray:
    """
    :param terminals: ``(N,)`` flags
    :param max_episode_steps: The environment's step limit
    :param path: Path of the file, for the error message
    :return: ``(N,)`` flags, True where an episode reaches the limit
    :raises ValueError: if the limit is unknown
    """
    if max_episode_steps is None:
        raise ValueError(
            f"The demonstration file {path} has no `timeouts`, so episodes that did not terminate have no end. "
            "Pass `max_episode_steps`, the step limit of the environment in which the data were recorded."
        )
    is_number = isinstance(max_episode_steps, (int, float, np.integer)) and not isinstance(max_episode_steps, bool)
    if not is_number or max_episode_steps < 1 or max_episode_steps % 1:
        raise ValueError(
            f"`max_episode_steps` must be at least 1, got {max_episode_steps!r}, for the demonstration file {path}. Pass an "
            "integer, the step limit of the environment in which the data were recorded."
        )
    if terminals.ndim != 1:
        raise ValueError(f"The demonstration file {path} has `terminals` of shape {terminals.shape}; they must be a vector.")
    ends = np.flatnonzero(terminals)
    starts = np.concatenate([[0], ends + 1])
    stops = np.append(ends + 1, len(terminals))
    steps_done = np.arange(len(terminals)) - np.repeat(starts, stops - starts) + 1
    return steps_done % int(max_episode_steps) == 0

"""Demonstrations in NumPy's archives, as written by several programs. Nothing in them is unpickled."""

import contextlib
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.layouts import SCALES, describe_layouts, find_layout, warn_if_scaled
from sb3_scoreflow.demonstrations.recognize import describe_file
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError, resolve_limit

_SUFFIX = ".npy"
_NORMALIZATION = "normalization.npz"


def read_npz(
    path: AnyPath,
    *,
    normalization: AnyPath | bool | None = None,
    images: bool = False,
    max_bytes: int | None = None,
) -> Demonstrations:
    """
    Read an archive whose arrays have the names of one of these layouts; other arrays are ignored.

    - D4RL: ``observations``, ``actions``, ``timeouts``, and optionally ``terminals`` and ``rewards``
    - OGBench: ``observations``, ``actions``, ``terminals``, which mark the ends of recordings, hence truncations
    - DPPO and ReinFlow: ``states``, ``actions``, ``traj_lengths``, and optionally ``rewards``, ``terminals`` and ``images``.
      States and actions are scaled to [-1, 1]: if the file ``normalization.npz`` is beside the archive, the scaling is undone;
      otherwise, the data stay unchanged, with a warning if they seem to be scaled
    - imitation before version 1.0: ``obs``, ``acts``, ``indices``, ``terminal``, and optionally ``rews``

    :param path: Path of the file; ``~`` is expanded
    :param normalization: Path of DPPO's ``normalization.npz``, or False to keep the data unchanged; None: the file beside
        ``path``, if there is one
    :param images: Whether to read DPPO's images: observations are then a dict with ``state`` and ``rgb`` (with n cameras,
        ``rgb_0``, ...), ``(height, width, 3)``
    :param max_bytes: Largest memory for the arrays, in bytes; None: 64 times the size of the file, but at least 256 MiB
    :return: The demonstrations
    :raises FileNotFoundError: if the file does not exist
    :raises OSError: if it is damaged or not an archive
    :raises ValueError: if it has another layout, or its arrays do not fit each other, contain objects, or are too large
    """
    path = as_path(path)
    limit = resolve_limit(max_bytes, path.stat().st_size if path.exists() else 0)
    try:
        with _opened(path) as archive:
            names = {name.removesuffix(_SUFFIX) for name in archive.namelist() if name.endswith(_SUFFIX)}
            layout = find_layout(names)
            if layout is None:
                raise UnusableFileError(
                    f"its arrays do not have a known layout ({describe_layouts()}). It seems to be {describe_file(path)}"
                )
            if not layout.is_scaled and (images or normalization is not None):
                raise UnusableFileError(f"`normalization` and `images` are for DPPO's layout, but this is {layout.program}'s.")
            optional = (*layout.optional, *(("images",) if images else ()))
            if images and "images" not in names:
                raise UnusableFileError(f"`images` is True, but it has no array `images`, only {sorted(names)}.")
            arrays = _read(archive, [*layout.needed, *(name for name in optional if name in names)], limit)
        if not layout.is_scaled:
            return layout.make(arrays)
        scales = _read_scales(path, normalization)
        if scales is None and normalization is None:
            warn_if_scaled(arrays)
        demonstrations = layout.make(arrays, scales)
        demonstrations.metadata["unscaled"] = scales is not None
        return demonstrations
    except ValueError as error:
        raise ValueError(f"The demonstration file {path} does not fit: {error}") from error


def _read_scales(path: Path, normalization: AnyPath | bool | None) -> dict[str, np.ndarray] | None:
    """
    :param path: Path of the data
    :param normalization: See :func:`read_npz`
    :return: The arrays with the scales of the data; None if there are no scales
    :raises UnusableFileError: if the file with the scales lacks an array
    """
    if normalization is False:
        return None
    if normalization is True:
        raise UnusableFileError("`normalization` must be a path, False, or None for normalization.npz beside it, got True.")
    beside = path.with_name(_NORMALIZATION)
    scales = beside if normalization is None else as_path(normalization)
    if normalization is None and not scales.exists():
        return None
    with _opened(scales) as archive:
        missing = [name for name in SCALES if f"{name}{_SUFFIX}" not in archive.namelist()]
        if missing:
            raise UnusableFileError(f"{scales} lacks {missing}. Pass another path as `normalization`, or False.")
        return _read(archive, SCALES, resolve_limit(None, scales.stat().st_size))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """
    :param path: Path of an archive
    :return: The archive, open inside a ``with`` block
    :raises OSError: if it is damaged or not an archive
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {path} (seen from {Path.cwd()}). Check the path.") from error
    except UnusableFileError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds of errors for damaged files
        kind = describe_file(path) if isinstance(error, zipfile.BadZipFile) else None
        advice = "It is truncated or damaged. Fetch it again." if kind is None else f"It seems to be {kind}"
        raise OSError(f"The demonstration file {path} cannot be read: {error}. {advice}") from error


def _read(archive: zipfile.ZipFile, names: Iterable[str], limit: int) -> dict[str, np.ndarray]:
    """
    :param archive: The open file
    :param names: Names of arrays in it
    :param limit: Largest memory for the arrays, in bytes
    :return: The arrays. The header of an array, which determines the needed memory, is read first
    :raises UnusableFileError: if an array contains objects, or the arrays need too much memory
    """
    needed = 0
    for name in names:
        with archive.open(f"{name}{_SUFFIX}") as file:
            version = np.lib.format.read_magic(file)
            head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = head(file)
            n_bytes = math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                raise UnusableFileError(
                    f"`{name}` holds Python objects, which are pickled and therefore not read. Write it as numbers."
                )
            if n_bytes != archive.getinfo(f"{name}{_SUFFIX}").file_size - file.tell():
                raise OSError(f"`{name}` has a different size than its header declares")
        needed += n_bytes
    if needed > limit:
        raise UnusableFileError(
            f"reading its arrays takes {needed} bytes of memory, but the limit is {limit}. If you trust the file and have the "
            f"memory, pass `max_bytes={needed}`."
        )
    arrays = {}
    for name in names:
        with archive.open(f"{name}{_SUFFIX}") as file:
            arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays

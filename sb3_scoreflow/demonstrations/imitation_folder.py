"""Folders of trajectories saved by imitation since version 1.0: Hugging Face data sets, read without its packages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sb3_scoreflow.common.files import AnyPath, as_path
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.lerobot_folder import INSTALL
from sb3_scoreflow.demonstrations.lerobot_table import to_numpy
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError, resolve_limit

_INFO = "dataset_info.json"
_NEEDED = ("obs", "acts", "terminal")


def is_imitation_folder(path: Path) -> bool:
    """:return: Whether this folder has a Hugging Face data set with imitation's columns"""
    try:
        features = json.loads((path / _INFO).read_text(encoding="utf-8"))["features"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(features, dict) and set(_NEEDED) <= set(features)


def read_imitation_folder(path: AnyPath, *, max_bytes: int | None = None) -> Demonstrations:
    """
    Read a folder written by ``imitation.data.serialize.save``. Its ``infos`` are not read, because decoding them would execute
    code.

    :param path: Path of the folder; ``~`` is expanded
    :param max_bytes: Largest memory for the data, in bytes; None: 64 times the size of the files, but at least 256 MiB
    :return: The demonstrations
    :raises ImportError: if pyarrow is not installed
    :raises OSError: if a file is missing or damaged
    :raises ValueError: if the trajectories do not fit each other
    """
    try:
        import pyarrow.ipc
    except ImportError as error:
        raise ImportError(f"The folders of imitation need pyarrow, which is not installed: {INSTALL}") from error
    folder = as_path(path)
    files = sorted(folder.glob("*.arrow"))
    if not files:
        raise FileNotFoundError(f"There is no file data-*.arrow in {folder}: it is incomplete. Copy the whole folder.")
    limit = resolve_limit(max_bytes, sum(file.stat().st_size for file in files))
    trajectories: list[dict[str, Any]] = []
    n_bytes = 0
    try:
        for file in files:
            with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as batches:
                for batch in batches:
                    n_bytes += batch.nbytes
                    if n_bytes > limit:
                        raise UnusableFileError(
                            f"its data take more than {limit} bytes of memory. If you trust it and have the memory, raise "
                            "`max_bytes`."
                        )
                    trajectories += _trajectories(batch)
        return Demonstrations.from_trajectories(trajectories)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise OSError(f"The folder {folder} cannot be read: {error}. It is damaged. Copy or save it again.") from error
    except ValueError as error:
        raise ValueError(f"The folder {folder} does not fit: {error}") from error


def _trajectories(batch: Any) -> Iterator[dict[str, Any]]:
    """:return: The trajectories in the rows of a ``pyarrow.RecordBatch``"""
    import pyarrow as pa

    names = [name for name in ("obs", "acts", "rews") if name in batch.schema.names]
    for row in range(batch.num_rows):
        arrays = {name: to_numpy(name, pa.chunked_array([batch.column(name)[row].values])) for name in names}
        yield {**arrays, "terminal": bool(batch.column("terminal")[row].as_py())}

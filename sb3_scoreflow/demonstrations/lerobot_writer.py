"""Writing demonstrations as LeRobot data sets, version 3.0."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_scoreflow.common.files import AnyPath, as_path, atomic_folder
from sb3_scoreflow.demonstrations.arrays import Array
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.lerobot_folder import DATA_PATH, SIDECAR, VIDEO_PATH, import_parquet
from sb3_scoreflow.demonstrations.lerobot_images import import_pillow

_CHUNK_FILES = 1000
_FILE_MEGABYTES = 100
_STATISTIC_IMAGES = 100
"""Largest number of images per episode for the statistics."""
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def write_lerobot(
    demonstrations: Demonstrations,
    folder: AnyPath,
    *,
    fps: int,
    task: str | Sequence[str] = "",
    robot_type: str | None = None,
) -> None:
    """
    Write a new data set of LeRobot, version 3.0, which ``load_demonstrations(f"lerobot:{folder}")`` reads back exactly.

    Vectors become the columns ``observation.KEY``, images ``observation.images.KEY`` (``observation.state`` and
    ``observation.image`` if observations have no keys), actions ``action``, rewards ``next.reward``, and terminations
    ``next.done``. Images are stored losslessly, as PNG in the tables. Metadata and keys, for which LeRobot has no place, are
    in ``meta/sb3_scoreflow.json``.

    The folder appears in one step, when it is complete. Until then, a hidden folder beside it contains the data.

    :param demonstrations: Demonstrations to write
    :param folder: Path of the new folder; missing parent folders are created, ``~`` is expanded
    :param fps: Number of transitions per second
    :param task: Description of the task in words, or one description per episode
    :param robot_type: Name of the robot; None if it is unknown
    :raises ImportError: if pyarrow is not installed, or pillow is not installed and there are images
    :raises FileExistsError: if the folder or a file with its name exists
    :raises OSError: if it cannot be written, for example because the disk is full
    :raises ValueError: if ``fps`` or ``task`` is invalid, or LeRobot has no place for an array
    """
    import_parquet()
    path = as_path(folder)
    if path.exists():
        raise FileExistsError(f"{path} exists already. Choose another folder, or remove it first.")
    if isinstance(fps, bool) or not isinstance(fps, (int, float, np.number)) or not fps >= 1 or fps % 1:
        raise ValueError(f"`fps` must be an integer of at least 1, got {fps!r}. Pass the number of transitions per second.")
    tasks = [task] * demonstrations.n_episodes if isinstance(task, str) else list(task)
    if len(tasks) != demonstrations.n_episodes or not all(isinstance(text, str) for text in tasks):
        raise ValueError(
            f"`task` must be a str, or one for each of the {demonstrations.n_episodes} episodes, got {task!r:.200}."
        )
    with atomic_folder(path) as new:
        _Writer(demonstrations, new, int(fps)).write(tasks, robot_type)


class _Writer:
    """
    :param demonstrations: Demonstrations to write
    :param path: Path of an empty folder
    :param fps: Number of transitions per second
    :raises ValueError: if LeRobot has no place for an array
    """

    def __init__(self, demonstrations: Demonstrations, path: Path, fps: int) -> None:
        self._demonstrations = demonstrations
        self._path = path
        self._fps = fps
        observations = demonstrations.observations
        is_plain = not isinstance(observations, dict)
        named: Mapping[str, Array] = observations if isinstance(observations, dict) else {"": observations}
        columns = {key: _column(key, array) for key, array in named.items()}
        if len(set(columns.values())) < len(columns):
            raise ValueError(f"The observation keys {list(columns)} make columns of the same name. Rename one.")
        self._arrays: dict[str, Array] = {columns[key]: array for key, array in named.items()}
        self._arrays["action"] = demonstrations.actions
        for name, array in self._arrays.items():
            _check(name, array)
        self._arrays["next.reward"] = demonstrations.rewards[:, None]
        # Only terminations, after which LeRobot's programs do not bootstrap; episode indices mark all ends
        self._arrays["next.done"] = demonstrations.terminations[:, None]
        self._sidecar = {
            "observations": columns[""] if is_plain else columns,
            "metadata": demonstrations.metadata,
        }

    def write(self, tasks: Sequence[str], robot_type: str | None) -> None:
        """
        :param tasks: Task of each episode
        :param robot_type: Name of the robot, for ``info.json``
        """
        import pyarrow as pa

        numbers = {text: number for number, text in enumerate(dict.fromkeys(tasks))}
        places, statistics = self._write_data([numbers[text] for text in tasks])
        episodes = [
            {
                "episode_index": index,
                "tasks": [text],
                "length": rows.stop - rows.start,
                **place,
                "dataset_from_index": rows.start,
                "dataset_to_index": rows.stop,
                **{f"stats/{name}/{kind}": value.tolist() for name, s in own.items() for kind, value in s.items()},
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
            for index, (text, rows, place, own) in enumerate(
                zip(tasks, self._demonstrations.episode_slices, places, statistics, strict=True)
            )
        ]
        self._write_table("meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(episodes))
        self._write_table("meta/tasks.parquet", _task_table(list(numbers)))
        stats = {name: _pool([own[name] for own in statistics]) for name in statistics[0]}
        self._write_json("meta/stats.json", {name: {k: v.tolist() for k, v in s.items()} for name, s in stats.items()})
        self._write_json(SIDECAR, self._sidecar)
        self._write_json("meta/info.json", self._info(len(numbers), robot_type))

    def _write_data(self, tasks: Sequence[int]) -> tuple[list[dict[str, int]], list[dict[str, dict[str, np.ndarray]]]]:
        """
        :param tasks: Number of each episode's task
        :return: Position of each episode, and statistics of its columns
        """
        places, statistics = [], []
        writer, n_bytes, number = None, 0, -1
        with contextlib.ExitStack() as files:
            for index, rows in enumerate(self._demonstrations.episode_slices):
                # Images in a file are read only when they are written
                arrays = {name: np.asarray(array[rows]) for name, array in self._arrays.items()}
                arrays.update(self._indices(index, rows, tasks[index]))
                statistics.append({name: _statistics(array) for name, array in arrays.items()})
                table = _table(arrays)
                if writer is None or n_bytes + table.nbytes > _FILE_MEGABYTES * 2**20:
                    files.close()  # closes the previous file
                    n_bytes, number = 0, number + 1
                    place = {"chunk_index": number // _CHUNK_FILES, "file_index": number % _CHUNK_FILES}
                    file = self._file(DATA_PATH.format(**place))
                    writer = files.enter_context(import_parquet().ParquetWriter(file, table.schema))
                writer.write_table(table)
                n_bytes += table.nbytes
                places.append({f"data/{entry}": value for entry, value in place.items()})
        return places, statistics

    def _indices(self, index: int, rows: slice, task: int) -> dict[str, np.ndarray]:
        """:return: The columns of every data set"""
        frames = np.arange(rows.stop - rows.start)
        return {
            "timestamp": (frames / self._fps).astype(np.float32)[:, None],
            "frame_index": frames[:, None],
            "episode_index": np.full_like(frames, index)[:, None],
            "index": (frames + rows.start)[:, None],
            "task_index": np.full_like(frames, task)[:, None],
        }

    def _info(self, n_tasks: int, robot_type: str | None) -> dict[str, Any]:
        """:return: The content of ``info.json``"""
        n_episodes = self._demonstrations.n_episodes
        samples = {**self._arrays, **self._indices(0, slice(0, 1), 0)}
        return {
            "codebase_version": "v3.0",
            "robot_type": robot_type,
            "total_episodes": n_episodes,
            "total_frames": len(self._demonstrations),
            "total_tasks": n_tasks,
            "chunks_size": _CHUNK_FILES,
            "data_files_size_in_mb": _FILE_MEGABYTES,
            "video_files_size_in_mb": 2 * _FILE_MEGABYTES,
            "fps": self._fps,
            "splits": {"train": f"0:{n_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": {
                name: {
                    "dtype": "image" if _is_image(array) else str(array.dtype),
                    "shape": list(array.shape[1:]),
                    "names": ["height", "width", "channels"] if _is_image(array) else None,
                }
                for name, array in samples.items()
            },
        }

    def _file(self, name: str) -> Path:
        """:return: The path of a file in the folder; its parent folder is created"""
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write_table(self, name: str, table: Any) -> None:
        import_parquet().write_table(table, self._file(name))

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        self._file(name).write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")


def _is_image(array: Array) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4


def _column(key: str, array: Array) -> str:
    """:return: The name of a column for observations of this key"""
    if not key:
        return "observation.image" if _is_image(array) else "observation.state"
    if key.startswith("observation."):
        return key
    return f"observation.{'images.' if _is_image(array) else ''}{key}"


def _check(name: str, array: Array) -> None:
    """:raises ValueError: if LeRobot has no place for the array, or other programs would read it differently"""
    if "/" in name:
        raise ValueError(f"LeRobot cannot store a column {name!r}, because '/' separates folders. Rename the observation key.")
    if array.ndim == 1:
        raise ValueError(f"`{name}` would have single numbers, but LeRobot needs vectors. Pass them as x[:, None].")
    if array.ndim > 6 or 0 in array.shape[1:]:
        raise ValueError(f"`{name}` would have entries of shape {array.shape[1:]}, for which LeRobot has no place.")
    if _is_image(array) and array.shape[-1] != 3:
        raise ValueError(
            f"`{name}` would have images of shape {array.shape[1:]}, but LeRobot needs (height, width, 3). If channels are "
            "first, use x.transpose(0, 2, 3, 1); if there is one channel, np.repeat(x, 3, axis=-1)."
        )


def _table(arrays: Mapping[str, np.ndarray]) -> Any:
    """:return: ``pyarrow.Table`` with a column for each array"""
    import pyarrow as pa

    columns = {}
    for name, array in arrays.items():
        if _is_image(array):
            images = [{"bytes": _png(image), "path": f"frame-{number:06d}.png"} for number, image in enumerate(array)]
            columns[name] = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            continue
        values = pa.array(array.ravel())
        if array.ndim == 2 and array.shape[1] > 1:
            values = pa.FixedSizeListArray.from_arrays(values, array.shape[1])
        elif array.ndim > 2:
            for size in reversed(array.shape[1:]):
                values = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int32), values)
        columns[name] = values
    return pa.table(columns)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    import_pillow().fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _task_table(tasks: list[str]) -> Any:
    """:return: ``pyarrow.Table`` as written by pandas, with the tasks as its index, where LeRobot looks them up"""
    import pyarrow as pa

    index = "__index_level_0__"
    described = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": stored, "metadata": None}
        for name, field, kind, stored in (("task_index", "task_index", "int64", "int64"), (None, index, "unicode", "object"))
    ]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": np.arange(len(tasks)), index: pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _statistics(array: np.ndarray) -> dict[str, np.ndarray]:
    """:return: Statistics for LeRobot's normalization, per component, and for images per channel, scaled to [0, 1]"""
    if _is_image(array):
        some = array[np.unique(np.linspace(0, len(array) - 1, _STATISTIC_IMAGES).astype(int))]
        channels = _statistics(some.reshape(-1, some.shape[-1]))
        count = np.array([len(some)])
        return {key: count if key == "count" else value[:, None, None] / 255 for key, value in channels.items()}
    values = array.astype(np.float64)
    quantiles = np.quantile(values, _QUANTILES, axis=0)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
        "count": np.array([len(values)]),
        **{f"q{round(100 * q):02d}": quantile for q, quantile in zip(_QUANTILES, quantiles, strict=True)},
    }


def _pool(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """:return: The statistics of all episodes, from those of each; quantiles are averaged, as in LeRobot"""
    counts = np.array([part["count"][0] for part in parts], np.float64)
    weights = counts / counts.sum()
    stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    means = {key: np.tensordot(weights, value, axes=1) for key, value in stacked.items()}
    variances = stacked["std"] ** 2 + (stacked["mean"] - means["mean"]) ** 2
    return {
        **means,
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "std": np.sqrt(np.tensordot(weights, variances, axes=1)),
        "count": np.array([int(counts.sum())]),
    }

"""The rows of the episodes of a LeRobot data set: numbers are read immediately, but images are only located."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_scoreflow.demonstrations.arrays import clean_array, clean_flags, clean_vector
from sb3_scoreflow.demonstrations.lerobot_folder import Episode, LeRobotFolder, no_column, open_parquet, reading_file
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError, resolve_limit

_EPISODE, _FRAME, _TIME = "episode_index", "frame_index", "timestamp"
_VALUE_BYTES = 8


class EpisodeRows:
    """
    The rows of some episodes, one episode after the other.

    :param folder: The data set
    :param episodes: At least one of its episodes
    :param columns: Columns to read -> arguments with which the user chooses them
    :param optional: The same for columns that may be missing
    :param max_bytes: Largest memory for the columns, in bytes; None: in proportion to the files
    :raises FileNotFoundError: if a file is missing
    :raises OSError: if a file is damaged
    :raises UnusableFileError: if a column is missing or needs too much memory, or the rows do not fit the episodes
    """

    def __init__(
        self,
        folder: LeRobotFolder,
        episodes: Sequence[Episode],
        columns: Mapping[str, str],
        optional: Mapping[str, str],
        max_bytes: int | None,
    ) -> None:
        self.episodes = episodes
        self.files: list[Path] = list(dict.fromkeys(episode.data for episode in episodes))
        lengths = [episode.length for episode in episodes]
        self.ends = np.zeros(sum(lengths), np.bool_)
        self.ends[np.cumsum(lengths) - 1] = True
        numbers = {file: number for number, file in enumerate(self.files)}
        self.file_numbers = np.repeat([numbers[episode.data] for episode in episodes], lengths)
        """``(N,)``, number of each row's file."""
        self.file_rows = np.empty(len(self.ends), np.int64)
        """``(N,)``, position of each row in its file."""
        self._fps = folder.fps
        self._names = [*columns]
        parts: list[dict[str, np.ndarray]] = [{} for _ in episodes]
        by_file: dict[Path, list[int]] = {file: [] for file in self.files}
        for position, episode in enumerate(episodes):
            by_file[episode.data].append(position)
        starts = np.cumsum([0, *lengths])
        limit = resolve_limit(max_bytes, sum(file.stat().st_size for file in self.files if file.exists()))
        n_bytes = 0
        for file, positions in by_file.items():
            with reading_file(file, folder.path), open_parquet(file) as parquet:
                if file == self.files[0]:
                    names = parquet.schema_arrow.names
                    self._names += [name for name in (*optional, _FRAME, _TIME) if name in names]
                n_bytes += self._memory(parquet, file, columns)
                if n_bytes > limit:
                    raise UnusableFileError(
                        f"its columns {self._names} need more than {limit} bytes of memory. If you trust it and have the "
                        "memory, raise `max_bytes`, or read only some `episodes`."
                    )
                read = parquet.read(columns=[_EPISODE, *self._names], use_threads=False)
                arrays = {name: to_numpy(name, read.column(name)) for name in (_EPISODE, *self._names)}
            index = arrays.pop(_EPISODE)
            order = np.argsort(index, kind="stable")
            for position in positions:
                episode = episodes[position]
                begin, end = np.searchsorted(index, [episode.index, episode.index + 1], sorter=order)
                rows = order[begin:end]
                self._check(episode, file.relative_to(folder.path).as_posix(), len(rows), arrays.get(_FRAME), rows)
                self.file_rows[starts[position] : starts[position + 1]] = rows
                parts[position] = {name: array[rows] for name, array in arrays.items()}
        self._arrays = {name: self._join(name, [part[name] for part in parts]) for name in self._names}

    def _memory(self, parquet: Any, file: Path, columns: Mapping[str, str]) -> int:
        """
        :param parquet: The open file
        :param file: Its path
        :param columns: See the class
        :return: Memory of its columns in bytes
        :raises UnusableFileError: if a column is missing
        """
        names = parquet.schema_arrow.names
        for name in (_EPISODE, *self._names):
            if name not in names:
                if name in columns:
                    raise no_column(name, columns[name], names)
                raise UnusableFileError(f"{file.name} in it has no column {name!r}, unlike others. Fetch it again.")
        prefixes = tuple(f"{name}." for name in self._names)
        groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
        leaves = [group.column(i) for group in groups for i in range(group.num_columns)]
        return _VALUE_BYTES * sum(leaf.num_values for leaf in leaves if f"{leaf.path_in_schema}.".startswith(prefixes))

    def _check(self, episode: Episode, file: str, n_rows: int, frames: np.ndarray | None, rows: np.ndarray) -> None:
        """
        :param episode: Episode of the data set
        :param file: Name of the file, for the message
        :param n_rows: Number of the episode's rows in the file
        :param frames: The file's column of frame numbers; None if it is missing
        :param rows: Positions of the episode's rows in the file
        :raises UnusableFileError: if the rows are not the episode's frames
        """
        others = "Fetch or record it again, or leave the episode out with `episodes`."
        if frames is not None and not np.array_equal(frames[rows], np.arange(episode.length)):
            missing = sorted(set(range(episode.length)) - set(frames[rows].tolist()))
            lack = f"lacks the frames {missing[:9]}" if missing else "has its frames out of order, or more than once"
            raise UnusableFileError(
                f"episode {episode.index} has {n_rows} rows in {file} and {lack}; its meta says that it has "
                f"{episode.length} frames. {others}"
            )
        if n_rows != episode.length:
            raise UnusableFileError(
                f"episode {episode.index} has {n_rows} rows in {file}, but its meta says {episode.length}. {others}"
            )

    def _join(self, name: str, parts: list[np.ndarray]) -> np.ndarray:
        """:return: A column of all episodes"""
        for episode, part in zip(self.episodes, parts, strict=True):
            if part.shape[1:] != parts[0].shape[1:]:
                raise UnusableFileError(
                    f"`{name}` has entries of shape {parts[0].shape[1:]} in episode {self.episodes[0].index} and of shape "
                    f"{part.shape[1:]} in episode {episode.index}. Read only one kind, with `episodes`."
                )
        return np.concatenate(parts)

    def __contains__(self, name: str | None) -> bool:
        return name in self._arrays

    def vectors(self, name: str) -> np.ndarray:
        """
        :param name: Name of a column that was read
        :return: ``(N, ...)`` with vectors as entries; single numbers become vectors of length 1, as in LeRobot
        :raises UnusableFileError: if it does not contain numbers, or contains NaN
        """
        array = self._clean(name, clean_array)
        return array[:, None] if array.ndim == 1 else array

    def rewards(self, name: str) -> np.ndarray:
        """:return: ``(N,)``, the column"""
        return self._clean(name, clean_vector)

    def flags(self, name: str) -> np.ndarray:
        """:return: ``(N,)`` bools, the column"""
        return self._clean(name, clean_flags)

    def times(self) -> np.ndarray:
        """:return: ``(N,)``, seconds since the beginning of the episode, in double precision"""
        if _TIME in self:
            return self.rewards(_TIME).astype(np.float64)
        return np.concatenate([np.arange(episode.length) for episode in self.episodes]) / self._fps

    def _clean(self, name: str, clean: Any) -> np.ndarray:
        array = self._arrays[name]
        try:
            return clean(name, array)
        except ValueError as error:
            odd = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1) if array.dtype.kind == "f" else self.ends & False
            numbers: np.ndarray = np.cumsum(self.ends) - self.ends
            indices = [self.episodes[number].index for number in np.unique(numbers[odd])]
            where = f" They are {indices[:20]}: leave them out with `episodes`." if indices else ""
            raise UnusableFileError(f"{error}{where}") from error


def to_numpy(name: str, column: Any) -> np.ndarray:
    """
    :param name: Name of a column
    :param column: ``pyarrow.ChunkedArray`` of numbers, or of (nested) lists of numbers with the same length
    :return: ``(N, ...)``
    :raises UnusableFileError: if it contains other values
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    shape = [len(array)]
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise UnusableFileError(f"`{name}` has {array.null_count} entries without a value. Fetch or record it again.")
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) > 1:
            raise UnusableFileError(f"`{name}` has entries of different lengths, {sorted(lengths)[:9]}; all must be equal.")
        shape += lengths or [0]
        array = array.flatten()
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise UnusableFileError(f"`{name}` has the type {column.type}, which is not numeric. Choose another column.")
    return array.to_numpy(zero_copy_only=False).reshape(shape)

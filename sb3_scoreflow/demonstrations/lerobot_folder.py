"""
The layout of LeRobot's data set folders, read without LeRobot.

Versions 2.0 and 2.1 have a file per episode, ``data/chunk-000/episode_000000.parquet`` and
``videos/chunk-000/KEY/episode_000000.mp4``; version 3.0 has many episodes in ``data/chunk-000/file-000.parquet`` and
``videos/KEY/chunk-000/file-000.mp4``, and ``meta/episodes`` lists their positions.
"""

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from sb3_scoreflow.common.files import as_path
from sb3_scoreflow.demonstrations.recognize import describe_source
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError

SOURCE = "lerobot"
SIDECAR = "meta/sb3_scoreflow.json"
"""File in which ``write_lerobot`` stores data for which LeRobot has no place: metadata, and the columns of observations."""
INSTALL = 'pip install "sb3-scoreflow[lerobot]"'

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
"""Files of version 3.0."""

_VERSIONS = ("v2.0", "v2.1", "v3.0")
_DATA_PATHS = {2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", 3: DATA_PATH}
_VIDEO_PATHS = {2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4", 3: VIDEO_PATH}
_MAX_NAMES = 30


def import_parquet() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"LeRobot data sets need pyarrow, which is not installed: {INSTALL}") from error
    return pyarrow.parquet


@dataclass
class Episode:
    """An episode of a data set, as its ``meta`` describes it."""

    index: int
    length: int
    tasks: list[str]
    data: Path
    """File with its rows."""
    location: dict[str, Any] = field(default_factory=dict)
    """Values for the templates of its file names, and its start times in videos."""


@dataclass
class LeRobotFolder:
    """A data set on disk; only ``meta`` has been read."""

    path: Path
    info: dict[str, Any]
    version: int
    """2 or 3."""
    features: dict[str, dict[str, Any]]
    fps: float
    sidecar: dict[str, Any]
    """Additional data of ``write_lerobot``; empty if another program wrote the data set."""

    @property
    def cameras(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature.get("dtype") in ("image", "video")]

    def video(self, episode: Episode, key: str) -> tuple[Path, float]:
        """
        :param episode: Episode of the data set
        :param key: Key of a camera
        :return: The file, and the time in seconds at which the episode starts in it
        :raises UnusableFileError: if the data set does not contain this information
        """
        location = {**episode.location, "video_key": key}
        if self.version == 2:
            return self._file("video_path", _VIDEO_PATHS, location), 0.0
        for entry in ("chunk_index", "file_index", "from_timestamp"):
            value = episode.location.get(f"videos/{key}/{entry}")
            # A column that is missing for some episodes contains NaN
            if not isinstance(value, (int, float)) or value != value:
                raise UnusableFileError(
                    f"its meta/episodes has no `videos/{key}/{entry}` of episode {episode.index}, so the position of its "
                    "video is unknown. Fetch it again, or leave the camera out of `images`."
                )
            location[entry] = value if entry == "from_timestamp" else int(value)
        return self._file("video_path", _VIDEO_PATHS, location), float(location["from_timestamp"])

    def _file(self, entry: str, defaults: dict[int, str], values: dict[str, Any]) -> Path:
        """
        :param entry: Entry of ``info.json`` with a template of paths
        :param defaults: Default template by version
        :param values: Values for the template
        :return: The path
        :raises UnusableFileError: if the template is invalid, or the path is outside the folder
        """
        template = self.info.get(entry) or defaults[self.version]
        filled = re.sub(
            r"\{(\w+)(?::0?(\d)d)?\}",
            lambda match: str(values.get(match[1], match[0])).zfill(int(match[2] or 0)),
            str(template),
        )
        parts = PurePosixPath(filled).parts
        if "{" in filled or "\\" in filled or ".." in parts or ":" in filled or PurePosixPath(filled).is_absolute():
            raise UnusableFileError(
                f"`{entry}` in its meta/info.json is {template!r:.200}, which does not name a file inside the folder. "
                f"LeRobot's template is {defaults[self.version]!r}."
            )
        return self.path.joinpath(*parts)

    def episodes(self, chosen: Sequence[int] | None) -> list[Episode]:
        """
        :param chosen: Numbers of episodes; None: all
        :return: These episodes, in this order
        :raises UnusableFileError: if one is missing or described twice, or their number differs from ``info.json``
        """
        entries = self._read_jsonl("meta/episodes.jsonl") if self.version == 2 else self._read_episodes()
        found: dict[int, Episode] = {}
        for entry in entries:
            episode = self._episode(entry)
            if episode.index in found:
                raise UnusableFileError(f"its meta describes episode {episode.index} twice. Fetch it again.")
            found[episode.index] = episode
        if chosen is None:
            total = self.info.get("total_episodes", len(found))
            if total != len(found) or not found:
                raise UnusableFileError(
                    f"its meta/info.json counts {total} episodes, but {len(found)} are described. Fetch `meta` again, or pass "
                    f"`episodes`, the numbers of those to read, such as {sorted(found)[:3]}."
                )
            return [found[index] for index in sorted(found)]
        numbers = [int(index) for index in chosen]
        if not numbers or len(set(numbers)) < len(numbers) or not set(numbers) <= set(found):
            raise UnusableFileError(
                f"`episodes`={list(chosen)!r:.200} must name at least one of its {len(found)} episodes, "
                f"{min(found, default=0)} to {max(found, default=0)}, without duplicates."
            )
        return [found[index] for index in numbers]

    def _episode(self, entry: Any) -> Episode:
        """:return: The episode that an entry of ``meta`` describes"""
        needed = ["episode_index", "length"] + (["data/chunk_index", "data/file_index"] if self.version == 3 else [])
        numbers: list[Any] = [entry.get(name) if isinstance(entry, dict) else None for name in needed]
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or not numbers[1]:
            raise UnusableFileError(
                f"its meta describes an episode without some of {needed}, or with invalid numbers: "
                f"{entry!r:.200}. Fetch it again."
            )
        index, length = numbers[:2]
        location = {**entry, "episode_index": index}
        if self.version == 2:
            location["episode_chunk"] = index // self._chunks_size()
        else:
            location |= {"chunk_index": numbers[2], "file_index": numbers[3]}
        tasks = entry.get("tasks")
        tasks = [str(task) for task in tasks] if isinstance(tasks, (list, tuple)) else []
        return Episode(index, length, tasks, self._file("data_path", _DATA_PATHS, location), location)

    def _chunks_size(self) -> int:
        size = self.info.get("chunks_size", 1000)
        if not isinstance(size, int) or size < 1:
            raise UnusableFileError(f"`chunks_size` in its meta/info.json is {size!r:.99}, not a positive integer.")
        return size

    def _read_jsonl(self, name: str) -> list[Any]:
        """:return: The objects in a file with one JSON object per line"""
        with reading_file(self.path / name, self.path):
            lines = (self.path / name).read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines if line.strip()]

    def _read_episodes(self) -> list[dict[str, Any]]:
        """:return: The content of ``meta/episodes`` of version 3.0, without statistics"""
        files = sorted(self.path.glob("meta/episodes/*/*.parquet"))
        if not files:
            raise FileNotFoundError(
                f"There is no file meta/episodes/chunk-000/file-000.parquet in the LeRobot data set {self.path}: {_FETCH}"
            )
        rows: list[dict[str, Any]] = []
        for file in files:
            with reading_file(file, self.path), open_parquet(file) as parquet:
                names = [name for name in parquet.schema_arrow.names if not name.startswith("stats/")]
                rows += parquet.read(columns=names, use_threads=False).select(names).to_pylist()
        return rows


_FETCH = (
    "it is incomplete. Fetch all of it: hf download REPO --repo-type dataset --local-dir FOLDER (LeRobot "
    "completes a recording with LeRobotDataset.finalize())."
)


def open_folder(spec: str) -> LeRobotFolder:
    """
    :param spec: Path of the folder, ``~`` is expanded; or the id of a data set that LeRobot has downloaded
    :return: The data set
    :raises FileNotFoundError: if it does not exist
    :raises OSError: if its ``info.json`` is damaged
    :raises UnusableFileError: if it has an unsupported version
    """
    path = as_path(spec)
    if not path.exists() and (lerobot_home() / spec).is_dir():
        path = lerobot_home() / spec
    if not (path / "meta" / "info.json").is_file():
        missing = f"There is no LeRobot data set {path} (seen from {Path.cwd()})"
        if path.is_dir():
            missing = (
                f"The folder {path} is not a LeRobot data set: it has no meta/info.json, but {_shorten(os.listdir(path))}"
            )
        raise FileNotFoundError(f"{missing}. Nothing is downloaded. {describe_source(SOURCE)}")
    with reading_file(path / "meta" / "info.json", path):
        info = json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))
        if not isinstance(info, dict):
            raise ValueError(f"it must be a JSON object, it is {info!r:.99}")
    sidecar: Any = {}
    if (path / SIDECAR).is_file():
        with reading_file(path / SIDECAR, path):
            sidecar = json.loads((path / SIDECAR).read_text(encoding="utf-8"))
            if not isinstance(sidecar, dict):
                raise ValueError(f"it must be a JSON object, it is {sidecar!r:.99}")
    version = info.get("codebase_version")
    if version not in _VERSIONS:
        raise UnusableFileError(
            f"its `codebase_version` is {version!r:.99}; {', '.join(_VERSIONS)} are supported. Scripts of LeRobot convert "
            "older ones; newer ones need a newer sb3_scoreflow."
        )
    features, fps = info.get("features"), info.get("fps")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise UnusableFileError(f"`features` in its meta/info.json is {features!r:.99}; it must be a dict of dicts.")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < np.inf:
        raise UnusableFileError(f"`fps` in its meta/info.json is {fps!r:.99}; it must be a positive number.")
    return LeRobotFolder(path, info, int(version[1]), features, float(fps), sidecar)


def lerobot_home() -> Path:
    """:return: Folder of LeRobot's downloads"""
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return as_path(os.environ.get("HF_LEROBOT_HOME") or Path(cache) / "lerobot")


@contextlib.contextmanager
def reading_file(path: Path, folder: Path) -> Iterator[None]:
    """
    Context manager for code that reads a file of a data set.

    :param path: The file
    :param folder: The data set
    :raises FileNotFoundError: if the file does not exist
    :raises OSError: if the file is damaged
    """
    try:
        yield
    except UnusableFileError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no file {_relative(path, folder)} in the LeRobot data set {folder}: {_FETCH}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow raises these types
        reason = str(error).strip()
        raise OSError(
            f"{_relative(path, folder)} in the LeRobot data set {folder} cannot be read ({reason}). It is damaged or "
            "incomplete. Fetch it again."
        ) from error


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """:return: The open ``pyarrow.parquet.ParquetFile``, without buffers, to read inside a ``with`` block"""
    with open(path, "rb") as file, import_parquet().ParquetFile(file, pre_buffer=False) as parquet:
        yield parquet


def no_column(name: str, argument: str, names: Iterable[str]) -> UnusableFileError:
    """
    :param name: Name of a missing column
    :param argument: Argument with this name
    :param names: Names of the existing columns
    :return: The error to raise
    """
    names = sorted(names)
    last = name.rpartition(".")[2]
    similar = difflib.get_close_matches(name, names, n=1) or [other for other in names if last in other]
    nearest = f" The nearest is {similar[0]!r}." if similar else ""
    return UnusableFileError(f"it has no column {name!r}; it has {_shorten(names)}.{nearest} Choose with `{argument}`.")


def _shorten(names: Sequence[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{names[:_MAX_NAMES]}{more}"

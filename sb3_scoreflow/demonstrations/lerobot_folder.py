"""
The folders of LeRobot's data sets, read without LeRobot: what is in them, and where.

Versions 2.0 and 2.1 have a file per episode, ``data/chunk-000/episode_000000.parquet`` and
``videos/chunk-000/KEY/episode_000000.mp4``; version 3.0 has many episodes in ``data/chunk-000/file-000.parquet`` and
``videos/KEY/chunk-000/file-000.mp4``, and says in ``meta/episodes`` which is where.
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
"""Where ``write_lerobot`` keeps what LeRobot has no place for: the metadata, and which columns are the observations."""
INSTALL = 'pip install "sb3-scoreflow[lerobot]"'

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
"""Of version 3.0."""

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
    """File of its rows."""
    location: dict[str, Any] = field(default_factory=dict)
    """What the names of its files are made of, and where it begins in its videos."""


@dataclass
class LeRobotFolder:
    """A data set on disk, of which only ``meta`` has been read."""

    path: Path
    info: dict[str, Any]
    version: int
    """2 or 3."""
    features: dict[str, dict[str, Any]]
    fps: float
    sidecar: dict[str, Any]
    """Empty, unless ``write_lerobot`` wrote it."""

    @property
    def cameras(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature.get("dtype") in ("image", "video")]

    def video(self, episode: Episode, key: str) -> tuple[Path, float]:
        """
        :param episode: One of the data set's
        :param key: key of a camera
        :return: The file, and the time in seconds at which the episode begins in it
        :raises UnusableFileError: if the data set does not say
        """
        location = {**episode.location, "video_key": key}
        if self.version == 2:
            return self._file("video_path", _VIDEO_PATHS, location), 0.0
        for entry in ("chunk_index", "file_index", "from_timestamp"):
            value = episode.location.get(f"videos/{key}/{entry}")
            # A column that is missing for some episodes has NaN there
            if not isinstance(value, (int, float)) or value != value:
                raise UnusableFileError(
                    f"its meta/episodes has no `videos/{key}/{entry}` of episode {episode.index}, so nothing tells where its "
                    "video is. Fetch it again, or leave the camera out of `images`."
                )
            location[entry] = value if entry == "from_timestamp" else int(value)
        return self._file("video_path", _VIDEO_PATHS, location), float(location["from_timestamp"])

    def _file(self, entry: str, defaults: dict[int, str], values: dict[str, Any]) -> Path:
        """
        :param entry: entry of ``info.json``: a template of paths
        :param defaults: By version, where there is none
        :param values: To put in
        :return: The path
        :raises UnusableFileError: if the template is another one, or leads out of the folder
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
                f"`{entry}` in its meta/info.json is {template!r:.200}, from which no file inside the folder follows. "
                f"LeRobot has {defaults[self.version]!r}."
            )
        return self.path.joinpath(*parts)

    def episodes(self, chosen: Sequence[int] | None) -> list[Episode]:
        """
        :param chosen: Numbers of episodes; all if None
        :return: These episodes, in this order
        :raises UnusableFileError: if one is missing or described twice, or their number is not that of ``info.json``
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
                f"{min(found, default=0)} to {max(found, default=0)}, and none twice."
            )
        return [found[index] for index in numbers]

    def _episode(self, entry: Any) -> Episode:
        """:return: The episode that an entry of ``meta`` describes"""
        needed = ["episode_index", "length"] + (["data/chunk_index", "data/file_index"] if self.version == 3 else [])
        numbers: list[Any] = [entry.get(name) if isinstance(entry, dict) else None for name in needed]
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or not numbers[1]:
            raise UnusableFileError(
                f"its meta describes an episode without some of {needed}, or with others than whole numbers: "
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
        """:return: The objects in a file with one in each line"""
        with reading_file(self.path / name, self.path):
            lines = (self.path / name).read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines if line.strip()]

    def _read_episodes(self) -> list[dict[str, Any]]:
        """:return: What ``meta/episodes`` of version 3.0 has, but for statistics"""
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
    "it is not complete. Fetch all of it: hf download REPO --repo-type dataset --local-dir FOLDER (LeRobot "
    "completes a recording by LeRobotDataset.finalize())."
)


def open_folder(spec: str) -> LeRobotFolder:
    """
    :param spec: Path of the folder, ``~`` is expanded; or the id of a data set that LeRobot has downloaded
    :return: The data set
    :raises FileNotFoundError: if it is not there
    :raises OSError: if its ``info.json`` is damaged
    :raises UnusableFileError: if it is of another version
    """
    path = as_path(spec)
    if not path.exists() and (lerobot_home() / spec).is_dir():
        path = lerobot_home() / spec
    if not (path / "meta" / "info.json").is_file():
        missing = f"There is no LeRobot data set {path} (seen from {Path.cwd()})"
        if path.is_dir():
            missing = f"The folder {path} is no LeRobot data set: it has no meta/info.json, but {_shorten(os.listdir(path))}"
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
            f"its `codebase_version` is {version!r:.99}; {', '.join(_VERSIONS)} are read. Scripts of LeRobot convert older "
            "ones; newer ones need a newer sb3_scoreflow."
        )
    features, fps = info.get("features"), info.get("fps")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise UnusableFileError(f"`features` in its meta/info.json is {features!r:.99}; it must be a dict of dicts.")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < np.inf:
        raise UnusableFileError(f"`fps` in its meta/info.json is {fps!r:.99}; it must be a positive number.")
    return LeRobotFolder(path, info, int(version[1]), features, float(fps), sidecar)


def lerobot_home() -> Path:
    """:return: Where LeRobot puts what it downloads"""
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return as_path(os.environ.get("HF_LEROBOT_HOME") or Path(cache) / "lerobot")


@contextlib.contextmanager
def reading_file(path: Path, folder: Path) -> Iterator[None]:
    """
    Around code that reads a file of a data set.

    :param path: The file
    :param folder: The data set
    :raises FileNotFoundError: if it is not there
    :raises OSError: if it is damaged
    """
    try:
        yield
    except UnusableFileError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no file {_relative(path, folder)} in the LeRobot data set {folder}: {_FETCH}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are of these types
        reason = str(error).strip()
        raise OSError(
            f"{_relative(path, folder)} in the LeRobot data set {folder} cannot be read ({reason}). It is damaged, or not "
            "finished. Fetch it again."
        ) from error


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """:return: The open ``pyarrow.parquet.ParquetFile``, of which little is held in memory, to read inside a ``with`` block"""
    with open(path, "rb") as file, import_parquet().ParquetFile(file, pre_buffer=False) as parquet:
        yield parquet


def no_column(name: str, argument: str, names: Iterable[str]) -> UnusableFileError:
    """
    :param name: name of a column that is not there
    :param argument: By which the user named it
    :param names: names of those that are there
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

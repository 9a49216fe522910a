"""
The data sets of LeRobot (Cadene et al., 2024, https://github.com/huggingface/lerobot), read without LeRobot.

A data set is a folder with Parquet tables that have one row per transition, images as videos or in the tables, and a folder
``meta``; see :mod:`~sb3_scoreflow.demonstrations.lerobot_folder`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.demonstrations.arrays import Array, clean_metadata
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.lazy import BlockCache, LazyImages
from sb3_scoreflow.demonstrations.lerobot_folder import SOURCE, Episode, LeRobotFolder, no_column, open_folder
from sb3_scoreflow.demonstrations.lerobot_images import DecodedImages, EncodedImages, VideoFrames
from sb3_scoreflow.demonstrations.lerobot_table import EpisodeRows
from sb3_scoreflow.demonstrations.sources import register_source
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError

Columns = str | Sequence[str] | Mapping[str, str]
"""One column, several columns, or a mapping from keys of observations to columns."""

_STATE, _ACTION = "observation.state", "action"
_REWARD, _SUCCESS, _DONE = "next.reward", "next.success", "next.done"
_ALL = "all"


@register_source(SOURCE)
def load_lerobot(
    spec: str,
    *,
    observation: Columns | None = None,
    action: str = _ACTION,
    reward: str | None = _REWARD,
    success: str | None = _SUCCESS,
    done: str | None = _DONE,
    images: Columns | None = None,
    image_size: tuple[int, int] | None = None,
    episodes: Sequence[int] | None = None,
    cache_bytes: int = 2**30,
    max_bytes: int | None = None,
) -> Demonstrations:
    """
    The source ``lerobot:FOLDER``: a data set of LeRobot, version 2.0, 2.1 or 3.0, on this machine. Nothing is downloaded.

    Arguments name columns. A single name (str) gives plain arrays; several names, or vectors together with images, give dict
    observations. A mapping from keys to columns sets the keys; otherwise, the keys are the names of the columns without
    ``observation.`` and ``images.``, and with ``_`` instead of other dots, which PyTorch does not allow in names of modules.

    An episode ends at its last row. The end is a termination if this row is a success, or, in a data set without successes, if
    it is done; otherwise, it is a truncation. Without a column of rewards, successes are the rewards, and
    :meth:`~sb3_scoreflow.demonstrations.container.Demonstrations.end_at_success` ends episodes at their first success.

    Images stay in their files and are decoded when they are used, see
    :class:`~sb3_scoreflow.demonstrations.lazy.LazyImages`: RGB, of shape ``(height, width, 3)``. All other data are read
    immediately.

    :param spec: Path of the folder, ``~`` is expanded; or the id of a data set that LeRobot has downloaded, such as
        ``lerobot/pusht``
    :param observation: Columns of vectors; an empty list: only images. None: ``observation.state``, or all observations that
        :func:`write_lerobot` has written, including images
    :param action: Column of the actions
    :param reward: Column of the rewards; the default column may be missing. None: no column
    :param success: Column of flags that mark successes; the default column may be missing. None: no column
    :param done: Column of flags that mark the end of an episode; the default column may be missing. None: no column
    :param images: Cameras to read, or ``"all"``. None: no cameras, and ``av`` is not needed
    :param image_size: Height and width in pixels to which images are resized after decoding, before they are cached; None: not
        resized
    :param episodes: Numbers of the episodes to read, in this order; None: all
    :param cache_bytes: Size of the cache for decoded images of all cameras, in bytes
    :param max_bytes: Largest memory for all data except images, in bytes; None: 64 times the size of the files, but at least
        256 MiB
    :return: The demonstrations; ``metadata`` contains ``fps``, ``robot_type``, the ``task`` (or ``tasks``, as JSON text) and
        the names of all ``cameras``
    :raises ImportError: if pyarrow, or a package that decodes the images, is not installed
    :raises FileNotFoundError: if the data set or one of its files does not exist
    :raises OSError: if a file is damaged
    :raises ValueError: if an argument does not fit the data set, its files do not fit each other, or hold NaN
    """
    cache = BlockCache(cache_bytes)
    size = _check_image_size(image_size)
    path = Path(spec)
    try:
        folder = open_folder(spec)
        path = folder.path
        chosen = _choose(folder, observation, images)
        selected = folder.episodes(episodes)
        needed = {**dict.fromkeys(chosen.vectors.values(), "observation"), action: "action"}
        optional: dict[str, str] = {}
        for column, default, argument in ((reward, _REWARD, "reward"), (success, _SUCCESS, "success"), (done, _DONE, "done")):
            if column is not None:
                (optional if column == default else needed)[column] = argument
        rows = EpisodeRows(folder, selected, needed, optional, max_bytes)
        observations: dict[str, Array] = {key: rows.vectors(column) for key, column in chosen.vectors.items()}
        observations.update(_open_images(folder, rows, chosen.cameras, cache, size))
        actions = rows.vectors(action)
        successes = rows.flags(success) if success is not None and success in rows else None
        rewards = rows.rewards(reward) if reward is not None and reward in rows else successes
        terminated = rows.flags(done) if successes is None and done is not None and done in rows else successes
        metadata = _metadata(folder, selected)
    except UnusableFileError as error:
        raise ValueError(f"The LeRobot data set {path} does not fit: {error}") from error
    terminations = np.zeros_like(rows.ends) if terminated is None else rows.ends & terminated
    return Demonstrations(
        next(iter(observations.values())) if chosen.is_plain else observations,
        actions,
        rewards,
        terminations,
        rows.ends & ~terminations,
        metadata=metadata,
    )


class _Choice(NamedTuple):
    """Columns that become observations, by key."""

    vectors: dict[str, str]
    cameras: dict[str, str]
    is_plain: bool
    """Whether the only column becomes a plain array instead of a dict."""


def _choose(folder: LeRobotFolder, observation: Columns | None, images: Columns | None) -> _Choice:
    """
    :param folder: The data set
    :param observation: See :func:`load_lerobot`
    :param images: See :func:`load_lerobot`
    :return: The columns of the observations
    :raises UnusableFileError: if there are no columns, two have the same key, or a camera does not exist
    """
    written = folder.sidecar.get("observations")
    if observation is None and images is None and isinstance(written, (str, dict)):
        columns = _by_key(written, "observations")
        cameras = {key: column for key, column in columns.items() if column in folder.cameras}
        vectors = {key: column for key, column in columns.items() if key not in cameras}
        return _Choice(vectors, cameras, isinstance(written, str))
    vectors = _by_key(_STATE if observation is None else observation, "observation")
    cameras = _by_key(folder.cameras if images == _ALL else images or (), "images")
    for column in vectors.values():
        if column in folder.cameras:
            raise UnusableFileError(f"`observation` names {column!r}, which is a camera. Name it in `images`.")
    for column in cameras.values():
        if column not in folder.cameras:
            raise no_column(column, "images", folder.cameras)
    if not vectors and not cameras:
        raise UnusableFileError("`observation` and `images` name nothing, but a policy needs observations. Name a column.")
    if set(vectors) & set(cameras):
        raise UnusableFileError(
            f"`observation` and `images` both make observations of {sorted(set(vectors) & set(cameras))}. Pass mappings from "
            "keys to columns."
        )
    if cameras:
        return _Choice(vectors, cameras, not vectors and isinstance(images, str) and images != _ALL)
    return _Choice(vectors, cameras, observation is None or isinstance(observation, str))


def _by_key(columns: Columns, argument: str) -> dict[str, str]:
    """
    :param columns: The value passed by the user
    :param argument: Name of the argument
    :return: Columns by keys of observations
    :raises UnusableFileError: if they are not names, or two have the same key
    """
    if isinstance(columns, str):
        columns = (columns,)
    pairs = list(columns.items()) if isinstance(columns, Mapping) else [(_key(column), column) for column in columns]
    named = dict(pairs)
    if len(named) < len(pairs) or not all(isinstance(name, str) for pair in pairs for name in pair):
        raise UnusableFileError(
            f"`{argument}`={columns!r:.200} must be column names that differ even without `observation.` and `images.`, or a "
            "mapping from keys to column names."
        )
    return named


def _key(column: Any) -> str:
    """:return: Key of observations from this column"""
    return str(column).removeprefix("observation.").removeprefix("images.").replace(".", "_")


def _check_image_size(size: Any) -> tuple[int, int] | None:
    """:raises ValueError: if it is not a height and a width"""
    if size is None:
        return None
    is_pair = isinstance(size, Sequence) and len(size) == 2
    if not is_pair or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in size):
        raise ValueError(f"`image_size` must be a height and a width in pixels, got {size!r:.99}. Pass (96, 96), for example.")
    return int(size[0]), int(size[1])


def _open_images(
    folder: LeRobotFolder,
    rows: EpisodeRows,
    cameras: Mapping[str, str],
    cache: BlockCache,
    image_size: tuple[int, int] | None,
) -> dict[str, LazyImages]:
    """
    :param folder: The data set
    :param rows: Rows of its episodes
    :param cameras: Cameras to open, by key
    :param cache: Cache for images
    :param image_size: Height and width of the resized images; None: not resized
    :return: The images; one image per camera has been read
    :raises OSError: if this image cannot be read
    :raises UnusableFileError: if a camera does not have color images
    """
    stores: dict[str, DecodedImages] = {}
    for key, camera in cameras.items():
        feature = folder.features[camera]
        info = feature.get("info") or feature.get("video_info") or {}
        if isinstance(info, dict) and (info.get("video.is_depth_map") or info.get("is_depth_map")):
            raise UnusableFileError(f"the camera {camera!r} records depth, not color. Leave it out of `images`.")
        if feature["dtype"] == "image":
            stores[key] = EncodedImages(camera, rows.files, rows.file_numbers, rows.file_rows, cache, image_size)
            continue
        places = [folder.video(episode, camera) for episode in rows.episodes]
        paths = list(dict.fromkeys(path for path, _ in places))
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"There is no video {missing[0].relative_to(folder.path).as_posix()} in the LeRobot data set {folder.path} "
                f"({len(missing)} of {len(paths)} of the camera {camera!r} are missing). Fetch them, or leave the camera out "
                "of `images`."
            )
        numbers = {path: number for number, path in enumerate(paths)}
        lengths = [episode.length for episode in rows.episodes]
        files = np.repeat([numbers[path] for path, _ in places], lengths)
        times = np.repeat([start for _, start in places], lengths) + rows.times()
        stores[key] = VideoFrames(camera, paths, files, times, folder.fps, cache, image_size)
    n_bytes = sum(store.nbytes for store in stores.values())
    for store in stores.values():
        store.keeps_all = n_bytes <= cache.max_bytes
    if n_bytes > cache.max_bytes:
        warn(
            f"The decoded images of the LeRobot data set {folder.path} need {n_bytes} bytes, more than "
            f"`cache_bytes`={cache.max_bytes}: batches in random order decode most images again, which can take more time "
            "than training. Raise `cache_bytes`, or make images smaller with `image_size`."
        )
    return {key: LazyImages([store]) for key, store in stores.items()}


def _metadata(folder: LeRobotFolder, episodes: Sequence[Episode]) -> dict[str, Any]:
    """:return: Facts about the data set, including the metadata that it was written with"""
    metadata: dict[str, Any] = {"fps": int(folder.fps) if folder.fps.is_integer() else folder.fps}
    if isinstance(folder.info.get("robot_type"), str):
        metadata["robot_type"] = folder.info["robot_type"]
    tasks = list(dict.fromkeys(task for episode in episodes for task in episode.tasks))
    if len(tasks) == 1:
        metadata["task"] = tasks[0]
    elif tasks:
        metadata["tasks"] = json.dumps(tasks, ensure_ascii=False)
    if folder.cameras:
        metadata["cameras"] = ", ".join(folder.cameras)
    written = folder.sidecar.get("metadata", {})
    try:
        return {**metadata, **clean_metadata(written)}
    except ValueError as error:
        raise UnusableFileError(f"meta/sb3_scoreflow.json: {error}") from error

"""Writing demonstrations as Minari datasets, which other programs can read."""

import contextlib
import inspect
import itertools
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_scoreflow.common.files import atomic_folder, fsync, removed, temporary_folder
from sb3_scoreflow.demonstrations.arrays import Array, map_observations, named_observations
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.hdf5 import check_key
from sb3_scoreflow.demonstrations.hdf5_target import HDF5Target, hdf5_target
from sb3_scoreflow.demonstrations.minari_folder import METADATA_KEY, import_minari, local_path

_ROOM = 2**16
"""More bytes than a dataset without episodes needs."""


def write_minari(
    demonstrations: Demonstrations, dataset_id: str, env: gym.Env | EnvSpec | str | None = None, **kwargs: Any
) -> None:
    """
    Write a new Minari dataset, which ``load_demonstrations(f"minari:{dataset_id}")`` reads back exactly.

    Minari requires the observation after an episode's last action, which demonstrations do not contain; the last observation
    is repeated in its place. Images are stored without compression; ``jpeg_encoding=True`` stores them with lossy compression.

    The dataset appears in one step, when it is complete; if several processes write the same id, one succeeds. Until then, a
    hidden folder contains the data. The next call removes files that a killed process has left.

    :param demonstrations: Demonstrations to write, including their metadata
    :param dataset_id: Id of the dataset, such as ``lab/pick-and-place-v0``
    :param env: Environment in which they were recorded, its spec or its id, which provides the bounds of the spaces and is
        created by :func:`make_evaluation_env`. None: the dataset does not record an environment, and its spaces are unbounded
    :param kwargs: Passed to ``minari.create_dataset_from_buffers``: ``author``, ``algorithm_name``, ``eval_env``, ...
    :raises ImportError: if minari is not installed
    :raises FileExistsError: if the dataset exists, or another process has written it in the meantime
    :raises OSError: if it cannot be written, for example because the disk is full
    :raises ValueError: if the id is malformed, the demonstrations do not fit the environment, the environment cannot be
        recreated from its spec, a key cannot name an HDF5 dataset, or a format other than HDF5 is requested
    """
    minari = import_minari()
    path = local_path(dataset_id)
    if path.exists():
        raise _exists(dataset_id, path)
    if kwargs.get("data_format") not in (None, "hdf5"):
        raise ValueError(f"`data_format` is {kwargs['data_format']!r}; only 'hdf5' can be read back. Leave it out.")
    if "jpeg_encoding" in inspect.signature(minari.create_dataset_from_buffers).parameters:
        kwargs.setdefault("jpeg_encoding", False)
    else:
        _check_no_images(demonstrations, minari.__version__)
    with contextlib.ExitStack() as stack:
        if isinstance(env, (str, EnvSpec)):
            env = gym.make(env)
            stack.callback(env.close)
        if env is not None:
            _check_env(env)
        observation_space, action_space = _dataset_spaces(demonstrations, env)
        # Minari recommends information about the author, which a private dataset does not need
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*(is set to None|env_spec is None)", category=UserWarning)
        try:
            with atomic_folder(path) as new:
                _make_namespace(path)
                # Minari can only create it in the root of all datasets: first without episodes, then moved to a hidden folder
                with _new_folder() as (first_id, first):
                    minari.create_dataset_from_buffers(
                        first_id, [], env=env, observation_space=observation_space, action_space=action_space, **kwargs
                    )
                    shutil.move(first / "data", new)
                _fill(new, dataset_id, demonstrations)
        except FileExistsError as error:
            raise (_exists(dataset_id, path) if path.exists() else error) from error


def _exists(dataset_id: str, path: Path) -> FileExistsError:
    """:return: The error to raise"""
    return FileExistsError(
        f"The Minari dataset {dataset_id!r} exists already, at {path}. Raise the version in its id, "
        f"or remove the old one: minari.delete_dataset({dataset_id!r})."
    )


def _root() -> Path:
    """:return: The folder of all datasets"""
    return local_path("any-v0").parent


def _make_namespace(path: Path) -> None:
    """
    Create the files that mark the parent folders of a dataset as namespaces. Other processes may do this at the same time.

    :param path: Path of the new dataset, in an existing folder
    """
    root = _root()
    for folder in itertools.takewhile(lambda folder: folder != root, path.parents):
        with contextlib.suppress(FileExistsError), open(folder / "namespace_metadata.json", "x", encoding="utf-8") as file:
            file.write("{}")


@contextlib.contextmanager
def _new_folder() -> Iterator[tuple[str, Path]]:
    """
    :return: A unique id, and the path of its dataset, which is removed afterwards
    :raises OSError: if the disk has no space for a dataset without episodes, which would break Minari's HDF5
    """
    root = _root()
    # The folder has the dataset's name, so that other processes know whether the dataset is in use
    with temporary_folder(root) as folder:
        for left in root.glob("sb3_scoreflow-*-v0"):
            match = re.fullmatch(r"(sb3_scoreflow-[0-9a-f]{8}-[0-9a-f]{32})-v0", left.name)
            if match is not None and not (root / f".{match[1]}-tmp").exists():
                shutil.rmtree(left, ignore_errors=True)
        (folder / "room").write_bytes(bytes(_ROOM))
        fsync(folder / "room")
        first_id = folder.name.removeprefix(".").removesuffix("-tmp") + "-v0"
        with removed(root / first_id):
            yield first_id, root / first_id


def _fill(folder: Path, dataset_id: str, demonstrations: Demonstrations) -> None:
    """
    :param folder: Folder of a dataset without episodes
    :param dataset_id: New id of the dataset
    :param demonstrations: Demonstrations to add
    """
    from minari.dataset.minari_storage import MinariStorage

    storage: Any = MinariStorage.read(folder / "data")
    with hdf5_target(storage._file_path) as target:
        storage._file_path = target
        storage.update_episodes(_buffers(demonstrations, target))
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    metadata.update({"dataset_id": dataset_id, METADATA_KEY: demonstrations.metadata})
    file.write_text(json.dumps(metadata), encoding="utf-8")


def _check_env(env: Any) -> None:
    """
    :raises ValueError: if it is not an environment, its actions are not continuous, or it cannot be recreated from a dataset
    """
    if not isinstance(env, gym.Env):
        raise ValueError(f"`env` must be a Gymnasium environment, its spec or its id, got {env!r}. For a VecEnv, pass the id.")
    if not isinstance(env.action_space, spaces.Box):
        raise ValueError(f"`env` has the action space {env.action_space}; demonstrations need a Box.")
    for wrapper in env.spec.additional_wrappers if env.spec is not None else ():
        if wrapper.kwargs is None:
            raise ValueError(
                f"`env` is wrapped in {wrapper.name}, which does not record its arguments, so the environment cannot be "
                "created from the dataset. Pass the environment without it."
            )


def _dataset_spaces(demonstrations: Demonstrations, env: gym.Env | None) -> tuple[spaces.Space, spaces.Space]:
    """
    :param demonstrations: Demonstrations to write
    :param env: Environment in which they were recorded; None if it is unknown
    :return: The dataset's observation space and action space: the environment's spaces, in the precision of the data
    :raises ValueError: if the demonstrations do not fit the environment, or a key cannot name an HDF5 dataset
    """
    observations, actions = demonstrations.observations, demonstrations.actions
    action_space = _space_like(actions, None if env is None else env.action_space, "actions")
    if not isinstance(observations, dict):
        return _space_like(observations, None if env is None else env.observation_space, "observations"), action_space
    for key in observations:
        check_key(key)
    leaves: dict[str, spaces.Space | None] = dict.fromkeys(observations)
    if env is not None:
        known = env.observation_space
        if not isinstance(known, spaces.Dict) or known.spaces.keys() != observations.keys():
            raise ValueError(
                f"The demonstrations have the observation keys {sorted(observations)}, but `env` has {known}. "
                "Pass the environment in which they were recorded, with its wrappers."
            )
        leaves.update(known.spaces)
    observation_space = {key: _space_like(array, leaves[key], f"observations[{key!r}]") for key, array in observations.items()}
    return spaces.Dict(observation_space), action_space


def _space_like(array: Array, space: spaces.Space | None, name: str) -> spaces.Space:
    """
    :param array: ``(N, ...)``
    :param space: The environment's space for one entry of it; None if there is no environment
    :param name: Name of the array in error messages
    :return: ``space`` in the precision of the array; without an environment, a ``Box`` of all values that the array's type can
        hold
    :raises ValueError: if the array has another shape
    """
    if space is None:
        low, high = (-np.inf, np.inf) if array.dtype.kind == "f" else (0, 1)
        if array.dtype.kind in "iu":
            low, high = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
        return spaces.Box(low, high, array.shape[1:], dtype=array.dtype)
    if space.shape != array.shape[1:]:
        raise ValueError(
            f"`{name}` of the demonstrations have the shape {array.shape[1:]}, but `env` has the space {space}. "
            "Pass the environment in which they were recorded, with its wrappers but without ActionChunking."
        )
    if isinstance(space, spaces.Box) and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return spaces.Box(space.low.astype(array.dtype), space.high.astype(array.dtype), dtype=array.dtype)
    return space


def _buffers(demonstrations: Demonstrations, target: HDF5Target) -> Iterator[Any]:
    """
    :param demonstrations: Demonstrations to write
    :param target: Target to which HDF5 writes them
    :return: The episodes in Minari's form, one at a time; images in a file are read only when they are written
    :raises OSError: if the previous episode could not be written
    """
    from minari.data_collector import EpisodeBuffer

    for rows in demonstrations.episode_slices:
        yield EpisodeBuffer(
            observations=map_observations(
                lambda array, rows=rows: np.concatenate([array[rows], array[rows.stop - 1 : rows.stop]]),  # type: ignore[misc]
                demonstrations.observations,
            ),
            actions=demonstrations.actions[rows],
            rewards=demonstrations.rewards[rows],
            terminations=demonstrations.terminations[rows],
            truncations=demonstrations.truncations[rows],
        )
        target.check()


def _check_no_images(demonstrations: Demonstrations, version: str) -> None:
    """:raises ValueError: if this version of Minari would store an array as JPEG, which it cannot always read back"""
    arrays = {**named_observations(demonstrations.observations), "actions": demonstrations.actions}
    for name, array in arrays.items():
        if array.dtype == np.uint8 and array.ndim >= 2:
            raise ValueError(
                f"`{name}` is of type uint8, which Minari {version} stores as JPEG, inexactly. Install minari>=0.5.4, which "
                "needs Python 3.11, or write a file: demonstrations.save(path)."
            )

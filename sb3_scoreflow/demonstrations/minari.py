"""
Demonstrations in Minari's datasets, and the envs that belong to them.

The minari library reads, writes and downloads; it is imported where it is used.
"""

import contextlib
import inspect
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_scoreflow.demonstrations.arrays import Array, LoadedObservations, map_observations, named_observations
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.sources import register_source
from sb3_scoreflow.envs.select_observations import SelectObservations, select

_SOURCE = "minari"
_EPISODES = "episodes"
# Under this key a dataset keeps the metadata of the demonstrations that it was written from
_METADATA_KEY = "sb3_scoreflow_metadata"
# The env's argument that tells whether a task is rewarded once, or in every step after it is complete
_REWARD_ARGUMENT = "remove_task_when_completed"
# What is taken over of the metadata that other programs write, where it is there
_KEPT_METADATA = ("algorithm_name", "code_permalink", "ref_min_score", "ref_max_score")


@register_source(_SOURCE, suggest=lambda name: name if re.fullmatch(r"[\w-]+(/[\w-]+)+-v\d+", name) else None)
def load_minari(
    spec: str, observation_keys: str | Sequence[str] | None = None, download: bool = True, ends: str | None = None
) -> Demonstrations:
    """
    The source ``minari:DATASET_ID``, such as ``minari:mujoco/hopper/medium-v0``.

    Datasets lie in ``$MINARI_DATASETS_PATH``, or ``~/.minari/datasets``. Minari keeps the observation after an episode's last
    action; demonstrations have no place for it, it is left out. An episode whose last transition has neither flag is
    truncated there; a flag inside an episode ends it.

    Nested ``Dict`` observations become one level of keys, joined by ``_``: SB3 takes one level only, and its
    ``CombinedExtractor`` makes modules of these names, which may not contain a dot.

    :param spec: Id of the dataset
    :param observation_keys: Which entries of ``Dict`` observations to keep, nested ones by their joined keys: several for dict
        observations, or one str for plain arrays. All if None
    :param download: Whether to download a dataset that is not there
    :param ends: ``"episodes"`` if an episode ends with its last transition only, and not at flags before it, which mark
        something else. If None, at these too
    :return: The demonstrations. Their metadata hold it as ``source``, the id of the env and, where the dataset has
        them, the name of the algorithm, a link to its code and the reference scores
    :raises ImportError: if minari, or a package that the dataset needs, is not installed
    :raises FileNotFoundError: if the dataset is not there and is not, or cannot be, downloaded
    :raises OSError: if it cannot be read: incomplete, damaged, written by an unknown version of Minari
    :raises ValueError: if the id is malformed, actions are not of a ``Box`` space, a key is unknown, an observation is not
        numeric, or the arrays do not fit
    """
    if ends not in (None, _EPISODES):
        raise ValueError(f"`ends` must be {_EPISODES!r}, or None for flags inside the dataset's episodes too, got {ends!r}.")
    dataset, path = _open(spec, download)
    name = f"The Minari dataset {spec!r}"
    if not isinstance(dataset.action_space, spaces.Box):
        raise ValueError(
            f"{name} has the action space {dataset.action_space}; flow-matching policies need the continuous actions of a Box."
            " Choose another dataset."
        )
    selection = select(dataset.observation_space, observation_keys, name)
    episodes = []
    with _readable(name, path):
        for episode in dataset.iterate_episodes():
            arrays = {key: np.asarray(getattr(episode, key)) for key in ("rewards", "terminations", "truncations")}
            if ends == _EPISODES:
                arrays.update({key: _last_flag(arrays[key]) for key in ("terminations", "truncations")})
            arrays["actions"] = _as_float32(episode.actions)
            episodes.append((map_observations(_as_float32, selection.pick(episode.observations)), arrays))
    try:
        return _assemble(episodes, _read_metadata(dataset, spec))
    except ValueError as error:
        raise ValueError(f"{name} does not fit: {error}") from error


def make_evaluation_env(
    source: str, observation_keys: str | Sequence[str] | None = None, download: bool = True, **kwargs: Any
) -> gym.Env:
    """
    Make the env that a Minari dataset names for evaluation, or else the one that it was recorded in. Its observations have the
    keys of the demonstrations that :func:`load_minari` reads with the same ``observation_keys``.

    :param source: Id of the dataset, with or without ``minari:`` in front, such as ``demonstrations.metadata["source"]``
    :param observation_keys: See :func:`load_minari`
    :param download: See :func:`load_minari`
    :param kwargs: Passed on to ``gymnasium.make``, such as ``render_mode``
    :return: The env
    :raises ImportError: if the package that the env is from is not installed
    :raises ValueError: if the dataset records no env
    """
    dataset_id = source.removeprefix(f"{_SOURCE}:")
    dataset, _ = _open(dataset_id, download)
    name = f"the Minari dataset {dataset_id!r}"
    if dataset.env_spec is None and dataset.storage.metadata.get("eval_env_spec") is None:
        raise ValueError(f"No env is recorded in {name}. Make it yourself: gymnasium.make(...).")
    try:
        env = dataset.recover_environment(eval_env=True, **kwargs)
    except (ImportError, gym.error.Error) as error:
        raise ImportError(f"The env of {name} cannot be made ({error}). Install the package that it is from.") from error
    selection = select(env.observation_space, observation_keys, f"The env of {name}")
    unchanged = observation_keys is None and all(len(path) < 2 for path in selection.paths.values())
    return env if unchanged else SelectObservations(env, observation_keys)


def write_minari(
    demonstrations: Demonstrations, dataset_id: str, env: gym.Env | EnvSpec | str | None = None, **kwargs: Any
) -> None:
    """
    Write a new Minari dataset, which ``load_demonstrations(f"minari:{dataset_id}")`` reads back exactly.

    Minari wants the observation after an episode's last action, which demonstrations do not hold: the last observation stands
    there a second time. Images are stored as they are; ``jpeg_encoding=True`` makes them smaller and inexact.

    :param demonstrations: What to write, metadata included
    :param dataset_id: Such as ``lab/pick-and-place-v0``
    :param env: Where they were recorded: an env, its spec, or its id, for the bounds of the spaces and for
        :func:`make_evaluation_env`. If None, the dataset records no env, and its spaces are unbounded
    :param kwargs: Passed on to ``minari.create_dataset_from_buffers``: ``author``, ``algorithm_name``, ``eval_env``, ...
    :raises ImportError: if minari is not installed
    :raises FileExistsError: if there is such a dataset
    :raises ValueError: if the id is malformed, the demonstrations are not of this env, the env cannot be made again from its
        spec, or a key cannot name an HDF5 dataset
    """
    minari = _import_minari()
    path = _local_path(dataset_id)
    if path.exists():
        raise FileExistsError(
            f"The Minari dataset {dataset_id!r} exists already, at {path}. Raise the version in its id, "
            f"or remove the old one: minari.delete_dataset({dataset_id!r})."
        )
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
        # Minari recommends facts about the author that a private dataset need not have
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*(is set to None|env_spec is None)", category=UserWarning)
        try:
            dataset = minari.create_dataset_from_buffers(
                dataset_id,
                _buffers(demonstrations),
                env=env,
                observation_space=observation_space,
                action_space=action_space,
                **kwargs,
            )
            dataset.storage.update_metadata({_METADATA_KEY: demonstrations.metadata})
        except BaseException:
            # It did not exist before, and half a dataset would stand in the way of the next attempt
            shutil.rmtree(path, ignore_errors=True)
            raise


def _as_float32(values: Any) -> np.ndarray:
    """:return: The array, floating-point numbers as float32: by episode, so that no float64 copy of the whole is held"""
    array = np.asarray(values)
    with np.errstate(over="ignore"):  # what overflows is infinite, which Demonstrations reports
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _last_flag(flags: np.ndarray) -> np.ndarray:
    """:return: Flags of which only the last one may be set"""
    return flags * (np.arange(len(flags)) == len(flags) - 1)


def _assemble(episodes: list[tuple[LoadedObservations, dict[str, np.ndarray]]], metadata: dict[str, Any]) -> Demonstrations:
    """
    :param episodes: Observations ``(T, ...)`` or ``(T + 1, ...)``, and the other arrays ``(T, ...)`` by name
    :param metadata: To attach
    :return: The demonstrations
    :raises ValueError: if an episode's arrays do not fit each other, or there is nothing
    """
    kept: list[tuple[LoadedObservations, dict[str, np.ndarray]]] = []
    for number, (observations, arrays) in enumerate(episodes):
        n_steps = len(arrays["actions"])
        lengths = {name: len(array) for name, array in {**named_observations(observations), **arrays}.items()}
        if any(length not in (n_steps, n_steps + name.startswith("observations")) for name, length in lengths.items()):
            raise ValueError(
                f"episode {number} has arrays of lengths {lengths}; all must be equal, observations may have one more. "
                "It is damaged."
            )
        if n_steps == 0:
            continue
        if not (arrays["terminations"][-1] or arrays["truncations"][-1]):
            arrays["truncations"] = np.append(arrays["truncations"][:-1], True)
        kept.append((map_observations(lambda array, n=n_steps: array[:n], observations), arrays))  # type: ignore[misc]
    if not kept:
        raise ValueError("it has no transitions. Choose another dataset.")
    first = kept[0][0]
    joined: LoadedObservations
    if isinstance(first, dict):
        joined = {key: np.concatenate([observations[key] for observations, _ in kept]) for key in first}
    else:
        joined = np.concatenate([np.asarray(observations) for observations, _ in kept])
    fields = ("actions", "rewards", "terminations", "truncations")
    return Demonstrations(joined, *(np.concatenate([arrays[key] for _, arrays in kept]) for key in fields), metadata=metadata)


def _read_metadata(dataset: Any, dataset_id: str) -> dict[str, Any]:
    """:return: What is known about the dataset; facts that :func:`write_minari` stored come first"""
    stored = dataset.storage.metadata
    metadata: dict[str, Any] = {}
    if dataset.env_spec is not None:
        metadata["env"] = dataset.env_spec.id
        if _REWARD_ARGUMENT in (dataset.env_spec.kwargs or {}):
            metadata[_REWARD_ARGUMENT] = bool(dataset.env_spec.kwargs[_REWARD_ARGUMENT])
    metadata.update({key: stored[key] for key in _KEPT_METADATA if isinstance(stored.get(key), (str, int, float))})
    return {**metadata, **stored.get(_METADATA_KEY, {}), "source": f"{_SOURCE}:{dataset_id}"}


def _check_env(env: Any) -> None:
    """:raises ValueError: if this is no env, actions are not continuous, or a dataset could not say how to make it again"""
    if not isinstance(env, gym.Env):
        raise ValueError(f"`env` must be a gym env, its spec or its id, got {env!r}. Instead of a VecEnv pass the id.")
    if not isinstance(env.action_space, spaces.Box):
        raise ValueError(f"`env` has the action space {env.action_space}; demonstrations are read with a Box only.")
    for wrapper in env.spec.additional_wrappers if env.spec is not None else ():
        if wrapper.kwargs is None:
            raise ValueError(
                f"`env` is wrapped in {wrapper.name}, which does not record its arguments, so that the env cannot be made "
                "from the dataset. Pass the env without it."
            )


def _dataset_spaces(demonstrations: Demonstrations, env: gym.Env | None) -> tuple[spaces.Space, spaces.Space]:
    """
    :param demonstrations: What is to be written
    :param env: The env that they are from
    :return: The dataset's observation and action space: those of the env, in the precision of the data
    :raises ValueError: if the demonstrations are not of this env, or a key cannot name an HDF5 dataset
    """
    observations, actions = demonstrations.observations, demonstrations.actions
    action_space = _space_like(actions, None if env is None else env.action_space, "actions")
    if not isinstance(observations, dict):
        return _space_like(observations, None if env is None else env.observation_space, "observations"), action_space
    for key in observations:
        if "/" in key or key in ("", "."):
            raise ValueError(f"The observation key {key!r} cannot name an HDF5 dataset. Rename it.")
    leaves: dict[str, spaces.Space | None] = dict.fromkeys(observations)
    if env is not None:
        known = env.observation_space
        if not isinstance(known, spaces.Dict) or known.spaces.keys() != observations.keys():
            raise ValueError(
                f"The demonstrations have the observation keys {sorted(observations)}, `env` has {known}. "
                "Pass the env that they are from, with its wrappers."
            )
        leaves.update(known.spaces)
    observation_space = {key: _space_like(array, leaves[key], f"observations[{key!r}]") for key, array in observations.items()}
    return spaces.Dict(observation_space), action_space


def _space_like(array: Array, space: spaces.Space | None, name: str) -> spaces.Space:
    """
    :param array: ``(N, ...)``
    :param space: The env's space for one entry of it; None if there is no env
    :param name: What error messages call the array
    :return: ``space`` in the precision of the array; without an env, a ``Box`` of everything that the array's type can hold
    :raises ValueError: if the array is of another shape
    """
    if space is None:
        low, high = (-np.inf, np.inf) if array.dtype.kind == "f" else (0, 1)
        if array.dtype.kind in "iu":
            low, high = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
        return spaces.Box(low, high, array.shape[1:], dtype=array.dtype)
    if space.shape != array.shape[1:]:
        raise ValueError(
            f"`{name}` of the demonstrations have the shape {array.shape[1:]}, `env` has the space {space}. "
            "Pass the env that they are from, with its wrappers but without ActionChunking."
        )
    if isinstance(space, spaces.Box) and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return spaces.Box(space.low.astype(array.dtype), space.high.astype(array.dtype), dtype=array.dtype)
    return space


def _buffers(demonstrations: Demonstrations) -> list[Any]:
    """:return: The episodes as Minari takes them"""
    from minari.data_collector import EpisodeBuffer

    return [
        EpisodeBuffer(
            observations=map_observations(
                lambda array, rows=rows: np.concatenate([array[rows], array[rows.stop - 1 : rows.stop]]),  # type: ignore[misc]
                demonstrations.observations,
            ),
            actions=demonstrations.actions[rows],
            rewards=demonstrations.rewards[rows],
            terminations=demonstrations.terminations[rows],
            truncations=demonstrations.truncations[rows],
        )
        for rows in demonstrations.episode_slices
    ]


def _check_no_images(demonstrations: Demonstrations, version: str) -> None:
    """:raises ValueError: if there is an array that this version of Minari stores as JPEG, and does not always read back"""
    arrays = {**named_observations(demonstrations.observations), "actions": demonstrations.actions}
    for name, array in arrays.items():
        if array.dtype == np.uint8 and array.ndim >= 2:
            raise ValueError(
                f"`{name}` is of type uint8, which Minari {version} stores as JPEG, inexactly. Install minari>=0.5.4, which "
                "needs Python 3.11, or write a file: demonstrations.save(path)."
            )


def _import_minari() -> ModuleType:
    try:
        import minari
    except ImportError as error:
        raise ImportError(f'Minari datasets need minari ({error}): pip install "sb3-scoreflow[minari]"') from error
    return minari


def _local_path(dataset_id: str) -> Path:
    """
    :param dataset_id: As given by the user
    :return: Where the dataset is or would be
    :raises ValueError: if the id is malformed
    """
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:  # a missing version is a TypeError
        raise ValueError(
            f"{dataset_id!r} is no id of a Minari dataset: they read 'name-v0' or 'namespace/name-v0', with a version, a "
            "namespace of at least two characters, and letters, digits, '-' and '_' only. `minari list remote` lists them."
        ) from error
    return get_dataset_path(dataset_id)


def _open(dataset_id: str, download: bool) -> tuple[Any, Path]:
    """
    :param dataset_id: As given by the user
    :param download: Whether to download it if it is not there
    :return: The dataset, and where it lies
    :raises ImportError: if minari, or a package that the dataset needs, is not installed
    :raises FileNotFoundError: if it is not there and is not, or cannot be, downloaded
    :raises OSError: if it cannot be read
    :raises ValueError: if the id is malformed
    """
    minari = _import_minari()
    path = _local_path(dataset_id)
    if not (path / "data").exists():
        missing = f"There is no Minari dataset {dataset_id!r} at {path}"
        if not download:
            raise FileNotFoundError(
                f"{missing}, and `download` is False. Set it to True, or MINARI_DATASETS_PATH to the folder of your datasets."
            )
        try:
            minari.download_dataset(dataset_id)
        except ImportError as error:
            raise ImportError(f'{missing}; to download it: pip install "sb3-scoreflow[minari]" ({error})') from error
        except Exception as error:  # whatever HTTP clients and servers come up with
            raise FileNotFoundError(
                f"{missing}, and it could not be downloaded ({type(error).__name__}: {error}). Check the id and the network; "
                f"or run `minari download {dataset_id}` where there is a network, and copy the folder to {path}."
            ) from error
    name = f"The Minari dataset {dataset_id!r}"
    with _readable(name, path):
        return minari.load_dataset(dataset_id), path


@contextlib.contextmanager
def _readable(name: str, path: Path) -> Iterator[None]:
    """
    Around code that reads a dataset: errors of the libraries that do it get the dataset's name, and a remedy.

    :param name: What error messages call the dataset
    :param path: Where it lies
    """
    try:
        yield
    except (ImportError, gym.error.Error) as error:
        # Of another format than HDF5; or without its spaces, for which the env is made
        raise ImportError(f"{name} needs a package that is not installed: {error}") from error
    except Exception as error:  # h5py, json, Pillow and minari's own assertions: damage shows in any of them
        raise OSError(
            f"{name} at {path} cannot be read ({type(error).__name__}: {error}). It is incomplete, damaged, or of another "
            "version of Minari. Delete the folder and load it again to download it, or copy it again."
        ) from error

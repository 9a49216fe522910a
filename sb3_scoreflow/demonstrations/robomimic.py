"""
The data sets of robomimic (Mandlekar et al., 2021, arXiv:2108.03298), read from its files without its package.

A file has one group per demonstration, ``data/demo_3`` with ``actions``, ``rewards``, ``obs/KEY`` and more, the arguments of
the environment in ``data.attrs["env_args"]``, and lists of demonstrations in ``mask/NAME``.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_scoreflow.common.files import as_path
from sb3_scoreflow.demonstrations.arrays import Array, clean_array, clean_vector
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.hdf5 import open_hdf5
from sb3_scoreflow.demonstrations.lazy import BlockCache, HDF5Images, LazyImages
from sb3_scoreflow.demonstrations.sources import register_source
from sb3_scoreflow.envs.robosuite_settings import read_env_args
from sb3_scoreflow.safe_hdf5.arrays import Array as HDF5Array
from sb3_scoreflow.safe_hdf5.arrays import check_size
from sb3_scoreflow.safe_hdf5.groups import Group

_SOURCE = "robomimic"
_PROPRIOCEPTION = ("eef_pos", "eef_quat", "gripper_qpos")
_IMAGE_SUFFIX = "_image"


@register_source(_SOURCE)
def load_robomimic(
    spec: str,
    *,
    observation_keys: str | Sequence[str] | None = None,
    mask: str | None = None,
    terminate_on_success: bool = True,
    cache_bytes: int = 2**30,
    max_bytes: int | None = None,
) -> Demonstrations:
    """
    The source ``robomimic:PATH``, such as ``robomimic:lift/ph/low_dim.hdf5``.

    Episodes are the demonstrations of the file, in the order of their numbers. An episode ends at its first success, as in the
    environment of :func:`~sb3_scoreflow.envs.make_robomimic`: the first positive reward is a termination, and later
    transitions are left out. Demonstrations without a success end with a truncation. Rewards that are not 0 or one positive
    value (shaped rewards) do not mark successes: then there is a warning, and nothing is left out. Files without rewards
    (MimicGen's) get zeros. The file's ``dones`` are not used: depending on the program that wrote it, they mark every success,
    the last transition, or both.

    Images stay in the file and are read from it when they are used, see
    :class:`~sb3_scoreflow.demonstrations.lazy.LazyImages`. All other data are read immediately.

    :param spec: Path of the file; ``~`` is expanded
    :param observation_keys: Entries of ``obs`` to read, a list or a single str. None: the position and orientation of each
        gripper and the state of its fingers, and either all images (``*_image``) or, if there are no images, the state of the
        objects (``object``)
    :param mask: Name of a list of demonstrations in the file, such as ``train`` or ``valid``; None: all demonstrations
    :param terminate_on_success: Whether the first success ends an episode; pass the same value to the environment. If False,
        every demonstration is kept to its end, which is a truncation, because the environment would continue
    :param cache_bytes: Size of the cache for images that are compressed (or chunked) in the file, in bytes. Uncompressed
        images are read directly, without a cache
    :param max_bytes: Largest memory for all data except images, in bytes; None: 64 times the size of the file, but at least
        256 MiB
    :return: The demonstrations; ``metadata`` contains the file's ``env_args`` as JSON text, the environment's name,
        ``terminate_on_success``, and the number of transitions left out, ``n_transitions_cut``
    :raises ImportError: if h5py or cachetools is not installed
    :raises FileNotFoundError: if the file does not exist
    :raises OSError: if it cannot be read, because it is empty, truncated or not HDF5
    :raises ValueError: if an argument does not fit the file, the file is incomplete, or its arrays do not fit each other, take
        their data from another file, or are larger than ``max_bytes``
    """
    cache = BlockCache(cache_bytes)
    path = as_path(spec)
    if not path.suffix and not path.exists():
        raise FileNotFoundError(
            f"There is no demonstration file {path} (seen from {Path.cwd()}). '{_SOURCE}:' takes the path of a file, as in "
            f"'{_SOURCE}:lift/ph/low_dim_v141.hdf5'; robomimic's script download_datasets.py fetches its files."
        )
    with open_hdf5(path) as file:
        try:
            demos = _find_demos(file, mask)
            keys = _choose_keys(_observations(file, demos[0]), observation_keys)
            _check_demos(file, demos, keys)
            _check_size(file, demos, keys, max_bytes)
            observations = _read_observations(file, demos, keys, cache)
            actions = _read(file, demos, "actions")
            has_rewards = f"{demos[0]}/rewards" in file
            rewards = _read(file, demos, "rewards", clean_vector) if has_rewards else np.zeros(len(actions), np.float32)
            ends = np.zeros(len(actions), np.bool_)
            ends[np.cumsum([len(file[f"{demo}/actions"]) for demo in demos]) - 1] = True
            metadata = {**_read_env(file), **({} if mask is None else {"mask": mask}), "source": f"{_SOURCE}:{spec}"}
        except ValueError as error:
            raise ValueError(f"The robomimic file {path} does not fit: {error}") from error
    # Each demonstration was checked separately, so that messages can name it; no second check of all
    demonstrations = Demonstrations._of_checked(observations, actions, rewards, np.zeros_like(ends), ends, metadata)
    if terminate_on_success:
        return _end_at_success(demonstrations, path)
    demonstrations.metadata["terminate_on_success"] = False
    return demonstrations


def _end_at_success(demonstrations: Demonstrations, path: Path) -> Demonstrations:
    """
    :param demonstrations: Complete demonstrations
    :param path: Path of the file, for the warning
    :return: Demonstrations that end at their first success, if the rewards mark successes
    """
    try:
        return demonstrations.end_at_success()
    except ValueError as error:
        warnings.warn(
            f"The episodes of the robomimic file {path} are not cut at their first success, because it is unknown. {error} "
            "If the environment does not end at success either (make_robomimic(..., terminate_on_success=False)), also pass "
            "terminate_on_success=False here.",
            stacklevel=4,
        )
        demonstrations.metadata["terminate_on_success"] = False
        return demonstrations


def _find_demos(file: Group, mask: str | None) -> list[str]:
    """
    :param file: The root of the open file
    :param mask: See :func:`load_robomimic`
    :return: The demonstrations' groups, such as ``data/demo_3``, ordered by their numbers
    :raises ValueError: if there are no demonstrations, or the mask does not fit
    """
    if not isinstance(file.get("data"), Group):
        raise ValueError(f"it has no group `data`, only {sorted(file)}. Pass a file of robomimic, or a path of D4RL's layout.")
    names = set(file["data"])
    if not names:
        raise ValueError("its group `data` is empty, so there are no demonstrations. Fetch or record it again.")
    if mask is not None:
        masks = sorted(file["mask"]) if isinstance(file.get("mask"), Group) else []
        if mask not in masks:
            raise ValueError(f"there is no `mask` {mask!r} in it; it has {masks}. Choose one of them, or leave `mask` out.")
        names_array = file["mask"][mask]
        listed = names_array.read_names() if isinstance(names_array, HDF5Array) else set()
        if not listed or not listed <= names:
            raise ValueError(
                f"its `mask` {mask!r} lists {len(listed)} demonstrations, of which it lacks {sorted(listed - names)}. "
                "Choose another mask, or leave it out."
            )
        names = listed
    # By number: demo_2 before demo_10
    return [f"data/{name}" for name in sorted(names, key=lambda name: (int((re.findall(r"\d+$", name) or [0])[0]), name))]


def _observations(file: Group, demo: str) -> Any:
    """
    :return: The group with the demonstration's observations
    :raises ValueError: if there is no such group
    """
    group = file.get(f"{demo}/obs")
    if not isinstance(group, Group):
        raise ValueError(
            f"`{demo}` has no group `obs`. robomimic's script dataset_states_to_obs.py adds observations to files "
            "that only contain states."
        )
    return group


def _choose_keys(group: Any, observation_keys: str | Sequence[str] | None) -> list[str]:
    """
    :param group: One demonstration's observations
    :param observation_keys: See :func:`load_robomimic`
    :return: The keys to read; by default, the observations of robomimic's policies
    :raises ValueError: if the list is empty, or a default key is missing
    """
    if observation_keys is not None:
        keys = [observation_keys] if isinstance(observation_keys, str) else list(dict.fromkeys(observation_keys))
        if not keys:
            raise ValueError("got `observation_keys`=[]. Name at least one key, or leave it out.")
        return keys
    images = [key for key in group if key.endswith(_IMAGE_SUFFIX)]
    keys = [
        f"{robot}_{part}"
        for robot in ("robot0", "robot1")
        for part in _PROPRIOCEPTION
        if robot == "robot0" or f"{robot}_{part}" in group
    ]
    keys += images or ["object"]
    missing = [key for key in keys if key not in group]
    if missing:
        raise ValueError(f"it lacks the usual observations {missing}; it has {sorted(group)}. Choose with `observation_keys`.")
    return keys


def _check_demos(file: Group, demos: list[str], keys: list[str]) -> None:
    """
    :param file: The root of the open file
    :param demos: The demonstrations' groups
    :param keys: The observations that will be read
    :raises ValueError: if an array is missing, or arrays do not fit each other
    """
    layout: dict[str, tuple[tuple[int, ...], str]] = {}
    # Rewards may be missing, but then in all demonstrations
    names = ("actions", "rewards") if any(f"{demo}/rewards" in file for demo in demos) else ("actions",)
    for demo in demos:
        group = _observations(file, demo)
        missing = [key for key in keys if key not in group]
        if missing:
            raise ValueError(f"`{demo}/obs` lacks {missing}; it has {sorted(group)}. Choose with `observation_keys`.")
        missing = [name for name in names if name not in file[demo]]
        if missing:
            raise ValueError(f"`{demo}` lacks {missing}; it has {sorted(file[demo])}. Fetch or record it again.")
        arrays = {name: file[f"{demo}/{name}"] for name in (*names, *(f"obs/{key}" for key in keys))}
        for name, array in arrays.items():
            if not isinstance(array, HDF5Array) or not array.shape:
                raise ValueError(f"`{demo}/{name}` is a group or a scalar, not an array with one entry per transition.")
            if name.endswith(_IMAGE_SUFFIX) and not _is_image(array):
                raise ValueError(
                    f"`{demo}/{name}` has shape {array.shape} and type {array.dtype}; images must have the shape (N, height, "
                    "width, channels) and the type uint8, values from 0 to 255. Convert them."
                )
            entry = (array.shape[1:], "float" if array.dtype.kind == "f" else str(array.dtype))
            if entry != layout.setdefault(name, entry):
                raise ValueError(
                    f"`{demo}/{name}` has entries of shape and type {entry}, but in `{demos[0]}` they are {layout[name]}. "
                    "Use a file of one task and one size of images."
                )
        lengths = {name: len(array) for name, array in arrays.items()}
        lengths["attribute num_samples"] = file[demo].attrs.get("num_samples", lengths["actions"])
        if len(set(lengths.values())) > 1 or lengths["actions"] == 0:
            raise ValueError(
                f"`{demo}` has arrays of lengths {lengths}; they must be equal, and at least 1. It is damaged: leave it "
                "out with a `mask`, or fetch or record the file again."
            )


def _is_image(array: Any) -> bool:
    return array.ndim == 4 and array.dtype == np.uint8 and 0 not in array.shape[1:]


def _check_size(file: Group, demos: list[str], keys: list[str], max_bytes: int | None) -> None:
    """
    :param file: The root of the open file
    :param demos: The demonstrations' groups, checked
    :param keys: The observations that will be read
    :param max_bytes: See :func:`load_robomimic`
    :raises ValueError: if the data except images are larger than the limit
    """
    names = ("actions", "rewards", *(f"obs/{key}" for key in keys))
    arrays = [file[f"{demo}/{name}"] for demo in demos for name in names if f"{demo}/{name}" in file]
    check_size((array for array in arrays if not _is_image(array)), max_bytes, os.path.getsize(file.filename))


def _read_observations(file: Group, demos: list[str], keys: list[str], cache: BlockCache) -> dict[str, Array]:
    """
    :param file: The root of the open file
    :param demos: The demonstrations' groups, checked
    :param keys: The observations to read
    :param cache: Cache for images
    :return: The arrays; images are not read
    :raises ValueError: if there are NaN or infinities
    """
    observations: dict[str, Array] = {}
    n_bytes = 0
    for key in keys:
        if _is_image(file[f"{demos[0]}/obs/{key}"]):
            images = HDF5Images(file, [f"{demo}/obs/{key}" for demo in demos], cache)
            n_bytes += images.nbytes if images.is_cached else 0
            observations[key] = LazyImages([images])
        else:
            observations[key] = _read(file, demos, f"obs/{key}")
    if n_bytes > cache.max_bytes:
        warnings.warn(
            f"The images of the robomimic file {file.filename} are compressed (or chunked) and, with {n_bytes} bytes, larger "
            f"than `cache_bytes`={cache.max_bytes}: batches in random order decompress most images again, which can take more "
            "time than training. Raise `cache_bytes`, or make an uncompressed copy: h5repack -l CONTI -f NONE OLD NEW."
        )
    return observations


def _read(
    file: Group, demos: list[str], name: str, clean: Callable[[str, np.ndarray], np.ndarray] = clean_array
) -> np.ndarray:
    """
    :param file: The root of the open file
    :param demos: The demonstrations' groups
    :param name: Name of an array in each group
    :param clean: Function that checks an array with a name
    :return: The arrays of all demonstrations, one after the other
    :raises ValueError: if there are NaN or infinities, or the shape is wrong
    """
    names = [f"{demo}/{name}" for demo in demos]
    return np.concatenate([clean(name, file[name].read()) for name in names])


def _read_env(file: Group) -> dict[str, str]:
    """
    :param file: The root of the open file
    :return: The environment's arguments; empty if the file does not contain them
    :raises ValueError: if they do not have robomimic's format
    """
    env_args = read_env_args(file)
    if env_args is None:
        return {}
    # On one line, without robomimic's indentation
    return {"env": env_args["env_name"], "env_args": json.dumps(env_args)}

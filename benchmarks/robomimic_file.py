"""Functions that write HDF5 files in robomimic's layout."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_scoreflow.common.files import atomic_path
from sb3_scoreflow.demonstrations.hdf5 import import_h5py


@dataclass
class Episode:
    """One demonstration of ``n`` steps."""

    observations: dict[str, np.ndarray]
    """Key -> observations, shape ``(n + 1, ...)``; the last observation follows the last action."""
    actions: np.ndarray
    """``(n, action_dim)``"""
    rewards: np.ndarray
    """``(n,)``"""
    dones: np.ndarray
    """``(n,)``, whether the task was solved after the action."""
    states: np.ndarray
    """``(n, state_dim)``, states of the simulation before each action."""
    model_file: str = ""
    """XML of the simulation's model."""


def write_robomimic(
    path: str | os.PathLike[str],
    episodes: Sequence[Episode],
    env_args: Mapping[str, Any],
    masks: Mapping[str, Sequence[int]] | None = None,
    next_observations: bool = True,
) -> None:
    """
    :param path: path of the file; missing folders are created, and an existing file is replaced atomically
    :param episodes: the demonstrations; they become ``data/demo_0`` and so on
    :param env_args: arguments from which robomimic creates the environment: ``env_name``, ``env_version``, ``type``,
        ``env_kwargs``
    :param masks: name -> indices of a subset of the episodes, such as ``{"train": range(180), "valid": range(180, 200)}``
    :param next_observations: whether to write ``next_obs``, which newer files of robomimic contain
    """
    h5py = import_h5py()
    with atomic_path(Path(path).expanduser()) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        for index, episode in enumerate(episodes):
            _write_episode(data.create_group(f"demo_{index}"), episode, next_observations)
        data.attrs["env_args"] = json.dumps(env_args, indent=4)
        data.attrs["total"] = sum(len(episode.actions) for episode in episodes)
        for name, indices in (masks or {}).items():
            file[f"mask/{name}"] = np.array([f"demo_{index}".encode() for index in indices], dtype="S")


def _write_episode(group: Any, episode: Episode, next_observations: bool) -> None:
    group.attrs["num_samples"] = len(episode.actions)
    group.attrs["model_file"] = episode.model_file
    group["actions"] = episode.actions
    group["rewards"] = episode.rewards
    group["dones"] = episode.dones
    group["states"] = episode.states
    for key, values in episode.observations.items():
        # Images take most of the space in a file
        compression = "gzip" if values.dtype == np.uint8 else None
        group.create_dataset(f"obs/{key}", data=values[:-1], compression=compression)
        if next_observations:
            group.create_dataset(f"next_obs/{key}", data=values[1:], compression=compression)

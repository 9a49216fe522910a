"""
Demonstrations in Minari's datasets.

The package minari writes and downloads datasets; it is imported only when it is used.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.minari_folder import (
    METADATA_KEY,
    SOURCE,
    Leaf,
    MinariFolder,
    infer_space,
    open_folder,
    open_leaf,
)
from sb3_scoreflow.demonstrations.sources import register_source
from sb3_scoreflow.envs.select_observations import Selection, select
from sb3_scoreflow.safe_hdf5.arrays import Array, UnusableFileError, check_size
from sb3_scoreflow.safe_hdf5.groups import Group

_EPISODES = "episodes"
# The environment's argument that determines whether a task is rewarded once or in every step after its completion
_REWARD_ARGUMENT = "remove_task_when_completed"
_FIELDS = ("actions", "rewards", "terminations", "truncations")
# Entries of other programs' metadata that are copied if they exist
_KEPT_METADATA = ("algorithm_name", "code_permalink", "ref_min_score", "ref_max_score")


class _Episode(NamedTuple):
    """Arrays of an episode, which have not been read."""

    observations: dict[str, Leaf]
    fields: dict[str, Leaf]

    def named(self) -> Iterator[tuple[str, Leaf]]:
        """:return: All arrays with their paths in the episode"""
        leaves = chain(self.observations.values(), self.fields.values())
        return ((leaf.name.partition("/")[2], leaf) for leaf in leaves)


@register_source(SOURCE, suggest=lambda name: name if re.fullmatch(r"[\w-]+(/[\w-]+)+-v\d+", name) else None)
def load_minari(
    spec: str,
    observation_keys: str | Sequence[str] | None = None,
    download: bool = True,
    ends: str | None = None,
    max_bytes: int | None = None,
) -> Demonstrations:
    """
    The source ``minari:DATASET_ID``, such as ``minari:mujoco/hopper/medium-v0``.

    Datasets are in ``$MINARI_DATASETS_PATH``, or ``~/.minari/datasets``. The observation after an episode's last action, which
    Minari stores, is left out. An episode whose last transition has no flag is truncated there; a flag inside an episode ends
    it.

    Nested ``Dict`` observations become one level of keys, joined by ``_``: SB3 only supports one level, and its
    ``CombinedExtractor`` names modules by the keys, which must not contain a dot.

    Code that the dataset names is never imported or executed: if the dataset does not record its spaces, they are inferred
    from the data and not from its environment.

    :param spec: Id of the dataset
    :param observation_keys: Entries of ``Dict`` observations to keep, nested ones by their joined keys: several keys for dict
        observations, or one str for plain arrays; None: all
    :param download: Whether to download a missing dataset
    :param ends: ``"episodes"`` if episodes only end with their last transition, because earlier flags mark something else;
        None: earlier flags also end episodes
    :param max_bytes: Largest memory for the arrays, in bytes; None: 64 times the size of the data file, but at least 256 MiB
    :return: The demonstrations. Their metadata contain the ``source``, the id of the environment and, if the dataset has them,
        the name of the algorithm, a link to its code and the reference scores
    :raises ImportError: if minari is not installed
    :raises FileNotFoundError: if the dataset is missing, and ``download`` is False or the download fails
    :raises OSError: if it cannot be read, because it is incomplete, damaged or from an unknown version of Minari
    :raises ValueError: if the id is malformed, the data are not in HDF5, actions do not come from a ``Box`` space, a key is
        unknown, an observation is not numeric, or the arrays do not fit each other, take their data from another file, or are
        larger than ``max_bytes``
    """
    if ends not in (None, _EPISODES):
        raise ValueError(f"`ends` must be {_EPISODES!r}, or None to end episodes at earlier flags, got {ends!r}.")
    folder = open_folder(spec, download)
    with folder.open() as file:
        n_episodes = folder.metadata["total_episodes"]
        if n_episodes < 1:
            raise UnusableFileError("it has no transitions. Choose another dataset.")
        selection, paths = _choose(folder, file, observation_keys)
        action_space = _action_space(folder, file)
        episodes = []
        for number in range(n_episodes):
            group = file[f"episode_{number}"]
            if not isinstance(group, Group):
                raise UnusableFileError(f"`{group.name}` is an array, not a group. Fetch the dataset again.")
            fields = {key: open_leaf(group[key], None, False) for key in _FIELDS[1:]}
            fields["actions"] = open_leaf(group["actions"], action_space, folder.is_jpeg)
            leaves = {key: open_leaf(group[path], space, folder.is_jpeg) for key, (path, space) in paths.items()}
            episodes.append(_Episode(leaves, fields))
        kept = _check_episodes(episodes)
        n_bytes = (folder.path / "data" / "main_data.hdf5").stat().st_size
        check_size((leaf for episode in kept for _, leaf in episode.named()), max_bytes, n_bytes)
        observations, arrays = _read(kept, ends)
        metadata = {**_read_metadata(folder), "source": f"{SOURCE}:{spec}"}
    try:
        return Demonstrations(
            observations if selection.is_dict else next(iter(observations.values())),
            *(arrays[key] for key in _FIELDS),
            metadata=metadata,
        )
    except ValueError as error:
        raise ValueError(f"{folder.name} does not fit: {error}") from error


def _choose(
    folder: MinariFolder, file: Group, observation_keys: str | Sequence[str] | None
) -> tuple[Selection, dict[str, tuple[str, spaces.Space | None]]]:
    """
    :param folder: The dataset
    :param file: The root of its open data file
    :param observation_keys: See :func:`load_minari`
    :return: The observations to read, and, by name, their path in an episode and their recorded space
    :raises ValueError: if the keys do not fit, or an observation is not numeric
    """
    recorded = folder.recorded_space("observation_space")
    space = infer_space(file["episode_0/observations"], folder.is_jpeg) if recorded is None else recorded
    selection = select(space, observation_keys, folder.name)
    leaves: dict[str, tuple[str, Any]] = {}
    for name, path in selection.paths.items():
        leaf: Any = recorded
        for key in path if recorded is not None else ():
            leaf = leaf[key]
        leaves[name] = ("/".join(("observations", *path)), leaf)
    return selection, leaves


def _action_space(folder: MinariFolder, file: Group) -> spaces.Space | None:
    """
    :param folder: The dataset
    :param file: The root of its open data file
    :return: The recorded space; None if no space is recorded
    :raises ValueError: if it is not a ``Box``, or this cannot be inferred from the data
    """
    space = folder.recorded_space("action_space")
    if space is None:
        actions = file["episode_0/actions"]
        if not isinstance(actions, Array) or actions.dtype.kind != "f":
            raise UnusableFileError(
                "its metadata have no `action_space`, and its actions are not an array of floating-point numbers, which is "
                f"usual for a Box. If they come from a Box, add to {folder.path / 'data' / 'metadata.json'}, as "
                "`action_space`, the result of `minari.serialization.serialize_space(space)`."
            )
    elif not isinstance(space, spaces.Box):
        raise ValueError(
            f"{folder.name} has the action space {space}; flow-matching policies need the continuous actions of a Box."
            " Choose another dataset."
        )
    return space


def _check_episodes(episodes: list[_Episode]) -> list[_Episode]:
    """
    :param episodes: All episodes
    :return: The episodes with transitions
    :raises UnusableFileError: if there are no transitions, or arrays do not fit each other
    """
    kept: list[_Episode] = []
    for number, episode in enumerate(episodes):
        n_steps = len(episode.fields["actions"])
        lengths = {name: len(leaf) for name, leaf in episode.named()}
        if any(length not in (n_steps, n_steps + name.startswith("observations")) for name, length in lengths.items()):
            raise UnusableFileError(
                f"episode {number} has arrays of lengths {lengths}; all must be equal, observations may have one more. "
                "It is damaged."
            )
        for leaf in (episode.fields[key] for key in _FIELDS[1:]):
            if len(leaf.shape) != 1:
                raise UnusableFileError(f"`{leaf.name}` has shape {leaf.shape}; it must have one value per transition.")
        if n_steps == 0:
            continue
        kept.append(episode)
        for (_, leaf), (_, first) in zip(episode.named(), kept[0].named(), strict=True):
            if leaf.shape[1:] != first.shape[1:]:
                raise UnusableFileError(
                    f"`{leaf.name}` has entries of shape {leaf.shape[1:]}, but `{first.name}` has {first.shape[1:]}. Choose "
                    "other observations with `observation_keys`, or another dataset."
                )
    if not kept:
        raise UnusableFileError("it has no transitions. Choose another dataset.")
    return kept


def _read(episodes: list[_Episode], flags: str | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    :param episodes: Episodes with at least one transition each
    :param flags: See ``ends`` of :func:`load_minari`
    :return: Observations (without the observation after each episode's last action) and the other arrays of all episodes, one
        after the other
    """
    observations = {
        key: np.concatenate([e.observations[key].read()[: len(e.fields["actions"])] for e in episodes])
        for key in episodes[0].observations
    }
    fields = {key: np.concatenate([episode.fields[key].read() for episode in episodes]) for key in _FIELDS}
    ends = np.cumsum([len(episode.fields["actions"]) for episode in episodes]) - 1
    if flags == _EPISODES:
        is_last = np.isin(np.arange(len(fields["actions"])), ends)
        fields.update({key: fields[key] * is_last for key in ("terminations", "truncations")})
    is_open = ~(fields["terminations"][ends].astype(np.bool_) | fields["truncations"][ends].astype(np.bool_))
    fields["truncations"][ends[is_open]] = True
    return observations, fields


def _read_metadata(folder: MinariFolder) -> dict[str, Any]:
    """:return: Facts about the dataset; those stored by :func:`write_minari` have priority"""
    stored = folder.metadata
    spec = folder.recorded_env("env_spec")
    metadata: dict[str, Any] = {} if spec is None else {"env": spec["id"]}
    if spec is not None and _REWARD_ARGUMENT in spec["kwargs"]:
        metadata[_REWARD_ARGUMENT] = bool(spec["kwargs"][_REWARD_ARGUMENT])
    kept = {key: stored[key] for key in _KEPT_METADATA if key in stored}
    others = [key for key, value in kept.items() if not isinstance(value, (str, int, float))]
    if others:
        warnings.warn(f"{folder.name} has {others} in its metadata that are not single numbers or strings: left out.")
    metadata.update({key: value for key, value in kept.items() if key not in others})
    return {**metadata, **stored.get(METADATA_KEY, {})}

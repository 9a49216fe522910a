"""
The container for demonstrations from all sources.

It does not depend on files and sources: modules that read and write import it, and it does not import them.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from sb3_scoreflow.common.files import AnyPath
from sb3_scoreflow.common.html import html_table
from sb3_scoreflow.demonstrations.arrays import (
    Array,
    Observations,
    concatenate,
    map_observations,
    named_observations,
    select_rows,
)
from sb3_scoreflow.demonstrations.checks import check_arrays
from sb3_scoreflow.demonstrations.chunks import ActionChunks
from sb3_scoreflow.demonstrations.description import describe, facts
from sb3_scoreflow.demonstrations.success import first_successes
from sb3_scoreflow.demonstrations.trajectories import check_trajectories


class Files(Protocol):
    """Functions that :meth:`Demonstrations.save` and :meth:`Demonstrations.load_hdf5` call."""

    def write_hdf5(self, demonstrations: "Demonstrations", path: AnyPath) -> None: ...
    def read_hdf5(
        self,
        path: AnyPath,
        max_episode_steps: int | None = None,
        ends: str | None = None,
        max_bytes: int | None = None,
    ) -> "Demonstrations": ...


class Demonstrations:
    """
    Complete episodes, stored as flat arrays: N consecutive transitions, with flags that mark the ends of episodes.

    Arrays may also be tensors, memory maps, lists, or columns of data frames (with an array in each row). Floating-point
    observations and actions are converted to float32; integers and uint8 images keep their type. Arrays of the right type are
    not copied: do not change them afterwards. Images may stay in a file until they are used, see
    :class:`~sb3_scoreflow.demonstrations.lazy.LazyImages`. A last episode without an end is dropped, with a warning. There is
    also a warning if flags do not look like ends of episodes, but like masks, or like flags that stay set while the agent is
    at a goal.

    :param observations: ``(N, *observation_shape)``, or a dict of such arrays for ``Dict`` observation spaces, or a sequence
        of N dicts
    :param actions: ``(N, *action_shape)``, the actions that the environment executed
    :param rewards: ``(N,)`` or ``(N, 1)``; None: zeros
    :param terminations: ``(N,)`` or ``(N, 1)`` flags: the episode ended here by success or failure; None: all False
    :param truncations: ``(N,)`` or ``(N, 1)`` flags: the episode was truncated here, for example by a step limit; None: all
        False
    :param metadata: Facts about the data: str keys; str, int, float or bool values
    :raises ValueError: if arrays are empty, differ in length, or hold NaN, infinities or anything but numbers;
        if both kinds of flags are None or no flag is set
    """

    # The module that reads and writes files. It imports this module, so the package's __init__ sets it, which runs before the
    # class can be used
    _files: ClassVar[Files]

    def __init__(
        self,
        observations: Any,
        actions: Any,
        rewards: Any = None,
        terminations: Any = None,
        truncations: Any = None,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._set(*check_arrays(observations, actions, rewards, terminations, truncations, metadata))

    def _set(
        self,
        observations: Observations,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
        metadata: dict[str, str | int | float | bool],
    ) -> None:
        """Set checked arrays, whose last transition is an end."""
        self.observations: Observations = observations
        self.actions: np.ndarray = actions
        self.rewards: np.ndarray = rewards
        self.terminations: np.ndarray = terminations
        self.truncations: np.ndarray = truncations
        self.metadata = metadata
        self._stops = np.flatnonzero(terminations | truncations) + 1
        self._starts = np.concatenate([[0], self._stops[:-1]])

    @classmethod
    def _of_checked(cls, *args: Any) -> "Demonstrations":
        """:return: Demonstrations of arrays that need no check, such as parts of other demonstrations"""
        demonstrations = cls.__new__(cls)
        demonstrations._set(*args)
        return demonstrations

    @classmethod
    def from_arrays(cls, *args: Any, **kwargs: Any) -> "Demonstrations":
        """The constructor's name in 0.1.0, which the release after 0.2.0 removes."""
        warnings.warn("Demonstrations.from_arrays is now Demonstrations: call that.", DeprecationWarning, stacklevel=2)
        return cls(*args, **kwargs)

    @staticmethod
    def from_trajectories(trajectories: Iterable[Any], metadata: Mapping[str, Any] | None = None) -> "Demonstrations":
        """
        Create demonstrations from episodes: dicts, trajectories of the package imitation, or similar objects. The observation
        after the last action is left out.

        :param trajectories: Objects with ``obs`` ``(T + 1, ...)``, an array, a mapping to arrays or imitation's ``DictObs``,
            ``acts`` ``(T, ...)``, ``terminal`` and optionally ``rews`` ``(T,)``; T is at least 1. If ``terminal`` is true, the
            episode is terminated, else truncated; imitation also sets it at the time limit. Alternatively, mappings with these
            entries (with these names or ``observations``, ``actions``, ``rewards``, ``terminations``), such as dicts and
            groups of HDF5 files. In mappings, ``obs`` may also have T rows, and ``terminal`` may be missing (False) or have
            one flag per step, the last of which counts
        :param metadata: Facts about the data
        :return: The demonstrations, one episode per trajectory
        :raises ValueError: if there are no trajectories, or their arrays do not fit each other
        """
        checked = check_trajectories(trajectories, metadata)
        return Demonstrations.concatenate([Demonstrations._of_checked(*parts) for parts in checked])

    def __len__(self) -> int:
        """The number of transitions."""
        return len(self.actions)

    def __repr__(self) -> str:
        return f"Demonstrations(n_episodes={self.n_episodes}, n_transitions={len(self)})"

    @property
    def n_episodes(self) -> int:
        return len(self._stops)

    @property
    def observation_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Shape of one observation; one shape per key if observations are a dict."""
        if isinstance(self.observations, dict):
            return {key: value.shape[1:] for key, value in self.observations.items()}
        return self.observations.shape[1:]

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return self.actions.shape[1:]

    @property
    def episode_slices(self) -> list[slice]:
        """Slices of the transitions of all episodes, in order."""
        return [slice(int(start), int(stop)) for start, stop in zip(self._starts, self._stops, strict=True)]

    @property
    def episode_lengths(self) -> np.ndarray:
        """Number of transitions of each episode, ``(n_episodes,)`` integers."""
        return self._stops - self._starts

    @property
    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of each episode, ``(n_episodes,)``, float64."""
        return np.add.reduceat(self.rewards.astype(np.float64), self._starts)

    def _select(self, episodes: np.ndarray) -> "Demonstrations":
        """
        :param episodes: Indices of at least one episode
        :return: Copies of these episodes, in this order; images in a file stay there
        """
        rows = np.concatenate([np.arange(self._starts[i], self._stops[i]) for i in episodes])
        return Demonstrations._of_checked(
            map_observations(lambda array: select_rows(array, rows), self.observations),
            self.actions[rows],
            self.rewards[rows],
            self.terminations[rows],
            self.truncations[rows],
            dict(self.metadata),
        )

    def select_keys(self, keys: Sequence[str]) -> "Demonstrations":
        """
        :param keys: keys of ``Dict`` observations
        :return: The same transitions with only these parts of the observations; arrays are not copied
        """
        assert isinstance(self.observations, dict)
        arrays = (self.actions, self.rewards, self.terminations, self.truncations)
        return Demonstrations._of_checked({key: self.observations[key] for key in keys}, *arrays, dict(self.metadata))

    def split(self, validation_fraction: float, seed: int) -> tuple["Demonstrations", "Demonstrations"]:
        """
        Split the episodes at random into two sets.

        :param validation_fraction: Share of the episodes for validation, in (0, 1); each set gets at least one episode
        :param seed: Seed of the random split
        :return: Training and validation demonstrations
        :raises ValueError: if the fraction is out of range or there is only one episode
        """
        if not 0.0 < validation_fraction < 1.0:
            raise ValueError(f"`validation_fraction` must lie in (0, 1), got {validation_fraction}. Pass 0.1, for example.")
        if self.n_episodes < 2:
            raise ValueError("A split needs at least 2 episodes, but there is only 1. Collect more episodes.")
        n_validation = int(np.clip(round(validation_fraction * self.n_episodes), 1, self.n_episodes - 1))
        order = np.random.default_rng(seed).permutation(self.n_episodes)
        return self._select(np.sort(order[n_validation:])), self._select(np.sort(order[:n_validation]))

    def end_at_success(self) -> "Demonstrations":
        """
        End each episode at its first success, as in environments that terminate on success: the first positive reward becomes
        a termination, and later transitions of the episode are left out.

        :return: Copies of the shortened episodes; their metadata contain ``terminate_on_success`` and ``n_transitions_cut``
        :raises ValueError: if the rewards do not mark successes: they must be 0 or one positive value
        """
        firsts = first_successes(self.rewards, self._starts, self._stops)
        successful = np.searchsorted(self._stops, firsts, side="right")
        stops = self._stops.copy()
        stops[successful] = firsts + 1
        kept = np.arange(len(self)) < np.repeat(stops, self.episode_lengths)
        rows = slice(None) if kept.all() else np.flatnonzero(kept)
        flags = {"terminations": self.terminations.copy(), "truncations": self.truncations.copy()}
        flags["terminations"][firsts], flags["truncations"][firsts] = True, False
        return Demonstrations._of_checked(
            map_observations(lambda array: select_rows(array, rows), self.observations),
            *(array[rows] for array in (self.actions, self.rewards, *flags.values())),
            {**self.metadata, "terminate_on_success": True, "n_transitions_cut": int(np.count_nonzero(~kept))},
        )

    def take(self, n_episodes: int | None = None, n_transitions: int | None = None) -> "Demonstrations":
        """
        Take the first complete episodes.

        :param n_episodes: Largest number of episodes; None: no limit
        :param n_transitions: Largest number of transitions; None: no limit
        :return: A copy of the demonstrations within both limits; ``self`` if the limits exclude nothing
        :raises ValueError: if a limit is smaller than 1 or the first episode alone exceeds ``n_transitions``
        """
        for name, limit in (("n_episodes", n_episodes), ("n_transitions", n_transitions)):
            if limit is not None and limit < 1:
                raise ValueError(f"`{name}` must be at least 1, got {limit}. Leave it out for no limit.")
        n_taken = self.n_episodes if n_episodes is None else min(n_episodes, self.n_episodes)
        if n_transitions is not None:
            n_taken = min(n_taken, int(np.searchsorted(self._stops, n_transitions, side="right")))
        if n_taken == 0:
            raise ValueError(
                f"`n_transitions`={n_transitions} is less than the first episode's {self._stops[0]} transitions, and only "
                "complete episodes are taken. Raise the limit."
            )
        return self if n_taken == self.n_episodes else self._select(np.arange(n_taken))

    @staticmethod
    def concatenate(parts: Sequence["Demonstrations"]) -> "Demonstrations":
        """
        :param parts: At least one; all with the same observation keys, shapes and types
        :return: All episodes, in order, with the metadata that are the same in all parts
        :raises ValueError: if there are no parts, or one differs from the first in a shape or type
        """
        if len(parts) == 0:
            raise ValueError("There are no demonstrations to concatenate: pass at least one.")
        first = parts[0]
        for position, part in enumerate(parts[1:], start=1):
            if part._layout() != first._layout():
                raise ValueError(
                    f"Demonstrations differ in keys, shapes or types: number 0 has {first._layout()}, number {position} has "
                    f"{part._layout()}. Concatenate demonstrations of one task only, and give numbers of one kind the same "
                    "type first: np.asarray(values, np.float32) for integers beside floats."
                )
        named = [named_observations(part.observations) for part in parts]
        joined = [concatenate([arrays[name] for arrays in named]) for name in named[0]]
        observations: Observations = joined[0]
        if isinstance(first.observations, dict):
            observations = dict(zip(first.observations, joined, strict=True))
        fields = ("actions", "rewards", "terminations", "truncations")
        metadata = first.metadata.items()
        shared = dict(entry for entry in metadata if all(entry in part.metadata.items() for part in parts))
        return Demonstrations._of_checked(
            observations, *(np.concatenate([getattr(part, field) for part in parts]) for field in fields), shared
        )

    def _task_arrays(self) -> dict[str, Array]:
        """:return: The arrays whose layout depends on the task, by their names in messages, sorted"""
        return dict(sorted({**named_observations(self.observations), "actions": self.actions}.items()))

    def _layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """:return: Shape and type of one entry of each array whose layout depends on the task"""
        return {name: (array.shape[1:], str(array.dtype)) for name, array in self._task_arrays().items()}

    def chunks(self, horizon: int) -> ActionChunks:
        """
        :param horizon: Number of actions per chunk, at least 1
        :return: One chunk per transition, assembled when indexed
        :raises ValueError: if ``horizon`` is smaller than 1
        """
        return ActionChunks(self.observations, self.actions, np.repeat(self._stops - 1, self.episode_lengths), horizon)

    def statistics(self) -> dict[str, float]:
        """
        :return: Counts; mean, standard deviation, minimum and maximum of the episodes' returns; mean, minimum and maximum of
            their lengths; the share of episodes that ended by termination; minimum and maximum over all action components
        """
        returns, lengths = self.episode_returns, self.episode_lengths
        return {
            "n_episodes": float(self.n_episodes),
            "n_transitions": float(len(self)),
            "return_mean": float(returns.mean()),
            "return_std": float(returns.std()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
            "length_mean": float(lengths.mean()),
            "length_min": float(lengths.min()),
            "length_max": float(lengths.max()),
            "terminated_fraction": float(self.terminations[self._stops - 1].mean()),
            "action_min": float(self.actions.min()),
            "action_max": float(self.actions.max()),
        }

    def describe(self) -> str:
        """
        :return: A printable table of the source, statistics, shapes and metadata. For observations and actions, it has the
            range of all values, and the ranges of the means and standard deviations of their components
        """
        return describe(self._task_arrays(), self.statistics(), self.metadata)

    def _repr_html_(self) -> str:
        """The table of :meth:`describe` as HTML, for notebooks."""
        rows = facts(self._task_arrays(), self.statistics(), self.metadata).items()
        return html_table(["", type(self).__name__], rows)

    def save(self, path: AnyPath) -> None:
        """
        Write an HDF5 file with D4RL's layout. An existing file is replaced in one step, so that readers see the old or the new
        file.

        :param path: Path of the file; missing folders are created, ``~`` is expanded
        :raises ImportError: if h5py is not installed
        :raises OSError: if the file cannot be written, for example because the disk is full
        """
        self._files.write_hdf5(self, path)

    @staticmethod
    def load_hdf5(path: AnyPath, max_episode_steps: int | None = None, max_bytes: int | None = None) -> "Demonstrations":
        """
        Read an HDF5 file with D4RL's layout, as written by :meth:`save`.

        :param path: Path of the file; ``~`` is expanded
        :param max_episode_steps: The environment's step limit; only needed if the file has no ``timeouts``
        :param max_bytes: Limit of the memory for arrays, see :func:`~sb3_scoreflow.demonstrations.hdf5.read_hdf5`
        :return: The demonstrations
        """
        return Demonstrations._files.read_hdf5(path, max_episode_steps, max_bytes=max_bytes)

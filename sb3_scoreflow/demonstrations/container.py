"""The container that all demonstrations end up in, whatever their source."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sb3_scoreflow.demonstrations.arrays import (
    Observations,
    clean_array,
    clean_flags,
    clean_metadata,
    clean_observations,
    clean_vector,
    concatenate,
    map_observations,
    named_observations,
    select_rows,
)
from sb3_scoreflow.demonstrations.chunks import ActionChunks
from sb3_scoreflow.demonstrations.flags import (
    describe_extra_observations,
    describe_odd_ends,
    describe_rest,
    describe_rows_of_episodes,
)
from sb3_scoreflow.demonstrations.success import first_successes


class Demonstrations:
    """
    Whole episodes, stored flat: N transitions in order, with flags where episodes end.

    Arrays may be tensors, memory maps, lists, or columns of data frames too (with an array in each row). Floating-point
    observations and actions are kept as float32, integers and uint8 images as they are. Arrays of the right type are not
    copied: do not write to them afterwards. Images may stay in a file until they are used, see
    :class:`~sb3_scoreflow.demonstrations.lazy.LazyImages`. A trailing episode without an end is dropped, with a warning. There
    is a warning too if flags do not look like ends of episodes: masks, or flags that stay on while a goal is reached.

    :param observations: ``(N, *observation_shape)``, or a dict of such arrays for ``Dict`` observation spaces, or a sequence
        of N dicts
    :param actions: ``(N, *action_shape)``, the actions that the env executed
    :param rewards: ``(N,)`` or ``(N, 1)``; zeros if None
    :param terminations: ``(N,)`` or ``(N, 1)`` flags: the episode ended here by success or failure; all False if None
    :param truncations: ``(N,)`` or ``(N, 1)`` flags: the episode was cut off here, as by a step limit; all False if None
    :param metadata: Facts about the data: str keys; str, int, float or bool values
    :raises ValueError: if arrays are empty, differ in length, or hold NaN, infinities or anything but numbers;
        if both kinds of flags are None or no flag is set
    """

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
        if terminations is None and truncations is None:
            raise ValueError(
                "Neither `terminations` nor `truncations` was given, so the ends of the episodes are unknown. Pass one: "
                "flags of shape (N,), True on the last transition of each episode."
            )
        observations = clean_observations(observations)
        actions = clean_array("actions", actions)
        n_transitions = len(actions)
        if n_transitions == 0:
            raise ValueError("The demonstrations are empty: `actions` has length 0. Pass at least one whole episode.")
        rewards = np.zeros(n_transitions, np.float32) if rewards is None else clean_vector("rewards", rewards)
        flags = {
            name: np.zeros(n_transitions, np.bool_) if values is None else clean_flags(name, values)
            for name, values in (("terminations", terminations), ("truncations", truncations))
        }
        named = named_observations(observations)
        for name, array in {"rewards": rewards, **flags, **named}.items():
            if len(array) != n_transitions:
                advice = describe_extra_observations(len(array) - n_transitions, flags) if name in named else ""
                raise ValueError(
                    f"`{name}` has length {len(array)} but `actions` has length {n_transitions}; both must have one entry per "
                    f"transition.{advice}"
                )
        stops = np.flatnonzero(flags["terminations"] | flags["truncations"]) + 1
        if len(stops) == 0:
            raise ValueError(
                f"None of the {n_transitions} transitions ends an episode, so no whole episode is left. "
                "Set `truncations` to True on the last transition to keep them as one episode."
            )
        lengths, kept = np.diff(stops, prepend=0), int(stops[-1])
        for oddity in (
            describe_odd_ends(*flags.values()),
            describe_rows_of_episodes([array.shape for array in named.values()], actions.shape, lengths),
            describe_rest(n_transitions - kept, lengths) if kept < n_transitions else None,
        ):
            if oddity is not None:
                warnings.warn(oddity, stacklevel=2)
        self._set(
            map_observations(lambda array: select_rows(array, slice(kept)), observations),
            actions[:kept],
            rewards[:kept],
            flags["terminations"][:kept],
            flags["truncations"][:kept],
            clean_metadata(metadata),
        )

    def _set(
        self,
        observations: Observations,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminations: np.ndarray,
        truncations: np.ndarray,
        metadata: dict[str, str | int | float | bool],
    ) -> None:
        """Take over arrays that are checked, the last transition an end."""
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
        """:return: Demonstrations of parts of others, without the checks and warnings that these have had"""
        demonstrations = cls.__new__(cls)
        demonstrations._set(*args)
        return demonstrations

    @classmethod
    def from_arrays(cls, observations: Any, actions: Any, *args: Any, **kwargs: Any) -> "Demonstrations":
        """
        The constructor by the name of the other sources (``load_demonstrations``, ``collect_demonstrations``).

        :param observations: see the class
        :param actions: see the class
        :return: the demonstrations
        """
        return cls(observations, actions, *args, **kwargs)

    @staticmethod
    def from_trajectories(trajectories: Iterable[Any], metadata: Mapping[str, Any] | None = None) -> "Demonstrations":
        """
        Episodes as dicts, or as the trajectories of the package imitation and objects like them. The observation after the
        last action is left out.

        :param trajectories: Objects with ``obs`` ``(T + 1, ...)``, an array, a mapping to arrays or imitation's ``DictObs``,
            ``acts`` ``(T, ...)``, ``terminal`` and perhaps ``rews`` ``(T,)``; T at least 1. Where ``terminal`` is true the
            episode is terminated, else truncated. imitation calls an episode terminal at its time limit too. Or mappings with
            these entries (under these names or ``observations``, ``actions``, ``rewards``, ``terminations``), such as dicts
            and groups of HDF5 files: there, ``obs`` may have T rows too, ``terminal`` may be missing (False) or have one flag
            per step, of which the last counts
        :param metadata: Facts about the data
        :return: The demonstrations, one episode per trajectory
        :raises ValueError: if there is none, or the arrays of one do not fit each other or those of the first
        """
        from sb3_scoreflow.demonstrations.trajectories import from_trajectories

        return from_trajectories(trajectories, metadata)

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
        """The slice of the transitions of each episode, in order."""
        return [slice(int(start), int(stop)) for start, stop in zip(self._starts, self._stops, strict=True)]

    @property
    def episode_lengths(self) -> np.ndarray:
        """``(n_episodes,)`` integers."""
        return self._stops - self._starts

    @property
    def episode_returns(self) -> np.ndarray:
        """``(n_episodes,)`` undiscounted sums of rewards, float64."""
        return np.add.reduceat(self.rewards.astype(np.float64), self._starts)

    def episode(self, index: int) -> "Demonstrations":
        """
        :param index: Which episode; negative counts from the end
        :return: Demonstrations of this episode alone
        :raises IndexError: if there is no such episode
        """
        if not -self.n_episodes <= index < self.n_episodes:
            raise IndexError(f"Episode {index} was asked for, but there are {self.n_episodes}.")
        return self._select(np.array([index % self.n_episodes]))

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
        :param keys: Of ``Dict`` observations
        :return: The same transitions with these parts of the observations only; arrays are shared, not copied
        """
        assert isinstance(self.observations, dict)
        arrays = (self.actions, self.rewards, self.terminations, self.truncations)
        return Demonstrations._of_checked({key: self.observations[key] for key in keys}, *arrays, dict(self.metadata))

    def split(self, validation_fraction: float, seed: int) -> tuple["Demonstrations", "Demonstrations"]:
        """
        Split by episode, at random, so that no episode is on both sides.

        :param validation_fraction: Share of the episodes for validation, in (0, 1); rounded, but at least one on each side
        :param seed: Seed of the choice
        :return: Training and validation demonstrations
        :raises ValueError: if the fraction is out of range or there is only one episode
        """
        if not 0.0 < validation_fraction < 1.0:
            raise ValueError(f"`validation_fraction` must lie in (0, 1), got {validation_fraction}. Pass for instance 0.1.")
        if self.n_episodes < 2:
            raise ValueError("A split needs at least 2 episodes, there is 1: one side would be empty. Collect more episodes.")
        n_validation = int(np.clip(round(validation_fraction * self.n_episodes), 1, self.n_episodes - 1))
        order = np.random.default_rng(seed).permutation(self.n_episodes)
        return self._select(np.sort(order[n_validation:])), self._select(np.sort(order[:n_validation]))

    def end_at_success(self) -> "Demonstrations":
        """
        End each episode at its first success, as envs do that terminate on success: the first positive reward becomes a
        termination, and what follows it in the episode is left out.

        :return: The shortened episodes, copied; their metadata say ``terminate_on_success`` and count ``n_transitions_cut``
        :raises ValueError: if the rewards do not mark successes: they must be zero but for one positive value
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
        The first episodes, whole ones only.

        :param n_episodes: At most this many episodes; no limit if None
        :param n_transitions: At most this many transitions; no limit if None
        :return: The demonstrations within both limits, copied; ``self`` if that is everything
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
                "whole episodes are taken. Raise the limit."
            )
        return self if n_taken == self.n_episodes else self._select(np.arange(n_taken))

    @staticmethod
    def concatenate(parts: Sequence["Demonstrations"]) -> "Demonstrations":
        """
        :param parts: At least one; all with the same observation keys, shapes and types
        :return: Their episodes, in order; the metadata on which all of them agree
        :raises ValueError: if there is no part, or one differs from the first in a shape or type
        """
        if len(parts) == 0:
            raise ValueError("There are no demonstrations to concatenate: pass at least one.")
        first = parts[0]
        for position, part in enumerate(parts[1:], start=1):
            if part._layout() != first._layout():
                raise ValueError(
                    f"Demonstrations differ in keys, shapes or types: number 0 has {first._layout()}, number {position} has "
                    f"{part._layout()}. Concatenate demonstrations of one task only."
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

    def _layout(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of one entry of each array whose layout depends on the task, keys sorted."""
        arrays = {**named_observations(self.observations), "actions": self.actions}
        return {name: (arrays[name].shape[1:], str(arrays[name].dtype)) for name in sorted(arrays)}

    def chunks(self, horizon: int) -> ActionChunks:
        """
        :param horizon: Number of actions per chunk, at least 1
        :return: One chunk per transition, gathered when indexed
        :raises ValueError: if ``horizon`` is smaller than 1
        """
        return ActionChunks(self.observations, self.actions, np.repeat(self._stops - 1, self.episode_lengths), horizon)

    def returns_to_go(self, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        """
        Discounted sum of the rewards from each transition to the end of its episode.

        :param gamma: Discount factor in [0, 1]
        :return: The sums, float32 ``(N,)``, and whether the transition's episode ended by termination, bool ``(N,)``. Where it
            was truncated, what would have followed is missing from the sum.
        :raises ValueError: if ``gamma`` is out of range
        """
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"`gamma` must lie in [0, 1], got {gamma}.")
        # A scan over Python floats: the recursion has no vectorised form that stays accurate for long episodes
        ends = (self.terminations | self.truncations).tolist()
        sums = self.rewards.tolist()
        for i in range(len(sums) - 2, -1, -1):
            if not ends[i]:
                sums[i] += gamma * sums[i + 1]
        terminated = np.repeat(self.terminations[self._stops - 1], self.episode_lengths)
        return np.array(sums, dtype=np.float32), terminated

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
        :return: A table of the source, the statistics, shapes and metadata, to print. Of observations and actions: the range
            of all values, and the ranges of the means and standard deviations of their components
        """
        from sb3_scoreflow.demonstrations.description import describe

        return describe(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write an HDF5 file with D4RL's layout. An existing file is replaced, in one step: readers see the old or the new one.

        :param path: Where to; missing folders are made, ``~`` is expanded
        :raises ImportError: if h5py is not installed
        """
        from sb3_scoreflow.demonstrations.hdf5 import write_hdf5

        write_hdf5(self, path)

    @staticmethod
    def load_hdf5(
        path: str | os.PathLike[str], max_episode_steps: int | None = None, max_bytes: int | None = None
    ) -> "Demonstrations":
        """
        Read an HDF5 file with D4RL's layout, as written by :meth:`save`.

        :param path: The file; ``~`` is expanded
        :param max_episode_steps: The env's step limit; needed only if the file has no ``timeouts``
        :param max_bytes: See :func:`~sb3_scoreflow.demonstrations.hdf5.read_hdf5`
        :return: The demonstrations
        """
        from sb3_scoreflow.demonstrations.hdf5 import read_hdf5

        return read_hdf5(path, max_episode_steps, max_bytes=max_bytes)

"""Chunks of consecutive actions, extracted from demonstrations on demand."""

from typing import NamedTuple

import numpy as np

from sb3_scoreflow.demonstrations.arrays import LoadedObservations, Observations, map_observations


class ChunkBatch(NamedTuple):
    """A batch of B chunks."""

    observations: LoadedObservations
    """The observation before each chunk's first action, ``(B, ...)`` per array."""
    actions: np.ndarray
    """``(B, horizon, *action_shape)``; after the end of the episode, its last action is repeated."""
    mask: np.ndarray
    """bool ``(B, horizon)``, False for this padding."""


class ActionChunks:
    """
    One chunk per transition: its observation, its action and the ``horizon - 1`` following actions of the same episode.

    Only one integer per transition is stored; chunks are assembled when they are indexed.

    :param observations: ``(N, ...)`` per array
    :param actions: ``(N, *action_shape)``
    :param last_indices: ``(N,)``, for each transition, the index of the last transition of its episode
    :param horizon: Number of actions per chunk, at least 1
    :raises ValueError: if ``horizon`` is smaller than 1
    """

    def __init__(self, observations: Observations, actions: np.ndarray, last_indices: np.ndarray, horizon: int) -> None:
        if isinstance(horizon, bool) or not isinstance(horizon, (int, np.integer)) or horizon < 1:
            raise ValueError(f"`horizon` must be an integer of at least 1, got {horizon!r}: the number of actions in a chunk.")
        self.horizon = int(horizon)
        self._observations = observations
        self._actions = actions
        self._last_indices = last_indices
        self._offsets = np.arange(self.horizon)

    def __len__(self) -> int:
        return len(self._actions)

    def __getitem__(self, indices: np.ndarray) -> ChunkBatch:
        """
        :param indices: ``(B,)`` integers in [0, len(self)), in any order, repeats allowed
        :return: The chunks that start at these transitions
        :raises IndexError: if the indices are not a vector of integers or one is out of range
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise IndexError(
                f"Chunks are indexed by a vector of integers, got shape {indices.shape}, dtype {indices.dtype}. "
                "Pass rng.integers(len(chunks), size=batch_size), for example."
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"Chunk indices must lie in [0, {len(self)}), got values in [{indices.min()}, {indices.max()}].")
        steps = indices.astype(np.int64)[:, None] + self._offsets
        last = self._last_indices[indices][:, None]
        return ChunkBatch(
            observations=map_observations(lambda array: array[indices], self._observations),
            actions=self._actions[np.minimum(steps, last)],
            mask=steps <= last,
        )

"""Demonstrations from the trajectories of other packages, such as imitation's, which is not needed for it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sb3_scoreflow.demonstrations.arrays import LoadedObservations, map_observations, named_observations
from sb3_scoreflow.demonstrations.container import Demonstrations


def from_trajectories(trajectories: Iterable[Any], metadata: Mapping[str, Any] | None = None) -> Demonstrations:
    """
    :param trajectories: Objects like imitation's, see :meth:`Demonstrations.from_trajectories`
    :param metadata: Facts about the data
    :return: The demonstrations
    :raises ValueError: if there is none, or the arrays of one do not fit each other or those of the first
    """
    parts = [_from_trajectory(number, trajectory, metadata) for number, trajectory in enumerate(trajectories)]
    if not parts:
        raise ValueError("`trajectories` is empty. Pass at least one.")
    return Demonstrations.concatenate(parts)


def _from_trajectory(number: int, trajectory: Any, metadata: Mapping[str, Any] | None) -> Demonstrations:
    missing = [name for name in ("obs", "acts", "terminal") if not hasattr(trajectory, name)]
    if missing:
        raise ValueError(
            f"Trajectory {number}, of type {type(trajectory).__name__}, has no attribute {missing}. Trajectories have `obs`, "
            "`acts`, `terminal` and perhaps `rews`; for arrays there is Demonstrations.from_arrays."
        )
    actions = np.asarray(trajectory.acts)
    # imitation's DictObs is no Mapping, and gives its dict by this method
    obs = trajectory.obs.unwrap() if hasattr(trajectory.obs, "unwrap") else trajectory.obs
    observations: LoadedObservations = map_observations(np.asarray, obs if isinstance(obs, Mapping) else np.asarray(obs))
    lengths = {name: array.shape[:1] for name, array in named_observations(observations).items()}
    if actions.ndim == 0 or any(length != (len(actions) + 1,) for length in lengths.values()):
        raise ValueError(
            f"Trajectory {number} has `acts` of shape {actions.shape} and observations of lengths {lengths}. There must be "
            "one observation more than actions: the last one is what the last action led to."
        )
    ends = np.zeros(len(actions), np.bool_)
    ends[-1:] = True
    never = np.zeros_like(ends)
    try:
        return Demonstrations(
            map_observations(lambda array: array[:-1], observations),
            actions,
            getattr(trajectory, "rews", None),
            *((ends, never) if trajectory.terminal else (never, ends)),
            metadata=metadata,
        )
    except ValueError as error:
        raise ValueError(f"Trajectory {number} does not fit: {error}") from error

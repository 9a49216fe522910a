"""Demonstrations from episodes: trajectories of other packages, such as imitation (which is not required), or dicts."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from sb3_scoreflow.demonstrations.arrays import LoadedObservations, map_observations, named_observations
from sb3_scoreflow.demonstrations.checks import Checked, check_arrays
from sb3_scoreflow.demonstrations.conversion import as_array, rows_of_dicts

# Names of an episode's entries in several programs, imitation first
NAMES = {
    "obs": ("obs", "observations"),
    "acts": ("acts", "actions"),
    "rews": ("rews", "rewards", "reward"),
    "terminal": ("terminal", "terminals", "terminated", "terminations"),
}


def check_trajectories(trajectories: Iterable[Any], metadata: Mapping[str, Any] | None = None) -> list[Checked]:
    """
    :param trajectories: Objects like imitation's, see
        :meth:`~sb3_scoreflow.demonstrations.container.Demonstrations.from_trajectories`
    :param metadata: Facts about the data
    :return: Checked arrays of each trajectory, at least one
    :raises ValueError: if there are no trajectories, or the arrays of one do not fit each other
    """
    parts = [_check_trajectory(number, trajectory, metadata) for number, trajectory in enumerate(trajectories)]
    if not parts:
        raise ValueError("`trajectories` is empty. Pass at least one.")
    return parts


def _check_trajectory(number: int, trajectory: Any, metadata: Mapping[str, Any] | None) -> Checked:
    """
    :param number: Number of the trajectory, for messages
    :param trajectory: Trajectory passed by the user
    :param metadata: Facts about the data
    :return: Checked arrays of this episode
    :raises ValueError: if an entry is missing, or the arrays do not fit each other
    """
    is_mapping = isinstance(trajectory, Mapping)
    if is_mapping:
        trajectory = _from_mapping(number, trajectory)
    missing = [name for name in ("obs", "acts", "terminal") if not hasattr(trajectory, name)]
    if missing:
        raise ValueError(
            f"Trajectory {number}, of type {type(trajectory).__name__}, has no attribute {missing}. Trajectories have `obs`, "
            "`acts`, `terminal` and perhaps `rews`; for flat arrays, call Demonstrations(...)."
        )
    actions = as_array(f"acts of trajectory {number}", trajectory.acts)
    # imitation's DictObs is not a Mapping, but has a method that returns its dict
    obs = trajectory.obs.unwrap() if hasattr(trajectory.obs, "unwrap") else trajectory.obs
    obs, name = rows_of_dicts(obs) or obs, f"obs of trajectory {number}"
    observations: LoadedObservations = (
        {key: as_array(f"{name}, {key}", values) for key, values in obs.items()}
        if isinstance(obs, Mapping)
        else as_array(name, obs)
    )
    lengths = {name: array.shape[:1] for name, array in named_observations(observations).items()}
    # imitation always stores the observation after the last action; others may not
    allowed = [(len(actions) + extra,) for extra in ((0, 1) if is_mapping else (1,))] if actions.ndim else []
    if len(set(lengths.values())) != 1 or next(iter(lengths.values())) not in allowed:
        raise ValueError(
            f"Trajectory {number} has `acts` of shape {actions.shape} and observations of lengths {lengths}. There must be "
            "one more observation than actions; the last observation follows the last action."
        )
    ends = np.zeros(len(actions), np.bool_)
    ends[-1:] = True
    never = np.zeros_like(ends)
    try:
        return check_arrays(
            map_observations(lambda array: array[: len(actions)], observations),
            actions,
            getattr(trajectory, "rews", None),
            *((ends, never) if trajectory.terminal else (never, ends)),
            metadata,
        )
    except ValueError as error:
        raise ValueError(f"Trajectory {number} does not fit: {error}") from error


def _from_mapping(number: int, trajectory: Mapping[str, Any]) -> SimpleNamespace:
    """
    :param number: Number of the trajectory, for messages
    :param trajectory: Arrays with one of their names, and optionally the flag ``terminal``, or one flag per step, the last of
        which counts
    :return: The same entries as attributes with imitation's names
    :raises ValueError: if an entry is missing
    """
    entries = {key: trajectory[name] for key, names in NAMES.items() for name in reversed(names) if name in trajectory}
    missing = [" or ".join(map(repr, NAMES[key])) for key in ("obs", "acts") if key not in entries]
    if missing:
        raise ValueError(
            f"Trajectory {number} is a {type(trajectory).__name__} without {', and without '.join(missing)}; it has "
            f"{sorted(trajectory)}. Trajectories have `obs`, `acts`, `terminal` and perhaps `rews`."
        )
    if "terminal" not in entries and trajectory.keys() & {"done", "dones"}:
        raise ValueError(
            f"Trajectory {number} has `done` flags, which do not tell a termination from a time limit: give it an entry "
            "`terminal`, which is False if a time limit or the end of the recording ended the episode."
        )
    flags = as_array(f"terminal of trajectory {number}", entries.get("terminal", False)).ravel()
    return SimpleNamespace(**{**entries, "terminal": bool(flags[-1:].any())})

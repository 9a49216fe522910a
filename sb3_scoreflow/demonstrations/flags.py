"""Detection of flags that do not mark ends of episodes."""

from collections.abc import Iterable, Mapping

import numpy as np

from sb3_scoreflow.demonstrations.conversion import EPISODES_ADVICE

# Fewer flags may be coincidence
_MIN_PAIRS = 5
_MIN_EPISODES = 3
# If flags stay set for several steps, the episodes between them have at least this median length
_LONG = 4


def describe_odd_ends(terminations: np.ndarray, truncations: np.ndarray) -> str | None:
    """
    Recognize flags that cannot be ends of episodes. Episodes of one step are plausible if all episodes, or only a few, have
    this length.

    :param terminations: ``(N,)`` bools
    :param truncations: ``(N,)`` bools; at least one flag in the two arrays is set
    :return: Description of the problem and remedy; None if there is no problem
    """
    ends = terminations | truncations
    name, flags = "`terminations` and `truncations`", ends
    for candidate, values in (("`terminations`", terminations), ("`truncations`", truncations)):
        if _come_in_runs(values) or np.array_equal(values, ends):
            name, flags = candidate, values
    stops = np.flatnonzero(ends) + 1
    lengths = np.diff(stops, prepend=0)
    n_rest = len(ends) - int(stops[-1])
    longer = lengths[lengths > 1]
    if len(longer) == 0 and n_rest == 0:
        return _describe_complement(terminations, truncations)
    where = f"{name} (set on {np.count_nonzero(flags)} of {len(ends)} transitions)"
    if _come_in_runs(flags):
        counts = f"{len(lengths) - len(longer)} of the {len(lengths)} episodes would have one step"
        # Single unset flags: their position at the end of the data, or their number, is not a coincidence
        if lengths.max() <= 2 and (n_rest == 1 or (n_rest == 0 and len(longer) ** 2 >= 2 * len(ends))):
            return _describe_masks(where, counts)
        if len(longer) == 0 or np.median(longer) >= _LONG:
            return (
                f"{where} stay on for many steps in a row: {counts}. Flags that mark a reached goal, or stay on after the "
                "end, look like this. Set flags only on the last transition of each episode, and leave out later transitions. "
                "If the episodes continue until `truncations` (in a file, `timeouts`), pass terminations=None (for an HDF5 "
                'file, load_demonstrations(path, ends="timeouts"); for a Minari dataset, ends="episodes"; for another file, '
                "read its arrays and pass them to Demonstrations)."
            )
    if n_rest and len(lengths) > 1:
        if lengths[0] == 1 and len(longer) == len(lengths) - 1 and len(lengths) >= _MIN_EPISODES:
            return (
                f"{where}, the very first among them but not the last, seem to mark the first transitions of episodes. Mark "
                "the last ones: np.append(x[1:], True)."
            )
        length = lengths[1]
        if length >= _LONG and lengths[0] == length + 1 and n_rest == length - 1 and (lengths[1:] == length).all():
            return (
                f"{where} seem to be one transition late: the first episode would have {lengths[0]} transitions, the others "
                f"{length}, and {n_rest} would be left over. Mark the last transition of each episode, not the one after "
                "it: np.append(x[1:], True)."
            )
    return None


def describe_rest(n_rest: int, lengths: np.ndarray) -> str:
    """
    :param n_rest: Number of transitions after the last end
    :param lengths: ``(n_episodes,)``
    :return: A sentence about the dropped transitions, and a second one if they are longer than an episode
    """
    text = f"Dropped {n_rest} transitions after the last episode end."
    if n_rest > lengths.max():
        text += (
            f" The longest episode has {lengths.max()}: if flags are only set at success, failed episodes have no end. "
            "Set `truncations` on their last transitions."
        )
    return text


def describe_rows_of_episodes(
    observation_shapes: Iterable[tuple[int, ...]], action_shape: tuple[int, ...], lengths: np.ndarray
) -> str | None:
    """
    :param observation_shapes: Shapes of the observation arrays, ``(N, ...)``
    :param action_shape: Shape of the actions, ``(N, ...)``
    :param lengths: ``(n_episodes,)``
    :return: Description of the problem if entries seem to be episodes instead of transitions; else None
    """
    if len(action_shape) < 3 or action_shape[1] == 1 or not 2 * np.count_nonzero(lengths == 1) > len(lengths):
        return None
    if not all(shape[1:2] == action_shape[1:2] for shape in observation_shapes):
        return None
    return (
        f"`actions` of shape {action_shape}, with observations of {action_shape[1]} rows each, and one flag per entry: are "
        f"they {action_shape[0]} episodes of {action_shape[1]} steps? They are interpreted as {action_shape[0]} transitions. "
        f"{EPISODES_ADVICE}."
    )


def describe_extra_observations(n_extra: int, flags: Mapping[str, np.ndarray]) -> str:
    """
    :param n_extra: Number of observations minus number of actions
    :param flags: ``(N,)`` flags
    :return: Advice for arrays with one additional observation per episode
    """
    text = " Leave out the observation that follows an episode's last action, if there is one"
    if n_extra == 1:
        return text + ": x[:-1]."
    if n_extra != np.count_nonzero(flags["terminations"] | flags["truncations"]):
        return text + "."
    return (
        " Each episode seems to have an additional observation after its last action. Leave it out: "
        "np.delete(x, stops + np.arange(len(stops)), axis=0), where stops = np.flatnonzero(ends) + 1 and ends are the flags."
    )


def _come_in_runs(flags: np.ndarray) -> bool:
    """:return: Whether most flags directly follow another one"""
    n_pairs = np.count_nonzero(flags[1:] & flags[:-1])
    return bool(n_pairs >= _MIN_PAIRS and 2 * n_pairs > np.count_nonzero(flags))


def _describe_masks(where: str, counts: str) -> str:
    return f"{where} are almost always set: {counts}. They look like masks, which are 0 at an end. Pass x == 0 instead."


def _describe_complement(terminations: np.ndarray, truncations: np.ndarray) -> str | None:
    """:return: Description of the problem if every transition has a flag, see :func:`describe_odd_ends`"""
    name, masks = max(("`terminations`", terminations), ("`truncations`", truncations), key=lambda item: item[1].sum())
    unset = ~masks
    is_complement = np.array_equal(terminations, ~truncations) and unset.any()
    if not is_complement or not _come_in_runs(masks) or unset[0] or (unset[1:] & unset[:-1]).any():
        return None
    return _describe_masks(
        f"{name} (set on {np.count_nonzero(masks)} of {len(masks)} transitions, the other flags on the rest)",
        f"all {len(masks)} episodes would have one step",
    )

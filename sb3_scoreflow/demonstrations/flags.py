"""Do flags mark ends of episodes? What they look like where they mark something else."""

from collections.abc import Iterable, Mapping

import numpy as np

from sb3_scoreflow.demonstrations.conversion import EPISODES_ADVICE

# Fewer flags than these may be chance
_MIN_PAIRS = 5
_MIN_EPISODES = 3
# Where flags stay on for a while, the episodes between have at least this many steps (in the median)
_LONG = 4


def describe_odd_ends(terminations: np.ndarray, truncations: np.ndarray) -> str | None:
    """
    Recognize flags that cannot be ends of episodes. Episodes of one step are nothing odd where all have one, or some have.

    :param terminations: ``(N,)`` bools
    :param truncations: ``(N,)`` bools; at least one of both is set
    :return: What looks wrong, and what to do; None if nothing does
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
        # Unset flags that stand alone: by the end of the data, or by their number, no chance
        if lengths.max() <= 2 and (n_rest == 1 or (n_rest == 0 and len(longer) ** 2 >= 2 * len(ends))):
            return _describe_masks(where, counts)
        if len(longer) == 0 or np.median(longer) >= _LONG:
            return (
                f"{where} stay on for many steps in a row: {counts}. So do flags that mark a goal that is reached, or that "
                "are kept up after the end, rather than the end of an episode. Set them on the last transition of each "
                "episode only, and leave out what follows it. Where the episodes go on until `truncations` (in a file, "
                '`timeouts`), pass terminations=None (for a file, load_demonstrations(path, ends="timeouts"); for a Minari '
                'dataset, ends="episodes").'
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
    :return: A sentence on what is dropped, and a second one where that is more than an episode
    """
    text = f"Dropped {n_rest} transitions after the last episode end."
    if n_rest > lengths.max():
        text += (
            f" The longest episode has {lengths.max()}: if flags are set at success only, episodes that fail have no end. "
            "Set `truncations` on their last transitions."
        )
    return text


def describe_rows_of_episodes(
    observation_shapes: Iterable[tuple[int, ...]], action_shape: tuple[int, ...], lengths: np.ndarray
) -> str | None:
    """
    :param observation_shapes: observation shapes of the observation arrays
    :param action_shape: action shape of the actions, ``(N, ...)``
    :param lengths: ``(n_episodes,)``
    :return: What looks wrong if entries seem to be episodes instead of transitions; None if nothing does
    """
    if len(action_shape) < 3 or action_shape[1] == 1 or not 2 * np.count_nonzero(lengths == 1) > len(lengths):
        return None
    if not all(shape[1:2] == action_shape[1:2] for shape in observation_shapes):
        return None
    return (
        f"`actions` of shape {action_shape}, with observations of {action_shape[1]} rows each, and one flag per entry: are "
        f"they {action_shape[0]} episodes of {action_shape[1]} steps? They are taken for {action_shape[0]} transitions. "
        f"{EPISODES_ADVICE}."
    )


def describe_extra_observations(n_extra: int, flags: Mapping[str, np.ndarray]) -> str:
    """
    :param n_extra: By how much the observations are longer than the actions
    :param flags: ``(N,)`` flags
    :return: Advice for observations with one more per episode
    """
    text = " Leave out the observation that follows an episode's last action, if there is one"
    if n_extra == 1:
        return text + ": x[:-1]."
    if n_extra != np.count_nonzero(flags["terminations"] | flags["truncations"]):
        return text + "."
    return (
        text
        + ", as it seems: np.delete(x, stops + np.arange(len(stops)), axis=0), where stops = np.flatnonzero(ends) + 1 and "
        "ends are the flags."
    )


def _come_in_runs(flags: np.ndarray) -> bool:
    """:return: Whether most flags directly follow another one"""
    n_pairs = np.count_nonzero(flags[1:] & flags[:-1])
    return bool(n_pairs >= _MIN_PAIRS and 2 * n_pairs > np.count_nonzero(flags))


def _describe_masks(where: str, counts: str) -> str:
    return f"{where} are almost everywhere: {counts}. So are masks, which are 0 at the end of an episode. Pass x == 0 instead."


def _describe_complement(terminations: np.ndarray, truncations: np.ndarray) -> str | None:
    """:return: What looks wrong where every transition has a flag, see :func:`describe_odd_ends`"""
    name, masks = max(("`terminations`", terminations), ("`truncations`", truncations), key=lambda item: item[1].sum())
    unset = ~masks
    is_complement = np.array_equal(terminations, ~truncations) and unset.any()
    if not is_complement or not _come_in_runs(masks) or unset[0] or (unset[1:] & unset[:-1]).any():
        return None
    return _describe_masks(
        f"{name} (set on {np.count_nonzero(masks)} of {len(masks)} transitions, the other flags on the rest)",
        f"all {len(masks)} episodes would have one step",
    )

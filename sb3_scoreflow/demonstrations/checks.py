"""The check of arrays when demonstrations are constructed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.demonstrations.arrays import (
    Observations,
    clean_array,
    clean_flags,
    clean_metadata,
    clean_observations,
    clean_vector,
    map_observations,
    named_observations,
    select_rows,
)
from sb3_scoreflow.demonstrations.flags import (
    describe_extra_observations,
    describe_odd_ends,
    describe_rest,
    describe_rows_of_episodes,
)


class Checked(NamedTuple):
    """Arrays of demonstrations: checked, of equal length, and with an end at the last transition."""

    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    metadata: dict[str, str | int | float | bool]


def check_arrays(
    observations: Any, actions: Any, rewards: Any, terminations: Any, truncations: Any, metadata: Mapping[str, Any] | None
) -> Checked:
    """
    Check arrays. Arguments, errors and warnings are the same as for
    :class:`~sb3_scoreflow.demonstrations.container.Demonstrations`.

    :return: The checked arrays without the transitions after the last end
    """
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
            f"None of the {n_transitions} transitions ends an episode, so no complete episode is left. "
            "Set `truncations` to True on the last transition to keep them as one episode."
        )
    lengths, kept = np.diff(stops, prepend=0), int(stops[-1])
    for oddity in (
        describe_odd_ends(*flags.values()),
        describe_rows_of_episodes([array.shape for array in named.values()], actions.shape, lengths),
        describe_rest(n_transitions - kept, lengths) if kept < n_transitions else None,
    ):
        if oddity is not None:
            warn(oddity)
    return Checked(
        map_observations(lambda array: select_rows(array, slice(kept)), observations),
        actions[:kept],
        rewards[:kept],
        flags["terminations"][:kept],
        flags["truncations"][:kept],
        clean_metadata(metadata),
    )

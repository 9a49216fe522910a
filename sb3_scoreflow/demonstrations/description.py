"""A table that describes demonstrations."""

from collections.abc import Mapping
from typing import Any

from sb3_scoreflow.demonstrations.arrays import Array, describe_array

_MAX_TEXT = 100


def facts(arrays: Mapping[str, Array], stats: Mapping[str, float], metadata: Mapping[str, Any]) -> dict[str, str]:
    """
    :param arrays: Observations and actions, by their names
    :param stats: Result of :meth:`~sb3_scoreflow.demonstrations.container.Demonstrations.statistics`
    :param metadata: Facts about the data
    :return: Name -> description, as in :meth:`~sb3_scoreflow.demonstrations.container.Demonstrations.describe`
    """
    return {
        "source": str(metadata.get("source", "collected" if "policy" in metadata else "not recorded")),
        "episodes": "{n_episodes:,.0f}".format(**stats),
        "transitions": "{n_transitions:,.0f}".format(**stats),
        "return": "{return_mean:.1f} +/- {return_std:.1f}, {return_min:.1f} to {return_max:.1f}".format(**stats),
        "episode length": "{length_mean:.1f}, {length_min:.0f} to {length_max:.0f}".format(**stats),
        "terminated": f"{stats['terminated_fraction']:.1%} of the episodes",
        **{name: describe_array(array) for name, array in arrays.items()},
        **{f"metadata: {key}": _shorten(str(value)) for key, value in metadata.items() if key != "source"},
    }


def describe(arrays: Mapping[str, Array], stats: Mapping[str, float], metadata: Mapping[str, Any]) -> str:
    """
    :param arrays: Observations and actions, by their names
    :param stats: Statistics
    :param metadata: Facts about the data
    :return: See :meth:`~sb3_scoreflow.demonstrations.container.Demonstrations.describe`
    """
    rows = facts(arrays, stats, metadata)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _shorten(text: str) -> str:
    """:return: One line, short enough for a table"""
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."

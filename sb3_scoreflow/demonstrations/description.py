"""What demonstrations hold, as a table to read."""

from typing import TYPE_CHECKING

from sb3_scoreflow.demonstrations.arrays import describe_array, named_observations

if TYPE_CHECKING:
    from sb3_scoreflow.demonstrations.container import Demonstrations

_MAX_TEXT = 100


def describe(demonstrations: "Demonstrations") -> str:
    """
    :param demonstrations: What to describe
    :return: See :meth:`~sb3_scoreflow.demonstrations.container.Demonstrations.describe`
    """
    stats, metadata = demonstrations.statistics(), demonstrations.metadata
    arrays = {**named_observations(demonstrations.observations), "actions": demonstrations.actions}
    rows = {
        "source": str(metadata.get("source", "collected" if "policy" in metadata else "not recorded")),
        "episodes": f"{demonstrations.n_episodes:,}",
        "transitions": f"{len(demonstrations):,}",
        "return": "{return_mean:.1f} +/- {return_std:.1f}, {return_min:.1f} to {return_max:.1f}".format(**stats),
        "episode length": "{length_mean:.1f}, {length_min:.0f} to {length_max:.0f}".format(**stats),
        "terminated": f"{stats['terminated_fraction']:.1%} of the episodes",
        **{name: describe_array(arrays[name]) for name in sorted(arrays)},
        **{f"metadata: {key}": _shorten(str(value)) for key, value in metadata.items() if key != "source"},
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _shorten(text: str) -> str:
    """:return: One line, short enough for a table"""
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."

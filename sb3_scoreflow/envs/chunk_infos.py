"""Merging the infos of the steps inside a chunk."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Entries that every chunk's info has.
_OWN = ("is_success", "n_env_steps", "episode", "TimeLimit.truncated", "terminal_observation")


def check_sum_infos(sum_infos: str | Sequence[str]) -> tuple[str, ...]:
    """
    :param sum_infos: names of entries, or a single name
    :return: the names
    :raises ValueError: if one is not a name, or names an entry that cannot be summed
    """
    names = (sum_infos,) if isinstance(sum_infos, str) else tuple(sum_infos)
    for name in names:
        if not isinstance(name, str) or name in _OWN:
            raise ValueError(
                f"`sum_infos` must be names of numeric entries of the environment's `info`, such as 'cost', got {name!r}. "
                f"Leave it out; a chunk's info always has {', '.join(_OWN)}."
            )
    return names


class ChunkInfos:
    """
    Collects entries of all steps of a chunk, which its last info alone does not contain.

    ``is_success`` is true if it was true in any step; sums are over all steps, without discount. Both are left out if no step
    had them, and both may be dicts or arrays, whose entries are treated separately.

    :param sum_infos: names of the entries to sum
    """

    def __init__(self, sum_infos: Sequence[str]) -> None:
        self.sum_infos = sum_infos
        self._kept: dict[str, Any] = {}

    def add(self, info: Mapping[str, Any]) -> None:
        """
        :param info: info of the next step
        :raises ValueError: if an entry cannot be summed
        """
        # None means unknown, as in Stable-Baselines3
        if info.get("is_success") is not None:
            self._kept["is_success"] = _either(self._kept.get("is_success"), info["is_success"])
        for name in self.sum_infos:
            if name in info:
                self._kept[name] = _total(self._kept.get(name, 0), info[name], name)

    def complete(self, info: Mapping[str, Any], n_env_steps: int) -> dict[str, Any]:
        """
        :param info: info of the last step
        :param n_env_steps: number of steps
        :return: a copy with the collected entries, because the environment may change its own info later
        """
        return {**info, **self._kept, "n_env_steps": n_env_steps}


def _either(earlier: Any, value: Any) -> Any:
    """Whether one of two values is true, in the type of the later one; the result is a copy."""
    if isinstance(value, Mapping):
        earlier = earlier if isinstance(earlier, Mapping) else {}
        return {**earlier, **{key: _either(earlier.get(key), each) for key, each in value.items()}}
    if isinstance(value, np.ndarray):
        return value.copy() if earlier is None else np.where(np.asarray(earlier, bool), earlier, value).astype(value.dtype)
    return earlier if earlier is not None and bool(earlier) else value


def _total(total: Any, value: Any, name: str) -> Any:
    """The sum of two values; for bools, the number of true ones."""
    if isinstance(value, Mapping):
        total = total if isinstance(total, Mapping) else {}
        return {**total, **{key: _total(total.get(key, 0), each, f"{name}.{key}") for key, each in value.items()}}
    try:
        return total + (value + 0)
    except TypeError as error:
        raise ValueError(
            f"`sum_infos` has {name!r}, but the environment's info has {value!r} for it, which is not a number. Leave it out."
        ) from error

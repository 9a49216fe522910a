"""
Common layouts of arrays in one file, ``.npz`` or a pickled dict, which are recognized by the names of the arrays.

Ambiguous names are not treated as a layout; the error message contains code for them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.demonstrations.arrays import Observations
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError

SCALES = ("obs_min", "obs_max", "action_min", "action_max")
"""Names of the arrays in DPPO's ``normalization.npz``."""

_RANGE_SLACK = 1e-3
_RANGE_EPSILON = 1e-6


class Layout(NamedTuple):
    """Names of arrays, and the function that creates demonstrations from them."""

    program: str
    needed: tuple[str, ...]
    optional: tuple[str, ...]
    make: Callable[..., Demonstrations]
    is_scaled: bool = False
    """Whether the data may be scaled, with the scales in another file, and may contain images."""
    excluded: tuple[str, ...] = ()
    """Names that do not occur in this layout."""


def find_layout(names: Collection[str]) -> Layout | None:
    """
    :param names: Names of arrays
    :return: The layout with these names; None if it is unknown
    """
    return next(
        (layout for layout in LAYOUTS if set(layout.needed) <= set(names) and not set(layout.excluded) & set(names)),
        None,
    )


def _from_flat(arrays: Mapping[str, Any]) -> Demonstrations:
    """D4RL's names: ``terminals`` are terminations, ``timeouts`` truncations."""
    flags = arrays.get("terminals"), arrays["timeouts"]
    return Demonstrations(arrays["observations"], arrays["actions"], arrays.get("rewards"), *map(_column, flags))


def _from_ogbench(arrays: Mapping[str, Any]) -> Demonstrations:
    """OGBench's ``terminals`` mark the ends of recordings, which are truncations."""
    return Demonstrations(arrays["observations"], arrays["actions"], truncations=_column(arrays["terminals"]))


def _from_imitation(arrays: Mapping[str, Any]) -> Demonstrations:
    """imitation's flat arrays before version 1.0: ``indices`` are the starts in ``acts`` of all trajectories but the first."""
    acts, obs, terminal = (np.asarray(arrays[name]) for name in ("acts", "obs", "terminal"))
    indices = np.asarray(arrays["indices"])
    count = len(terminal)
    bounds = np.concatenate([[0], indices, [len(acts)]]) if indices.ndim == 1 else np.empty(0)
    if len(bounds) != count + 1 or (np.diff(bounds) < 1).any() or len(obs) != len(acts) + count:
        raise UnusableFileError(
            f"`indices` of shape {indices.shape}, `terminal` of {terminal.shape}, `acts` of {acts.shape} and `obs` of "
            f"{obs.shape} do not fit: with n trajectories there are n - 1 indices, ascending, and n observations more than "
            "actions."
        )
    rewards = arrays.get("rews")
    return Demonstrations.from_trajectories(
        {
            "obs": obs[start + number : stop + number + 1],
            "acts": acts[start:stop],
            "terminal": bool(terminal[number]),
            **({} if rewards is None else {"rews": rewards[start:stop]}),
        }
        for number, (start, stop) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    )


def _from_dppo(arrays: Mapping[str, Any], scales: Mapping[str, Any] | None) -> Demonstrations:
    """
    The pretraining data of DPPO and ReinFlow. ``terminals`` on the last transition of a trajectory is a termination.

    :param arrays: Arrays of the file
    :param scales: The arrays of its ``normalization.npz``; None: the data are not rescaled
    """
    lengths = np.asarray(arrays["traj_lengths"])
    vectors = {name: np.asarray(arrays[name]) for name in ("states", "actions")}
    count = len(vectors["actions"])
    is_integer = lengths.ndim == 1 and lengths.dtype.kind in "iu"
    if not is_integer or (lengths < 1).any() or lengths.sum() != count:
        raise UnusableFileError(
            f"`traj_lengths`, {lengths.tolist()!r:.99}, must be positive integers that sum up to the {count} actions."
        )
    if scales is not None:
        for name, prefix in (("states", "obs"), ("actions", "action")):
            vectors[name] = _unscale(name, vectors[name], scales[f"{prefix}_min"], scales[f"{prefix}_max"])
    ends = np.zeros(count, np.bool_)
    ends[np.cumsum(lengths) - 1] = True
    terminals = arrays.get("terminals")
    terminations = np.zeros_like(ends) if terminals is None else ends & np.asarray(_column(terminals)).astype(np.bool_)
    observations: Observations = vectors["states"]
    if "images" in arrays:
        observations = {"state": vectors["states"], **_cameras(np.asarray(arrays["images"]))}
    return Demonstrations(observations, vectors["actions"], arrays.get("rewards"), terminations, ends & ~terminations)


def warn_if_scaled(arrays: Mapping[str, Any]) -> None:
    """
    :param arrays: In DPPO's layout, without their scales
    """
    if all(_is_scaled(np.asarray(arrays[name])) for name in ("states", "actions")):
        warn(
            "All `states` and `actions` lie in [-1, 1], so they seem to be scaled, as DPPO's data are, but no "
            "normalization.npz was read. They stay unchanged: scale the environment in the same way. If there is such a "
            "file, put it beside the data, in an .npz file, or pass its path as `normalization`."
        )


def _is_scaled(array: np.ndarray) -> bool:
    return bool(np.abs(array).max(initial=0) <= 1 + _RANGE_SLACK)


def _unscale(name: str, array: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """
    :param name: Name of the array, for the error message
    :param array: ``(N, d)``, scaled to [-1, 1]
    :param low: ``(d,)``, the original values that correspond to -1
    :param high: ``(d,)``, the original values that correspond to 1
    :return: The original values, before DPPO's ``2 (x - low) / (high - low + 1e-6) - 1``
    :raises UnusableFileError: if the array does not have this scale
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if array.ndim < 1 or low.shape != array.shape[1:] or high.shape != low.shape:
        raise UnusableFileError(
            f"`{name}` has shape {array.shape}, but its scales in normalization.npz have {low.shape} and {high.shape}. Pass "
            "the path of the right file as `normalization`, or False to keep the data unchanged."
        )
    if not _is_scaled(array):
        raise UnusableFileError(
            f"`{name}` has values outside of [-1, 1], {array.min():.4g} to {array.max():.4g}, so it was not scaled by the "
            "normalization.npz beside it. Pass `normalization=False` to keep the data unchanged."
        )
    return ((array.astype(np.float64) + 1) / 2 * (high - low + _RANGE_EPSILON) + low).astype(np.float32)


def _cameras(images: np.ndarray) -> dict[str, np.ndarray]:
    """
    :param images: uint8 ``(N, 3 * n, height, width)``, the channels of n cameras one after the other
    :return: Camera -> images, ``(N, height, width, 3)``
    :raises UnusableFileError: if the images have another shape or type
    """
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] % 3 or not images.shape[1]:
        raise UnusableFileError(
            f"`images` has shape {images.shape} and type {images.dtype}; DPPO uses (N, channels, height, width) and uint8, "
            "with three channels per camera. Leave `images` out."
        )
    count = images.shape[1] // 3
    cameras = [np.ascontiguousarray(images[:, 3 * i : 3 * i + 3].transpose(0, 2, 3, 1)) for i in range(count)]
    return {"rgb" if count == 1 else f"rgb_{i}": camera for i, camera in enumerate(cameras)}


def _column(flags: Any) -> Any:
    """:return: Flags of shape ``(N,)``, converted from ``(N, 1)`` if necessary"""
    array = None if flags is None else np.asarray(flags)
    return array[:, 0] if array is not None and array.ndim == 2 and array.shape[1] == 1 else array


def describe_layouts() -> str:
    """:return: The names of the arrays in each layout, for messages"""

    def listed(layout: Layout) -> Iterable[str]:
        return (f"`{name}`" for name in layout.needed)

    return "; ".join(f"{layout.program}: {', '.join(listed(layout))}" for layout in LAYOUTS)


LAYOUTS = (
    Layout("imitation", ("obs", "acts", "indices", "terminal"), ("rews",), _from_imitation),
    Layout("DPPO", ("states", "actions", "traj_lengths"), ("rewards", "terminals"), _from_dppo, is_scaled=True),
    Layout("D4RL", ("observations", "actions", "timeouts"), ("rewards", "terminals"), _from_flat),
    Layout("OGBench", ("observations", "actions", "terminals"), (), _from_ogbench, excluded=("rewards", "truncations")),
)
"""The first layout that fits is used."""

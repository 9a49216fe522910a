"""Checks and conversions of the arrays that make up demonstrations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sb3_scoreflow.demonstrations.conversion import rows_of_dicts, to_numbers
from sb3_scoreflow.demonstrations.lazy import LazyImages

Array = np.ndarray | LazyImages
"""An array of shape ``(N, ...)``, in memory or in a file."""
Observations = Array | dict[str, Array]
"""One array of shape ``(N, ...)``, or one such array per key of a ``Dict`` observation space."""
LoadedObservations = np.ndarray | dict[str, np.ndarray]
"""Observations of the same structure, in memory."""
Mapped = TypeVar("Mapped")

_BLOCK_ROWS = 256


def map_observations(
    function: Callable[[Any], Mapped], observations: Array | Mapping[str, Array]
) -> Mapped | dict[str, Mapped]:
    """
    :param function: Applied to the array, or to the array of every key
    :param observations: Observations
    :return: Observations of the same structure
    """
    if isinstance(observations, Mapping):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


def named_observations(observations: Array | Mapping[str, Array]) -> dict[str, Array]:
    """
    :param observations: An array or a dict of arrays
    :return: The arrays by their names in error messages: ``observations`` or ``observations['key']``
    """
    if isinstance(observations, Mapping):
        return {f"observations[{key!r}]": value for key, value in observations.items()}
    return {"observations": observations}


def clean_observations(observations: Any) -> Observations:
    """
    :param observations: Array-like, a mapping from str to array-like, or a sequence of mappings, one per transition
    :return: Checked arrays, see :func:`clean_array`; images in files, which have type uint8, are not read
    :raises ValueError: if a mapping is empty or has keys that are not str, or an array is invalid
    """
    if isinstance(observations, LazyImages):
        return observations
    observations = rows_of_dicts(observations) or observations
    if not isinstance(observations, Mapping):
        return clean_array("observations", observations)
    if not observations or not all(isinstance(key, str) for key in observations):
        raise ValueError(
            f"`observations` is a dict with the keys {list(observations)}; it needs at least one key, and only str keys."
        )
    return {
        key: value if isinstance(value, LazyImages) else clean_array(f"observations[{key!r}]", value)
        for key, value in observations.items()
    }


def select_rows(array: Array, rows: slice | np.ndarray) -> Array:
    """
    :param array: ``(N, ...)``
    :param rows: slice or vector of integers
    :return: These rows; images in a file are not read
    """
    return array.select(rows) if isinstance(array, LazyImages) else array[rows]


def concatenate(arrays: Sequence[Array]) -> Array:
    """
    :param arrays: At least one array; all with the same type and, except for the first dimension, the same shape
    :return: The concatenated array; images in files are not read
    """
    if any(isinstance(array, LazyImages) for array in arrays):
        return LazyImages.concatenate(arrays)
    return np.concatenate([np.asarray(array) for array in arrays])


def clean_array(name: str, values: Any) -> np.ndarray:
    """
    Convert to an array in which floating-point numbers are float32; integers (including uint8 images) and bools keep their
    type. An array that already has the right type is not copied.

    :param name: Name of the array in error messages
    :param values: Array-like of shape ``(N, ...)``, see :func:`~sb3_scoreflow.demonstrations.conversion.to_numbers`
    :return: The array, in the machine's byte order
    :raises ValueError: if the values are not numbers, not finite as float32, or a single scalar
    """
    array = to_numbers(name, values)
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):  # overflow is reported below, with its index
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.unravel_index(np.argmin(finite), finite.shape))
        n_bad = finite.size - np.count_nonzero(finite)
        raise ValueError(
            f"`{name}` has {n_bad} value(s) that are NaN or infinite as float32, the first at "
            f"index {first}. Remove the episodes they belong to."
        )
    return array


def clean_vector(name: str, values: Any) -> np.ndarray:
    """
    :param name: Name of the array in error messages
    :param values: Array-like of shape ``(N,)`` or ``(N, 1)``
    :return: float32 array of shape ``(N,)``
    :raises ValueError: if the shape is wrong, or for the reasons of :func:`clean_array`
    """
    return _as_vector(name, values, "value").astype(np.float32, copy=False)


def clean_flags(name: str, values: Any) -> np.ndarray:
    """
    :param name: Name of the array in error messages
    :param values: Array-like of shape ``(N,)`` or ``(N, 1)``: bools, or numbers that are 0 or 1
    :return: bool array of shape ``(N,)``
    :raises ValueError: if the shape or a value is invalid
    """
    array = _as_vector(name, values, "flag")
    others = array[(array != 0) & (array != 1)]
    if len(others):
        raise ValueError(
            f"`{name}` holds values other than 0 and 1, such as {others[0]:.6g}; it must hold one flag per transition. If x "
            "numbers the episodes, pass np.append(x[1:] != x[:-1], True); if x has their lengths, "
            "np.isin(np.arange(np.sum(x)), np.cumsum(x) - 1); if x has discounts, x == 0."
        )
    return array.astype(np.bool_, copy=False)


def _as_vector(name: str, values: Any, noun: str) -> np.ndarray:
    """
    :param name: Name of the array in error messages
    :param values: Array-like of shape ``(N,)`` or ``(N, 1)``
    :param noun: Name of an entry in error messages
    :return: Array of shape ``(N,)``
    :raises ValueError: if the shape is wrong, or for the reasons of :func:`clean_array`
    """
    array = clean_array(name, values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` has shape {array.shape}; it must have one {noun} per transition, shape (N,). If all arrays are "
            "episodes of equal length, of shape (n_episodes, n_steps, ...), put them one after the other: "
            "x.reshape(-1, *x.shape[2:])."
        )
    return array


def clean_metadata(metadata: Mapping[str, Any] | None) -> dict[str, str | int | float | bool]:
    """
    :param metadata: Facts about the data, such as ``{"env": "Hopper-v5", "seed": 0}``
    :return: A copy, numpy scalars turned into Python's
    :raises ValueError: if it is not a mapping, a key is not a str, or a value is not a str, number or bool, which files can
        store
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ValueError(f"`metadata` is {metadata!r:.99}. Pass a dict, such as {{'env': 'Hopper-v5'}}, or leave it out.")
    clean = {}
    for key, value in (metadata or {}).items():
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(key, str) or not isinstance(value, (str, int, float, bool)):
            raise ValueError(
                f"`metadata[{key!r}]` is {value!r}; keys must be str, values str, int, float or bool."
                " Files cannot store other types: convert them."
            )
        clean[key] = value
    return clean


def describe_array(array: Array) -> str:
    """
    :param array: ``(N, *shape)`` with at least one entry
    :return: Its shape and type, the range of its values, and the ranges of its components' means and standard deviations
    """
    if array.size == 0:
        return f"{array.shape[1:]} {array.dtype}"
    # In blocks, because images, or a copy of them as float64, may not fit into memory. Each block is read once, and its
    # moments are merged with those of previous blocks (Chan et al., 1983, "Algorithms for computing the sample variance", Eq.
    # 2.1)
    n_rows, means, deviations = 0, np.float64(0), np.float64(0)
    low, high = np.inf, -np.inf
    for start in range(0, len(array), _BLOCK_ROWS):
        block = array[start : start + _BLOCK_ROWS]
        n_rows += len(block)
        block_means = block.mean(axis=0, dtype=np.float64)
        delta = block_means - means
        means = means + delta * (len(block) / n_rows)
        deviations = deviations + ((block - block_means) ** 2).sum(axis=0)
        deviations = deviations + delta**2 * (len(block) * (n_rows - len(block)) / n_rows)
        low, high = min(low, block.min()), max(high, block.max())
    stds = np.sqrt(deviations / n_rows)
    return (
        f"{array.shape[1:]} {array.dtype}; values {low:.3g} to {high:.3g}, "
        f"means {means.min():.3g} to {means.max():.3g}, stds {stds.min():.3g} to {stds.max():.3g}"
    )

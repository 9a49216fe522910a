"""Checks and conversions of the arrays that make up demonstrations."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Observations = np.ndarray | dict[str, np.ndarray]
"""One array of shape ``(N, ...)``, or one such array per key of a ``Dict`` observation space."""

_BLOCK_ROWS = 256


def map_observations(function: Callable[[np.ndarray], np.ndarray], observations: Observations) -> Observations:
    """
    :param function: Applied to the array, or to the array of every key
    :param observations: What to apply it to
    :return: Observations of the same structure
    """
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


def named_observations(observations: Observations) -> dict[str, np.ndarray]:
    """
    :param observations: An array or a dict of arrays
    :return: The arrays under the names that error messages give them: ``observations`` or ``observations['key']``
    """
    if isinstance(observations, dict):
        return {f"observations[{key!r}]": value for key, value in observations.items()}
    return {"observations": observations}


def clean_observations(observations: Any) -> Observations:
    """
    :param observations: Array-like, or a mapping from str to array-like
    :return: Checked arrays, see :func:`clean_array`
    :raises ValueError: if a mapping is empty or has keys that are not str, or an array does not pass
    """
    if not isinstance(observations, Mapping):
        return clean_array("observations", observations)
    if not observations or not all(isinstance(key, str) for key in observations):
        raise ValueError(
            f"`observations` is a dict with the keys {list(observations)}; it needs at least one key, and only str keys."
        )
    return {key: clean_array(f"observations[{key!r}]", value) for key, value in observations.items()}


def clean_array(name: str, values: Any) -> np.ndarray:
    """
    Floating-point numbers become float32, integers (uint8 images among them) and bools keep their type.
    An array that already has the right type is not copied.

    :param name: What error messages call it
    :param values: Array-like of shape ``(N, ...)``
    :return: The array
    :raises ValueError: if the values are not numbers, not finite as float32, or a single scalar
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` has dtype {array.dtype}; demonstrations hold numbers only. Convert it to numbers first.")
    if array.ndim == 0:
        raise ValueError(f"`{name}` is a single scalar; its first dimension must count the transitions.")
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):  # what overflows is reported below, with its index
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
    :param name: What error messages call it
    :param values: Array-like of shape ``(N,)``
    :return: float32 array of shape ``(N,)``
    :raises ValueError: if the shape is another one, or see :func:`clean_array`
    """
    array = clean_array(name, values)
    if array.ndim != 1:
        raise ValueError(f"`{name}` has shape {array.shape}; it must have one value per transition, shape (N,).")
    return array.astype(np.float32, copy=False)


def clean_flags(name: str, values: Any) -> np.ndarray:
    """
    :param name: What error messages call it
    :param values: Array-like of shape ``(N,)``: bools, or numbers that are 0 or 1
    :return: bool array of shape ``(N,)``
    :raises ValueError: if the shape or a value is another one
    """
    array = clean_array(name, values)
    if array.ndim != 1:
        raise ValueError(f"`{name}` has shape {array.shape}; it must have one flag per transition, shape (N,).")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise ValueError(f"`{name}` holds values other than 0 and 1; it must hold one flag per transition.")
    return array.astype(np.bool_, copy=False)


def clean_metadata(metadata: Mapping[str, Any] | None) -> dict[str, str | int | float | bool]:
    """
    :param metadata: Facts about the data, such as ``{"env": "Hopper-v5", "seed": 0}``
    :return: A copy, numpy scalars turned into Python's
    :raises ValueError: if a key is not a str, or a value not a str, number or bool (a file could not hold it)
    """
    clean = {}
    for key, value in (metadata or {}).items():
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(key, str) or not isinstance(value, (str, int, float, bool)):
            raise ValueError(
                f"`metadata[{key!r}]` is {value!r}; keys must be str, values str, int, float or bool."
                " Other types do not fit into a file: convert them."
            )
        clean[key] = value
    return clean


def describe_array(array: np.ndarray) -> str:
    """
    :param array: ``(N, *shape)`` with at least one entry
    :return: Its shape and type, the range of its values, and the ranges of its components' means and standard deviations
    """
    if array.size == 0:
        return f"{array.shape[1:]} {array.dtype}"
    n_rows = len(array)
    # In blocks: of images, a copy of all as float64 may not fit into memory
    blocks = [slice(start, start + _BLOCK_ROWS) for start in range(0, n_rows, _BLOCK_ROWS)]
    means = sum(array[block].sum(axis=0, dtype=np.float64) for block in blocks) / n_rows
    variances = sum(((array[block] - means) ** 2).sum(axis=0) for block in blocks) / n_rows
    stds = np.sqrt(variances)
    return (
        f"{array.shape[1:]} {array.dtype}; values {array.min():.3g} to {array.max():.3g}, "
        f"means {means.min():.3g} to {means.max():.3g}, stds {stds.min():.3g} to {stds.max():.3g}"
    )

"""Conversion of users' data (tensors, data frames, lists of arrays) to arrays of numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

EPISODES_ADVICE = (
    "Demonstrations.from_trajectories takes episodes one by one, as dicts: [{'obs': ..., 'acts': ..., 'rews': ..., "
    "'terminal': True}, ...]"
)


def to_numbers(name: str, values: Any) -> np.ndarray:
    """
    :param name: Name of the array in error messages
    :param values: Array-like of shape ``(N, ...)``: arrays, lists, tensors (on any device, with or without gradient), columns
        of data frames, and lists or columns of equally shaped arrays
    :return: Array of bools, integers or floating-point numbers, in the machine's byte order
    :raises ValueError: if the values are not numbers, are masked, are a single scalar, or differ in shape
    """
    if hasattr(values, "toarray") or (isinstance(values, th.Tensor) and values.layout is not th.strided):
        method = "to_dense" if isinstance(values, th.Tensor) else "toarray"
        raise ValueError(f"`{name}` is sparse, of type {type(values).__name__}; arrays must be dense. Pass it by .{method}().")
    if np.ma.is_masked(values):
        raise ValueError(
            f"`{name}` has {np.ma.count_masked(values)} masked value(s). Remove the episodes that "
            "they belong to, or fill them: .filled(...)."
        )
    array = as_array(name, values)
    while array.dtype == np.object_ and array.ndim:
        stacked = as_array(name, array.tolist())
        if stacked.dtype == np.object_ and stacked.shape == array.shape:
            break
        array = stacked
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"`{name}` has dtype {array.dtype}{_kind(values, array)}; demonstrations contain only numbers. {_remedy(array)}"
        )
    if array.ndim == 0:
        raise ValueError(f"`{name}` is a single scalar; its first dimension must count the transitions.")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def rows_of_dicts(values: Any) -> dict[str, list[Any]] | None:
    """
    :param values: Any observations
    :return: A list of values per key if the observations are a sequence of dicts with the same keys, one per transition; else
        None
    :raises ValueError: if the dicts differ in their keys
    """
    if not isinstance(values, (list, tuple)) and getattr(values, "dtype", None) != np.object_:
        return None
    rows = list(np.atleast_1d(values)) if not isinstance(values, (list, tuple)) else values
    if not rows or not all(isinstance(row, Mapping) and row for row in rows):
        return None
    odd = [number for number, row in enumerate(rows) if set(row) != set(rows[0])]
    if odd:
        raise ValueError(
            f"`observations` is a list of dicts with different keys: number {odd[0]} has {list(rows[odd[0]])}, and number "
            f"0 has {list(rows[0])}. All must have the same keys."
        )
    return {key: [row[key] for row in rows] for key in rows[0]}


def as_array(name: str, values: Any) -> np.ndarray:
    """
    :return: The array; its dtype is object if numpy cannot convert the elements
    :raises ValueError: if elements differ in shape
    """
    try:
        return np.asarray(without_tensors(values))
    except ValueError as error:  # "inhomogeneous shape"
        shapes = [np.shape(without_tensors(value)) for value in list(values)[:2]]
        raise ValueError(
            f"`{name}` holds entries of different shapes (the first two: {shapes}), so they are not transitions. If they are "
            f"episodes: {EPISODES_ADVICE}."
        ) from error


def without_tensors(values: Any) -> Any:
    """:return: The same values, with tensors converted to arrays"""
    if isinstance(values, th.Tensor):
        # numpy has no bfloat16; floating-point numbers end up as float32 anyway
        return (values.float() if values.is_floating_point() else values).detach().cpu().numpy()
    # Only the first element is checked: checking all would take longer than creating the array
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], (th.Tensor, list, tuple)):
        return [without_tensors(value) for value in values]
    return values


def _kind(values: Any, array: np.ndarray) -> str:
    """:return: Additional information about an array that does not contain numbers"""
    if array.dtype != np.object_:
        return ""
    if array.ndim == 0:
        return f" (it is a {type(values).__name__})"
    entries = array.ravel().tolist()
    odd = next((entry for entry in entries if not isinstance(entry, (bool, int, float))), entries[0])
    return f" (there is a {type(odd).__name__} in it)"


def _remedy(array: np.ndarray) -> str:
    """:return: Instructions for converting the array to numbers"""
    if array.dtype.kind == "c":
        return "Convert it to numbers first: np.concatenate([x.real, x.imag], axis=-1)."
    if array.dtype.names is not None:
        return f"Pass a dict of its fields: {{name: x[name] for name in {array.dtype.names}}}."
    return "Convert it to numbers first."

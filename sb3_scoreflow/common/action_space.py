"""Action spaces that flow policies support, remedies for the others, and the conversion of policy outputs to actions."""

from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_scoreflow.common.utils import ArgumentError

#: Bounds of this magnitude stand for "unbounded": MuJoCo writes 1e10, others the largest number of a type.
NO_BOUND = 1e9

#: float32, the type of networks and demonstrations, must be able to represent this many different actions between the bounds.
_LEVELS = 256

Array = TypeVar("Array", np.ndarray, th.Tensor)


def decode_action(records: Array, low: Array, high: Array) -> Array:
    """
    Convert outputs of a policy to the environment's actions. Rollouts, ``predict`` and exports all use this function.

    :param records: normalized actions, or records that end with them (such as flattened denoising chains), shape ``(batch,
        ...)``
    :param low: lower bounds of an action, shape ``action_shape``
    :param high: upper bounds of an action, same shape
    :return: actions within the bounds, shape ``(batch, *action_shape)``, in the wider of the two dtypes
    """
    batch, width = records.shape[0], int(np.prod(low.shape))
    action = records.reshape(batch, -1)[:, -width:].reshape(batch, *low.shape)
    # Rounding may carry the rescaled action past its bound by one unit in the last place: clip on both sides.
    return (low + 0.5 * (action.clip(-1.0, 1.0) + 1.0) * (high - low)).clip(low, high)


def check_action_space(space: spaces.Space, name: str = "action_space") -> None:
    """
    :param space: action space to check
    :param name: its name in messages
    :raises ArgumentError: if it is not a floating-point Box with low < high and finite bounds below 1e9, or its bounds are
        float64 numbers that are (nearly) equal in float32
    """
    if not isinstance(space, spaces.Box):
        raise ArgumentError(
            f"{name} must be a Box (flow policies generate continuous actions), got {space}: take a method for discrete "
            "actions, such as stable_baselines3.PPO."
        )
    if not np.issubdtype(space.dtype, np.floating):
        box = "gymnasium.spaces.Box(env.action_space.low.astype('float32'), env.action_space.high.astype('float32'))"
        raise ArgumentError(
            f"{name} must have a floating-point dtype, got {space.dtype}: let a wrapper round its actions, "
            f"env = gymnasium.wrappers.TransformAction(env, lambda action: action.round().astype('{space.dtype}'), {box})"
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)  # where nothing overflows
    bounded = (np.abs(low) < NO_BOUND) & (np.abs(high) < NO_BOUND)  # also False for NaN
    if not bounded.all():
        raise ArgumentError(
            f"{name} must have finite bounds, of less than {NO_BOUND:.0e} (larger ones stand for unbounded), got "
            f"{_ranges(space, ~bounded)}. If gymnasium.wrappers.ClipAction makes them infinite, leave it out: actions never "
            "leave the bounds. Otherwise give each environment bounds, such as the range of your demonstrations: env = "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, "
            "gymnasium.spaces.Box(demonstrations.actions.min(0), demonstrations.actions.max(0)))"
        )
    fixed = low >= high
    if fixed.any():
        raise ArgumentError(
            f"{name} must have low < high in every dimension, got {_ranges(space, fixed)}: let a wrapper fill in the "
            f"fixed values, and leave them out of demonstrations, {_fill_in(space, fixed)}"
        )
    # float32 represents a float32 (or float16) space exactly
    step = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32))
    coarse = (space.dtype == np.float64) & (_LEVELS * step.astype(np.float64) > high - low)
    if coarse.any():
        raise ArgumentError(
            f"{name} has float64 bounds that float32, in which networks compute, can hardly tell apart, got "
            f"{_ranges(space, coarse)}: rescale it, env = gymnasium.wrappers.RescaleAction(env, -1.0, 1.0), and "
            "demonstrations likewise, before they become float32"
        )


def _ranges(space: spaces.Box, chosen: Any, most: int = 3) -> str:
    """The bounds of some dimensions, for a message."""
    indices = np.argwhere(chosen)
    parts = [f"[{space.low[tuple(i)]}, {space.high[tuple(i)]}] in {_dimension(i)}" for i in indices[:most]]
    return ", ".join([*parts, *(["..."] if len(indices) > most else [])])


def _dimension(index: np.ndarray) -> str:
    return f"dimension {index[0] if len(index) == 1 else tuple(index.tolist())}" if len(index) else "its one dimension"


def _fill_in(space: spaces.Box, fixed: np.ndarray) -> str:
    """A wrapper that leaves out the fixed dimensions, as code."""
    free, where = ~fixed.ravel(), np.flatnonzero(fixed)
    values = space.low.ravel()[where].tolist()
    # numpy.insert counts positions in its input array
    positions = (where - np.arange(len(where))).tolist()
    low, high = (f"numpy.array({bound.ravel()[free].tolist()}, '{space.dtype}')" for bound in (space.low, space.high))
    box = f"gymnasium.spaces.Box({low}, {high}, dtype='{space.dtype}')"
    filled = f"numpy.insert(action, {positions}, {values}).reshape({space.shape})"
    return f"env = gymnasium.wrappers.TransformAction(env, lambda action: {filled}, {box})"

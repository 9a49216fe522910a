"""Axes, figures and colors for all plots."""

from typing import Any

import numpy as np

from sb3_scoreflow.common.utils import ArgumentError


def axes_of(ax: Any) -> Any:
    """
    :param ax: axes, or None
    :return: the axes, or those of a new figure that does not belong to a backend
    """
    return new_figure().subplots() if ax is None else ax


def new_figure(**kwargs: Any) -> Any:
    """
    :param kwargs: arguments of matplotlib's ``Figure``
    :return: a figure
    :raises ImportError: if matplotlib is not installed
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'Pictures need matplotlib ({error}): pip install "sb3-scoreflow[plotting]"') from error
    return Figure(layout="constrained", **kwargs)


def shade(fraction: float) -> Any:
    """
    :param fraction: position on the color scale, in [0, 1]
    :return: a color, from dark to bright
    """
    from matplotlib import colormaps

    return colormaps["viridis"](float(np.clip(fraction, 0, 1)))


def check_dims(dims: tuple[int, int], action_dim: int) -> tuple[int, int]:
    """
    :param dims: two dimensions of the flattened action
    :param action_dim: number of dimensions
    :return: the dimensions
    :raises ArgumentError: if they are not two different dimensions of the action
    """
    if len(dims) != 2 or dims[0] == dims[1] or not all(0 <= dim < action_dim for dim in dims):
        raise ArgumentError(
            f"dims must be two different dimensions of the flattened action, in [0, {action_dim}), got {dims!r}: pass (0, 1)."
        )
    return dims

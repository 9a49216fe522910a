"""
Mathematics of flow matching: pure functions on tensors, no state, no networks.

Notation: ``x_0 ~ N(0, I)`` is noise at ``t = 0``, ``x_1`` is data (an action in ``[-1, 1]``) at ``t = 1``. Every function
keeps the dtype and the device of its tensors, and broadcasts ``t`` against ``x``.

Sources: Lipman et al., "Flow Matching for Generative Modeling" (arXiv 2210.02747) for path, target and loss; ScoRe-Flow (arXiv
2604.10962, Section 3) for the closed-form score and the marginal-preserving SDE.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch as th

#: The time of a step: a number, or features computed from it
Time = TypeVar("Time")


def interpolate(noise: th.Tensor, data: th.Tensor, t: th.Tensor) -> th.Tensor:
    """
    Point on the linear path from noise to data, ``x_t = (1 - t) x_0 + t x_1`` (arXiv 2210.02747, Eq. 22 with sigma_min = 0).

    :param noise: ``x_0``, shape ``(..., dim)``
    :param data: ``x_1``, same shape
    :param t: time in [0, 1], broadcastable to ``noise``
    :return: ``x_t``, same shape
    """
    return (1 - t) * noise + t * data


def velocity_target(noise: th.Tensor, data: th.Tensor) -> th.Tensor:
    """
    Velocity of the linear path, ``x_1 - x_0``: the regression target of a velocity field (arXiv 2210.02747, Eq. 23).

    :param noise: ``x_0``, shape ``(..., dim)``
    :param data: ``x_1``, same shape
    :return: the target, same shape
    """
    return data - noise


def time_grid(denoising_steps: int, *, dtype: th.dtype | None = None, device: th.device | str | None = None) -> th.Tensor:
    """
    Times at which the velocity field is evaluated, ``t_k = k / K`` for ``k = 0 .. K - 1``.

    Both sampling and scoring use this grid; with two different grids, the initial PPO ratio would differ from 1.

    :param denoising_steps: number ``K`` of steps, at least 1
    :param dtype: dtype of the grid (torch's default dtype if None)
    :param device: device of the grid
    :return: shape ``(K,)``
    :raises ValueError: if ``denoising_steps`` is smaller than 1
    """
    if denoising_steps < 1:
        raise ValueError(f"denoising_steps must be at least 1, got {denoising_steps}.")
    return th.arange(denoising_steps, dtype=dtype or th.get_default_dtype(), device=device) / denoising_steps


def score_from_velocity(velocity: th.Tensor, x: th.Tensor, t: th.Tensor) -> th.Tensor:
    """
    Score of the marginal density, ``grad_x log p_t(x) = (t v - x) / (1 - t)`` (arXiv 2604.10962, Section 3).

    Exact for the linear path from a standard normal when ``v`` is the exact marginal velocity. It has a pole at ``t = 1``,
    which :func:`time_grid` never contains.

    :param velocity: ``v(x, t)``, shape ``(..., dim)``
    :param x: ``x_t``, same shape
    :param t: time in [0, 1), broadcastable to ``x``
    :return: the score, same shape
    """
    return (t * velocity - x) / (1 - t)


def endpoint(x: th.Tensor, velocity: th.Tensor, t: th.Tensor) -> th.Tensor:
    """
    Expected end of the path given a point on it, ``E[x_1 | x_t] = x_t + (1 - t) v(x_t, t)`` (arXiv 2606.08602, Section 4).

    :param x: ``x_t``, shape ``(..., dim)``
    :param velocity: ``v(x_t, t)``, same shape
    :param t: time in [0, 1], broadcastable to ``x``
    :return: the endpoint, same shape
    """
    return x + (1 - t) * velocity


def chain(step: Callable[[th.Tensor, Time], th.Tensor], noise: th.Tensor, times: Iterable[Time]) -> list[th.Tensor]:
    """
    The loop from noise to data, which all samplers of this package use.

    :param step: function that returns the next point from ``x_t`` and its time
    :param noise: ``x_0``, shape ``(..., dim)``
    :param times: second argument of ``step`` in each of the ``K`` steps
    :return: the ``K + 1`` points, each with the shape of ``noise``
    """
    points = [noise]
    for time in times:
        points.append(step(points[-1], time))
    return points

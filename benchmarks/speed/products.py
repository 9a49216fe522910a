"""A lower bound of the time: only the matrix products of an MLP, computed with ``torch.mm`` into existing buffers."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch as th

from benchmarks.speed.setting import ACTION_DIM, NET_ARCH, OBS_DIM, TIME_DIM


def products(rows: int, widths: Sequence[int], calls: int = 1, backward: bool = False) -> Callable[[], None]:
    """
    :param rows: number of rows of the batch
    :param widths: widths of input, hidden layers and output
    :param calls: number of repetitions
    :param backward: whether to include the products of the backward pass, with respect to weights and inputs
    :return: function that computes the products
    """
    sizes = list(pairwise(widths))
    weights = [th.randn(a, b) for a, b in sizes]
    inputs, outputs = [th.randn(rows, a) for a, _ in sizes], [th.randn(rows, b) for _, b in sizes]
    weight_gradients, input_gradients = [th.empty(a, b) for a, b in sizes], [th.empty(rows, a) for a, _ in sizes]

    def run() -> None:
        for _ in range(calls):
            for x, w, y in zip(inputs, weights, outputs, strict=True):
                th.mm(x, w, out=y)
            if backward:
                for x, w, y, gw, gx in zip(inputs, weights, outputs, weight_gradients, input_gradients, strict=True):
                    th.mm(x.T, y, out=gw)
                    th.mm(y, w.T, out=gx)

    return run


def field_products(
    rows: int,
    calls: int = 1,
    backward: bool = False,
    obs_dim: int = OBS_DIM,
    action_dim: int = ACTION_DIM,
    net_arch: Sequence[int] = NET_ARCH["pi"],
) -> Callable[[], None]:
    """:return: function that computes the products of the velocity field, with its input in one piece"""
    return products(rows, [action_dim + TIME_DIM + obs_dim, *net_arch, action_dim], calls, backward)


def critic_products(rows: int, calls: int = 1, backward: bool = False, obs_dim: int = OBS_DIM) -> Callable[[], None]:
    """:return: function that computes the products of the value network"""
    return products(rows, [obs_dim, *NET_ARCH["vf"], 1], calls, backward)

"""The floor: the matrix products of an MLP alone, by ``torch.mm`` into buffers that exist."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch as th

from benchmarks.speed.setting import ACTION_DIM, NET_ARCH, OBS_DIM, TIME_DIM


def products(rows: int, widths: Sequence[int], calls: int = 1, backward: bool = False) -> Callable[[], None]:
    """
    :param rows: of the batch
    :param widths: of input, hidden layers and output
    :param calls: how often it is done
    :param backward: whether also the products of the backward pass, with respect to weights and inputs
    :return: function that does them
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
    """Of the velocity field, its input in one piece."""
    return products(rows, [action_dim + TIME_DIM + obs_dim, *net_arch, action_dim], calls, backward)


def critic_products(rows: int, calls: int = 1, backward: bool = False, obs_dim: int = OBS_DIM) -> Callable[[], None]:
    """Of the value network."""
    return products(rows, [obs_dim, *NET_ARCH["vf"], 1], calls, backward)

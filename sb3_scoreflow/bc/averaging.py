"""The moving average of the weights that becomes the clone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from torch.optim.swa_utils import AveragedModel

#: The average's horizon is at most this share of the completed gradient steps, so that it forgets the initial weights.
_SHARE = 0.025


def warmed_up_average(decay: float) -> Callable[[Any, Any, th.Tensor | int], None]:
    """
    :param decay: decay of the moving average per gradient step after its warm-up, in [0, 1)
    :return: ``AveragedModel``'s ``multi_avg_fn``: ``average += max(1 - decay, 1 / max(n / 40, 1)) (weights - average)`` after
        ``n`` updates (ours)
    """

    @th.no_grad()
    def update(averages: Any, current: Any, n_averaged: th.Tensor | int) -> None:
        th._foreach_lerp_(averages, current, max(1 / max(_SHARE * int(n_averaged), 1.0), 1 - decay))

    return update


def copy_parameters(source: th.nn.Module, target: th.nn.Module) -> None:
    with th.no_grad():
        for new, old in zip(source.parameters(), target.parameters(), strict=True):
            old.copy_(new)


@contextmanager
def averaged_weights(actor: th.nn.Module, average: AveragedModel) -> Iterator[None]:
    """Context manager that gives the actor the averaged weights inside its block."""
    own = [p.detach().clone() for p in actor.parameters()]
    copy_parameters(average.module, actor)
    try:
        yield
    finally:
        with th.no_grad():
            for parameter, value in zip(actor.parameters(), own, strict=True):
                parameter.copy_(value)

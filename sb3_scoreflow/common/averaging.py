"""Averaged weights, which deterministic actions come from while a clone is fine-tuned."""

from copy import deepcopy
from typing import Any, ClassVar

import torch as th
from torch import nn


class AveragedActor(nn.Module):
    """
    The part of a policy that keeps a second copy of the actor: an exponential moving average of its weights (ours).

    There is none until :meth:`start_average`, and deterministic actions then come from the current weights. It is part of the
    state dict, so a saved policy acts as it did; a state without it takes the average away.
    """

    #: Modules that are averaged, those that a policy does not have left out
    averaged_parts: ClassVar[tuple[str, ...]] = ("features_extractor", "velocity_field")
    averaged: nn.ModuleDict | None

    def acting(self, part: str) -> Any:
        """
        :param part: one of :attr:`averaged_parts`
        :return: the module that deterministic actions come from: the average, if there is one
        """
        return getattr(self, part) if self.averaged is None else self.averaged[part]

    def start_average(self) -> None:
        """The average starts at the current weights; one that is there goes on."""
        if self.averaged is None:
            parts = {part: deepcopy(getattr(self, part)) for part in self.averaged_parts if hasattr(self, part)}
            self.averaged = nn.ModuleDict(parts).requires_grad_(False)

    def update_average(self, weight: float) -> None:
        """
        ``average += weight (weights - average)``; buffers (statistics of normalization layers) are copied.

        :param weight: of the current weights, in [0, 1]
        """
        assert self.averaged is not None
        current = nn.ModuleDict({part: getattr(self, part) for part in self.averaged})
        with th.no_grad():
            for average, parameter in zip(self.averaged.parameters(), current.parameters(), strict=True):
                average.lerp_(parameter, weight)
            for kept, buffer in zip(self.averaged.buffers(), current.buffers(), strict=True):
                kept.copy_(buffer)

    def stop_average(self) -> None:
        """Deterministic actions come from the current weights again."""
        self.averaged = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = [name.removeprefix(prefix) for name in state_dict]
        if any(name.startswith("averaged.") for name in names):
            self.start_average()
        elif any(name.startswith("velocity_field.") for name in names):
            self.stop_average()
        super()._load_from_state_dict(state_dict, prefix, *args)

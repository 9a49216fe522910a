"""Averaged weights, which produce deterministic actions while a clone is fine-tuned."""

from copy import deepcopy
from typing import Any, ClassVar

import torch as th
from torch import nn


class AveragedActor(nn.Module):
    """
    The part of a policy that keeps a second copy of the actor: an exponential moving average of its weights (ours).

    Before :meth:`start_average`, there is no average, and deterministic actions come from the current weights. The average is
    part of the state dict, so that a saved policy acts in the same way; loading a state dict without an average removes it.
    """

    #: Names of the averaged modules; names that a policy lacks are skipped
    averaged_parts: ClassVar[tuple[str, ...]] = ("features_extractor", "velocity_field")
    averaged: nn.ModuleDict | None

    def acting(self, part: str) -> Any:
        """
        :param part: one of :attr:`averaged_parts`
        :return: the module for deterministic actions: the average if there is one, else the current module
        """
        return getattr(self, part) if self.averaged is None else self.averaged[part]

    def start_average(self) -> None:
        """Start the average at the current weights; an existing average is kept."""
        if self.averaged is None:
            parts = {part: deepcopy(getattr(self, part)) for part in self.averaged_parts if hasattr(self, part)}
            self.averaged = nn.ModuleDict(parts).requires_grad_(False)

    def update_average(self, weight: float) -> None:
        """
        ``average += weight (weights - average)``; buffers (statistics of normalization layers) are copied.

        :param weight: weight of the current weights, in [0, 1]
        """
        assert self.averaged is not None
        current = nn.ModuleDict({part: getattr(self, part) for part in self.averaged})
        with th.no_grad():
            for average, parameter in zip(self.averaged.parameters(), current.parameters(), strict=True):
                average.lerp_(parameter, weight)
            for kept, buffer in zip(self.averaged.buffers(), current.buffers(), strict=True):
                kept.copy_(buffer)

    def stop_average(self) -> None:
        """Remove the average: deterministic actions come from the current weights again."""
        self.averaged = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        names = [name.removeprefix(prefix) for name in state_dict]
        if any(name.startswith("averaged.") for name in names):
            self.start_average()
        elif any(name.startswith("velocity_field.") for name in names):
            self.stop_average()
        super()._load_from_state_dict(state_dict, prefix, *args)

"""Averaged weights, which produce deterministic actions while a clone is fine-tuned."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_scoreflow.common.observations import take


class AveragedActor(nn.Module):
    """
    The part of a policy that keeps a second copy of the actor: an exponential moving average of its weights (ours).

    Before :meth:`start_average`, there is no average, and deterministic actions come from the current weights. The average is
    part of the state dict, so that a saved policy acts in the same way; loading a state dict without an average removes it.
    """

    #: Names of the averaged modules; names that a policy lacks are skipped
    averaged_parts: ClassVar[tuple[str, ...]] = ("features_extractor", "velocity_field")
    averaged: nn.ModuleDict | None
    _predict: Callable[..., th.Tensor]
    #: Other weights, and the rows of a rollout's observations, shape ``(n_envs,)``, that act deterministically with them
    validation: tuple[nn.ModuleDict, th.Tensor] | None = None

    def acting(self, part: str) -> Any:
        """
        :param part: one of :attr:`averaged_parts`
        :return: the module for deterministic actions: the average if there is one, else the current module
        """
        return getattr(self, part) if self.averaged is None else self.averaged[part]

    def start_average(self) -> None:
        """Start the average at the current weights; an existing average is kept."""
        if self.averaged is None:
            self.averaged = self.copy_acting()

    def copy_acting(self) -> nn.ModuleDict:
        """:return: a copy of the weights that deterministic actions come from, in evaluation mode"""
        parts = {part: deepcopy(self.acting(part)) for part in self.averaged_parts if hasattr(self, part)}
        return nn.ModuleDict(parts).requires_grad_(False).eval()

    def update_average(self, average: nn.ModuleDict, weight: float) -> None:
        """
        ``average += weight (weights - average)``; buffers (statistics of normalization layers) are copied.

        :param average: an average, as :meth:`copy_acting` started it; changed in place
        :param weight: weight of the current weights, in [0, 1]
        """
        current = nn.ModuleDict({part: getattr(self, part) for part in average})
        with th.no_grad():
            for mean, parameter in zip(average.parameters(), current.parameters(), strict=True):
                mean.lerp_(parameter, weight)
            for kept, buffer in zip(average.buffers(), current.buffers(), strict=True):
                kept.copy_(buffer)

    def with_validation(self, obs: PyTorchObs, records: th.Tensor) -> th.Tensor:
        """
        Give the rows of :attr:`validation` deterministic actions with other weights. Algorithms do not learn from these rows.

        :param obs: unnormalized observations of a rollout's step, shape ``(n_envs, ...)`` per part
        :param records: records of actions, shape ``(n_envs, width)``; the last part of a record is its normalized action
        :return: records, same shape
        """
        if self.validation is None or len(self.validation[1]) != len(records):  # not a rollout's step
            return records
        (weights, rows), own = self.validation, self.averaged
        self.averaged = weights
        try:
            actions = self._predict(take(obs, rows), deterministic=True)
        finally:
            self.averaged = own
        records = records.clone()
        records[rows, -actions.shape[-1] :] = actions
        return records

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

"""The logged values of an update."""

from collections.abc import Mapping

import numpy as np
import torch as th


class UpdateLog:
    """
    Values of one update, at most one per name and minibatch. They stay on their device until the end of the update, because
    reading a value makes a GPU finish its queue. The values of a minibatch share one tensor, because many small tensors that
    outlive their minibatch fragment the heap.
    """

    def __init__(self) -> None:
        self.minibatch: dict[str, th.Tensor] = {}  #: values that the current minibatch has recorded, detached
        self._rows: dict[tuple[str, ...], list[th.Tensor]] = {}

    def record(self, numbers: Mapping[str, th.Tensor]) -> None:
        """
        :param numbers: numbers of the current minibatch, tensors of shape ``()``; a name recorded again replaces its number
        """
        self.minibatch.update({name: number.detach() for name, number in numbers.items()})

    def end_minibatch(self) -> None:
        """Store the values that the minibatch has recorded."""
        if self.minibatch:
            self._rows.setdefault(tuple(self.minibatch), []).append(th.stack(list(self.minibatch.values())).float())
            self.minibatch = {}

    def numbers(self) -> dict[str, np.ndarray]:
        """
        One transfer from the device per set of names.

        :return: name -> its numbers in float64, one for each minibatch that recorded it
        """
        parts: dict[str, list[np.ndarray]] = {}
        for names, rows in self._rows.items():
            for name, column in zip(names, th.stack(rows).cpu().double().numpy().T, strict=True):
                parts.setdefault(name, []).append(column)
        return {name: np.concatenate(columns) for name, columns in parts.items()}

    def summary(self) -> dict[str, float]:
        """:return: name -> mean over the minibatches; for names that end in ``_min`` or ``_max``, the minimum or maximum"""
        extremes = {"min": np.min, "max": np.max}
        return {
            name: float(extremes.get(name.rsplit("_", 1)[-1], np.mean)(numbers)) for name, numbers in self.numbers().items()
        }

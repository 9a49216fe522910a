"""The hook for algorithms that also fit their critic to demonstrations."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from sb3_scoreflow.bc.execution import Execution
from sb3_scoreflow.demonstrations import Demonstrations


@runtime_checkable
class FitsCritic(Protocol):
    """An algorithm whose critic can be fitted to demonstrations."""

    def prepare_critic(
        self,
        demonstrations: Demonstrations,
        execution: Execution,
        n_batches: int | None,
        default_batches: int,
        batch_size: int,
        rng: np.random.Generator,
    ) -> Callable[[], dict[str, float]] | None:
        """
        Check, before cloning, whether the critic can be fitted; the returned function is called after cloning.

        :param demonstrations: unnormalized demonstrations to clone
        :param execution: how the environment executes and rewards actions
        :param n_batches: gradient steps; 0: the critic is not fitted; None: ``default_batches`` if fitting is possible, else 0
        :param default_batches: number of gradient steps for ``n_batches=None``
        :param batch_size: transitions per gradient step
        :param rng: generator of the minibatches
        :return: function that fits the critic and returns metrics; None if there is nothing to do
        :raises ValueError: if ``n_batches`` is positive and the critic cannot be fitted
        """

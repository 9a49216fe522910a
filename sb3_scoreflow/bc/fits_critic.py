"""The hook of algorithms that fit more than the actor to demonstrations."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from sb3_scoreflow.bc.execution import Execution
from sb3_scoreflow.demonstrations import Demonstrations


@runtime_checkable
class FitsCritic(Protocol):
    """An algorithm whose critic can be fitted to demonstrations, too."""

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
        Called before cloning, to refuse what is impossible; what it returns is called after it.

        :param demonstrations: what is to be cloned, raw
        :param execution: what the environment says
        :param n_batches: gradient steps, 0 for none, None: ``default_batches`` if possible
        :param default_batches: the default
        :param batch_size: transitions per gradient step
        :param rng: draws the minibatches
        :return: fits the critic, and returns metrics; None if there is nothing to do
        :raises ValueError: if it is asked for and impossible
        """

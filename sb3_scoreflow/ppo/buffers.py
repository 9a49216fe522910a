"""Rollout buffers that store, for each action, everything that the algorithm needs to evaluate it later (its record)."""

from collections.abc import Generator
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer


class WideActions(RolloutBuffer):
    """
    Mixin for a rollout buffer whose actions are records of shape ``(n_steps, n_envs, action_width)``, such as flattened
    denoising chains. The action itself is the last part of its record.

    Transitions can be left out, so that nothing is learned from them. The minibatches are then drawn here, with the base
    class's ``_get_samples``, but not with its ``get``.

    Memory in bytes: ``n_steps * n_envs * (observation bytes + 4 * (action_width + 6) + 1)``, where the six numbers are reward,
    return, episode start, value, log-probability and advantage, and the byte says whether the transition is left out.

    :param buffer_size: steps per environment
    :param observation_space: observation space
    :param action_space: the environment's action space
    :param action_width: numbers per record
    :param kwargs: arguments of Stable-Baselines3's buffer (device, gae_lambda, gamma, n_envs)
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        action_width: int,
        **kwargs: Any,
    ) -> None:
        records = spaces.Box(-np.inf, np.inf, (action_width,), dtype=np.float32)
        super().__init__(buffer_size, observation_space, records, **kwargs)

    def reset(self) -> None:
        """Empty the buffer."""
        super().reset()
        self._left_out = np.zeros((self.buffer_size, self.n_envs), np.bool_)

    def leave_out(self, envs: np.ndarray) -> None:
        """
        Leave out the next transition of some environments.

        :param envs: whether it is left out, shape ``(n_envs,)``
        """
        self._left_out[self.pos] = envs

    @property
    def learned(self) -> np.ndarray:
        """Whether a transition is not left out, shape ``(n_envs * n_steps,)``, environment by environment"""
        return np.logical_not(self._left_out.T.flatten())

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """
        :param batch_size: largest number of transitions in a minibatch; None: all in one
        :return: minibatches in random order; if transitions are left out, the others are shared out evenly
        """
        if self.learned.all():
            yield from super().get(batch_size)
            return
        if not self.generator_ready:
            next(super().get(1))  # flattens the arrays
        # Of the generator that Stable-Baselines3's buffers use
        rows = np.random.permutation(np.flatnonzero(self.learned))  # noqa: NPY002
        n_batches = 1 if batch_size is None else -(-len(rows) // batch_size)
        for batch in np.array_split(rows, n_batches):
            yield self._get_samples(batch)


class WideRolloutBuffer(WideActions, RolloutBuffer):
    """Stable-Baselines3's buffer with records as actions (see :class:`WideActions`)."""


class DictWideRolloutBuffer(WideActions, DictRolloutBuffer):
    """:class:`WideRolloutBuffer` for Dict observations; the parameters are the same."""


def with_wide_actions(buffer_class: type[RolloutBuffer]) -> type[RolloutBuffer]:
    """
    Adapt a buffer class that was written for PPO to records.

    :param buffer_class: subclass of Stable-Baselines3's RolloutBuffer
    :return: the same class if it stores records already, else a subclass with :class:`WideActions`
    """
    if issubclass(buffer_class, WideActions):
        return buffer_class
    own = {RolloutBuffer: WideRolloutBuffer, DictRolloutBuffer: DictWideRolloutBuffer}
    return own.get(buffer_class) or type(f"Wide{buffer_class.__name__}", (WideActions, buffer_class), {})


# Their names in 0.1.0, which saved models refer to (see sb3_scoreflow.moved)
ChainActions, ChainRolloutBuffer, DictChainRolloutBuffer = WideActions, WideRolloutBuffer, DictWideRolloutBuffer

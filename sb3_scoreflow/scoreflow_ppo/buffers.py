"""Rollout buffers whose action is a whole denoising chain."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.preprocessing import get_action_dim


def chain_space(action_space: spaces.Space, denoising_steps: int) -> spaces.Box:
    """
    :param action_space: the environment's action space
    :param denoising_steps: ``K``
    :return: unbounded float32 space of flattened chains, shape ``((K + 1) * action_dim,)``
    """
    return spaces.Box(-np.inf, np.inf, ((denoising_steps + 1) * get_action_dim(action_space),), dtype=np.float32)


class ChainActions:
    """
    Mixin for a rollout buffer: its actions are flattened chains, of shape ``(n_steps, n_envs, (K + 1) * action_dim)``.

    Memory in bytes: ``n_steps * n_envs * (observation bytes + 4 * ((K + 1) * action_dim + 6))``, the six being reward, return,
    episode start, value, log-probability and advantage.

    :param buffer_size: steps per environment
    :param observation_space: observation space
    :param action_space: the environment's action space
    :param denoising_steps: ``K``
    :param kwargs: as in Stable-Baselines3 (device, gae_lambda, gamma, n_envs)
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        denoising_steps: int,
        **kwargs: Any,
    ) -> None:
        chains = chain_space(action_space, denoising_steps)
        super().__init__(buffer_size, observation_space, chains, **kwargs)  # type: ignore[call-arg]


class ChainRolloutBuffer(ChainActions, RolloutBuffer):
    """Stable-Baselines3's buffer with chains for actions (see :class:`ChainActions`)."""


class DictChainRolloutBuffer(ChainActions, DictRolloutBuffer):
    """:class:`ChainRolloutBuffer` for Dict observations; the parameters are the same."""


def with_chains(buffer_class: type[RolloutBuffer]) -> type[RolloutBuffer]:
    """
    A buffer class that was written for PPO, for chains.

    :param buffer_class: subclass of Stable-Baselines3's RolloutBuffer
    :return: itself if it stores chains already, else it with :class:`ChainActions`
    """
    if issubclass(buffer_class, ChainActions):
        return buffer_class
    own = {RolloutBuffer: ChainRolloutBuffer, DictRolloutBuffer: DictChainRolloutBuffer}
    return own.get(buffer_class) or type(f"Chain{buffer_class.__name__}", (ChainActions, buffer_class), {})

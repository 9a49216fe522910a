"""Action chunking as an environment wrapper: one decision of the policy, several environment steps."""

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from sb3_scoreflow.common.action_space import check_action_space
from sb3_scoreflow.envs.chunk_infos import ChunkInfos, check_sum_infos
from sb3_scoreflow.envs.state import Resumable


class ActionChunking(Resumable, RecordConstructorArgs):
    """
    Executes a chunk of actions in each ``step``, open loop.

    The policy predicts ``horizon`` actions at once; the first ``n_executed`` of them are executed, or fewer if the episode
    ends. The chunk runs inside the environment's process, so that a vectorized environment exchanges one message per chunk. A
    ``Monitor`` *inside* the wrapper (where ``make_vec_env`` puts it) counts environment steps and undiscounted rewards; a
    ``Monitor`` outside counts chunks.

    :param env: The environment to wrap; its action space is a bounded, floating-point ``Box`` of any shape
    :param horizon: Number of actions in a chunk, at least 1; the action space becomes ``(horizon, *action_shape)``
    :param n_executed: Number of actions executed per chunk, in [1, horizon]; None: ``horizon``
    :param discount: Discount per environment step inside the chunk, in (0, 1]: the reward of a chunk is ``sum_i discount**i *
        r_i``
    :param sum_infos: Entries of ``info``, such as ``"cost"``, that are summed over the steps of a chunk, without discount
    :raises ValueError: if the action space or an argument does not satisfy these conditions
    """

    def __init__(
        self,
        env: gym.Env,
        horizon: int,
        n_executed: int | None = None,
        discount: float = 1.0,
        sum_infos: str | Sequence[str] = (),
    ) -> None:
        RecordConstructorArgs.__init__(self, horizon=horizon, n_executed=n_executed, discount=discount, sum_infos=sum_infos)
        Resumable.__init__(self, env)
        _check_not_chunked(env)
        n_executed = horizon if n_executed is None else n_executed
        check_chunk_arguments(horizon, n_executed, discount)
        self.horizon = int(horizon)
        self.n_executed = int(n_executed)
        self.discount = float(discount)
        self.sum_infos = check_sum_infos(sum_infos)
        self.action_space = chunked_space(env.action_space, self.horizon)
        fps = (env.metadata or {}).get("render_fps")
        if fps is not None:
            # One frame per chunk. A copy, because the environment's metadata belong to its class
            self.metadata = {
                **env.metadata,
                "render_fps": fps // self.n_executed if fps % self.n_executed == 0 else fps / self.n_executed,
            }

    def step(self, action: np.ndarray) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """
        Execute the first ``n_executed`` actions of a chunk, or fewer if the episode ends.

        :param action: The chunk, shape ``(horizon, *action_shape)``
        :return: Last observation, (discounted) sum of the rewards, whether the episode terminated, whether it was truncated,
            and the last info with ``n_env_steps`` (the number of executed steps, int), ``is_success`` (true if any step
            succeeded), and the sums of ``sum_infos``
        :raises ValueError: if the chunk has another shape or a value that is not finite
        """
        chunk = self._checked_chunk(action)
        total_reward, weight = 0.0, 1.0
        n_env_steps, infos = 0, ChunkInfos(self.sum_infos)
        for single_action in chunk[: self.n_executed]:
            observation, reward, terminated, truncated, info = self.env.step(single_action)
            n_env_steps += 1
            total_reward += weight * float(reward)
            weight *= self.discount
            infos.add(info)
            if terminated or truncated:
                break
        return observation, total_reward, terminated, truncated, infos.complete(info, n_env_steps)

    def _checked_chunk(self, action: np.ndarray) -> np.ndarray:
        chunk = np.asarray(action, dtype=self.action_space.dtype)
        if chunk.shape != self.action_space.shape:
            raise ValueError(
                f"The action has shape {chunk.shape}, but ActionChunking(horizon={self.horizon}) expects "
                f"{self.action_space.shape}: a chunk of `horizon` actions. Pass a model that was constructed with the chunked "
                "environment."
            )
        check_finite(chunk, "The action chunk")
        return chunk


def check_finite(actions: np.ndarray, name: str) -> None:
    """
    :param actions: Any shape
    :param name: Name of the actions in the error message
    :raises ValueError: if an entry is not finite
    """
    finite = np.isfinite(actions)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{name} has {int((~finite).sum())} value(s) that are not finite, the first at {index}: "
            f"{actions[index]}. The policy has diverged (lower its learning rate) or its observations are not finite."
        )


def _check_not_chunked(env: gym.Env) -> None:
    """:raises ValueError: if the environment already executes chunks; nested chunks would break step counts and cloning"""
    inner: gym.Env = env
    while isinstance(inner, gym.Wrapper):
        if isinstance(inner, ActionChunking):
            raise ValueError(
                f"`env` is already wrapped in ActionChunking(horizon={inner.horizon}). Wrap it once, with the horizon you "
                "want."
            )
        inner = inner.env


def check_chunk_arguments(horizon: int, n_executed: int, discount: float) -> None:
    """:raises ValueError: if an argument is out of its range; the message names it"""
    for name, value in (("horizon", horizon), ("n_executed", n_executed)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"`{name}` must be an integer, got {value!r}. Pass a number of actions such as 4.")
    if horizon < 1:
        raise ValueError(f"`horizon` must be at least 1, got {horizon}. Pass the number of actions in a chunk, such as 4.")
    if not 1 <= n_executed <= horizon:
        raise ValueError(
            f"`n_executed` must lie in [1, horizon={horizon}], got {n_executed}. Leave it out to execute the whole chunk."
        )
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"`discount` must lie in (0, 1], got {discount}. Pass 1.0 for the plain sum of the rewards.")


def chunked_space(space: gym.Space, horizon: int) -> spaces.Box:
    """
    :param space: Action space of one step
    :return: The space of ``horizon`` such actions, shape ``(horizon, *space.shape)``, with the same bounds and dtype
    :raises ValueError: if flow policies do not support ``space``
    """
    check_action_space(space, "env.action_space")
    assert isinstance(space, spaces.Box) and space.dtype is not None
    repeats = (horizon,) + (1,) * len(space.shape)
    return spaces.Box(low=np.tile(space.low, repeats), high=np.tile(space.high, repeats), dtype=space.dtype.type)

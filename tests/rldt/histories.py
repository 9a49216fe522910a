"""
Histories for tests: every observation, action and reward carries its rollout, step and environment, so that a sample tells
where it came from.
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_scoreflow.rldt.buffers import RolloutHistory, TrajectoryBatch

N_STEPS, N_ENVS, OBS, ACTION = 4, 3, 2, 2
VECTOR = spaces.Box(-np.inf, np.inf, (OBS,))
ACTIONS = spaces.Box(-1, 1, (ACTION,))


def make_history(space: spaces.Space = VECTOR, history_size: int = 3, n_envs: int = N_ENVS, **kwargs: Any) -> RolloutHistory:
    arguments: dict[str, Any] = dict(buffer_size=N_STEPS, device="cpu") | kwargs
    history = RolloutHistory(
        observation_space=space, action_space=ACTIONS, n_envs=n_envs, history_size=history_size, **arguments
    )
    history.reset()  # as Stable-Baselines3 does at the beginning of every rollout
    return history


def number_of(rollout: int, step: int, n_envs: int = N_ENVS) -> np.ndarray:
    """One number per environment, different for all rollouts, steps (100 at most) and environments (10 at most)."""
    return 1000.0 * rollout + 10.0 * step + np.arange(n_envs)


def observation_of(rollout: int, step: int, n_envs: int = N_ENVS) -> np.ndarray:
    return np.stack([number_of(rollout, step, n_envs), -number_of(rollout, step, n_envs)], axis=-1).astype(np.float32)


def flags_of(n_envs: int, where: dict[int, set[int]], step: int) -> np.ndarray:
    """:param where: environment -> steps"""
    return np.array([step in where.get(env, set()) for env in range(n_envs)])


def add_rollout(
    history: RolloutHistory,
    number: int,
    terminated: dict[int, set[int]] | None = None,
    truncated: dict[int, set[int]] | None = None,
    success: dict[int, set[int]] | None = None,
    starts: np.ndarray | None = None,
    n_steps: int | None = None,
    complete: bool = True,
) -> np.ndarray:
    """
    One rollout as ``collect_rollouts`` makes it: reset, record, add (with rewards that a bootstrap has spoilt), complete.

    :param terminated: environment -> steps, as for the following two
    :param starts: whether the first step is the first of its episode
    :return: the same for the step after the rollout
    """
    history.reset()
    n = history.n_envs
    starts = np.zeros(n, bool) if starts is None else starts
    for step in range(history.buffer_size if n_steps is None else n_steps):
        ended = {"terminated": terminated or {}, "truncated": truncated or {}, "success": success or {}}
        flags = {name: flags_of(n, where, step) for name, where in ended.items()}
        dones = flags["terminated"] | flags["truncated"]
        infos: list[dict[str, Any]] = [{} for _ in range(n)]
        for env in range(n):
            infos[env]["is_success"] = bool(flags["success"][env])
            if dones[env]:
                infos[env]["terminal_observation"] = observation_of(number, step + 1, n)[env] + 0.5
                infos[env]["TimeLimit.truncated"] = bool(flags["truncated"][env])
        rewards, spoilt = number_of(number, step, n), number_of(number, step, n) + 77
        history.record(rewards, starts, dones, infos, observation_of(number, step + 1, n))
        actions = np.stack([number_of(number, step, n) / 1e5, -number_of(number, step, n) / 1e5], -1)
        zeros = th.zeros(n)
        history.add(observation_of(number, step, n), actions, spoilt, starts, zeros, zeros)
        starts = dones
    if complete:
        history.compute_returns_and_advantage(th.zeros(n), starts)
    return starts


def sources_of(batch: TrajectoryBatch) -> list[tuple[int, int]]:
    """(rollout, environment) of every trajectory, sorted; by its first reward."""
    first = batch.rewards[:, 0].long()
    return sorted(zip((first // 1000).tolist(), (first % 10).tolist(), strict=True))


def in_order(batch: TrajectoryBatch) -> TrajectoryBatch:
    """The trajectories in order of rollout and environment; flat observations are split into trajectories."""
    order = batch.rewards[:, 0].argsort()
    m, n_steps = batch.rewards.shape
    parts = [part.view(m, n_steps, -1) if part.dim() != 2 or len(part) != m else part for part in batch]  # type: ignore[union-attr]
    return TrajectoryBatch(*(part[order] for part in parts[:2]), *(part[order] for part in batch[2:]))  # type: ignore[index]


def everything_in(history: RolloutHistory, balance_success: bool = False) -> TrajectoryBatch:
    history.balance_success = balance_success
    return in_order(history.sample(10_000))

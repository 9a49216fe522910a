"""
Values of the arguments of :class:`ScoReFlowPPO` that are left at None.

A policy with random weights has to explore, and a cloned policy must keep its behavior: they need different learning rates and
noise. The policy's ``pretrained`` flag, which :func:`~sb3_scoreflow.pretrain_bc` sets, selects the column.
"""

import math
from typing import Any

from sb3_scoreflow.common.schedules import HalfLifeSchedule

#: Number of transitions (chunks, with ActionChunking) in which a clone's learning rates and noise halve their distance to
#: their final values. The benchmarks' 75,000 transitions are three half-lives.
_HALF_LIFE = 25_000

#: Default of ``min_std``
MIN_STD = 0.1

#: Argument -> value, for a policy trained from scratch and for a pretrained policy
DEFAULTS: dict[str, dict[str, Any]] = {
    "scratch": dict(
        learning_rate=3e-4,
        noise_learning_rate=3e-4,
        critic_learning_rate=1e-3,
        clip_range=0.2,
        max_std=0.4,
        noise_scale=1.0,
        deterministic_coef=0.0,
        averaging_horizon=0.0,
        validation_fraction=0.0,
    ),
    "pretrained": dict(
        learning_rate=HalfLifeSchedule(2e-4, 2e-5, _HALF_LIFE),
        noise_learning_rate=HalfLifeSchedule(1e-3, 1e-4, _HALF_LIFE),
        critic_learning_rate=1e-3,
        clip_range=0.02,
        max_std=HalfLifeSchedule(0.24, 0.1, _HALF_LIFE),
        noise_scale=1.0,
        deterministic_coef=0.1,
        averaging_horizon=HalfLifeSchedule(10_000, 2_500, _HALF_LIFE / 2),
        validation_fraction=0.1,
    ),
}

#: Default of ``averaging_horizon`` for a clone without validation, which only a long average then protects
UNVALIDATED_HORIZON = HalfLifeSchedule(40_000, 10_000, _HALF_LIFE / 2)

#: From scratch: the final value of each argument, and its half-life in transitions per action dimension: about 200 rollouts
_SCRATCH_FINAL = dict(learning_rate=1e-4, noise_learning_rate=1e-4, clip_range=0.02)
_SCRATCH_HALF_LIFE = 50_000


def from_scratch(name: str, denoising_steps: int, action_dim: int) -> float | HalfLifeSchedule:
    """
    The clip range starts at the equivalent of PPO's 0.2 for the ratio of a single number: the ratio here is the geometric mean
    over the chain's ``(K + 1) action_dim`` numbers, so the spread of its logarithm is smaller by about the square root of this
    count. Learning rates decay because small rollouts make noisy steps (both ours; docs/implementation.md).

    :param name: name of an argument in ``DEFAULTS``
    :param denoising_steps: ``K``
    :param action_dim: dimensions of an action (of a chunk, with ActionChunking)
    :return: the argument's default for a policy trained from scratch
    """
    value: float = DEFAULTS["scratch"][name]
    if name not in _SCRATCH_FINAL:
        return value
    if name == "clip_range":
        value /= math.sqrt((denoising_steps + 1) * action_dim)
    return HalfLifeSchedule(value, min(value, _SCRATCH_FINAL[name]), _SCRATCH_HALF_LIFE * action_dim)


def above(schedule: Any, least: float) -> Any:
    """
    :param schedule: a default: a number or a :class:`~sb3_scoreflow.HalfLifeSchedule`
    :param least: the user's lower bound
    :return: the default, with values below the bound raised to the bound
    """
    if isinstance(schedule, HalfLifeSchedule):
        return HalfLifeSchedule(max(schedule.initial_value, least), max(schedule.final_value, least), schedule.half_life)
    return max(schedule, least)

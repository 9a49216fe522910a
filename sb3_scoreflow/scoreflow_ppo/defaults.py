"""
The one place where arguments of :class:`ScoReFlowPPO` left at None get their values.

A policy that starts from random weights has to find its way, one that starts from demonstrations must not lose it: the two
want different learning rates and noise. Which column applies is decided by the policy's ``pretrained`` flag, which
:func:`~sb3_scoreflow.pretrain_bc` sets.
"""

import math
from typing import Any

from sb3_scoreflow.common.schedules import HalfLifeSchedule

#: Transitions (chunks, with ActionChunking) in which a clone's rates and noise halve their distance to their final values:
#: the benchmarks' 75,000 are three of them.
_HALF_LIFE = 25_000

#: argument -> value, for a policy trained from scratch and for a pretrained one
DEFAULTS: dict[str, dict[str, Any]] = {
    "scratch": dict(
        learning_rate=3e-4,
        noise_learning_rate=3e-4,
        critic_learning_rate=1e-3,
        clip_range=0.2,
        max_std=0.4,
        averaging_horizon=0.0,
    ),
    "pretrained": dict(
        learning_rate=HalfLifeSchedule(2e-4, 2e-5, _HALF_LIFE),
        noise_learning_rate=HalfLifeSchedule(1e-3, 1e-4, _HALF_LIFE),
        critic_learning_rate=1e-3,
        clip_range=0.02,
        max_std=HalfLifeSchedule(0.24, 0.1, _HALF_LIFE),
        averaging_horizon=40_000.0,
    ),
}

#: From scratch, what these tend to, and the transitions per action dimension in which they come half the way: 200 rollouts
_SCRATCH_FINAL = dict(learning_rate=1e-4, noise_learning_rate=1e-4, clip_range=0.02)
_SCRATCH_HALF_LIFE = 50_000


def from_scratch(name: str, denoising_steps: int, action_dim: int) -> float | HalfLifeSchedule:
    """
    The first value of the clip range is PPO's 0.2 for the ratio of a whole chain; the ratio here is the geometric mean over
    the chain's ``(K + 1) action_dim`` numbers, whose logarithm spreads over about the square root of their number less. Small
    rollouts make noisy steps, which are to become smaller (both ours; docs/implementation.md).

    :param name: of an argument in ``DEFAULTS``
    :param denoising_steps: ``K``
    :param action_dim: dimensions of an action (of a chunk, with ActionChunking)
    :return: its default for a policy that is trained from scratch
    """
    value: float = DEFAULTS["scratch"][name]
    if name not in _SCRATCH_FINAL:
        return value
    if name == "clip_range":
        value /= math.sqrt((denoising_steps + 1) * action_dim)
    return HalfLifeSchedule(value, min(value, _SCRATCH_FINAL[name]), _SCRATCH_HALF_LIFE * action_dim)


def above(schedule: Any, least: float) -> Any:
    """
    :param schedule: a default, a number or a :class:`~sb3_scoreflow.HalfLifeSchedule`
    :param least: bound that the user has given
    :return: the default, not below it anywhere
    """
    if isinstance(schedule, HalfLifeSchedule):
        return HalfLifeSchedule(max(schedule.initial_value, least), max(schedule.final_value, least), schedule.half_life)
    return max(schedule, least)

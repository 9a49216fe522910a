"""
The one place where arguments of :class:`ScoReFlowPPO` left at None get their values.

A policy that starts from random weights has to find its way, one that starts from demonstrations must not lose it: the two
want different learning rates and noise. Which column applies is decided by the policy's ``pretrained`` flag, which
:func:`~sb3_scoreflow.pretrain_bc` sets.
"""

import math
from typing import Any

from sb3_scoreflow.schedules import HalfLifeSchedule

#: Transitions (chunks, with ActionChunking) in which a clone's rates and noise halve their distance to their final values:
#: the benchmarks' 75,000 are three of them.
_HALF_LIFE = 25_000

#: argument -> value, for a policy trained from scratch and for a pretrained one
DEFAULTS: dict[str, dict[str, Any]] = {
    "scratch": dict(learning_rate=3e-4, noise_learning_rate=3e-4, critic_learning_rate=1e-3, clip_range=0.02, max_std=0.4),
    "pretrained": dict(
        learning_rate=HalfLifeSchedule(2e-4, 2e-5, _HALF_LIFE),
        noise_learning_rate=HalfLifeSchedule(1e-3, 1e-4, _HALF_LIFE),
        critic_learning_rate=1e-3,
        clip_range=0.02,
        max_std=HalfLifeSchedule(0.24, 0.1, _HALF_LIFE),
    ),
}

#: Environment steps (chunks, with ActionChunking) per iteration over all environments, when ``n_steps`` is None.
ITERATION_SIZE = 2048
#: Chains per minibatch, when ``batch_size`` is None.
BATCH_SIZE = 256


def above(schedule: Any, least: float) -> Any:
    """
    :param schedule: a default, a number or a :class:`~sb3_scoreflow.HalfLifeSchedule`
    :param least: bound that the user has given
    :return: the default, not below it anywhere
    """
    if isinstance(schedule, HalfLifeSchedule):
        return HalfLifeSchedule(max(schedule.initial_value, least), max(schedule.final_value, least), schedule.half_life)
    return max(schedule, least)


def default_sizes(n_envs: int, n_steps: int | None = None, batch_size: int | None = None) -> dict[str, int]:
    """
    Make the rollout a multiple of the minibatch, of about ``ITERATION_SIZE``.

    :param n_envs: number of environments
    :param n_steps: steps per environment; None: to be chosen
    :param batch_size: None: to be chosen; that is ``BATCH_SIZE`` wherever a rollout of up to twice ``ITERATION_SIZE`` is a
        multiple of it
    :return: both
    """
    size = batch_size or BATCH_SIZE
    if n_steps is not None:
        return dict(n_steps=n_steps, batch_size=size)
    step = size // math.gcd(size, n_envs)  # of these n_steps, all multiples have whole minibatches
    n_steps = max(round(ITERATION_SIZE / (step * n_envs)), 1) * step
    if n_steps * n_envs <= 2 * ITERATION_SIZE or (batch_size is not None and n_steps * n_envs <= 8 * ITERATION_SIZE):
        return dict(n_steps=n_steps, batch_size=size)
    about = max(round(ITERATION_SIZE / n_envs), 1)
    if batch_size is not None:
        return dict(n_steps=about, batch_size=batch_size)
    candidates = [
        (abs(math.log(n * n_envs / ITERATION_SIZE)) + abs(math.log(batch / BATCH_SIZE)), n, batch)
        for n in range(max(round(0.75 * about), 1), round(1.25 * about) + 1)
        for batch in range(2, n * n_envs + 1)
        if n * n_envs % batch == 0
    ]
    _, n_steps, size = min(candidates)
    return dict(n_steps=n_steps, batch_size=size)

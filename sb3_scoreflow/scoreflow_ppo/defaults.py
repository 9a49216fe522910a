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
    "scratch": dict(learning_rate=3e-4, noise_learning_rate=3e-4, critic_learning_rate=1e-3, clip_range=0.2, max_std=0.4),
    "pretrained": dict(
        learning_rate=HalfLifeSchedule(2e-4, 2e-5, _HALF_LIFE),
        noise_learning_rate=HalfLifeSchedule(1e-3, 1e-4, _HALF_LIFE),
        critic_learning_rate=1e-3,
        clip_range=0.02,
        max_std=HalfLifeSchedule(0.24, 0.1, _HALF_LIFE),
    ),
}

#: Environment steps (chunks, with ActionChunking) per iteration over all environments, when ``n_steps`` is None, and chains
#: per minibatch, when ``batch_size`` is None: of a pretrained policy, and from scratch at most
SIZES = (2048, 256)
#: From scratch, steps per environment at least: advantages of less would be the untrained critic's
_LEAST_STEPS = 16


def clip_range_from_scratch(n_numbers: int) -> float:
    """
    PPO's 0.2 for the ratio of a whole chain; the ratio here is the geometric mean over the chain's numbers, whose logarithm
    spreads over about the square root of their number less (ours; docs/implementation.md).

    :param n_numbers: ``(K + 1) action_dim``
    :return: the clip range
    """
    return float(DEFAULTS["scratch"]["clip_range"] / math.sqrt(n_numbers))


def sizes_from_scratch(action_dim: int, n_envs: int) -> tuple[int, int]:
    """
    A gradient of the policy that is estimated from ``n`` transitions has a noise of ``action_dim / n`` relative to it, so the
    fewer dimensions, the sooner the next rollout may start (ours; docs/implementation.md).

    :param action_dim: dimensions of an action (of a chunk, with ActionChunking)
    :param n_envs: number of environments
    :return: about the transitions per iteration, and per minibatch
    """
    return max(min(256 * action_dim, SIZES[0]), _LEAST_STEPS * n_envs), min(64 * action_dim, SIZES[1])


def above(schedule: Any, least: float) -> Any:
    """
    :param schedule: a default, a number or a :class:`~sb3_scoreflow.HalfLifeSchedule`
    :param least: bound that the user has given
    :return: the default, not below it anywhere
    """
    if isinstance(schedule, HalfLifeSchedule):
        return HalfLifeSchedule(max(schedule.initial_value, least), max(schedule.final_value, least), schedule.half_life)
    return max(schedule, least)


def default_sizes(
    n_envs: int, n_steps: int | None = None, batch_size: int | None = None, about: tuple[int, int] = SIZES
) -> dict[str, int]:
    """
    Make the rollout a multiple of the minibatch, both of about the given size.

    :param n_envs: number of environments
    :param n_steps: steps per environment; None: to be chosen
    :param batch_size: None: to be chosen; that is the one in ``about`` wherever a rollout of up to twice the size there is a
        multiple of it
    :param about: sizes of rollout and minibatch
    :return: both
    """
    about_rollout, about_batch = about
    size = batch_size or about_batch
    if n_steps is not None:
        return dict(n_steps=n_steps, batch_size=size)
    step = size // math.gcd(size, n_envs)  # of these n_steps, all multiples have whole minibatches
    n_steps = max(round(about_rollout / (step * n_envs)), 1) * step
    if n_steps * n_envs <= 2 * about_rollout or (batch_size is not None and n_steps * n_envs <= 8 * about_rollout):
        return dict(n_steps=n_steps, batch_size=size)
    about_steps = max(round(about_rollout / n_envs), 1)
    if batch_size is not None:
        return dict(n_steps=about_steps, batch_size=batch_size)
    candidates = [
        (abs(math.log(n * n_envs / about_rollout)) + abs(math.log(batch / about_batch)), n, batch)
        for n in range(max(round(0.75 * about_steps), 1), round(1.25 * about_steps) + 1)
        for batch in range(2, n * n_envs + 1)
        if n * n_envs % batch == 0
    ]
    _, n_steps, size = min(candidates)
    return dict(n_steps=n_steps, batch_size=size)

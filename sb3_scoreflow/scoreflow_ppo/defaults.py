"""
The one place where arguments of :class:`ScoReFlowPPO` left at None get their values.

A policy that starts from random weights has to find its way, one that starts from demonstrations must not lose it: the two
want different learning rates and noise. Which column applies is decided by the policy's ``pretrained`` flag, which
:func:`~sb3_scoreflow.pretrain_bc` sets.
"""

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

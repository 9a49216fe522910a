"""
The one place where arguments of :class:`ScoReFlowPPO` left at None get their values.

A policy that starts from random weights has to find its way, one that starts from demonstrations must not lose it: the two
want different learning rates and noise. Which column applies is decided by the policy's ``pretrained`` flag, which
:func:`~sb3_scoreflow.pretrain_bc` sets.
"""

from typing import Any

from sb3_scoreflow.schedules import CosineSchedule, HoldCosineSchedule

#: argument -> value, for a policy trained from scratch and for a pretrained one
DEFAULTS: dict[str, dict[str, Any]] = {
    "scratch": dict(learning_rate=3e-4, noise_learning_rate=3e-4, critic_learning_rate=1e-3, clip_range=0.02, max_std=0.4),
    "pretrained": dict(
        learning_rate=CosineSchedule(2e-4, 2e-5),
        noise_learning_rate=CosineSchedule(1e-3, 1e-4),
        critic_learning_rate=1e-3,
        clip_range=0.02,
        max_std=HoldCosineSchedule(0.24, 0.1),
    ),
}

#: Environment steps (chunks, with ActionChunking) per iteration over all environments, when ``n_steps`` is None.
ITERATION_SIZE = 2048

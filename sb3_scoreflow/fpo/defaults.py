"""
Values of the arguments of :class:`FPO` that are left at None. They depend on whether the policy was pretrained (see
``sb3_scoreflow/scoreflow_ppo/defaults.py``).
"""

from typing import Any

from sb3_scoreflow.common.schedules import HalfLifeSchedule

#: Argument -> value, for a policy trained from scratch and for a pretrained policy
DEFAULTS: dict[str, dict[str, Any]] = {
    "scratch": dict(
        learning_rate=3e-4, critic_learning_rate=1e-3, clip_range=0.05, zero_noise_fraction=0.0, averaging_horizon=0.0
    ),
    "pretrained": dict(
        learning_rate=HalfLifeSchedule(2e-4, 2e-5, half_life=25_000),
        critic_learning_rate=1e-3,
        clip_range=0.05,
        zero_noise_fraction=0.125,
        averaging_horizon=40_000.0,
    ),
}

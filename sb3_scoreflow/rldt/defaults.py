"""
RLDT's settings: defaults of arguments left at None, and the published settings as plain dictionaries.

The defaults suit one or two CPU cores: iterations are small, so the critic takes more steps per transition than in the paper,
and the actor waits until the critic has seen enough transitions (docs/rldt.md has the measurements).
"""

import math
from typing import Any

#: Argument -> value, for policies trained from scratch and for pretrained policies. From scratch, the actor has far to go, so
#: it takes many small steps; a clone must change slowly.
DEFAULTS: dict[str, dict[str, Any]] = {
    "scratch": dict(
        learning_rate=3e-4,
        critic_learning_rate=1e-3,
        critic_warmup_transitions=2_000,
        critic_steps=512,
        td_lambda=0.0,
        max_shift=math.inf,
        averaging_horizon=0.0,
        actor_steps=256,
        actor_batch_size=64,
        n_particles=4,
    ),
    "pretrained": dict(
        learning_rate=2e-5,
        critic_learning_rate=1e-3,
        critic_warmup_transitions=15_000,
        critic_steps=256,
        td_lambda=0.95,
        max_shift=0.3,
        averaging_horizon=20_000.0,
        actor_steps=32,
        actor_batch_size=128,
        n_particles=8,
    ),
}

#: Steps (chunks, with ActionChunking) per iteration over all environments if ``n_steps`` is None.
ITERATION_SIZE = 1000

#: Published settings (arXiv 2606.08602), to be used as in ``RLDT("FlowPolicy", env, **PRESETS["locomotion"])``: dense rewards
#: and a pretrained policy (100 environments), sparse success rewards (64 environments), and dense rewards from scratch (100
#: environments).
PRESETS: dict[str, dict[str, Any]] = {
    "locomotion": dict(
        n_steps=500,
        gamma=0.99,
        denoising_steps=8,
        critic_steps=512,
        n_refreshes=16,
        critic_learning_rate=1e-3,
        actor_steps=32,
        learning_rate=2e-5,
        tau=0.005,
        td_lambda=0.0,
        reward_scale="ema",
        consistency_coef=0.5,
        critic_warmup_transitions=100_000,
        rollback=False,
    ),
    "sparse": dict(
        n_steps=200,
        gamma=0.999,
        denoising_steps=8,
        critic_steps=512,
        n_refreshes=16,
        critic_learning_rate=1e-3,
        encoder_learning_rate=4e-5,
        actor_steps=32,
        learning_rate=2e-5,
        tau=0.005,
        td_lambda=0.5,
        reward_scale=1.0,
        target_clip=(0.0, 1.0),
        consistency_coef=0.5,
        rollout_buffer_kwargs=dict(history_size=10, balance_success=True),
        critic_warmup_transitions=25_600,
        rollback=False,
    ),
    "scratch": dict(
        n_steps=500,
        gamma=0.99,
        denoising_steps=32,
        critic_steps=1024,
        n_refreshes=4,
        critic_learning_rate=5e-4,
        actor_steps=32,
        learning_rate=2e-5,
        tau=0.002,
        td_lambda=0.5,
        reward_scale="ema",
        consistency_coef=1.0,
        critic_warmup_transitions=100_000,
        policy_kwargs=dict(prior_std=1.0),  # the published networks pass their noise on unchanged before training
    ),
}

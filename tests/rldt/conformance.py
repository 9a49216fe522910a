"""How the conformance suite builds RLDT small."""

from sb3_scoreflow import RLDT
from tests.conformance.algorithm import Algorithm

CASE = Algorithm(
    RLDT,
    # The history is short so that it runs over, and a draw is a part of it.
    cheap=dict(
        n_steps=16,
        batch_size=16,
        critic_steps=4,
        n_refreshes=2,
        refresh_size=48,
        rollout_buffer_kwargs=dict(history_size=3),
        actor_steps=2,
        critic_warmup_transitions=8,
        learning_rate_warmup_steps=0,
    ),
    once=dict(critic_steps=1, n_refreshes=1, actor_steps=1),
    often=dict(actor_steps=20),
    rollout=("observations", "actions", "rewards", "_terminated", "_truncated", "_success", "_after_success"),
    resume=("rollout_buffer",),
    loss_key="train/q_loss",
    handed_on=frozenset({"denoising_steps"}),
    rates=(3e-4, 2e-5, 2e-5),
)

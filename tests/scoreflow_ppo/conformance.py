"""How the conformance suite builds ScoReFlowPPO small."""

from sb3_scoreflow import ScoReFlowPPO
from tests.conformance.algorithm import Algorithm

CASE = Algorithm(
    ScoReFlowPPO,
    cheap=dict(n_steps=16, batch_size=16, n_epochs=2),
    once=dict(n_epochs=1),
    often=dict(n_epochs=4),
    rollout=("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"),
    resume=(),
    loss_key="train/loss",
    handed_on=frozenset(
        {"denoising_steps", "score_drift", "noise", "min_std", "max_std", "noise_scale", "single_step_fraction"}
    ),
    rates=(3e-4, 2e-4, 2e-5),
    clip_range=0.2 / 10**0.5,  # for the chain as a whole, of (4 + 1) * 2 numbers
)

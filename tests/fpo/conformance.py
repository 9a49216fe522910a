"""How the conformance suite builds FPO small."""

from sb3_scoreflow import FPO
from tests.conformance.algorithm import Algorithm

CASE = Algorithm(
    FPO,
    cheap=dict(n_steps=16, batch_size=16, n_epochs=2, denoising_steps=4, n_mc_samples=4),
    once=dict(n_epochs=1),
    often=dict(n_epochs=4),
    rollout=("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"),
    resume=(),
    loss_key="train/loss",
    handed_on=frozenset({"denoising_steps", "n_mc_samples"}),
    rates=(3e-4, 2e-4, 2e-5),
    clip_range=0.05,
    impossible=(
        (dict(n_mc_samples=0), "n_mc_samples must be a whole number of at least 1, got 0: leave it out for its default, 8"),
        (dict(n_mc_samples=8.0), "n_mc_samples must be a whole number of at least 1, got 8.0: pass 8, an int"),
        (
            dict(zero_noise_fraction=1.5),
            "zero_noise_fraction must be a number in [0, 1], got 1.5: leave it out for its default",
        ),
        (dict(ratio="Mean"), "ratio must be one of 'per_sample', 'mean', got 'Mean': pass 'mean'"),
        (
            dict(trust_region="spo"),
            "trust_region must be one of 'clip', 'aspo', got 'spo': leave it out for its default, 'clip'",
        ),
        (dict(loss_clip=0.0), "loss_clip must be a positive number, got 0.0: leave it out for its default, 3.0"),
        (dict(loss_clip="3"), "loss_clip must be a positive number, got '3': pass the number 3, not a string"),
    ),
)

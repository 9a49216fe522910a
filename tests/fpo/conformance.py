"""How the conformance suite builds FPO small."""

from sb3_scoreflow import FPO
from tests.conformance.algorithm import Algorithm

CASE = Algorithm(
    FPO,
    cheap=dict(n_steps=16, batch_size=16, n_epochs=2),
    once=dict(n_epochs=1),
    often=dict(n_epochs=4),
    rollout=("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns"),
    resume=(),
    loss_key="train/loss",
)

"""Training that continues after an interruption, with the same result as an uninterrupted run."""

from sb3_scoreflow.resuming.checkpoints import Checkpoint, CheckpointFolder
from sb3_scoreflow.resuming.learn import learn_resumable

__all__ = ["Checkpoint", "CheckpointFolder", "learn_resumable"]

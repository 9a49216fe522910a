"""Runs that go on where they were interrupted, as if nothing had happened."""

from sb3_scoreflow.resuming.checkpoints import Checkpoint, CheckpointFolder
from sb3_scoreflow.resuming.learn import learn_resumable

__all__ = ["Checkpoint", "CheckpointFolder", "learn_resumable"]

"""Demonstrations: the container, its sources, and how to collect more."""

# Importing a source registers it
from sb3_scoreflow.demonstrations import builtin, d4rl, files, hdf5, lerobot, metaworld, minari, pickles, robomimic  # noqa: F401
from sb3_scoreflow.demonstrations.chunks import ActionChunks, ChunkBatch
from sb3_scoreflow.demonstrations.collect import collect_demonstrations
from sb3_scoreflow.demonstrations.container import Demonstrations
from sb3_scoreflow.demonstrations.d4rl import normalized_score
from sb3_scoreflow.demonstrations.lerobot_writer import write_lerobot
from sb3_scoreflow.demonstrations.minari_env import make_evaluation_env
from sb3_scoreflow.demonstrations.minari_writer import write_minari
from sb3_scoreflow.demonstrations.sources import load_demonstrations, register_source

# The container does not import the modules that read and write files, but its methods save and load it
Demonstrations._files = hdf5

__all__ = [
    "ActionChunks",
    "ChunkBatch",
    "Demonstrations",
    "collect_demonstrations",
    "load_demonstrations",
    "make_evaluation_env",
    "normalized_score",
    "register_source",
    "write_lerobot",
    "write_minari",
]

"""Environment wrappers."""

from sb3_scoreflow.envs.action_chunking import ActionChunking
from sb3_scoreflow.envs.select_observations import SelectObservations

__all__ = ["ActionChunking", "SelectObservations"]

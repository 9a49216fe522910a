"""Environment wrappers."""

from sb3_scoreflow.envs.action_chunking import ActionChunking

__all__ = ["ActionChunking"]

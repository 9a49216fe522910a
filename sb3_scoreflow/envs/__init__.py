"""Environments and environment wrappers."""

from sb3_scoreflow.envs.action_chunking import ActionChunking
from sb3_scoreflow.envs.envpool import EnvPoolVecEnv
from sb3_scoreflow.envs.kitchen import KITCHEN_TASK_SETS, FlatKitchen, completed_tasks, make_kitchen
from sb3_scoreflow.envs.metaworld import MetaWorldEnv, make_metaworld
from sb3_scoreflow.envs.registered import register_tasks
from sb3_scoreflow.envs.robomimic import RobomimicEnv, make_robomimic
from sb3_scoreflow.envs.select_observations import SelectObservations
from sb3_scoreflow.envs.state import Resumable

__all__ = [
    "KITCHEN_TASK_SETS",
    "ActionChunking",
    "EnvPoolVecEnv",
    "FlatKitchen",
    "MetaWorldEnv",
    "Resumable",
    "RobomimicEnv",
    "SelectObservations",
    "completed_tasks",
    "make_kitchen",
    "make_metaworld",
    "make_robomimic",
    "register_tasks",
]

register_tasks()

"""Flow-matching policies for Stable-Baselines3: behavior cloning, then fine-tuning with ScoRe-Flow or RLDT."""

from sb3_scoreflow.bc import BehaviorCloning, pretrain_bc
from sb3_scoreflow.demonstrations import Demonstrations, collect_demonstrations, load_demonstrations, normalized_score
from sb3_scoreflow.encoders import ViTExtractor
from sb3_scoreflow.envs import ActionChunking
from sb3_scoreflow.export import ActionSampler
from sb3_scoreflow.policies import FlowMatchingPolicy
from sb3_scoreflow.rldt import RLDT
from sb3_scoreflow.schedules import CosineSchedule, HalfLifeSchedule, HoldCosineSchedule
from sb3_scoreflow.scoreflow_ppo import ScoReFlowPPO
from sb3_scoreflow.utils import DivergenceError

__version__ = "0.1.0"

__all__ = [
    "RLDT",
    "ActionChunking",
    "ActionSampler",
    "BehaviorCloning",
    "CosineSchedule",
    "Demonstrations",
    "DivergenceError",
    "FlowMatchingPolicy",
    "HalfLifeSchedule",
    "HoldCosineSchedule",
    "ScoReFlowPPO",
    "ViTExtractor",
    "collect_demonstrations",
    "load_demonstrations",
    "normalized_score",
    "pretrain_bc",
]

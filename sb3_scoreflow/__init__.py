"""Flow-matching policies for Stable-Baselines3: behavior cloning, then fine-tuning with ScoRe-Flow, RLDT or FPO."""

from sb3_scoreflow.bc import BehaviorCloning, pretrain_bc
from sb3_scoreflow.common.action_sampler import ActionSampler
from sb3_scoreflow.common.encoders import ViTExtractor
from sb3_scoreflow.common.guard import EnvDivergedError, EnvFailedError, guard_env
from sb3_scoreflow.common.policies import FlowMatchingPolicy
from sb3_scoreflow.common.schedules import CosineSchedule, HalfLifeSchedule, HoldCosineSchedule
from sb3_scoreflow.common.utils import DivergenceError
from sb3_scoreflow.demonstrations import Demonstrations, collect_demonstrations, load_demonstrations, normalized_score
from sb3_scoreflow.envs import ActionChunking
from sb3_scoreflow.fpo import FPO
from sb3_scoreflow.moved import install
from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.resuming import learn_resumable
from sb3_scoreflow.rldt import RLDT
from sb3_scoreflow.scoreflow_ppo import ScoReFlowPPO, calibrate_noise

__version__ = "0.2.0.dev0"

install()

__all__ = [
    "ALGORITHMS",
    "FPO",
    "RLDT",
    "ActionChunking",
    "ActionSampler",
    "BehaviorCloning",
    "CosineSchedule",
    "Demonstrations",
    "DivergenceError",
    "EnvDivergedError",
    "EnvFailedError",
    "FlowMatchingPolicy",
    "HalfLifeSchedule",
    "HoldCosineSchedule",
    "ScoReFlowPPO",
    "ViTExtractor",
    "calibrate_noise",
    "collect_demonstrations",
    "guard_env",
    "learn_resumable",
    "load_demonstrations",
    "normalized_score",
    "pretrain_bc",
]

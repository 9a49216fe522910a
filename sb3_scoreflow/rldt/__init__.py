"""RLDT: reinforcement learning of flow policies by density transport (arXiv 2606.08602)."""

from sb3_scoreflow.rldt.buffers import RolloutHistory
from sb3_scoreflow.rldt.defaults import PRESETS
from sb3_scoreflow.rldt.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_scoreflow.rldt.rldt import RLDT
from sb3_scoreflow.rldt.transport import Transport

__all__ = ["PRESETS", "RLDT", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "RolloutHistory", "Transport"]

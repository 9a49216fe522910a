"""FPO: PPO whose ratio is a difference of flow-matching losses, without likelihoods."""

from sb3_scoreflow.fpo.fpo import FPO
from sb3_scoreflow.fpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["FPO", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]

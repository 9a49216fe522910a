"""ScoRe-Flow: PPO on the denoising chain of a flow-matching policy."""

from sb3_scoreflow.scoreflow_ppo.calibration import NoiseCalibration, calibrate_noise
from sb3_scoreflow.scoreflow_ppo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_scoreflow.scoreflow_ppo.scoreflow_ppo import ScoReFlowPPO

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "NoiseCalibration", "ScoReFlowPPO", "calibrate_noise"]

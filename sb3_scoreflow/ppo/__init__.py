"""The common part of PPO-like algorithms with flow policies: update, critic, scaling and pretraining of the critic."""

from sb3_scoreflow.ppo.algorithm import FlowPPO
from sb3_scoreflow.ppo.policies import ActorCriticFlowPolicy

__all__ = ["ActorCriticFlowPolicy", "FlowPPO"]

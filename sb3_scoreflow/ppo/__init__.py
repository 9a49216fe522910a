"""What PPO's relatives share whose policy is a flow: the update, the critic, its unit, and its pretraining."""

from sb3_scoreflow.ppo.algorithm import FlowPPO
from sb3_scoreflow.ppo.policies import ActorCriticFlowPolicy

__all__ = ["ActorCriticFlowPolicy", "FlowPPO"]

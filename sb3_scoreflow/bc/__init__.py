"""Behavior cloning of demonstrations into a flow policy."""

from sb3_scoreflow.bc.behavior_cloning import BehaviorCloning
from sb3_scoreflow.bc.execution import Execution
from sb3_scoreflow.bc.fits_critic import FitsCritic
from sb3_scoreflow.bc.pretrain_bc import pretrain_bc

__all__ = ["BehaviorCloning", "Execution", "FitsCritic", "pretrain_bc"]

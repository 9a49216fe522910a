"""Environments on many machines with Ray (``pip install "sb3-scoreflow[ray]"``). See docs/scaling.md."""

from sb3_scoreflow.distributed.ray_vec_env import RayVecEnv

__all__ = ["RayVecEnv"]

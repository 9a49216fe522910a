"""Demonstrations, environments with chunks of actions, and clones for the studies on Gymnasium's locomotion tasks."""

from functools import lru_cache
from typing import NamedTuple

import gymnasium as gym
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow import ActionChunking, Demonstrations, FlowMatchingPolicy, load_demonstrations, pretrain_bc

DEMONSTRATIONS = {
    "Hopper-v5": "builtin:hopper-medium",
    "Walker2d-v5": "builtin:walker2d-medium",
    "HalfCheetah-v5": "builtin:halfcheetah-medium",
}
HORIZON = 4
N_ENVS = 20
CLONE_BATCHES = 10_000


@lru_cache(maxsize=1)
def demonstrations_of(env_id: str) -> Demonstrations:
    """The demonstrations to clone for a task."""
    return load_demonstrations(DEMONSTRATIONS[env_id])


class Chunks(NamedTuple):
    """Chunks of actions."""

    horizon: int = HORIZON
    """Number of actions that the policy predicts"""
    n_executed: int = HORIZON
    """Number of these actions that the environment executes before the next prediction"""

    def wrap(self, env: gym.Env) -> ActionChunking:
        return ActionChunking(env, self.horizon, self.n_executed)


#: All predicted actions are executed
CHUNKS = Chunks()


def make_env(env_id: str, n_envs: int, seed: int, chunks: Chunks = CHUNKS) -> VecEnv:
    """Environments that execute chunks of actions."""
    return make_vec_env(env_id, n_envs=n_envs, seed=seed, wrapper_class=chunks.wrap)


def make_envs(env_id: str, seed: int, n_eval_envs: int = 1) -> tuple[VecEnv, VecEnv]:
    """The training environments and the evaluation environments of a run."""
    return make_env(env_id, N_ENVS, 1000 * seed), make_env(env_id, n_eval_envs, 1000 * seed + 500)


@lru_cache(maxsize=1)
def clone(env_id: str, seed: int) -> FlowMatchingPolicy:
    """The clone from which all flow variants start with this seed."""
    th.manual_seed(seed)
    env = make_env(env_id, 1, 1000 * seed)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations_of(env_id), seed=seed)
    return policy

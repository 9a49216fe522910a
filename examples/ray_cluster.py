"""
Fine-tuning of a clone of Hopper demonstrations, with environments in Ray workers on this machine or on many.

    pip install -e ".[examples,ray]"
    python examples/ray_cluster.py
    python examples/ray_cluster.py --address auto        # on a node of a cluster, see docs/scaling.md

Without an address, the program starts a small Ray instance on this machine. If you kill a worker during training, another one
replaces it. The default takes about a minute, which is too short to learn much; use ``--timesteps 70000`` for that.
"""

import argparse
import time

import gymnasium as gym
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import ActionChunking, ScoReFlowPPO, load_demonstrations, pretrain_bc
from sb3_scoreflow.distributed import RayVecEnv


def make_env() -> gym.Env:
    """Function that runs in the workers, which contain the environments and execute the chunks of actions."""
    return ActionChunking(Monitor(gym.make("Hopper-v5")), horizon=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", help="address of a Ray cluster, such as auto (default: a Ray instance on this machine)")
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--envs-per-worker", type=int, default=4)
    parser.add_argument("--timesteps", type=int, default=4000, help="chunks of 4 actions to train for (default 4000)")
    parser.add_argument("--batches", type=int, default=300, help="minibatches of cloning (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    functions = [make_env] * arguments.n_envs
    env = RayVecEnv(functions, envs_per_worker=arguments.envs_per_worker, address=arguments.address)
    env.seed(arguments.seed)
    test_env = DummyVecEnv([make_env])

    def evaluate() -> str:
        test_env.seed(20_000)
        mean, std = evaluate_policy(model, test_env, n_eval_episodes=10)
        return f"return {mean:.0f} +- {std:.0f} over 10 episodes"

    model = ScoReFlowPPO("FlowPolicy", env, n_steps=100, batch_size=200, seed=arguments.seed, device="cpu")
    pretrain_bc(model, load_demonstrations("builtin:hopper-medium"), n_batches=arguments.batches, seed=arguments.seed)
    print(f"clone: {evaluate()}")
    start = time.time()
    model.learn(arguments.timesteps)
    print(f"fine-tuned: {evaluate()}, {model.num_env_steps / (time.time() - start):.0f} environment steps per second")
    for worker in env.pool.workers:
        print(f"{worker}: process {worker.process} on {worker.host}")
    print(f"workers replaced: {env.n_restarts}")
    env.close()


if __name__ == "__main__":
    main()

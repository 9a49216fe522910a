"""
Behavior cloning on a robomimic file, then fine-tuning in robosuite with ScoReFlowPPO (or RLDT), from states or from images.

    pip install -e ".[examples,robomimic]"
    python -m benchmarks.make_robosuite_demonstrations --output lift.hdf5     # or any robomimic file
    python examples/robomimic.py lift.hdf5 --horizon 100
    python examples/robomimic.py can/ph/image_v15.hdf5 --cameras agentview robot0_eye_in_hand --encoder vit --algorithm rldt

The program reads the task and its settings from the file. It prints the success rate of the demonstrations, of their clone and
after fine-tuning, and saves the model.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_scoreflow import ALGORITHMS, ActionChunking, ViTExtractor, load_demonstrations, pretrain_bc
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.envs import make_robomimic


def make_env(arguments: argparse.Namespace) -> VecEnv:
    """Environments of the file's task that take several actions at a time, each in a separate process."""
    return make_vec_env(
        make_robomimic,
        n_envs=arguments.n_envs,
        seed=arguments.seed,
        env_kwargs=dict(dataset_or_task=arguments.file, cameras=arguments.cameras, horizon=arguments.horizon),
        wrapper_class=partial(ActionChunking, horizon=arguments.chunk),
        vec_env_cls=SubprocVecEnv if arguments.n_envs > 1 else DummyVecEnv,
    )


def arguments_of(algorithm: str, rollout: int, cameras: bool) -> dict[str, Any]:
    """Arguments that differ from the defaults, for rollouts of this many chunks and with success as the only reward."""
    table: dict[str, dict[str, Any]] = {
        "scoreflow_ppo": dict(
            batch_size=min(500, rollout), n_epochs=8, critic_warmup_iterations=2, min_std=0.08, max_std=0.16
        ),
        "rldt": dict(
            td_lambda=0.5,
            target_clip=(0.0, 1.0),
            reward_scale=1.0,
            critic_warmup_transitions=5000,
            encoder_learning_rate=0.0 if cameras else None,  # the clone's encoder, evaluated once per refresh
        ),
    }
    return table.get(algorithm, {})


def make_model(arguments: argparse.Namespace, env: VecEnv) -> FlowAlgorithm:
    own = arguments_of(arguments.algorithm, arguments.n_steps * arguments.n_envs, bool(arguments.cameras))
    return ALGORITHMS[arguments.algorithm](
        "FlowPolicy",
        env,
        n_steps=arguments.n_steps,
        gamma=0.999,  # the reward comes late
        policy_kwargs=dict(features_extractor_class=ViTExtractor) if arguments.encoder == "vit" else {},
        seed=arguments.seed,
        device="cpu",
        **own,
    )


def success_rate(model: FlowAlgorithm, env: VecEnv, n_episodes: int) -> float:
    """Share of the episodes that the deterministic policy solves, which is its mean return."""
    returns, _ = evaluate_policy(model, env, n_eval_episodes=n_episodes, return_episode_rewards=True)
    return float(np.mean(returns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="robomimic's HDF5 file")
    parser.add_argument("--mask", help="list of demonstrations in the file, such as train (default: all)")
    parser.add_argument("--cameras", nargs="*", default=[], help="cameras whose images replace the state of the objects")
    parser.add_argument("--encoder", choices=["cnn", "vit"], default="cnn", help="encoder of the images (default cnn)")
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), default="scoreflow_ppo", help="default scoreflow_ppo")
    parser.add_argument("--timesteps", type=int, default=40_000, help="chunks to train for (default 40000)")
    parser.add_argument("--chunk", type=int, default=4, help="actions per chunk (default 4)")
    parser.add_argument("--batches", type=int, default=5000, help="minibatches of cloning (default 5000)")
    parser.add_argument("--n-envs", type=int, default=8, help="environments, one process each (default 8)")
    parser.add_argument("--n-steps", type=int, default=250, help="chunks per environment and iteration (default 250)")
    parser.add_argument("--horizon", type=int, help="step limit of an episode (default: robomimic's)")
    parser.add_argument("--episodes", type=int, default=40, help="episodes per evaluation (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the model")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # more threads are slower for networks of this size, and far slower next to environment processes
    start = time.time()

    env = make_env(arguments)
    assert isinstance(env.observation_space, spaces.Dict)
    keys = list(env.observation_space)
    demonstrations = load_demonstrations(f"robomimic:{arguments.file}", mask=arguments.mask, observation_keys=keys)
    print(demonstrations.describe(), end="\n\n")
    print(f"demonstrations: {np.mean(demonstrations.episode_returns > 0):.0%} succeed\n")

    model = make_model(arguments, env)
    pretrain_bc(model, demonstrations, n_batches=arguments.batches, seed=arguments.seed, progress_bar=True)
    print(f"clone: {success_rate(model, env, arguments.episodes):.0%} succeed\n")

    model.learn(arguments.timesteps, progress_bar=True)
    path = arguments.output / f"{arguments.file.stem}_{arguments.algorithm}.zip"
    model.save(path)
    print(f"fine-tuned: {success_rate(model, env, arguments.episodes):.0%} succeed\n")
    env.close()
    print(f"wrote {path} after {model.num_env_steps} environment steps and {time.time() - start:.0f} s in all")


if __name__ == "__main__":
    main()

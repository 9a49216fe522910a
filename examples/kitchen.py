"""
Behavior cloning on FrankaKitchen demonstrations, then fine-tuning with ScoReFlowPPO (or RLDT).

    pip install -e ".[examples,kitchen]"
    python examples/kitchen.py
    python examples/kitchen.py --data d4rl:kitchen-mixed-v0 --algorithm rldt
    python examples/kitchen.py --data minari:D4RL/kitchen/partial-v2          # pip install -e ".[minari]"

The program downloads the data on first use; docs/demonstrations.md says where to put them by hand. It prints the number of
tasks completed per episode by the demonstrations, by their clone and after fine-tuning, and saves the model.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_scoreflow import (
    ALGORITHMS,
    ActionChunking,
    CosineSchedule,
    Demonstrations,
    HoldCosineSchedule,
    load_demonstrations,
    pretrain_bc,
)
from sb3_scoreflow.common.algorithm import FlowAlgorithm
from sb3_scoreflow.envs import KITCHEN_TASK_SETS, completed_tasks, make_kitchen
from sb3_scoreflow.envs.kitchen import KitchenView

HORIZON = 4  # actions per chunk
VIEWS: dict[tuple[int, ...], KitchenView] = {(59,): "minari", (60,): "d4rl"}


def load(source: str) -> Demonstrations:
    """Kitchen demonstrations with flat observations, from any source."""
    # Minari's goals are the same in every step, and the tasks are chosen when the environment is made
    keywords: dict[str, Any] = {"observation_keys": "observation"} if source.startswith("minari:") else {}
    return load_demonstrations(source, **keywords)


def task_set_of(source: str) -> str:
    """Name of the task set of the data, which is part of the names of D4RL's and Minari's data."""
    for name in KITCHEN_TASK_SETS:
        if name in Path(source).name:
            return name
    raise SystemExit(f"The name {source!r} contains no task set: pass --tasks {{{','.join(KITCHEN_TASK_SETS)}}}.")


def view_of(demonstrations: Demonstrations, tasks: str) -> KitchenView:
    """View of the environment whose observations match the data; the program ends if there is no such view."""
    shape = demonstrations.observation_shape
    if isinstance(shape, dict) or shape not in VIEWS:
        raise SystemExit(
            f"These are not kitchen demonstrations: observations have the shape {shape}, not one of {list(VIEWS)}."
        )
    view = VIEWS[shape]
    if view == "d4rl":
        goals = np.asarray(demonstrations.observations)[:, 30:]
        env = make_kitchen(tasks, view)
        if not np.allclose(goals, env.reset()[0][30:], atol=1e-3):
            raise SystemExit(f"The goals of the demonstrations differ from the tasks {env.tasks}: pass the right --tasks.")
        env.close()
    return view


def make_env(tasks: str, view: KitchenView, n_envs: int, max_episode_steps: int, seed: int) -> VecEnv:
    """Kitchens that take 4 actions at a time, each in a separate process, because a step takes milliseconds."""
    return make_vec_env(
        make_kitchen,
        n_envs=n_envs,
        seed=seed,
        env_kwargs=dict(tasks=tasks, observation=view, max_episode_steps=max_episode_steps),
        wrapper_class=partial(ActionChunking, horizon=HORIZON),
        vec_env_cls=SubprocVecEnv if n_envs > 1 else DummyVecEnv,
    )


def arguments_of(algorithm: str, rollout: int, n_tasks: int) -> dict[str, Any]:
    """Arguments that differ from the algorithm's defaults, for rollouts of this many chunks."""
    table: dict[str, dict[str, Any]] = {
        "scoreflow_ppo": dict(
            batch_size=min(840, rollout),
            n_epochs=10,
            learning_rate=CosineSchedule(4.5e-5, 2e-5),
            noise_learning_rate=CosineSchedule(4.5e-5, 2e-5),
            critic_learning_rate=CosineSchedule(6.5e-4, 3e-4),
            clip_range=0.01,
            min_std=0.05,
            max_std=HoldCosineSchedule(0.12, 0.05),
        ),
        # Rewards are rare and of size 1: they need no rescaling, and their sum is at most the number of tasks
        "rldt": dict(reward_scale=1.0, target_clip=(0.0, float(n_tasks)), td_lambda=0.5),
    }
    return table.get(algorithm, {})


def make_model(algorithm: str, env: VecEnv, n_steps: int, n_tasks: int, seed: int) -> FlowAlgorithm:
    arguments = arguments_of(algorithm, n_steps * env.num_envs, n_tasks)
    return ALGORITHMS[algorithm]("FlowPolicy", env, n_steps=n_steps, seed=seed, device="cpu", **arguments)


def evaluate(model: FlowAlgorithm, env: VecEnv, n_episodes: int) -> np.ndarray:
    """The number of tasks that the deterministic policy completes in each episode, which is its return."""
    returns, _ = evaluate_policy(model, env, n_eval_episodes=n_episodes, return_episode_rewards=True)
    return np.asarray(returns)


def demonstrated(demonstrations: Demonstrations, tasks: str) -> np.ndarray:
    """The number of tasks that are complete at some time in each demonstration; the rewards do not show this."""
    flags = completed_tasks(np.asarray(demonstrations.observations), tasks)
    return np.array([flags[episode].any(axis=0).sum() for episode in demonstrations.episode_slices])


def report(name: str, completed: np.ndarray, n_tasks: int) -> None:
    shares = ", ".join(f"{n}: {np.mean(completed == n):.0%}" for n in range(n_tasks + 1))
    print(f"{name}: {completed.mean():.2f} of {n_tasks} tasks completed, over {len(completed)} episodes ({shares})\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="d4rl:kitchen-complete-v0", help="source of the demonstrations, or a file")
    parser.add_argument("--tasks", choices=list(KITCHEN_TASK_SETS), help="default: the task set in the name of the data")
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), default="scoreflow_ppo", help="default scoreflow_ppo")
    parser.add_argument("--timesteps", type=int, default=100_000, help="chunks of 4 actions to train for (default 100000)")
    parser.add_argument("--batches", type=int, help="minibatches of cloning (default: as in pretrain_bc)")
    parser.add_argument("--n-envs", type=int, default=8, help="environments, one process each (default 8)")
    parser.add_argument("--n-steps", type=int, default=210, help="chunks per environment and iteration (default 210)")
    parser.add_argument("--max-episode-steps", type=int, default=280, help="step limit of an episode (default 280)")
    parser.add_argument("--episodes", type=int, default=40, help="episodes per evaluation (default 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the model")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # more threads are slower for networks of this size, and far slower next to environment processes
    start = time.time()

    tasks = arguments.tasks or task_set_of(arguments.data)
    n_tasks = len(KITCHEN_TASK_SETS[tasks])
    demonstrations = load(arguments.data)
    print(demonstrations.describe(), end="\n\n")
    view = view_of(demonstrations, tasks)
    report("demonstrations", demonstrated(demonstrations, tasks), n_tasks)

    env = make_env(tasks, view, arguments.n_envs, arguments.max_episode_steps, arguments.seed)
    model = make_model(arguments.algorithm, env, arguments.n_steps, n_tasks, arguments.seed)
    # The rewards of the data differ from the environment's, so the critic must not start from them
    pretrain_bc(model, demonstrations, n_batches=arguments.batches, critic_batches=0, seed=arguments.seed, progress_bar=True)
    report("clone", evaluate(model, env, arguments.episodes), n_tasks)

    model.learn(arguments.timesteps, progress_bar=True)
    path = arguments.output / f"kitchen_{arguments.algorithm}.zip"
    model.save(path)
    report("fine-tuned", evaluate(model, env, arguments.episodes), n_tasks)
    env.close()
    print(f"wrote {path} after {model.num_env_steps} environment steps and {time.time() - start:.0f} s in all")


if __name__ == "__main__":
    main()

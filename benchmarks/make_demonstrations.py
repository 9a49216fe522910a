"""
Make built-in demonstrations: train PPO to a medium return, then record the exploring policy.

    python -m benchmarks.make_demonstrations  # hopper-medium
    python -m benchmarks.make_demonstrations halfcheetah-medium
    python -m benchmarks.make_demonstrations walker2d-medium

Training stops when the exploring policy's mean return over its last 100 episodes exceeds ``--target``. This mean lags behind
the improving policy: the default targets of 890 on Hopper, 1500 on Walker2d and 1000 on HalfCheetah give demonstrations with
mean returns of about 1090, 1790 and 2040. The script also writes a JSON file that records how the data were made.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow.demonstrations import collect_demonstrations

N_ENVS = 8


@dataclass(frozen=True)
class Recipe:
    """Settings for making a set of demonstrations; options of the command line override them."""

    env_id: str
    target: float
    log_std_init: float
    transitions: int
    max_steps: int
    ppo_arguments: dict[str, Any]


RECIPES = {
    "hopper-medium": Recipe(
        env_id="Hopper-v5",
        target=890.0,
        log_std_init=-0.5,
        transitions=30_000,
        max_steps=1_000_000,
        ppo_arguments=dict(
            n_steps=256, batch_size=256, n_epochs=10, learning_rate=3e-4, gamma=0.99, gae_lambda=0.95, clip_range=0.2
        ),
    ),
    "walker2d-medium": Recipe(
        env_id="Walker2d-v5",
        target=1500.0,
        log_std_init=-0.5,
        transitions=25_000,
        max_steps=2_000_000,
        ppo_arguments=dict(
            n_steps=512, batch_size=256, n_epochs=10, learning_rate=3e-4, gamma=0.99, gae_lambda=0.95, clip_range=0.2
        ),
    ),
    "halfcheetah-medium": Recipe(
        env_id="HalfCheetah-v5",
        target=1000.0,
        log_std_init=-0.7,
        transitions=25_000,
        max_steps=1_000_000,
        ppo_arguments=dict(
            n_steps=512, batch_size=256, n_epochs=10, learning_rate=3e-4, gamma=0.99, gae_lambda=0.95, clip_range=0.2
        ),
    ),
}


class StopAtReturn(BaseCallback):
    """
    Stops training when the mean return of the last 100 episodes reaches a target.

    :param target: undiscounted, unnormalized return
    """

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target
        self.mean_return = -np.inf

    def _on_step(self) -> bool:
        episodes = self.model.ep_info_buffer
        if episodes is None or len(episodes) < 100 or not self.locals["dones"].any():
            return True
        self.mean_return = float(np.mean([episode["r"] for episode in episodes]))
        return self.mean_return < self.target


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="hopper-medium", choices=RECIPES, help="default hopper-medium")
    for option, kind, meaning in (
        ("target", float, "mean return at which training stops"),
        ("log_std_init", float, "initial log standard deviation"),
        ("transitions", int, "largest number of transitions to record, in complete episodes"),
        ("max_steps", int, "number of steps after which training gives up"),
    ):
        defaults = ", ".join(f"{getattr(recipe, option):.10g} for {name}" for name, recipe in RECIPES.items())
        parser.add_argument("--" + option.replace("_", "-"), type=kind, help=f"{meaning} (default {defaults})")
    parser.add_argument("--seed", type=int, default=0, help="seed of training; recording uses the next seed (default 0)")
    parser.add_argument("--output", type=Path, help="HDF5 file (default: NAME.hdf5 among the package's built-in data)")
    parser.add_argument("--record", type=Path, help="JSON file (default: benchmarks/results/ and the name of the output)")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.name]
    for option in ("target", "log_std_init", "transitions", "max_steps"):
        if getattr(arguments, option) is None:
            setattr(arguments, option, getattr(recipe, option))
    if arguments.output is None:
        arguments.output = ROOT / "sb3_scoreflow/demonstrations/data" / f"{arguments.name}.hdf5"
    return arguments


def main() -> None:
    arguments = parse_arguments()
    recipe = RECIPES[arguments.name]
    source = provenance()  # before the output changes the working tree
    torch.set_num_threads(1)  # networks of this size are slower with more
    vec_env = make_vec_env(recipe.env_id, n_envs=N_ENVS, seed=arguments.seed)
    env = VecNormalize(vec_env, gamma=recipe.ppo_arguments["gamma"])
    policy_kwargs = dict(log_std_init=arguments.log_std_init, net_arch=[64, 64])
    model = PPO("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=arguments.seed, device="cpu", **recipe.ppo_arguments)

    start = time.perf_counter()
    callback = StopAtReturn(arguments.target)
    model.learn(arguments.max_steps, callback=callback)
    training_seconds = time.perf_counter() - start
    if callback.mean_return < arguments.target:
        raise SystemExit(f"Training ended at a mean return of {callback.mean_return:.0f}, short of {arguments.target:.0f}.")

    # Every episode has at least one transition, so the limit on transitions is the effective limit
    demonstrations = collect_demonstrations(
        model, env, n_episodes=arguments.transitions, max_transitions=arguments.transitions, seed=arguments.seed + 1
    )
    demonstrations.metadata["training_steps"] = model.num_timesteps
    demonstrations.save(arguments.output)

    record = {
        **source,
        "env": recipe.env_id,
        "seed": arguments.seed,
        "target_return": arguments.target,
        "training": {
            "algorithm": "PPO",
            "steps": model.num_timesteps,
            "seconds": round(training_seconds, 1),
            "mean_return_of_last_100_episodes": callback.mean_return,
            "n_envs": N_ENVS,
            "normalized": "observations and rewards, by VecNormalize",
            **recipe.ppo_arguments,
            "policy_kwargs": policy_kwargs,
            "final_std": model.policy.log_std.exp().tolist(),
        },
        "recording": {"deterministic": False, "seed": arguments.seed + 1, "statistics": demonstrations.statistics()},
        "file_bytes": arguments.output.stat().st_size,
    }
    record_path = arguments.record or ROOT / "benchmarks/results" / f"{arguments.output.stem}.json"
    record_path.parent.mkdir(parents=True, exist_ok=True)
    record_path.write_text(json.dumps(record, indent=2) + "\n")
    print(demonstrations.describe())
    print(f"Wrote {arguments.output} and {record_path}.")


if __name__ == "__main__":
    main()

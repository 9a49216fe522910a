"""
Behavior cloning on mediocre Hopper demonstrations, then fine-tuning with ScoReFlowPPO (or RLDT).

    python examples/quickstart.py
    python examples/quickstart.py --algorithm rldt

The program prints the returns of the demonstrations, of their clone and of the fine-tuned policy, and saves the model and a
plot of the learning curve in ``demo_output/``. The fine-tuned policy is the best of the checkpoints evaluated during training.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow import ALGORITHMS, ActionChunking, load_demonstrations, pretrain_bc
from sb3_scoreflow.common.algorithm import FlowAlgorithm

ENV_ID = "Hopper-v5"
#: Algorithm -> arguments that differ from its defaults
ARGUMENTS: dict[str, dict[str, Any]] = {"scoreflow_ppo": dict(n_steps=100, batch_size=250)}


def make_env(n_envs: int, seed: int) -> VecEnv:
    """Hopper environments that take 4 actions at a time."""
    return make_vec_env(ENV_ID, n_envs=n_envs, seed=seed, wrapper_class=partial(ActionChunking, horizon=4))


def make_model(algorithm: str, env: VecEnv, seed: int) -> FlowAlgorithm:
    return ALGORITHMS[algorithm]("FlowPolicy", env, seed=seed, device="cpu", **ARGUMENTS.get(algorithm, {}))


def evaluate(model: FlowAlgorithm, env: VecEnv, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of the deterministic return over 20 episodes, with the same starts for every policy."""
    env.seed(seed)
    returns, _ = evaluate_policy(model, env, n_eval_episodes=20, return_episode_rewards=True)
    return float(np.mean(returns)), float(np.std(returns))


class LearningCurve(BaseCallback):
    """Records the mean return of the last 50 episodes at the end of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.timesteps: list[int] = []
        self.env_steps: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, FlowAlgorithm)
        episodes = list(self.model.ep_info_buffer or [])[-50:]
        if episodes:
            self.timesteps.append(self.model.num_timesteps)
            self.env_steps.append(self.model.num_env_steps)
            self.returns.append(float(np.mean([episode["r"] for episode in episodes])))


def plot(path: Path, title: str, curve: LearningCurve, checks: EvalCallback, demonstrated: float, cloned: float) -> None:
    figure = Figure(figsize=(7, 4), layout="tight")  # needs no screen, and does not change matplotlib's backend
    axes = figure.subplots()
    axes.plot(curve.env_steps, curve.returns, label="fine-tuning, while exploring")
    # EvalCallback counts chunks; the exploring curve gives the environment steps that they took.
    steps = np.interp(checks.evaluations_timesteps, curve.timesteps, curve.env_steps)
    axes.plot(steps, np.mean(checks.evaluations_results, axis=1), "o-", label="fine-tuning, deterministic")
    axes.axhline(demonstrated, color="gray", linestyle=":", label=f"demonstrations ({demonstrated:.0f})")
    axes.axhline(cloned, color="black", linestyle="--", label=f"clone, deterministic ({cloned:.0f})")
    axes.set(xlabel="environment steps", ylabel="return", title=title, ylim=(0, None))
    axes.legend(loc="best")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=list(ALGORITHMS), default="scoreflow_ppo", help="default scoreflow_ppo")
    parser.add_argument("--timesteps", type=int, default=50_000, help="chunks of 4 actions to train for (default 50000)")
    parser.add_argument("--batches", type=int, help="minibatches of cloning (default: as in pretrain_bc)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the model and the plot")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # more threads are slower for networks of this size
    start = time.time()

    demonstrations = load_demonstrations("builtin:hopper-medium")
    print(demonstrations.describe(), end="\n\n")

    test_seed = 20_000 + arguments.seed
    env, test_env = make_env(20, arguments.seed), make_env(1, test_seed)
    model = make_model(arguments.algorithm, env, arguments.seed)
    pretrain_bc(model, demonstrations, n_batches=arguments.batches, seed=arguments.seed, progress_bar=True)
    cloned, cloned_std = evaluate(model, test_env, test_seed)
    print(f"clone: return {cloned:.0f} +- {cloned_std:.0f} over 20 episodes\n")

    curve, folder = LearningCurve(), str(arguments.output)
    checks = EvalCallback(
        make_env(5, 10_000 + arguments.seed),
        n_eval_episodes=10,
        eval_freq=min(250, max(arguments.timesteps // env.num_envs, 1)),  # at least once
        log_path=folder,
        best_model_save_path=folder,
        verbose=0,
    )
    model.learn(arguments.timesteps, callback=[curve, checks], progress_bar=True)
    last, last_std = evaluate(model, test_env, test_seed)
    best = type(model).load(arguments.output / "best_model", device="cpu")
    best.save(arguments.output / f"hopper_{arguments.algorithm}")
    tuned, tuned_std = evaluate(best, test_env, test_seed)

    picture = arguments.output / "learning_curve.png"
    plot(picture, f"{type(model).__name__} on {ENV_ID}", curve, checks, float(demonstrations.episode_returns.mean()), cloned)
    print(
        f"\nfine-tuned: return {tuned:.0f} +- {tuned_std:.0f} over 20 episodes, {tuned / cloned:.2f} times the clone's, "
        f"after {model.num_env_steps} environment steps and {time.time() - start:.0f} s in all "
        f"(the last policy, instead of the best: {last:.0f} +- {last_std:.0f})"
    )
    print(f"wrote {arguments.output / f'hopper_{arguments.algorithm}.zip'} and {picture}")


if __name__ == "__main__":
    main()

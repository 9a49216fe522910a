"""
Record demonstrations of an expert that are nearly free of noise, as the data of other projects often are.

    python -m benchmarks.make_expert_demonstrations --env Hopper-v5 --folder demonstrations
    python -m benchmarks.make_expert_demonstrations --env Walker2d-v5 --folder demonstrations
    python -m benchmarks.make_expert_demonstrations --env HalfCheetah-v5 --folder demonstrations

HalfCheetah's expert is SAC. The experts of Hopper and Walker2d are PPO on normalized observations, whose steps take far less
processor time. The script writes two HDF5 files in D4RL's layout for each task: one of the deterministic policy ("precise")
and one of the same policy with Gaussian noise whose standard deviation is a tenth of the action's bound ("noisy"). Next to
each file, a JSON file records how it was made. The expert is the policy of the best evaluation, because the last policy may
have collapsed. Training takes 40 minutes or more; the experts' weights are in ``benchmarks/experts/``, so that recording takes
a minute. ``--train`` trains anew and writes the weights to the folder as well.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.provenance import provenance
from sb3_scoreflow.demonstrations import Demonstrations, collect_demonstrations

#: Standard deviation of the noise on the recorded actions, in units of the bounds, which are [-1, 1] in these tasks
NOISE = {"precise": 0.0, "noisy": 0.1}
ALGORITHMS = {"Hopper-v5": "ppo", "Walker2d-v5": "ppo", "HalfCheetah-v5": "sac"}
STEPS = {"ppo": 2_000_000, "sac": 300_000}
#: Weights of trained experts
EXPERTS = Path(__file__).parent / "experts"


class NoisyExpert:
    """
    A deterministic policy with Gaussian noise on its actions.

    :param model: model with a method ``predict``
    :param std: standard deviation of the noise
    :param seed: seed of the noise
    """

    def __init__(self, model: Any, std: float, seed: int) -> None:
        self.model, self.std, self.rng = model, std, np.random.default_rng(seed)

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Any:
        """Same interface as the models of Stable-Baselines3; ``deterministic`` is not used."""
        actions, state = self.model.predict(observation, state, episode_start, deterministic=True)
        return np.clip(actions + self.std * self.rng.standard_normal(actions.shape), -1.0, 1.0).astype(np.float32), state


class NormalizedExpert:
    """
    Lets a model that was trained on normalized observations act on raw observations.

    :param model: model that takes normalized observations
    :param statistics: statistics that normalize them
    """

    def __init__(self, model: PPO, statistics: VecNormalize) -> None:
        self.model, self.statistics = model, statistics

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> Any:
        """Same interface as the models of Stable-Baselines3."""
        return self.model.predict(self.statistics.normalize_obs(observation), state, episode_start, deterministic)


class SaveStatistics(BaseCallback):
    """
    Saves the current statistics of ``VecNormalize`` together with each new best model.

    :param path: path of the file
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def _on_step(self) -> bool:
        statistics = self.model.get_vec_normalize_env()
        assert statistics is not None
        statistics.save(str(self.path))
        return True


def train_sac(env_id: str, steps: int, seed: int, folder: Path) -> SAC:
    """
    :param env_id: id of the environment
    :param steps: environment steps
    :param seed: seed of training; evaluations use ``seed + 1000``
    :param folder: folder for the best model and the evaluations
    :return: the policy of the best evaluation; an evaluation has ten episodes, every 20,000 steps
    """
    model = SAC(
        "MlpPolicy",
        make_vec_env(env_id, seed=seed),
        learning_starts=10_000,
        train_freq=2,  # a gradient step for every second step reaches the same return in less time
        policy_kwargs=dict(optimizer_kwargs=dict(fused=True)),
        seed=seed,
        device="cpu",
    )
    model.learn(steps, callback=_evaluations(make_vec_env(env_id, seed=seed + 1000), folder, 1))
    return SAC.load(folder / "best_model", device="cpu")


def train_ppo(env_id: str, steps: int, seed: int, folder: Path) -> NormalizedExpert:
    """
    :param env_id: id of the environment
    :param steps: environment steps
    :param seed: seed of training; evaluations use ``seed + 1000``
    :param folder: folder for the best model, its statistics and the evaluations
    :return: the policy of the best evaluation; an evaluation has ten episodes, every 20,000 steps
    """
    n_envs = 8
    model = PPO(
        "MlpPolicy",
        VecNormalize(make_vec_env(env_id, n_envs, seed=seed)),
        n_steps=512,
        batch_size=256,
        learning_rate=lambda remaining: 3e-4 * remaining,
        policy_kwargs=dict(optimizer_kwargs=dict(fused=True)),
        seed=seed,
        device="cpu",
    )
    path = folder / "statistics.pkl"
    eval_env = VecNormalize(make_vec_env(env_id, seed=seed + 1000), training=False, norm_reward=False)
    model.learn(steps, callback=_evaluations(eval_env, folder, n_envs, SaveStatistics(path)))
    best = PPO.load(folder / "best_model", device="cpu")
    return NormalizedExpert(best, VecNormalize.load(str(path), make_vec_env(env_id)))


def _evaluations(eval_env: VecEnv, folder: Path, n_envs: int, on_new_best: BaseCallback | None = None) -> EvalCallback:
    return EvalCallback(
        eval_env,
        callback_on_new_best=on_new_best,
        n_eval_episodes=10,
        eval_freq=20_000 // n_envs,
        log_path=str(folder),
        best_model_save_path=str(folder),
        verbose=1,
    )


TRAIN: dict[str, Callable[[str, int, int, Path], SAC | NormalizedExpert]] = {"ppo": train_ppo, "sac": train_sac}


def save_expert(expert: SAC | NormalizedExpert, path: Path, training: dict[str, Any]) -> None:
    """
    Save what deterministic actions depend on: neither SAC's critics nor the optimizers, which take ten times the space.

    :param expert: the expert
    :param path: file to write
    :param training: how the expert was trained
    """
    state: dict[str, Any] = {"training": training, "weights": _actor(expert).state_dict()}
    if isinstance(expert, NormalizedExpert):
        statistics = expert.statistics.obs_rms
        assert isinstance(statistics, RunningMeanStd)  # a dict only for Dict spaces
        state |= {"mean": torch.from_numpy(statistics.mean), "var": torch.from_numpy(statistics.var)}
    torch.save(state, path)


def load_expert(env_id: str, path: Path) -> tuple[SAC | NormalizedExpert, dict[str, Any]]:
    """
    :param env_id: id of the environment
    :param path: file that :func:`save_expert` wrote
    :return: the expert, and how it was trained
    """
    state = torch.load(path, weights_only=True)
    expert: SAC | NormalizedExpert
    if ALGORITHMS[env_id] == "sac":
        expert = SAC("MlpPolicy", make_vec_env(env_id), device="cpu")
    else:
        env = VecNormalize(make_vec_env(env_id), training=False)
        assert isinstance(env.obs_rms, RunningMeanStd)
        env.obs_rms.mean, env.obs_rms.var = state["mean"].numpy(), state["var"].numpy()
        expert = NormalizedExpert(PPO("MlpPolicy", env, device="cpu"), env)
    _actor(expert).load_state_dict(state["weights"])
    return expert, state["training"]


def _actor(expert: SAC | NormalizedExpert) -> torch.nn.Module:
    return expert.actor if isinstance(expert, SAC) else expert.model.policy


def record(model: Any, env_id: str, std: float, n_episodes: int, seed: int) -> Demonstrations:
    """
    :param model: the expert
    :param env_id: id of the environment
    :param std: standard deviation of the noise on the expert's actions
    :param n_episodes: number of episodes to record
    :param seed: seed of the episodes and of the noise
    :return: the demonstrations
    """
    env = gym.make(env_id)
    demonstrations = collect_demonstrations(NoisyExpert(model, std, seed), env, n_episodes=n_episodes, seed=seed)
    env.close()
    return demonstrations


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", required=True, choices=list(ALGORITHMS))
    parser.add_argument("--folder", type=Path, default=Path("demonstrations"))
    parser.add_argument("--train", action="store_true", help="train an expert even if there is one in benchmarks/experts/")
    parser.add_argument("--steps", type=int, help="environment steps of training (default 2,000,000 for PPO, 300,000 for SAC)")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="seed of the recorded episodes, and of training if there is any")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    task = options.env.split("-")[0].lower()
    trained = EXPERTS / f"{task}.pt"
    trains = options.train or not trained.exists()
    if options.steps and not trains:
        parser.error(f"--steps {options.steps} is for training, but {trained} is there already: pass --train, too.")
    options.folder.mkdir(parents=True, exist_ok=True)
    if trains:
        algorithm, start = ALGORITHMS[options.env], time.perf_counter()
        steps = options.steps or STEPS[algorithm]
        model = TRAIN[algorithm](options.env, steps, options.seed, options.folder / f"{task}-{algorithm}")
        seconds = round(time.perf_counter() - start)
        trained = options.folder / f"{task}.pt"
        save_expert(model, trained, dict(algorithm=algorithm.upper(), steps=steps, seed=options.seed, seconds=seconds))
    expert, training = load_expert(options.env, trained)
    for kind, std in NOISE.items():
        demonstrations = record(expert, options.env, std, options.episodes, seed=100_000 + options.seed)
        path = options.folder / f"{task}-{kind}.hdf5"
        demonstrations.save(path)
        facts = dict(
            env_id=options.env,
            noise_std=std,
            training=training,
            statistics=demonstrations.statistics(),
            seed=options.seed,
            **provenance(),
        )
        path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
        print(path, demonstrations.statistics()["return_mean"], flush=True)


if __name__ == "__main__":
    main()

"""Small runs to be interrupted: as a user's script makes them, anew in every process."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

from sb3_scoreflow import ActionChunking
from sb3_scoreflow.resuming import learn_resumable
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS

N_ENVS = 2
#: Of an episode: evaluations are short, and runs go through resets
N_STEPS = 20
#: Of a run that is killed from outside
N_ITERATIONS = 20
CASES: dict[str, Algorithm] = {str(each): each for each in ALGORITHMS}


class Killed(Exception):
    """What stands for a kill in one process."""


class KillAt(BaseCallback):
    """Ends the run from within, at a number of timesteps; None for never."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        if self.at is not None and self.num_timesteps >= self.at:
            raise Killed
        return True


def make_env(env_id: str, n_envs: int, seed: int, vec_env_cls: type[VecEnv] | None = None) -> VecEnv:
    arguments: dict[str, Any] = dict(wrapper_class=ActionChunking, wrapper_kwargs=dict(horizon=2))
    arguments |= dict(env_kwargs=dict(max_episode_steps=N_STEPS))
    return make_vec_env(env_id, n_envs, seed=seed, vec_env_cls=vec_env_cls, **arguments)  # type: ignore[arg-type]


def run(
    algorithm: Algorithm,
    folder: Path,
    n_iterations: int = 6,
    kill_at: int | None = None,
    env_id: str = "Pendulum-v1",
    vec_normalize: bool = False,
    in_processes: bool = False,
    callbacks: tuple[BaseCallback, ...] = (),
    **arguments: Any,
) -> tuple[Any, EvalCallback]:
    """
    :return: the model and its evaluations, whether the run was killed or not
    """
    env, eval_env = make_env(env_id, N_ENVS, 0, SubprocVecEnv if in_processes else None), make_env(env_id, 1, 7)
    if vec_normalize:
        env, eval_env = VecNormalize(env), VecNormalize(eval_env, training=False)
    size = algorithm.iteration(N_ENVS)
    model = algorithm.make("FlowPolicy", env)
    log = str(folder.with_name(f"{folder.name}_log"))
    evaluation = EvalCallback(eval_env, eval_freq=size // N_ENVS, n_eval_episodes=1, log_path=log, verbose=0, warn=False)
    every: dict[str, Any] = dict(save_freq=size, **arguments)
    try:
        learn_resumable(model, n_iterations * size, folder, callback=[evaluation, *callbacks, KillAt(kill_at)], **every)
    except Killed:
        pass
    finally:
        env.close()
    return model, evaluation


def difference(a: Any, b: Any) -> float:
    """:return: between the largest of all parameters, statistics and optimizer moments of two models"""

    def tensors(value: Any) -> list[th.Tensor]:
        if isinstance(value, th.Tensor):
            return [value.double()]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
        return [tensor for part in parts for tensor in tensors(part)]

    pairs = zip(tensors(a.get_parameters()), tensors(b.get_parameters()), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs if x.numel())


class Sleep(BaseCallback):
    """Gives whoever kills the process time to hit every part of an iteration."""

    def _on_step(self) -> bool:
        time.sleep(0.001)
        return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("algorithm")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    th.set_num_threads(1)
    print("begins", flush=True)
    run(CASES[options.algorithm], options.folder, N_ITERATIONS, callbacks=(Sleep(),))

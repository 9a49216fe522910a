"""Small runs of the zoo, as a user starts them."""

import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_scoreflow.registry import ALGORITHMS
from sb3_scoreflow.zoo import main

#: What makes any algorithm fast, where it has such an argument
SMALL: dict[str, Any] = dict(
    n_steps=16,
    batch_size=8,
    n_epochs=1,
    denoising_steps=2,
    critic_steps=2,
    n_refreshes=1,
    actor_steps=2,
    critic_warmup_transitions=0,
    policy_kwargs=dict(net_arch=[16]),
)
FEW = dict(source="builtin:hopper-medium", n_episodes=2)


class Corridor(gym.Env):
    """Two steps per episode; the reward is the action, and "scale" times it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, scale: float = 1.0, render_mode: str | None = None) -> None:
        self.scale = scale
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.full(1, self.t / 2, np.float32), self.scale * float(action[0]), self.t == 2, False, {}

    def render(self) -> np.ndarray:
        return np.full((64, 64, 3), 100 * self.t, np.uint8)


class Poison(BaseCallback):
    """Makes the first ``n`` models that are trained with it diverge."""

    left = 0

    def _on_rollout_start(self) -> None:
        if Poison.left > 0:
            Poison.left -= 1
            next(self.model.policy.parameters()).data.fill_(np.nan)

    def _on_step(self) -> bool:
        return True


if "Corridor-v0" not in gym.registry:
    gym.register("Corridor-v0", entry_point=f"{__name__}:Corridor")


def small(algorithm: str, **more: Any) -> list[str]:
    """
    :param algorithm: its name
    :param more: further hyperparameters
    :return: the part of a command line that sets them
    """
    taken = inspect.signature(ALGORITHMS[algorithm]).parameters
    values = {"n_envs": 1, **{name: value for name, value in SMALL.items() if name in taken}, **more}
    return ["--hyperparams", *(f"{name}:{value!r}" for name, value in values.items())]


def train(folder: Path, algorithm: str, env: str, *options: str, **more: Any) -> Path:
    """
    :param folder: folder of the logs
    :param algorithm: name of the algorithm
    :param env: name of the environment
    :param options: options of the command line, before the hyperparameters
    :param more: hyperparameters
    :return: the folder of the run
    """
    start = ["train", "--algo", algorithm, "--env", env, "-f", str(folder), "--seed", "3", "--device", "cpu"]
    main([*start, "-n", "32", "--eval-freq", "-1", *options, *small(algorithm, **more)])
    runs = sorted((folder / algorithm).iterdir(), key=lambda run: run.stat().st_mtime)
    return runs[-1]


def saved_config(run: Path, env: str) -> dict[str, Any]:
    """
    :param run: folder of a run
    :param env: name of its environment
    :return: the hyperparameters that the zoo says it was run with
    """
    config = yaml.load((run / env / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    return dict(config)

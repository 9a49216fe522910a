"""The tasks, with their demonstrations, environments and measures."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import locomotion, make_robosuite_demonstrations
from benchmarks.curves import locked
from benchmarks.locomotion import CHUNKS, Chunks
from benchmarks.tasks import heuristics
from sb3_scoreflow import Demonstrations, load_demonstrations
from sb3_scoreflow.envs import make_metaworld, make_robomimic


@dataclass(frozen=True)
class Task(ABC):
    """A task of one family."""

    name: str
    env_steps: ClassVar[int] = 120_000
    """Environment steps of fine-tuning"""
    measure: ClassVar[str] = "success"
    """Meaning of the return: ``"success"``, or ``"return"``, which the demonstrations' mean return normalizes"""
    package: ClassVar[str | None] = None
    """Package of the simulator, whose version becomes part of a result's origin"""

    @abstractmethod
    def demonstrations(self, data: Path, seed: int) -> Demonstrations:
        """
        :param data: folder with files of demonstrations
        :param seed: seed of the run
        :return: demonstrations to clone
        """

    @abstractmethod
    def make_env(self, split: str, n_envs: int, seed: int, chunks: Chunks = CHUNKS) -> VecEnv:
        """
        :param split: ``"train"`` or ``"test"``
        :param n_envs: number of environments
        :param seed: seed of the first environment; split and seed together make evaluation episodes differ from training
        :param chunks: chunks of actions
        :return: environments that execute chunks of actions
        """


@dataclass(frozen=True)
class MetaWorld(Task):
    """A Meta-World task. Every seed has separate demonstrations, which all succeed."""

    n_demonstrations: int
    env_name: str = ""
    """Meta-World's name of the task, if it is not ``name``"""
    package = "metaworld"
    max_steps: ClassVar[int] = 200

    def demonstrations(self, data: Path, seed: int) -> Demonstrations:
        source, n = f"metaworld:{self.env_name or self.name}", self.n_demonstrations
        return load_demonstrations(source, n_episodes=n, seed=seed, only_successes=True, max_episode_steps=self.max_steps)

    def make_env(self, split: str, n_envs: int, seed: int, chunks: Chunks = CHUNKS) -> VecEnv:
        arguments = dict(task=self.env_name or self.name, split=split, max_episode_steps=self.max_steps)
        return make_vec_env(make_metaworld, n_envs=n_envs, seed=seed, env_kwargs=arguments, wrapper_class=chunks.wrap)


@dataclass(frozen=True)
class Locomotion(Task):
    """A locomotion task. The demonstrations are an expert's episodes, which are the same for all seeds."""

    env_id: str
    env_steps = 300_000
    measure = "return"

    def demonstrations(self, data: Path, seed: int) -> Demonstrations:
        path = data / f"{self.name}.hdf5"
        if not path.exists():
            command = f"python -m benchmarks.make_expert_demonstrations --env {self.env_id} --folder {data}"
            raise FileNotFoundError(f"There is no {path}. Make it with `{command}`, or pass its folder as --data.")
        return load_demonstrations(str(path))

    def make_env(self, split: str, n_envs: int, seed: int, chunks: Chunks = CHUNKS) -> VecEnv:
        return locomotion.make_env(self.env_id, n_envs, seed, chunks)


class Embedded(Locomotion):
    """A locomotion task with the package's own demonstrations, of noisy agents, which are the same for all seeds."""

    def demonstrations(self, data: Path, seed: int) -> Demonstrations:
        return load_demonstrations(f"builtin:{self.name}")


@dataclass(frozen=True)
class Heuristic(Locomotion):
    """A task of Gymnasium with the controller that comes with it. Every seed has separate demonstrations."""

    n_demonstrations: int
    package: ClassVar[str | None] = "box2d"

    def demonstrations(self, data: Path, seed: int) -> Demonstrations:
        return heuristics.demonstrations_of(self.env_id, self.n_demonstrations, seed)


class Fetch(Heuristic):
    """A task of Gymnasium-Robotics with a script. Every step costs 1 until the goal is reached, for 50 steps."""

    env_steps = 150_000
    package = "gymnasium-robotics"


class Pendulum(Heuristic):
    """An inverted pendulum of MuJoCo with a linear-quadratic regulator, for at most 1000 steps. A fall ends the episode."""

    env_steps = 150_000
    package = None


@dataclass(frozen=True)
class Robosuite(Task):
    """
    A robosuite task. The demonstrations are episodes of a mediocre script, including failures; they are written once and are
    the same for all seeds.
    """

    n_demonstrations: int
    max_steps: int
    package = "robosuite"

    def demonstrations(self, data: Path, seed: int) -> Demonstrations:
        path = data / f"{self.name}_{self.n_demonstrations}_{self.max_steps}.hdf5"
        with locked(data):  # another command may be about to write it, too
            if not path.exists():
                numbers = ["--episodes", str(self.n_demonstrations), "--horizon", str(self.max_steps)]
                make_robosuite_demonstrations.main(["--output", str(path), "--task", self.name, *numbers])
        recorded = load_demonstrations(f"robomimic:{path}")
        assert isinstance(recorded.observations, dict)
        # The Gaussian PPO needs one array; keys are sorted as in FlattenObservation, because spaces sort their keys
        observations = np.concatenate([recorded.observations[key] for key in sorted(recorded.observations)], axis=1)
        flags = recorded.terminations, recorded.truncations
        return Demonstrations(observations, recorded.actions, recorded.rewards, *flags, metadata=recorded.metadata)

    def make_env(self, split: str, n_envs: int, seed: int, chunks: Chunks = CHUNKS) -> VecEnv:
        arguments = dict(dataset_or_task=self.name, horizon=self.max_steps)
        chunked = partial(_flat_and_chunked, chunks=chunks)
        return make_vec_env(make_robomimic, n_envs, seed=seed, env_kwargs=arguments, wrapper_class=chunked)


def _flat_and_chunked(env: gym.Env, chunks: Chunks) -> gym.Env:
    return chunks.wrap(FlattenObservation(env))


#: Meta-World's tasks whose clones of five demonstrations succeed in nearly all episodes
EASY = ("hammer-v3", "assembly-v3", "stick-push-v3", "door-open-v3", "button-press-topdown-v3", "window-open-v3")
#: Meta-World's tasks whose clones of five demonstrations (soccer: ten) fine-tuning can improve, and their demonstrations
HARD = {
    "peg-insert-side-v3": 5,
    "soccer-v3": 10,
    "pick-place-v3": 5,
    "push-v3": 5,
    "disassemble-v3": 5,
    "basketball-v3": 5,
    "hand-insert-v3": 5,
}
#: The same tasks and the easy ones, all with ten demonstrations: task -> Meta-World's name
TEN = {f"{name}-ten": name for name in (*HARD, *EASY)}
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(MetaWorld(name, n) for name, n in HARD.items()),
        *(MetaWorld(task, 10, name) for task, name in TEN.items()),
        *(Embedded(f"{name.lower()}-medium", f"{name}-v5") for name in ("Hopper", "Walker2d", "HalfCheetah")),
        Locomotion("hopper-precise", "Hopper-v5"),
        Locomotion("walker2d-precise", "Walker2d-v5"),
        Locomotion("halfcheetah-precise", "HalfCheetah-v5"),
        Heuristic("lunar-lander", "LunarLanderContinuous-v3", 30),
        Heuristic("bipedal-walker", "BipedalWalker-v3", 30),
        Fetch("fetch-pick-and-place", "gymnasium_robotics:FetchPickAndPlace-v4", 30),
        Pendulum("inverted-pendulum", "InvertedPendulum-v5", 10),
        Pendulum("inverted-double-pendulum", "InvertedDoublePendulum-v5", 10),
        Robosuite("lift", 200, max_steps=100),
        Robosuite("can", 100, max_steps=200),
        Robosuite("square", 100, max_steps=200),
    )
}


@lru_cache(maxsize=1)
def demonstrations_of(task: Task, data: Path, seed: int) -> Demonstrations:
    """The demonstrations of a run; see :meth:`Task.demonstrations`."""
    return task.demonstrations(data, seed)

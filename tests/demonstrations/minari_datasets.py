"""Minari datasets for tests: made from roll-outs, through the minari library, never downloaded."""

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from sb3_scoreflow import Demonstrations, load_demonstrations

PENDULUM, REACH = "pendulum/random-v0", "reach/random-v1"
REACH_KEYS = {"desired_goal_x", "desired_goal_y", "image", "observation"}
IMAGE_SHAPE = (36, 36, 3)  # large enough for Minari to take it for an image


class ReachEnv(gym.Env):
    """A point that terminates when it is near a goal; nested ``Dict`` observations, as goal envs of several tasks have."""

    def __init__(self) -> None:
        box = spaces.Box(-2.0, 2.0, (1,), np.float64)
        self.observation_space = spaces.Dict(
            {
                "observation": spaces.Box(-2.0, 2.0, (2,), np.float64),
                "desired_goal": spaces.Dict({"x": box, "y": box}),
                "image": spaces.Box(0, 255, IMAGE_SHAPE, np.uint8),
            }
        )
        self.action_space = spaces.Box(-0.3, 0.3, (2,), np.float32)
        self.position, self.goal = np.zeros(2), np.zeros(2)

    def observe(self) -> dict[str, Any]:
        image = self.np_random.integers(0, 256, IMAGE_SHAPE, np.uint8)  # noise, which JPEG does not keep
        return {
            "observation": self.position.copy(),
            "desired_goal": {"x": self.goal[:1].copy(), "y": self.goal[1:].copy()},
            "image": image,
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.goal = np.zeros(2), self.np_random.uniform(-1, 1, 2)
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + action, -2, 2)
        distance = float(np.linalg.norm(self.position - self.goal))
        return self.observe(), -distance, distance < 0.1, False, {}


gym.register("MinariReach-v0", entry_point=f"{__name__}:ReachEnv", max_episode_steps=6)


def roll_out(env: gym.Env, n_episodes: int) -> list[EpisodeBuffer]:
    """Episodes of random actions as Minari's own collector stores them: T + 1 observations, nested dicts of lists."""
    env.action_space.seed(0)
    buffers = []
    for number in range(n_episodes):
        observation, _ = env.reset(seed=number)
        observations, actions, rewards, terminations, truncations = [observation], [], [], [], []
        while True:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
            terminations.append(terminated)
            truncations.append(truncated)
            if terminated or truncated:
                break
        buffers.append(
            EpisodeBuffer(
                observations=transpose(observations),
                actions=actions,
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
            )
        )
    return buffers


def transpose(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: transpose([observation[key] for observation in observations]) for key in observations[0]}
    return observations


def create(dataset_id: str, buffers: list[EpisodeBuffer], env: gym.Env | None, **kwargs: Any) -> list[EpisodeBuffer]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(.|\n)*None")  # of facts about the author
        minari.create_dataset_from_buffers(dataset_id, buffers, env=env, **kwargs)
    return buffers


def pendulum(n_episodes: int = 3, **kwargs: Any) -> list[EpisodeBuffer]:
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    return create("pendulum/random-v0", roll_out(env, n_episodes), env, **kwargs)


def reach(n_episodes: int = 4) -> list[EpisodeBuffer]:
    env = gym.make("MinariReach-v0")
    return create("reach/random-v1", roll_out(env, n_episodes), env)


def handmade(changes: list[dict[str, Any]], **kwargs: Any) -> None:
    """A dataset of hand-made episodes of 3 steps; each dict changes an episode's arrays."""
    buffers = []
    for change in changes:
        arrays: dict[str, Any] = {
            "observations": np.arange(4.0)[:, None],
            "actions": np.zeros((3, 1), np.float32),
            "rewards": np.ones(3),
            "terminations": np.zeros(3, bool),
            "truncations": np.zeros(3, bool),
        }
        buffers.append(EpisodeBuffer(**{**arrays, **change}))
    arguments = {"observation_space": spaces.Box(-9, 9, (1,), np.float64), "action_space": spaces.Box(-1, 1, (1,)), **kwargs}
    create("handmade-v0", buffers, None, **arguments)


def edit_metadata(root: Path, dataset_id: str, **changes: Any) -> None:
    """Set entries of the dataset's metadata; None removes one."""
    path = root / dataset_id / "data" / "metadata.json"
    metadata = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def assert_same_data(a: Demonstrations, b: Demonstrations) -> None:
    pairs = [(getattr(a, key), getattr(b, key)) for key in ("actions", "rewards", "terminations", "truncations")]
    if isinstance(a.observations, dict):
        assert isinstance(b.observations, dict) and a.observations.keys() == b.observations.keys()
        pairs += [(a.observations[key], b.observations[key]) for key in a.observations]
    else:
        pairs.append((a.observations, b.observations))
    for x, y in pairs:
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def small(**kwargs: Any) -> Demonstrations:
    return Demonstrations(np.zeros((2, 3)), np.zeros((2, 1)), None, [0, 1], **kwargs)


def recorded(**changes: Any) -> str:
    """What a dataset says of Pendulum-v1, changed."""
    made = gym.make("Pendulum-v1").spec
    assert made is not None
    return json.dumps({**json.loads(made.to_json()), **changes})


def load(dataset_id: str, **kwargs: Any) -> Demonstrations:
    return load_demonstrations(f"minari:{dataset_id}", download=False, **kwargs)

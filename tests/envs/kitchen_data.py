"""Kitchen roll-outs, in files as D4RL and Minari have them."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np

from sb3_scoreflow.demonstrations.d4rl import DATASETS
from sb3_scoreflow.envs import KITCHEN_TASK_SETS, FlatKitchen, completed_tasks, make_kitchen
from tests.demonstrations.minari_datasets import create, roll_out

#: task -> the numbers of its positions among the 30, and where they have to be (D4RL's kitchen_envs.py)
GOALS: dict[str, tuple[list[int], list[float]]] = {
    "bottom burner": ([11, 12], [-0.88, -0.01]),
    "top burner": ([15, 16], [-0.92, -0.01]),
    "light switch": ([17, 18], [-0.69, -0.05]),
    "slide cabinet": ([19], [0.37]),
    "hinge cabinet": ([20, 21], [0.0, 1.45]),
    "microwave": ([22], [-0.75]),
    "kettle": ([23, 24, 25, 26, 27, 28, 29], [-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06]),
}


def complete(env: gym.Env, task: str) -> None:
    """Put the objects of a task where they have to be; the next step notices."""
    kitchen: Any = env.unwrapped
    positions, velocities = kitchen.data.qpos.copy(), kitchen.data.qvel.copy()
    positions[GOALS[task][0]] = GOALS[task][1]
    kitchen.robot_env.set_state(positions, velocities)


def record(env: FlatKitchen, n_episodes: int, n_steps: int) -> dict[str, np.ndarray]:
    """Random actions; in the middle of each episode the microwave opens."""
    rows: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "terminals", "infos")}
    env.action_space.seed(0)
    for number in range(n_episodes):
        observation, _ = env.reset(seed=number)
        for step in range(n_steps):
            if step == n_steps // 2:
                complete(env, "microwave")
            action = env.action_space.sample()
            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["terminals"].append(step == n_steps - 1)
            rows["infos"].append(number)
            observation = env.step(action)[0]
    return {key: np.array(values) for key, values in rows.items()}


def write_d4rl(directory: Path, kind: str = "complete", n_episodes: int = 2, n_steps: int = 8) -> dict[str, np.ndarray]:
    """
    A file of D4RL's kitchen: six arrays, flags in float32, the number of the demonstration as infos, and as rewards the number
    of tasks that are complete.
    """
    arrays = record(make_kitchen(kind, "d4rl"), n_episodes, n_steps)
    arrays["rewards"] = completed_tasks(arrays["observations"], kind).sum(axis=-1)
    for key in ("observations", "actions", "rewards", "terminals"):
        arrays[key] = arrays[key].astype(np.float32)
    arrays["timeouts"] = np.zeros(n_episodes * n_steps, bool)
    directory.mkdir(parents=True, exist_ok=True)
    with h5py.File(directory / DATASETS[f"kitchen-{kind}-v0"].rpartition("/")[2], "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip")
    return arrays


def write_minari(kind: str = "complete", n_episodes: int = 2, n_steps: int = 8) -> str:
    """A dataset of Minari's kitchen: FrankaKitchen's nested observations, recorded in an env that goes on after success."""
    env = gym.make(
        "gymnasium_robotics:FrankaKitchen-v1",
        tasks_to_complete=list(KITCHEN_TASK_SETS[kind]),
        remove_task_when_completed=False,
        terminate_on_tasks_completed=False,
        max_episode_steps=n_steps,
        disable_env_checker=True,
    )
    dataset_id = f"D4RL/kitchen/{kind}-v2"
    create(dataset_id, roll_out(env, n_episodes), env)
    env.close()
    return f"minari:{dataset_id}"

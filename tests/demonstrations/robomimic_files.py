"""Files in robomimic's layout: with what robosuite's Lift returns, and with numbers."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

ENV_ARGS = {"env_name": "Lift", "env_version": "1.5.1", "type": 1, "env_kwargs": {"robots": ["Panda"], "control_freq": 20}}
CAMERA, SIZE = "agentview", 48

Demo = dict[str, Any]


def numbered_demo(n: int, length: int, size: int = 8, success: bool = True, robots: int = 1, camera: bool = False) -> Demo:
    """Demonstration ``n``: step ``t`` has the action ``[n, t] / 100``, observations ``n + t / 100``, images ``10 n + t``."""
    step = np.arange(length)
    value = n + step[:, None] / 100
    obs: dict[str, np.ndarray] = {"object": np.repeat(value, 10, axis=1)}
    for i in range(robots):
        for part, width in (("eef_pos", 3), ("eef_quat", 4), ("gripper_qpos", 2), ("joint_pos", 7)):
            obs[f"robot{i}_{part}"] = np.repeat(value, width, axis=1)
    if camera:
        images = np.broadcast_to((10 * n + step)[:, None, None, None], (length, size, size, 3)).astype(np.uint8)
        obs[f"{CAMERA}_image"] = images
    rewards = np.zeros(length)
    rewards[length // 2] = 1.0  # in passing: what counts is the end
    rewards[-1] = float(success)
    return {"actions": np.stack([np.full(length, n), step], axis=1) / 100, "rewards": rewards, "obs": obs}


def write_file(
    path: Path,
    demos: dict[str, Demo],
    masks: dict[str, list[str]] | None = None,
    env_args: Any = ENV_ARGS,
    **image_kwargs: Any,
) -> Path:
    """
    :param path: The new file
    :param demos: By name; ``next_obs``, ``states`` and ``model_file`` are written too where they are given
    :param masks: Names of demonstrations
    :param env_args: JSON, or text that is written as it is
    :param image_kwargs: Passed on to ``create_dataset``, for images
    """
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = env_args if isinstance(env_args, (str, bytes)) else json.dumps(env_args)
        data.attrs["total"] = sum(len(demo["actions"]) for demo in demos.values())
        for name, demo in demos.items():
            group = data.create_group(name)
            for key, value in demo.items():
                if key == "model_file":
                    group.attrs[key] = value
                elif isinstance(value, dict):
                    for inner, array in value.items():
                        group.create_dataset(
                            f"{key}/{inner}", data=array, **(image_kwargs if inner.endswith("_image") else {})
                        )
                else:
                    group[key] = value
            group.attrs["num_samples"] = len(demo["actions"])
            if "rewards" in demo:
                # As robomimic's done_mode 2: at every success and at the end
                dones = (np.asarray(demo["rewards"]).ravel() > 0).astype(np.int64)
                dones[-1:] = 1
                group["dones"] = dones
        for name, listed in (masks or {}).items():
            file[f"mask/{name}"] = np.array(listed, dtype="S8")
    return path


def roll_out_lift(lengths: list[int]) -> dict[str, Demo]:
    """Demonstrations of robosuite's Lift, by random actions."""
    robosuite = pytest.importorskip("robosuite")
    global_state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002 robosuite draws from the global generator
    env = robosuite.make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=CAMERA,
        camera_heights=SIZE,
        camera_widths=SIZE,
        hard_reset=False,
    )
    rng = np.random.default_rng(0)
    demos = {}
    for number, length in enumerate(lengths):
        observations, states = [_as_robomimic(env.reset())], []
        actions, rewards = rng.uniform(-1, 1, (length, env.action_dim)), []
        for action in actions:
            states.append(env.sim.get_state().flatten())
            observation, reward, _, _ = env.step(action)
            observations.append(_as_robomimic(observation))
            rewards.append(reward)
        rows = {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
        demos[f"demo_{number}"] = {
            "actions": actions,
            "rewards": np.array(rewards),
            "states": np.array(states),
            "model_file": env.sim.model.get_xml(),
            "obs": {key: value[:-1] for key, value in rows.items()},
            "next_obs": {key: value[1:] for key, value in rows.items()},
        }
    env.close()
    np.random.set_state(global_state)  # noqa: NPY002
    return demos


def _as_robomimic(observation: dict[str, Any]) -> dict[str, np.ndarray]:
    """robosuite's observation as robomimic names it: without the keys that join others, images upright."""
    renamed = {key.replace("object-state", "object"): np.asarray(value) for key, value in observation.items()}
    return {key: value[::-1] if key.endswith("_image") else value for key, value in renamed.items() if "-state" not in key}

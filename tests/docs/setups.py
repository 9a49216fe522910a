"""What pages take for granted: a model, an environment, files in the true layouts. All of it is small."""

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_scoreflow import FPO, ActionChunking, Demonstrations, ScoReFlowPPO, load_demonstrations, pretrain_bc

Namespace = dict[str, Any]
SMALL: dict[str, Any] = dict(n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0, policy_kwargs=dict(net_arch=[16]))


def hopper(n_envs: int = 2, horizon: int = 4) -> VecEnv:
    return make_vec_env("Hopper-v5", n_envs, seed=0, wrapper_class=partial(ActionChunking, horizon=horizon))


@cache
def some_demonstrations() -> Demonstrations:
    return load_demonstrations("builtin:hopper-medium", n_episodes=3)


def model_of(cls: Any = ScoReFlowPPO, env: Any = None) -> Any:
    return cls("FlowPolicy", hopper() if env is None else env, **SMALL)


def on_hopper() -> Namespace:
    """Of a page that goes on from the quickstart."""
    return dict(env=hopper(), eval_env=hopper(1), model=model_of(), demonstrations=some_demonstrations())


def write_d4rl(path: Path, n_observations: int = 11, n_actions: int = 3, length: int = 20) -> None:
    """Two episodes in D4RL's layout."""
    rng, n = np.random.default_rng(0), 2 * length
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(n, n_observations)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (n, n_actions)).astype(np.float32)
        file["rewards"] = np.ones(n, np.float32)
        file["terminals"] = np.zeros(n, bool)
        file["timeouts"] = np.arange(n) % length == length - 1


def write_robomimic(path: Path) -> None:
    """Ten short episodes of robosuite's Lift with images, as the benchmark's script records them."""
    from benchmarks.make_robosuite_demonstrations import main

    main(["--output", str(path), "--episodes", "10", "--horizon", "4", "--camera", "agentview"])


def write_pusht(folder: Path) -> None:
    """A LeRobot data set with images and the names of PushT's."""
    from tests.demonstrations import lerobot_files as files

    table = {**files.columns(), "observation.image": files.encoded(files.GRAY, size=(32, 32))}
    files.write_v3(folder, table)


def demonstrations(folder: Path) -> Namespace:
    from tests.demonstrations.minari_datasets import create, roll_out
    from tests.envs.kitchen_data import write_minari

    write_d4rl(folder / "d4rl/hopper_medium-v2.hdf5")
    shutil.copytree(folder / "d4rl", folder / "data/d4rl")
    write_d4rl(folder / "path/to/file.hdf5")
    rng, (n, length) = np.random.default_rng(0), (12, 6)
    np.savez(
        folder / "path/to/train.npz", states=rng.random((n, 3)), actions=rng.random((n, 2)), traj_lengths=[length, length]
    )
    recorded = gym.make("Hopper-v5", max_episode_steps=5)
    create("mujoco/hopper/medium-v0", roll_out(recorded, 2), recorded)
    write_minari("complete")
    (folder / "lift/ph").mkdir(parents=True)
    write_robomimic(folder / "lift/ph/image.hdf5")
    shutil.copy(folder / "lift/ph/image.hdf5", folder / "lift/ph/low_dim.hdf5")
    write_pusht(folder / "path/to/pusht")
    shutil.copytree(folder / "path/to/pusht", folder / "pusht")
    obs, acts, rews = rng.random((length, 11)), rng.uniform(-1, 1, (length, 3)), np.ones(length)
    ends = np.arange(n) % length == length - 1
    env = make_vec_env("Hopper-v5", 2, seed=0)
    return dict(
        env=env,
        model=ScoReFlowPPO("FlowPolicy", env, n_steps=8, batch_size=8, device="cpu"),  # networks as other algorithms' have
        observations=np.concatenate([obs, obs]),
        actions=np.concatenate([acts, acts]),
        rewards=np.concatenate([rews, rews]),
        terminations=ends,
        truncations=None,
        recordings=[(obs, acts, rews)],
        episodes=[{"obs": obs, "acts": acts, "rews": rews, "terminal": True}],
    )


def cameras(folder: Path) -> Namespace:
    write_robomimic(folder / "image.hdf5")
    return {}


def tasks(folder: Path) -> Namespace:
    from tests.envs.kitchen_data import write_d4rl as write_kitchen

    write_kitchen(folder / "d4rl")
    write_d4rl(folder / "d4rl/pen-human-v1.hdf5", 45, 24)
    return {}


def callbacks(folder: Path) -> Namespace:
    """The page's models have been evaluated in three runs."""
    from sb3_scoreflow.callbacks import FlowEvalCallback

    for seed in range(3):
        callback = FlowEvalCallback(hopper(1), n_eval_episodes=2, eval_freq=8, log_path=str(folder / f"runs/hopper_{seed}"))
        model_of().learn(16, callback=callback)
    return dict(on_hopper(), clone=model_of())


def deployment(folder: Path) -> Namespace:
    (folder / "demo_output").mkdir()
    model_of().save(folder / "demo_output/hopper_scoreflow_ppo")
    return dict(observation=np.zeros(11))


def security(folder: Path) -> Namespace:
    from sb3_scoreflow.hub import push_to_hub

    model = model_of()
    pretrain_bc(model, some_demonstrations(), n_batches=1)
    model.save(folder / "downloaded.zip")
    model.policy.save(folder / "downloaded.pth")
    push_to_hub(model, "somebody/policy", hopper(1), n_eval_episodes=1)
    return dict(on_hopper(), other=model_of(FPO))


def reliability(folder: Path) -> Namespace:
    return dict(make_task=partial(gym.make, "Pendulum-v1"))


#: By the name of a page; pages that are not here get :func:`on_hopper`
SETUPS: dict[str, Callable[[Path], Namespace]] = {
    "docs/callbacks_pictures.md": callbacks,
    "docs/cameras.md": cameras,
    "docs/demonstrations.md": demonstrations,
    "docs/deployment.md": deployment,
    "docs/reliability.md": reliability,
    "docs/security.md": security,
    "docs/tasks.md": tasks,
}

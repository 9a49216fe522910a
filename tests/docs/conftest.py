"""The place in which blocks of the documentation run: an empty folder, no network, and short runs."""

import functools
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stable_baselines3
from stable_baselines3.common import env_util, evaluation, vec_env

import sb3_scoreflow
from sb3_scoreflow import envs, videos
from sb3_scoreflow.bc import behavior_cloning
from sb3_scoreflow.callbacks import FlowEvalCallback
from sb3_scoreflow.common.algorithm import FlowAlgorithm


def bounded(function: Callable[..., Any], **limits: int) -> Callable[..., Any]:
    """:return: the function with numbers no larger than these, whether they are given or are defaults"""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, limit in limits.items():
            given = bound.arguments[name]
            bound.arguments[name] = limit if given is None else min(given, limit)
        return function(*bound.args, **bound.kwargs)

    return call


#: Module or class, function, and its largest numbers. Pages say ``learn(1_000_000)``, as users have to; tests have seconds.
BOUNDS: list[tuple[Any, str, dict[str, int]]] = [
    (env_util, "make_vec_env", dict(n_envs=2)),
    (evaluation, "evaluate_policy", dict(n_eval_episodes=1)),
    (sb3_scoreflow, "learn_resumable", dict(total_timesteps=4)),
    (sb3_scoreflow, "calibrate_noise", dict(n_episodes=2)),
    (sb3_scoreflow, "collect_demonstrations", dict(n_episodes=2)),
    (FlowEvalCallback, "__init__", dict(n_eval_episodes=2)),
    (videos, "record_video", dict(n_episodes=1, n_steps=5)),
    (videos, "record_comparison", dict(n_steps=5)),
    *((cls, "learn", dict(total_timesteps=4)) for cls in (stable_baselines3.PPO, *sb3_scoreflow.ALGORITHMS.values())),
]


#: Pages about processes, which keep ``SubprocVecEnv``
IN_PROCESSES = {"docs/reliability.md"}


class FakeHub:
    """``huggingface_hub`` without network: keeps what is uploaded, and gives it back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, repo_id: str, **kwargs: Any) -> str:
        return f"https://hub/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo_id: str, **kwargs: Any) -> str:
        return str(self.folder / repo_id)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """:return: working directory of the blocks, below which the sources of demonstrations look for theirs"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("D4RL_DATASET_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("METAWORLD_DATASET_DIR", str(tmp_path / "metaworld"))
    return tmp_path


@pytest.fixture
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Runs of a few steps, and a Hub that is a folder."""
    for owner, name, limits in BOUNDS:
        monkeypatch.setattr(owner, name, bounded(getattr(owner, name), **limits))
    monkeypatch.setattr(envs, "EnvPoolVecEnv", functools.partial(few_in_pool, envs.EnvPoolVecEnv))
    monkeypatch.setattr(FlowAlgorithm, "_setup_model", of_short_rollouts(FlowAlgorithm._setup_model))
    # Processes are tested elsewhere; here each would import a simulator once more.
    if request.node.callspec.params["name"] not in IN_PROCESSES:
        monkeypatch.setattr(vec_env, "SubprocVecEnv", vec_env.DummyVecEnv)
    monkeypatch.setattr(behavior_cloning, "default_batches", lambda per_epoch, residual=0.0: 2)
    monkeypatch.setattr(behavior_cloning, "CRITIC_BATCHES", 2)
    hub = pytest.importorskip("huggingface_hub")
    fake = FakeHub(place / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda token: fake)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)


def of_short_rollouts(setup: Callable[[Any], None]) -> Callable[[Any], None]:
    def set_up(model: Any) -> None:
        model.n_steps = min(model.n_steps or 8, 8)
        setup(model)

    return set_up


def few_in_pool(cls: Any, *args: Any, n_envs: int = 1, **kwargs: Any) -> Any:
    return cls(*args, n_envs=min(n_envs, 2), **kwargs)

"""Everything that writes a file or folder, small, and what reads it: for tests of kills, full disks and kinds of paths."""

import contextlib
import os
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, learn_resumable, load_demonstrations, pretrain_bc
from sb3_scoreflow.callbacks import FlowEvalCallback
from sb3_scoreflow.common.clones import clone_policy
from sb3_scoreflow.common.saved_files import cloning_of, saved_data, written_by
from sb3_scoreflow.demonstrations import write_lerobot
from sb3_scoreflow.export import export_onnx, export_program
from sb3_scoreflow.hub import write_hub_folder
from sb3_scoreflow.plotting import read_evaluations
from sb3_scoreflow.resuming import CheckpointFolder
from sb3_scoreflow.videos import record_video
from tests.test_videos import make_policy, small_env

SMALL: dict[str, Any] = dict(n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0, policy_kwargs=dict(net_arch=[32, 32]))


class Writer(NamedTuple):
    """One of them; both functions take a path as users give it."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]
    suffix: str = ""
    #: Files that are there then, below the path; the path itself if there are none
    files: tuple[str, ...] = ()


@cache
def model() -> ScoReFlowPPO:
    made = ScoReFlowPPO("FlowPolicy", VecNormalize(make_vec_env("Pendulum-v1", 1)), **SMALL)
    pretrain_bc(made, demonstrations(100), n_batches=1)
    return made


def demonstrations(n: int = 1000, length: int = 50) -> Demonstrations:
    """Of noise, which cannot be compressed."""
    rng = np.random.default_rng(0)
    ends = np.arange(n) % length == length - 1
    return Demonstrations(rng.random((n, 3), np.float32), rng.random((n, 1), np.float32) - 0.5, rng.random(n), None, ends)


def read_model(path: Any) -> None:
    loaded = ScoReFlowPPO.load(path, device="cpu")
    loaded.set_parameters(path, device="cpu")
    loaded.load_clone(path)
    clone_policy(path)
    assert written_by(path) == "ScoReFlowPPO" and saved_data(path)["seed"] == 0 and cloning_of(path) is not None


def read_demonstrations(path: Any) -> None:
    assert len(Demonstrations.load_hdf5(path)) == len(load_demonstrations(path)) == 1000


def read_lerobot(path: Any) -> None:
    source = "lerobot:" + os.fsdecode(path)
    assert len(load_demonstrations(source)) == len(load_demonstrations(source.encode())) == 1000


class Stopped(Exception):
    """What ends cloning after its next checkpoint: a finished one leaves none."""


def stop(_: Any) -> bool:
    raise Stopped


def clone(path: Any) -> None:
    arguments: dict[str, Any] = dict(n_batches=100_000, log_interval=1, seed=0, checkpoint=path, callback=stop)
    with contextlib.suppress(Stopped):
        pretrain_bc(deepcopy(model().policy), demonstrations(100), **arguments)


def learn(path: Any) -> None:
    learn_resumable(ScoReFlowPPO("FlowPolicy", make_vec_env("Pendulum-v1", 1), **SMALL), 8, path)


def read_checkpoints(path: Any) -> None:
    with CheckpointFolder(Path(os.path.expanduser(os.fsdecode(path))), 1) as folder:
        newest = folder.newest()
        assert newest is not None and newest.state() and newest.facts()
        ScoReFlowPPO.load(newest.model, device="cpu")


def short_env() -> VecNormalize:
    return VecNormalize(make_vec_env("Pendulum-v1", 1, env_kwargs=dict(max_episode_steps=5)), training=False)


def evaluate(path: Any) -> None:
    env = short_env()
    arguments: dict[str, Any] = dict(log_path=path, best_model_save_path=path, clone=model())
    callback = FlowEvalCallback(env, n_eval_episodes=2, eval_freq=8, verbose=0, **arguments)
    model().learn(8, callback=callback)


def publish(path: Any) -> None:
    write_hub_folder(model(), path, short_env(), n_eval_episodes=1)


def read_program(path: Any) -> None:
    th.export.load(os.path.expanduser(os.fsdecode(path))).module()


WRITERS = {
    "model": Writer(lambda path: model().save(path), read_model, ".zip"),
    "policy": Writer(lambda path: model().policy.save(path), lambda path: type(model().policy).load(path, "cpu"), ".pt"),
    "demonstrations": Writer(lambda path: demonstrations().save(path), read_demonstrations, ".hdf5"),
    "lerobot": Writer(lambda path: write_lerobot(demonstrations(), path, fps=10), read_lerobot, "", ("meta/info.json",)),
    "cloning": Writer(clone, clone, ".pt"),
    "checkpoints": Writer(learn, read_checkpoints, "", ("checkpoint_000000000008/model.zip",)),
    "evaluations": Writer(evaluate, read_evaluations, "", ("evaluations.npz", "best_model.zip", "vecnormalize.pkl")),
    "hub": Writer(publish, lambda path: None, "", ("README.md", "vec_normalize.pkl")),
    "program": Writer(lambda path: export_program(model(), path, inference_steps=1), read_program, ".pt2"),
    "onnx": Writer(lambda path: export_onnx(model(), path, inference_steps=1, dynamo=False), lambda path: None, ".onnx"),
    "mp4": Writer(lambda path: record_video(make_policy(), small_env, path, n_episodes=20), lambda path: None, ".mp4"),
    "gif": Writer(lambda path: record_video(make_policy(), small_env, path, n_episodes=20), lambda path: None, ".gif"),
}
#: What needs packages that are not everywhere
EXTRAS = {"onnx": "onnx", "hub": "huggingface_hub", "mp4": "av", "lerobot": "pyarrow"}

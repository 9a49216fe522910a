"""One run of the comparison: a clone shared by all arms of a seed, fine-tuned with an arm's settings, its curve as CSV."""

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning import CurveRecorder, read_curve
from benchmarks.provenance import ROOT
from sb3_scoreflow import ActionChunking, Demonstrations, FlowMatchingPolicy, ScoReFlowPPO, load_demonstrations, pretrain_bc
from sb3_scoreflow.common.utils import atomic_path

DEMONSTRATIONS = {
    "Hopper-v5": "builtin:hopper-medium",
    "Walker2d-v5": "builtin:walker2d-medium",
    "HalfCheetah-v5": "builtin:halfcheetah-medium",
}
RESULTS = ROOT / "benchmarks/results/score"
HORIZON = 4
N_ENVS = 20
CLONE_BATCHES = 10_000


@dataclass(frozen=True)
class Job:
    """
    One run.

    :param env_id: environment
    :param arm: name of the settings
    :param seed: of clone, environments and learning
    :param settings: arguments of ``ScoReFlowPPO``, and ``critic_batches`` to fit the critic to the demonstrations first
    :param timesteps: chunks of four actions
    :param folder: of the curve
    """

    env_id: str
    arm: str
    seed: int
    settings: dict[str, Any] = field(hash=False)
    timesteps: int = 75_000
    folder: Path = RESULTS

    @property
    def path(self) -> Path:
        return self.folder / f"{self.env_id}_{self.arm}_seed{self.seed}.csv"

    @property
    def done(self) -> bool:
        if not self.path.exists():
            return False
        steps = read_curve(self.path)["timesteps"]
        return len(steps) > 0 and steps[-1] >= self.timesteps


def make_env(env_id: str, n_envs: int, seed: int) -> VecEnv:
    return make_vec_env(env_id, n_envs=n_envs, seed=seed, wrapper_class=partial(ActionChunking, horizon=HORIZON))


def clone(env_id: str, seed: int, demonstrations: Demonstrations) -> Path:
    """File of the seed's clone: made once, then read."""
    path = RESULTS / "clones" / f"{env_id}_seed{seed}.pt"
    if not path.exists():
        th.manual_seed(seed)
        env = make_env(env_id, 1, 1000 * seed)
        policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
        pretrain_bc(policy, demonstrations, n_batches=CLONE_BATCHES, seed=seed)
        with atomic_path(path) as temporary:  # arms that start at the same time may both make it
            policy.save(str(temporary))
    return path


def execute(job: Job) -> Job:
    th.set_num_threads(1)
    demonstrations = load_demonstrations(DEMONSTRATIONS[job.env_id])
    policy = clone(job.env_id, job.seed, demonstrations)
    settings = dict(job.settings)
    critic_batches = settings.pop("critic_batches", 0)
    env, eval_env = make_env(job.env_id, N_ENVS, 1000 * job.seed), make_env(job.env_id, 10, 1000 * job.seed + 500)
    model = ScoReFlowPPO("FlowPolicy", env, seed=job.seed, device="cpu", **settings)
    model.load_clone(policy)
    if critic_batches:
        model.pretrain_critic(demonstrations, critic_batches, seed=job.seed)
    model.learn(job.timesteps, callback=CurveRecorder(job.path, eval_env, eval_every=20_000))
    return job


def execute_all(jobs: Iterable[Job], processes: int) -> None:
    """Run what has no complete curve yet."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for done in as_completed([pool.submit(execute, job) for job in jobs if not job.done]):
            job = done.result()
            curve = read_curve(job.path)
            last = {name: round(float(np.nanmean(curve[name][-3:]))) for name in ("return_exploring", "return_deterministic")}
            print(job.env_id, job.arm, job.seed, last, f"{curve['cpu_seconds'][-1]:.0f} CPU s", flush=True)

"""The runs of the comparison. A run fine-tunes a clone, which all arms of a seed share, with an arm's settings."""

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import locomotion, runner
from benchmarks.curves import RETURNS, Curve, CurveTable, Run, as_curve
from benchmarks.learning import final_return
from benchmarks.score.arms import RESULTS
from sb3_scoreflow import ScoReFlowPPO


@dataclass(frozen=True)
class Job:
    """
    One run.

    :param env_id: id of the environment
    :param arm: name of the settings
    :param seed: seed of the clone, the environments and the algorithm
    :param settings: arguments of ``ScoReFlowPPO``, and ``critic_batches``, the number of gradient steps that first fit the
        critic to the demonstrations
    :param timesteps: number of chunks of four actions
    :param folder: folder of the results
    """

    env_id: str
    arm: str
    seed: int
    settings: dict[str, Any] = field(hash=False)
    timesteps: int = 75_000
    folder: Path = RESULTS

    @property
    def run(self) -> Run:
        return Run(self.arm, self.env_id, self.seed)

    def is_done(self, curves: Mapping[Run, Curve]) -> bool:
        """
        :param curves: curves of the table
        :return: whether the table contains this run with at least this length
        """
        return self.run in curves and curves[self.run]["timesteps"][-1] >= self.timesteps


def clone_file(job: Job) -> Path:
    """:return: file of the seed's clone, which the first process creates and the processes of all arms read"""
    path = job.folder / "clones" / f"{job.env_id}_seed{job.seed}.pt"
    if not path.exists():
        policy = locomotion.clone(job.env_id, job.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")  # arms that start at the same time may both create it
        policy.save(str(temporary))
        temporary.replace(path)
    return path


def execute(job: Job) -> runner.Result:
    policy = clone_file(job)
    settings = dict(job.settings)
    critic_batches = settings.pop("critic_batches", 0)
    env, eval_env = locomotion.make_envs(job.env_id, job.seed, n_eval_envs=10)
    model = ScoReFlowPPO("FlowPolicy", env, seed=job.seed, device="cpu", **settings)
    model.load_clone(policy)
    if critic_batches:
        model.pretrain_critic(locomotion.demonstrations_of(job.env_id), critic_batches, seed=job.seed)
    rows = CurveTable(job.folder).record(job.run, model, job.timesteps, eval_env)
    last = {name: f"{final_return(as_curve(rows), name):.0f}" for name in RETURNS}
    print(*job.run, last, f"{float(rows[-1]['cpu_seconds']):.0f} CPU s", flush=True)
    return {"curve": rows}


def execute_all(jobs: Iterable[Job], options: argparse.Namespace) -> None:
    """
    Make the runs that the table does not contain.

    :param jobs: all runs of a stage
    :param options: options of :func:`benchmarks.runner.make`
    """
    table = CurveTable(options.output)
    curves = {} if options.again else table.read()
    missing = {_as_run(job): job for job in jobs if not job.is_done(curves)}
    runner.make(list(missing), options, lambda run, result: table.add({missing[run].run: result["curve"]}))


def _as_run(job: Job) -> runner.Job:
    key = {"arm": job.arm, "env": job.env_id, "seed": job.seed, "timesteps": job.timesteps, "settings": repr(job.settings)}
    return runner.Job(f"{job.env_id} {job.arm} seed {job.seed}", key, partial(execute, job))

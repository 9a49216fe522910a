"""The compared variants, and the function that makes one run."""

import argparse
import gc
from collections.abc import Iterable
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import study
from benchmarks.curves import CurveTable, Run, locked
from benchmarks.finetune import GAUSSIAN, ITERATION, start
from benchmarks.locomotion import CHUNKS, HORIZON, N_ENVS, Chunks
from benchmarks.study import Variant
from benchmarks.tasks.families import TASKS, Task, demonstrations_of
from sb3_scoreflow import FPO, RLDT, Demonstrations, FlowMatchingPolicy, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.common.files import atomic_path

#: As many environment steps per iteration and minibatch as with chunks, and the same discount per environment step
_NO_CHUNKS = dict(n_steps=400, batch_size=1000, gamma=0.9975, gae_lambda=0.9873)
VARIANTS = {
    "scoreflow_ppo": Variant("ScoReFlowPPO", ScoReFlowPPO, ITERATION),
    # The current defaults, beside runs of the three scores that are older than validation
    "validated": Variant(
        "ScoReFlowPPO, validated averages",
        ScoReFlowPPO,
        dict(validation_fraction=0.1, deterministic_coef=0.1, **ITERATION),
    ),
    # What the lowest of several evaluations says about a policy that does not change
    "unchanged": Variant(
        "the clone, unchanged",
        ScoReFlowPPO,
        dict(learning_rate=0.0, noise_learning_rate=0.0, n_epochs=1, validation_fraction=0.0, **ITERATION),
    ),
    "unvalidated": Variant("ScoReFlowPPO, no validation", ScoReFlowPPO, dict(validation_fraction=0.0, **ITERATION)),
    "constant_score": Variant("ScoReFlowPPO, constant score", ScoReFlowPPO, dict(score_drift="constant", **ITERATION)),
    "no_score": Variant("ScoReFlowPPO, no score (ReinFlow)", ScoReFlowPPO, dict(score_drift="none", **ITERATION)),
    "no_chunks": Variant("ScoReFlowPPO, no chunks", ScoReFlowPPO, _NO_CHUNKS),
    # What a program without chunks gets that chooses nothing
    "no_chunks_defaults": Variant("ScoReFlowPPO, no chunks, the defaults", ScoReFlowPPO, ITERATION),
    "no_chunks_gamma": Variant("ScoReFlowPPO, no chunks, gamma 0.9975", ScoReFlowPPO, dict(gamma=0.9975, **ITERATION)),
    # Less noise than an eighth, for clones that not even this leaves much of their return
    **{
        f"no_chunks_noise_{n}": Variant(
            f"ScoReFlowPPO, no chunks, noise scale 1/{n}", ScoReFlowPPO, dict(noise_scale=1 / n, **ITERATION)
        )
        for n in (8, 16, 32)
    },
    "no_chunks_constant_score": Variant(
        "ScoReFlowPPO, no chunks, constant score", ScoReFlowPPO, dict(score_drift="constant", **_NO_CHUNKS)
    ),
    "no_chunks_no_score": Variant("ScoReFlowPPO, no chunks, no score", ScoReFlowPPO, dict(score_drift="none", **_NO_CHUNKS)),
    "rldt": Variant("RLDT", RLDT, {}),
    "no_chunks_rldt": Variant("RLDT, no chunks", RLDT, {}),
    # Named, because earlier runs had none
    "fpo": Variant("FPO", FPO, dict(zero_noise_fraction=0.125, rollback=True, **ITERATION)),
    "fpo_normal_noise": Variant("FPO, only normal noise", FPO, dict(zero_noise_fraction=0.0, rollback=True, **ITERATION)),
    "fpo_no_rollback": Variant("FPO without rollback", FPO, dict(rollback=False, **ITERATION)),
    "gaussian_ppo": Variant("Gaussian PPO", PPO, GAUSSIAN),
}
#: Variant -> its chunks of actions, if they are not ``CHUNKS``
CHUNKS_OF = {name: Chunks(1, 1) for name in VARIANTS if name.startswith("no_chunks")}
N_EVAL_ENVS, N_FINAL_EPISODES = 10, 50


@lru_cache(maxsize=1)
def clone(task: Task, data: Path, seed: int, horizon: int = HORIZON) -> FlowMatchingPolicy:
    """The clone from which all flow variants with this number of predicted actions start with this seed."""
    th.manual_seed(seed)
    env = task.make_env("train", 1, 1000 * seed, Chunks(horizon, horizon))
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations_of(task, data, seed), seed=seed)
    env.close()
    return policy


def kept_clone(task: Task, data: Path, seed: int, folder: Path | None, horizon: int = HORIZON) -> FlowMatchingPolicy | Path:
    """
    :param folder: folder in which several commands share the clones; None: only the runs of this process share them
    :param horizon: number of actions that the clone predicts
    :return: the clone, or its file in the folder, which is written if it is missing
    """
    if folder is None:
        return clone(task, data, seed, horizon)
    chunks = "" if horizon == HORIZON else f"_horizon{horizon}"
    path = folder / f"{task.name}{chunks}_seed{seed}" / "clone.zip"
    with locked(path.parent):  # another command may be about to write it, too
        if not path.exists():
            with atomic_path(path) as temporary:
                clone(task, data, seed, horizon).save(str(temporary))
    return path


def add_task_options(parser: argparse.ArgumentParser, task: str, tasks: Iterable[str] = TASKS) -> None:
    """
    Add the options that :func:`start_task` needs.

    :param parser: command line of a study of one task
    :param task: default of ``--task``
    :param tasks: choices of ``--task``
    """
    parser.add_argument("--task", default=task, choices=list(tasks), help=f"task to run (default {task})")
    parser.add_argument("--data", type=Path, default=Path("demonstrations"), help="folder with files of demonstrations")
    parser.add_argument("--clones", type=Path, help="folder in which clones are kept, for other commands with the same code")


def start_task(
    options: argparse.Namespace, variant: Variant, seed: int, chunks: Chunks = CHUNKS
) -> tuple[Any, VecEnv, Demonstrations]:
    """
    :param options: options of the command: task, folder of demonstrations and folder of clones
    :param variant: variant to fine-tune
    :param seed: seed of the run
    :param chunks: chunks of actions
    :return: the model before fine-tuning, with the task's clone, the evaluation environment and the demonstrations
    """
    task = TASKS[options.task]
    demonstrations = demonstrations_of(task, options.data, seed)
    env = task.make_env("train", N_ENVS, 1000 * seed, chunks)
    eval_env = task.make_env("test", N_EVAL_ENVS, 1000 * seed + 500, chunks)
    flow_clone = partial(kept_clone, task, options.data, seed, options.clones, chunks.horizon)
    return *start(variant, env, eval_env, demonstrations, flow_clone, seed), demonstrations


def mean_returns(model: Any, eval_env: VecEnv, seed: int) -> dict[str, float]:
    """Mean returns over episodes with the same starts for every variant. RLDT only draws ``x_0`` here and adds no noise."""
    result = {}
    for name, deterministic in (("deterministic", True), ("exploring", False)):
        eval_env.seed(1000 * seed + 700)
        returns = evaluate_policy(model, eval_env, N_FINAL_EPISODES, deterministic=deterministic)[0]
        result[name] = float(np.mean(returns))
    return result


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    task, chunks = TASKS[options.task], CHUNKS_OF.get(variant, CHUNKS)
    model, eval_env, demonstrations = start_task(options, VARIANTS[variant], seed, chunks)
    before = mean_returns(model, eval_env, seed)
    timesteps = options.timesteps or task.env_steps // chunks.n_executed
    curve, episodes = Run(variant, task.name, seed), options.eval_episodes
    rows = CurveTable(options.output).record(curve, model, timesteps, eval_env, n_eval_episodes=episodes)
    after = mean_returns(model, eval_env, seed)
    print(task.name, variant, seed, "start", before, "end", after, f"{float(rows[-1]['cpu_seconds']):.0f} CPU s", flush=True)
    task_facts = {"measure": task.measure, "demonstrations": demonstrations.n_episodes, "eval_episodes": episodes}
    task_facts["demonstrations_return"] = float(demonstrations.episode_returns.mean())
    success: dict[str, Any] = {"start": before, "end": after}
    if isinstance(model, ScoReFlowPPO):
        success["noise_scale"] = model.noise_scale
    model.get_env().close()
    eval_env.close()
    del model, eval_env
    gc.collect()  # models and environments form reference cycles, and a Meta-World run takes 370 MB
    versions = {task.package: version(task.package)} if task.package else {}
    return {"curves": {task.name: rows}, "task": task_facts, "success": success, "versions": versions}

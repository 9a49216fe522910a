"""
Every algorithm at its defaults on tasks, experts and data that others made, from shared clones.

    python -m benchmarks.tasks --task peg-insert-side-v3
    python -m benchmarks.tasks --task soccer-v3
    python -m benchmarks.tasks --variants  # only summarize

Meta-World: a few successes of the package's scripted expert; the return is success, within 200 steps. Positions of
evaluation are never those of training. For every seed one clone, made as ``pretrain_bc`` does by default, is the start of all
flow variants; the Gaussian PPO clones the same demonstrations. At the end, 50 episodes each of the deterministic and of the
exploring policy; deterministic ones on the way every 20,000 env steps.
"""

import argparse
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import study
from benchmarks.curves import CurveTable, Run, complete, locked
from benchmarks.finetune import GAUSSIAN, ITERATION, start
from benchmarks.learning import mean_and_interval
from benchmarks.locomotion import CLONE_BATCHES, HORIZON, N_ENVS
from benchmarks.study import Panel, Variant
from sb3_scoreflow import (
    FPO,
    RLDT,
    ActionChunking,
    Demonstrations,
    FlowMatchingPolicy,
    ScoReFlowPPO,
    load_demonstrations,
    pretrain_bc,
)
from sb3_scoreflow.envs import make_metaworld

N_EVAL_ENVS, MAX_STEPS = 10, 200
ENV_STEPS = 120_000
N_FINAL_EPISODES = 50


class Task(NamedTuple):
    """A task of Meta-World."""

    name: str
    n_demonstrations: int


#: As few demonstrations as leave room above the clone
TASKS = {
    task.name: task
    for task in (
        Task("peg-insert-side-v3", 5),
        Task("soccer-v3", 10),
        Task("pick-place-v3", 5),
        Task("push-v3", 5),
        Task("hammer-v3", 5),
        Task("assembly-v3", 5),
        Task("disassemble-v3", 5),
        Task("stick-push-v3", 5),
    )
}
VARIANTS = {
    "scoreflow_ppo": Variant("ScoReFlowPPO", ScoReFlowPPO, ITERATION),
    "constant_score": Variant("ScoReFlowPPO, constant score", ScoReFlowPPO, dict(score_drift="constant", **ITERATION)),
    "no_score": Variant("ScoReFlowPPO, no score (ReinFlow)", ScoReFlowPPO, dict(score_drift="none", **ITERATION)),
    "rldt": Variant("RLDT", RLDT, {}),
    "fpo": Variant("FPO", FPO, ITERATION),
    "gaussian_ppo": Variant("Gaussian PPO", PPO, GAUSSIAN),
}


@lru_cache(maxsize=1)
def demonstrations_of(task: Task, seed: int) -> Demonstrations:
    """Every seed has demonstrations of its own, which all succeed."""
    arguments = dict(only_successes=True, max_episode_steps=MAX_STEPS)
    return load_demonstrations(f"metaworld:{task.name}", n_episodes=task.n_demonstrations, seed=seed, **arguments)


def make_env(task: Task, split: str, n_envs: int, seed: int) -> VecEnv:
    """Environments that execute chunks of actions."""
    arguments = dict(task=task.name, split=split, max_episode_steps=MAX_STEPS)
    chunked = partial(ActionChunking, horizon=HORIZON)
    return make_vec_env(make_metaworld, n_envs=n_envs, seed=seed, env_kwargs=arguments, wrapper_class=chunked)


@lru_cache(maxsize=1)
def clone(task: Task, seed: int) -> FlowMatchingPolicy:
    """The clone that all flow variants of a seed start from."""
    th.manual_seed(seed)
    env = make_env(task, "train", 1, 1000 * seed)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations_of(task, seed), n_batches=CLONE_BATCHES, seed=seed)
    env.close()
    return policy


def success(model: Any, eval_env: VecEnv, seed: int) -> dict[str, float]:
    """Successes in episodes that begin alike for every variant; RLDT explores here by ``x_0`` alone, without added noise."""
    result = {}
    for name, deterministic in (("deterministic", True), ("exploring", False)):
        eval_env.seed(1000 * seed + 700)
        returns = evaluate_policy(model, eval_env, N_FINAL_EPISODES, deterministic=deterministic)[0]
        result[name] = float(np.mean(returns))
    return result


def run(options: argparse.Namespace, variant: str, seed: int) -> None:
    task = TASKS[options.task]
    demonstrations, env = demonstrations_of(task, seed), make_env(task, "train", N_ENVS, 1000 * seed)
    eval_env = make_env(task, "test", N_EVAL_ENVS, 1000 * seed + 500)
    model, eval_env = start(VARIANTS[variant], env, eval_env, demonstrations, lambda: clone(task, seed), seed)
    before = success(model, eval_env, seed)
    curve = CurveTable(options.output).learn(Run(variant, task.name, seed), model, options.timesteps, eval_env)
    after = success(model, eval_env, seed)
    print(task.name, variant, seed, "start", before, "end", after, f"{curve['cpu_seconds'][-1]:.0f} CPU s", flush=True)
    with locked(options.output):
        summary = study.read_summary(options.output)
        section = summary.setdefault(task.name, {"demonstrations": task.n_demonstrations})
        section.setdefault("success", {}).setdefault(variant, {})[str(seed)] = {"start": before, "end": after}
        study.write_summary(options.output, summary)
    env.close()
    eval_env.close()


def summarize(options: argparse.Namespace, origin: dict[str, Any]) -> None:
    with locked(options.output):
        summary = study.read_summary(options.output)
        table = CurveTable(options.output).read()
        section = summary.get(options.task, {})
        section["origins"] = study.origins(section, options.variants, origin)
        section["settings"] = {name: repr(variant.settings) for name, variant in VARIANTS.items()}
        for task, entry in summary.items():
            entry["seeds"] = sorted({run.seed for run in table if run.env == task})
            entry["mean"] = {
                variant: {
                    when: {kind: mean_and_interval([run[when][kind] for run in runs.values()]) for kind in run_kinds(runs)}
                    for when in ("start", "end")
                }
                for variant, runs in entry["success"].items()
            }
            # Over the clone of the same seed: clones differ, as every seed has other demonstrations
            entry["gain"] = {
                variant: {
                    kind: mean_and_interval([run["end"][kind] - run["start"][kind] for run in runs.values()])
                    for kind in run_kinds(runs)
                }
                for variant, runs in entry["success"].items()
            }
            curves = {variant: [table[each] for each in sorted(table) if each[:2] == (variant, task)] for variant in VARIANTS}
            # Not over the clone's, which may be 0
            deterministic = {v: [c["return_deterministic"] for c in of] for v, of in curves.items() if of}
            entry["lowest_deterministic"] = {v: [float(d[1:].min()) for d in of] for v, of in deterministic.items()}
            entry["cpu_seconds"] = {
                v: mean_and_interval([float(c["cpu_seconds"][-1]) for c in of]) for v, of in curves.items() if of
            }
        study.write_summary(options.output, summary)
    rows = []
    for task in summary:
        curves = complete(table, task, VARIANTS, options.seeds)
        labelled = {VARIANTS[name].label: runs for name, runs in curves.items()}
        columns = ("return_exploring", "return_deterministic")
        if labelled:
            rows.append([Panel(f"{task}, {column.removeprefix('return_')}", labelled, column) for column in columns])
    if rows:
        study.plot(rows, options.output / "figure.png")


def run_kinds(runs: dict[str, Any]) -> list[str]:
    """Which successes were measured."""
    return list(next(iter(runs.values()))["end"])


def main(arguments: Sequence[str] | None = None) -> None:
    timesteps = ENV_STEPS // HORIZON
    parser = study.parser(__doc__, "tasks", seeds=(0, 1, 2), variants=VARIANTS, timesteps=timesteps)
    parser.add_argument("--task", default="peg-insert-side-v3", choices=list(TASKS))
    options = parser.parse_args(arguments)
    summarize(options, study.make_runs(options, run))


if __name__ == "__main__":
    main()

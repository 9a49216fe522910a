"""
Lift, from demonstrations that fail half of the time: cloning, then ScoReFlowPPO and RLDT, with success as the only reward.

    python -m benchmarks.lift
    python -m benchmarks.lift --camera agentview --seeds 0 --timesteps 5000 --n-envs 4 --eval-every 8000 --n-eval-episodes 20

Demonstrations are made by ``benchmarks.make_lift_demonstrations`` where the file is missing. With a camera, the policy sees
its image and the arm, not where the cube is. For every seed the same clone is the start of both algorithms. One CSV per run in
``benchmarks/results/lift/`` and a summary of all seeds as JSON, one per algorithm; the returns are success rates.
"""

import argparse
import json
import resource
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecTransposeImage

from benchmarks import make_lift_demonstrations
from benchmarks.learning import COLUMNS, CurveRecorder, final_return, mean_and_interval, read_curve
from benchmarks.lift_script import HORIZON
from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import (
    RLDT,
    ActionChunking,
    Demonstrations,
    FlowMatchingPolicy,
    ScoReFlowPPO,
    load_demonstrations,
    pretrain_bc,
)
from sb3_scoreflow.envs import make_robomimic

RESULTS = ROOT / "benchmarks/results/lift"
CHUNK = 4
#: Chunks per iteration; arguments by algorithm. Success is the only reward: as in the published settings for sparse rewards,
#: the discount is close to 1, RLDT's targets are TD(lambda) with bounds, and rewards are not scaled.
ITERATION = dict(scoreflow_ppo=2000, rldt=1000)
ALGORITHMS: dict[str, Any] = dict(scoreflow_ppo=ScoReFlowPPO, rldt=RLDT)
ARGUMENTS: dict[str, dict[str, Any]] = dict(
    scoreflow_ppo=dict(gamma=0.999, batch_size=500, n_epochs=8, min_std=0.08, max_std=0.16, critic_warmup_iterations=2),
    rldt=dict(gamma=0.999, td_lambda=0.5, target_clip=(0.0, 1.0), reward_scale=1.0, critic_warmup_transitions=5000),
)
#: With a camera: smaller iterations, and RLDT's critics keep the clone's encoder, which is then asked once per refresh.
CAMERA_ITERATION = dict(scoreflow_ppo=1000, rldt=500)
CAMERA_ARGUMENTS: dict[str, dict[str, Any]] = dict(
    scoreflow_ppo=dict(n_epochs=4, critic_warmup_iterations=1),
    rldt=dict(encoder_learning_rate=0.0, refresh_size=1024, critic_warmup_transitions=1000),
)


class PeakMemory(BaseCallback):
    """Peak memory of this process, without its environments' processes, at the end of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.megabytes: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.megabytes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def make_env(camera: str | None, n_envs: int, seed: int) -> VecEnv:
    """:return: Chunked Lift; rendering takes most of the time, so environments with a camera have processes of their own"""
    arguments = dict(dataset_or_task="lift", cameras=[camera] if camera else [], horizon=HORIZON, reflections=False)
    env = make_vec_env(
        make_robomimic,
        n_envs,
        seed=seed,
        env_kwargs=arguments,
        wrapper_class=partial(ActionChunking, horizon=CHUNK),
        vec_env_cls=SubprocVecEnv if camera and n_envs > 1 else None,
    )
    return VecTransposeImage(env) if camera else env  # for the policy that is made without an algorithm


def name(options: argparse.Namespace, algorithm: str, seed: int) -> Path:
    return options.output / f"{options.camera or 'state'}_{algorithm}_seed{seed}.csv"


def clone(options: argparse.Namespace, env: VecEnv, path: Path, seed: int) -> tuple[FlowMatchingPolicy, Demonstrations]:
    """:return: The clone, and the demonstrations"""
    if not path.exists():
        camera = ["--camera", options.camera, "--no-reflections"] if options.camera else []
        make_lift_demonstrations.main(["--output", str(path), "--episodes", str(options.episodes), *camera])
    demonstrations = load_demonstrations(f"robomimic:{path}")
    torch.manual_seed(seed)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations, n_batches=options.clone_batches, batch_size=options.clone_batch_size, seed=seed)
    return policy, demonstrations


def run(options: argparse.Namespace, algorithm: str, seed: int) -> dict[str, Any]:
    """:return: What the curve does not tell: the demonstrations, and the peak memory after each rollout"""
    path = options.output / "data" / f"lift_{options.camera or 'state'}_{options.episodes}.hdf5"
    env, eval_env = make_env(options.camera, options.n_envs, 1000 * seed), make_env(options.camera, 1, 1000 * seed + 500)
    policy, demonstrations = clone(options, env, path, seed)
    arguments, size = settings(options, algorithm)
    model = ALGORITHMS[algorithm]("FlowPolicy", env, n_steps=size // options.n_envs, seed=seed, device="cpu", **arguments)
    model.load_clone(policy)
    if isinstance(model, ScoReFlowPPO):  # the part of pretrain_bc that is this algorithm's own
        model.pretrain_critic(demonstrations, options.clone_batches // 5, seed=seed)
    memory = PeakMemory()
    curve = CurveRecorder(name(options, algorithm, seed), eval_env, options.eval_every, options.n_eval_episodes)
    model.learn(options.timesteps, callback=[curve, memory])
    env.close()
    eval_env.close()
    success = [row["return_deterministic"] for row in curve.rows]
    print(algorithm, seed, "success of the clone and after each evaluation:", success, flush=True)
    return {
        "demonstrations": demonstrations.describe().splitlines()[1:],
        "peak_memory_mb": [round(number) for number in memory.megabytes],
    }


def settings(options: argparse.Namespace, algorithm: str) -> tuple[dict[str, Any], int]:
    """:return: Arguments, and chunks per iteration over all environments"""
    if options.camera is None:
        return ARGUMENTS[algorithm], ITERATION[algorithm]
    return {**ARGUMENTS[algorithm], **CAMERA_ARGUMENTS[algorithm]}, CAMERA_ITERATION[algorithm]


def summarize(options: argparse.Namespace, algorithm: str, facts: list[dict[str, Any]], origin: dict[str, Any]) -> None:
    curves = [read_curve(name(options, algorithm, seed)) for seed in options.seeds]
    summary: dict[str, Any] = {
        **origin,
        "algorithm": algorithm,
        "settings": repr(settings(options, algorithm)),
        "seeds": options.seeds,
        "clone_deterministic": [float(curve["return_deterministic"][0]) for curve in curves],
    }
    for column in COLUMNS:
        final = [final_return(curve, column) for curve in curves]
        summary[column] = mean_and_interval(final) if len(final) > 1 else {"per_seed": final}
    for unit in ("env_steps", "wall_seconds", "cpu_seconds"):
        summary[unit] = [float(curve[unit][-1]) for curve in curves]
    summary["per_seed"] = facts
    path = options.output / f"{options.camera or 'state'}_{algorithm}_summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camera", help="train from this camera's image instead of the cube's state")
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, default=30_000, help="chunks")
    parser.add_argument("--n-envs", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=200, help="demonstrations")
    parser.add_argument("--clone-batches", type=int, default=5000)
    parser.add_argument("--clone-batch-size", type=int, default=256)
    parser.add_argument("--eval-every", type=int, default=16_000, help="env steps between evaluations")
    parser.add_argument("--n-eval-episodes", type=int, default=50)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    origin = provenance()
    origin["versions"]["robosuite"] = version("robosuite")
    options.output.mkdir(parents=True, exist_ok=True)
    for algorithm in options.algorithms:
        facts = [run(options, algorithm, seed) for seed in options.seeds]
        summarize(options, algorithm, facts, origin)


if __name__ == "__main__":
    main()

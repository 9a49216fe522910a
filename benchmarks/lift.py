"""
Clone demonstrations of Lift of which half fail, then fine-tune with ScoReFlowPPO and RLDT, with success as the only reward.

    python -m benchmarks.lift
    python -m benchmarks.lift --task can
    python -m benchmarks.lift --camera agentview --seeds 0 --timesteps 5000 --n-envs 4 --eval-every 8000 --n-eval-episodes 20

``--task`` selects another task that has a script; its results go to a separate folder. The script creates missing
demonstrations with ``benchmarks.make_robosuite_demonstrations``. With a camera, the policy observes the camera's image and the
arm, but not the position of the object. For every seed, all variants start from the same clone. The returns are success rates.
In the table of curves, the environment is the policy's observation (``state`` or the camera). By default, variants train for
30,000 chunks of 4 actions.
"""

import argparse
import resource
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecTransposeImage

from benchmarks import make_robosuite_demonstrations, study
from benchmarks.curves import RETURNS, CurveTable, Run, as_curve, complete, locked
from benchmarks.learning import final_return, mean_and_interval
from benchmarks.scripts import SCRIPTS
from benchmarks.study import Variant
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

CHUNK = 4
#: The entry ``iteration`` is the number of chunks per iteration. Success is the only reward, so, as in the published settings
#: for sparse rewards, the discount is close to 1, RLDT's targets are TD(lambda) with bounds, and rewards are not scaled.
SCOREFLOW: dict[str, Any] = dict(
    iteration=2000, gamma=0.999, batch_size=500, n_epochs=8, min_std=0.08, max_std=0.16, critic_warmup_iterations=2
)
DENSITY: dict[str, Any] = dict(
    iteration=1000, gamma=0.999, td_lambda=0.5, target_clip=(0.0, 1.0), reward_scale=1.0, critic_warmup_transitions=5000
)
VARIANTS = {
    "scoreflow_ppo": Variant("ScoReFlowPPO", ScoReFlowPPO, SCOREFLOW),
    "rldt": Variant("RLDT", RLDT, DENSITY),
}
#: Changes with a camera: iterations are smaller, and RLDT's critics keep the clone's encoder, which runs once per refresh.
WITH_CAMERA: dict[str, dict[str, Any]] = dict(
    scoreflow_ppo=dict(iteration=1000, n_epochs=4, critic_warmup_iterations=1),
    rldt=dict(iteration=500, encoder_learning_rate=0.0, refresh_size=1024, critic_warmup_transitions=1000),
)


class PeakMemory(BaseCallback):
    """Records the peak memory of this process, without the environments' processes, at the end of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.megabytes: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.megabytes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def make_env(task: str, camera: str | None, n_envs: int, seed: int) -> VecEnv:
    """
    :return: environments of the task that execute chunks; with a camera, each has a separate process, because rendering takes
        most of the time
    """
    cameras = [camera] if camera else []
    arguments = dict(dataset_or_task=task, cameras=cameras, horizon=SCRIPTS[task].horizon, reflections=False)
    env = make_vec_env(
        make_robomimic,
        n_envs,
        seed=seed,
        env_kwargs=arguments,
        wrapper_class=partial(ActionChunking, horizon=CHUNK),
        vec_env_cls=SubprocVecEnv if camera and n_envs > 1 else None,
    )
    return VecTransposeImage(env) if camera else env  # an algorithm would do this itself, but the clone is made without one


def observed(options: argparse.Namespace) -> str:
    """:return: what the policy observes: "state", or the name of the camera"""
    return options.camera or "state"


def settings(options: argparse.Namespace, variant: str) -> dict[str, Any]:
    own = VARIANTS[variant].settings
    return {**own, **WITH_CAMERA[variant]} if options.camera else own


def demonstrations_of(options: argparse.Namespace) -> Demonstrations:
    path = options.output / "data" / f"{options.task}_{observed(options)}_{options.episodes}.hdf5"
    with locked(path.parent):  # another run may be about to write it, too
        if not path.exists():
            camera = ["--camera", options.camera, "--no-reflections"] if options.camera else []
            episodes = ["--task", options.task, "--episodes", str(options.episodes)]
            make_robosuite_demonstrations.main(["--output", str(path), *episodes, *camera])
    return load_demonstrations(f"robomimic:{path}")


def clone(options: argparse.Namespace, env: VecEnv, demonstrations: Demonstrations, seed: int) -> FlowMatchingPolicy:
    th.manual_seed(seed)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations, n_batches=options.clone_batches, batch_size=options.clone_batch_size, seed=seed)
    return policy


#: Variants with the same seed share the clone if they run in one process
_clones: dict[tuple[str, int], FlowMatchingPolicy] = {}


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    demonstrations = demonstrations_of(options)
    env = make_env(options.task, options.camera, options.n_envs, 1000 * seed)
    eval_env = make_env(options.task, options.camera, 1, 1000 * seed + 500)
    if (str(options), seed) not in _clones:  # before the model is created, which seeds the generators
        _clones.clear()
        _clones[str(options), seed] = clone(options, env, demonstrations, seed)
    arguments = dict(settings(options, variant))
    arguments["n_steps"] = arguments.pop("iteration") // options.n_envs
    model: Any = VARIANTS[variant].algorithm("FlowPolicy", env, seed=seed, device="cpu", **arguments)
    model.load_clone(_clones[str(options), seed])
    if hasattr(model, "pretrain_critic"):  # load_clone does not fit the critic, unlike pretrain_bc
        model.pretrain_critic(demonstrations, options.clone_batches // 5, seed=seed)
    memory, key = PeakMemory(), Run(variant, observed(options), seed)
    table, evaluation = CurveTable(options.output), (eval_env, options.eval_every, options.n_eval_episodes)
    rows = table.record(key, model, options.timesteps, *evaluation, callbacks=[memory])
    env.close()
    eval_env.close()
    success = as_curve(rows)["return_deterministic"].tolist()
    print(variant, seed, "success of the clone and after each evaluation:", success, flush=True)
    return {
        "curves": {observed(options): rows},
        "demonstrations": demonstrations.describe().splitlines()[1:],
        "peak_memory_mb": [round(number) for number in memory.megabytes],
        "versions": {"robosuite": version("robosuite")},
    }


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    """Update the summary; variants that were not run by this command keep their origin and facts."""
    folder, table = options.output, CurveTable(options.output).read()
    section = study.read_summary(folder).get(observed(options), {})
    for variant, curves in complete(table, observed(options), VARIANTS, options.seeds).items():
        entry = section.setdefault(variant, {})
        if variant in options.variants:
            entry.pop("others", None)
            entry.update(made.origins[variant])
            entry["settings"] = repr(settings(options, variant))
            entry["per_seed"] = [made.facts[variant, seed] for seed in options.seeds]
        entry["seeds"] = options.seeds
        entry["clone_deterministic"] = [float(curve["return_deterministic"][0]) for curve in curves]
        for column in RETURNS:
            entry[column] = mean_and_interval([final_return(curve, column) for curve in curves])
        for unit in ("env_steps", "wall_seconds", "cpu_seconds"):
            entry[unit] = [float(curve[unit][-1]) for curve in curves]
    study.update_summary(folder, observed(options), section)
    rows = []
    for seen, variants in study.read_summary(folder).items():
        labelled = {VARIANTS[v].label: complete(table, seen, [v], entry["seeds"])[v] for v, entry in variants.items()}
        rows.append(study.return_panels(f"success, {seen}", labelled))
    study.plot(rows, folder / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "TASK", seeds=(0, 1, 2), variants=VARIANTS, timesteps=30_000)
    parser.set_defaults(output=None)  # it depends on the task
    parser.add_argument("--task", default="lift", choices=SCRIPTS, help="default lift")
    parser.add_argument("--camera", help="train from this camera's image instead of the object's state")
    parser.add_argument("--n-envs", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=200, help="number of demonstrations")
    parser.add_argument("--clone-batches", type=int, default=5000)
    parser.add_argument("--clone-batch-size", type=int, default=256)
    parser.add_argument("--eval-every", type=int, default=16_000, help="environment steps between evaluations")
    parser.add_argument("--n-eval-episodes", type=int, default=50)
    options = parser.parse_args(arguments)
    options.output = options.output or study.RESULTS / options.task
    summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()

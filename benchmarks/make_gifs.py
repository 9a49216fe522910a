"""
Make the README's GIFs, which show a clone and the fine-tuned policy side by side from the same start.

    python -m benchmarks.make_gifs
    python -m benchmarks.make_gifs --tasks lift

Without a screen, set ``MUJOCO_GL=egl``. Hopper is cloned and fine-tuned as in ``benchmarks.finetune``, and Lift as in
``benchmarks.lift`` (missing demonstrations are created). The GIF of Lift shows the first start from which the clone fails. If
a GIF is larger than 2 MB, it is made again with fewer frames.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import torch as th
from gymnasium.wrappers import TimeLimit

from benchmarks import finetune, lift, locomotion, study
from benchmarks.provenance import provenance
from sb3_scoreflow.envs import make_robomimic
from sb3_scoreflow.videos import Recording, record_comparison

MAX_BYTES = 2_000_000
#: Largest number of recordings per GIF
_ATTEMPTS = 20


class Pair(NamedTuple):
    """A clone and the fine-tuned policy."""

    clone: Any
    tuned: Any
    make_env: Callable[[], gym.Env]
    fps: float
    """Frames per second of the GIF in the first attempt"""
    n_steps: int
    """Largest number of environment steps to show"""
    clone_fails: bool = False
    """Whether to skip starts from which the clone succeeds"""


def hopper(options: argparse.Namespace) -> Pair:
    env_id, variant = "Hopper-v5", finetune.VARIANTS["scoreflow_ppo"]
    envs, demonstrations = locomotion.make_envs(env_id, options.seed), locomotion.demonstrations_of(env_id)
    clone = partial(locomotion.clone, env_id, options.seed)
    model, _ = finetune.start(variant, *envs, demonstrations, clone, options.seed)
    # The default camera stands still, and the robot soon leaves its view
    make_env = partial(gym.make, env_id, render_mode="rgb_array", camera_name="track", width=240, height=240)
    return _tuned(model, options, make_env, fps=25, n_steps=800)


def lift_block(options: argparse.Namespace) -> Pair:
    settings = argparse.Namespace(
        task="lift", camera=None, episodes=200, output=study.RESULTS / "lift", clone_batches=5000, clone_batch_size=256
    )
    env, demonstrations = lift.make_env("lift", None, 20, 1000 * options.seed), lift.demonstrations_of(settings)
    arguments = dict(lift.settings(settings, "scoreflow_ppo"))
    arguments["n_steps"] = arguments.pop("iteration") // 20
    model = lift.ScoReFlowPPO("FlowPolicy", env, seed=options.seed, device="cpu", **arguments)
    model.load_clone(lift.clone(settings, env, demonstrations, options.seed))
    model.pretrain_critic(demonstrations, settings.clone_batches // 5, seed=options.seed)
    horizon = lift.SCRIPTS["lift"].horizon
    make_env = partial(make_robomimic, "lift", horizon=horizon, render_mode="rgb_array")
    return _tuned(model, options, make_env, fps=10, n_steps=horizon)._replace(clone_fails=True)


def _tuned(model: Any, options: argparse.Namespace, make_env: Callable[[], gym.Env], fps: float, n_steps: int) -> Pair:
    clone = deepcopy(model.policy)
    model.learn(options.timesteps)
    return Pair(clone, model, make_env, fps, n_steps)


PAIRS: dict[str, Callable[[argparse.Namespace], Pair]] = {"hopper": hopper, "lift": lift_block}


def write(pair: Pair, path: Path, seed: int, max_bytes: int = MAX_BYTES) -> Recording:
    """
    :param pair: the two policies
    :param path: path of the GIF
    :param seed: seed of the environments, which no evaluation uses
    :param max_bytes: largest size of the GIF; if it is larger, it is made again with half of the frames
    :return: the recording of the fine-tuned policy
    :raises SystemExit: if the clone succeeds with all seeds that are tried, or the GIF stays too large
    """
    env = pair.make_env()
    every = max(round(env.metadata["render_fps"] / pair.fps), 1)
    env.close()
    models = {"clone": pair.clone, "fine-tuned": pair.tuned}
    for _ in range(_ATTEMPTS):
        recording = record_comparison(models, lambda: TimeLimit(pair.make_env(), pair.n_steps), path, seed=seed, every=every)
        if pair.clone_fails and sum(recording["clone"].returns) > 0:
            seed += 1
            continue
        if path.stat().st_size <= max_bytes:
            return recording["fine-tuned"]
        every *= 2
    sys.exit(f"error: {path} is not as wanted after {_ATTEMPTS} recordings ({path.stat().st_size:,} bytes).")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "gifs", timesteps=75_000)
    parser.add_argument("--tasks", nargs="+", default=list(PAIRS), choices=PAIRS, help="default all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    origin = provenance()
    th.set_num_threads(1)
    for task in options.tasks:
        path = options.output / f"{task}.gif"
        recording = write(PAIRS[task](options), path, 1000 * options.seed + 900)
        section = {**origin, "seed": options.seed, "timesteps": options.timesteps, "fps": recording.fps}
        study.update_summary(options.output, task, section)
        print(task, f"{path.stat().st_size / 1e6:.1f} MB, {recording.n_frames} frames, {recording.fps:g} per second")


if __name__ == "__main__":
    main()

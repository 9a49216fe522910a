"""
Torch's threads beside environments in processes, by the clock: the machine must do nothing else.

Every case is a process of its own: OpenMP's threads stay once they exist.
"""

import os
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks.provenance import ROOT

_CASE = """
import sys, time
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from sb3_scoreflow import ActionChunking, ScoReFlowPPO
if __name__ == "__main__":
    kind, n_envs, threads, width = sys.argv[1], *map(int, sys.argv[2:5])
    th.set_num_threads(threads)
    cls = dict(dummy=DummyVecEnv, subproc=SubprocVecEnv)[kind]
    wrapper = dict(wrapper_class=ActionChunking, wrapper_kwargs=dict(horizon=4))
    env = make_vec_env("Hopper-v5", n_envs, seed=0, vec_env_cls=cls, **wrapper)
    arch = dict(net_arch=dict(pi=[width] * 3, vf=[256] * 3))
    model = ScoReFlowPPO("MlpPolicy", env, policy_kwargs=arch, n_steps=1024 // n_envs, seed=0, device="cpu")
    model.learn(1024)
    start, steps = time.perf_counter(), model.num_env_steps
    model.learn(2 * 1024, reset_num_timesteps=False)
    print((model.num_env_steps - steps) / (time.perf_counter() - start))
    env.close()
"""


def measure(repeats: int) -> dict[str, Any]:
    """Environment steps per second of the clock, medians over processes."""
    cores = os.cpu_count() or 1
    result: dict[str, Any] = {"cores": cores, "env_steps_per_second": {}}
    cases = [
        (kind, n, threads, w)
        for w in (256, 512)
        for kind, n in (("dummy", 8), ("subproc", 2), ("subproc", 8))
        for threads in (1, 2)
    ]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    turns: dict[str, list[float]] = {}
    for _ in range(repeats):
        for kind, n_envs, threads, width in cases:
            command = [sys.executable, "-c", _CASE, kind, str(n_envs), str(threads), str(width)]
            run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            turns.setdefault(f"{kind}, {n_envs} envs, {threads} threads, {width}x3", []).append(float(run.stdout))
    result["env_steps_per_second"] = {name: round(float(np.median(values))) for name, values in turns.items()}
    return result

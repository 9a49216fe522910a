"""
Speed of training with different numbers of torch threads, next to environments in processes and next to another training. The
time is measured on the clock, so the machine must do nothing else.

Every case runs in a separate process, because OpenMP's threads are never removed.
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
    """
    Measure environment steps per second on the clock, as medians over the repeats. The rate of trainings that run at the same
    time is their mean.
    """
    cores = os.cpu_count() or 1
    alone = [
        (kind, n, threads, w, 1)
        for w in (256, 512)
        for kind, n in (("dummy", 8), ("subproc", 2), ("subproc", 8))
        for threads in (1, cores)
    ]
    crowded = [("dummy", 8, threads, 256, at_once) for at_once in (1, 2) for threads in (1, cores, 2 * cores, 4 * cores)]
    cases = dict.fromkeys([*alone, *crowded])
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    turns: dict[str, list[float]] = {}
    for _ in range(repeats):
        for kind, n_envs, threads, width, at_once in cases:
            command = [sys.executable, "-c", _CASE, kind, str(n_envs), str(threads), str(width)]
            runs = [
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(at_once)
            ]
            rates = [float(run.communicate()[0]) for run in runs]
            label = f"{kind}, {n_envs} envs, {width}x3, {threads} threads" + (f", {at_once} at once" if at_once > 1 else "")
            turns.setdefault(label, []).append(float(np.mean(rates)))
    return {"cores": cores, "env_steps_per_second": {name: round(float(np.median(r))) for name, r in turns.items()}}

"""Peak memory of training, with every case in a separate process."""

import subprocess
import sys
from typing import Any

from benchmarks.provenance import ROOT

_CASE = """
import sys
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from benchmarks.speed.setting import NET_ARCH, Task
from sb3_scoreflow import RLDT, ScoReFlowPPO
th.set_num_threads(1)
name, n_envs, n_steps, steps, batch_size = sys.argv[1], *map(int, sys.argv[2:6])
if name != "imports":
    kwargs = dict(policy_kwargs=dict(net_arch=NET_ARCH), n_steps=n_steps, device="cpu")
    cls = dict(ScoReFlowPPO=ScoReFlowPPO, PPO=PPO, RLDT=RLDT)[name]
    kwargs.update(dict(denoising_steps=steps) if name != "PPO" else {})
    kwargs.update(dict(n_epochs=1, batch_size=batch_size) if name != "RLDT" else dict(critic_steps=16, actor_steps=2))
    model = cls("MlpPolicy", make_vec_env(Task, n_envs=n_envs), **kwargs).learn(2 * n_envs * n_steps)
    buffer = model.rollout_buffer
    arrays = getattr(buffer, "nbytes", None) or sum(a.nbytes for a in vars(buffer).values() if hasattr(a, "nbytes"))
else:
    arrays = 0
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(int(peak) * 1024, arrays)
"""

#: oneDNN caches compiled code for each shape. Case with 400 minibatches of as many different sizes as the argument says, the
#: largest first
_SHAPES = """
import sys
import torch as th
from benchmarks.speed.setting import ACTION_DIM, K, OBS_DIM, make_policy
th.set_num_threads(1)
policy = make_policy()
for i in range(400):
    n = 650 - i % int(sys.argv[1])
    policy.evaluate_chain(th.randn(n, OBS_DIM), th.randn(n, K + 1, ACTION_DIM)).log_prob.mean().backward()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(int(peak) * 1024, 0)
"""

#: Algorithm, environments, steps per environment, K, minibatch size (0 for RLDT: its default)
CASES = [
    ("imports", 0, 0, 0, 0),
    ("PPO", 40, 100, 0, 250),
    ("RLDT", 40, 50, 4, 0),
    ("ScoReFlowPPO", 40, 100, 1, 250),
    ("ScoReFlowPPO", 40, 100, 4, 250),
    ("ScoReFlowPPO", 40, 100, 8, 250),
    ("ScoReFlowPPO", 40, 100, 4, 1000),
    ("ScoReFlowPPO", 40, 100, 4, 4000),
    ("ScoReFlowPPO", 40, 400, 4, 250),
    ("ScoReFlowPPO", 40, 1600, 4, 250),
    ("ScoReFlowPPO", 160, 400, 4, 250),
]


def measure(repeats: int) -> dict[str, Any]:
    """Measure the peak resident memory after two iterations (VmHWM, only on Linux), and the size of the buffer's arrays."""
    cases = []
    for name, *numbers in CASES:
        peak, arrays = _run(repeats, _CASE, name, *numbers)
        keys = ("n_envs", "n_steps", "denoising_steps", "batch_size")
        megabytes = {"peak_megabytes": peak, "buffer_megabytes": arrays}
        cases.append({"algorithm": name, **dict(zip(keys, numbers, strict=True)), **megabytes})
    shapes = {f"{n} sizes of minibatches": _run(repeats, _SHAPES, n)[0] for n in (1, 400)}
    return {"cases": cases, "peak_megabytes_of_400_gradients": shapes}


def _run(repeats: int, script: str, *arguments: object) -> tuple[float, float]:
    """:return: smallest peak over the repeats, and size of the arrays, in MiB"""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    outputs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(repeats)]
    peaks, arrays = zip(*(map(int, output.split()) for output in outputs), strict=True)
    return round(min(peaks) / 2**20, 1), round(arrays[-1] / 2**20, 2)

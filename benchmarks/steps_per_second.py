"""
Training speed at the defaults beside Stable-Baselines3's PPO at its defaults, timed in turns: environment steps per second.

    python -m benchmarks.steps_per_second

The wall times of the learning benchmarks include whatever else the machine was doing; these short runs take turns.
"""

import json
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import ScoReFlowPPO

STEPS = 7 * 2048  # whole iterations of both
REPEATS = 3


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {**provenance(), "steps": STEPS, "n_envs": {"scoreflow": 8, "sb3_ppo": 1}}
    for env_id in ("HalfCheetah-v5", "Pendulum-v1"):
        speeds: dict[str, list[float]] = {"scoreflow": [], "sb3_ppo": []}
        for _ in range(REPEATS):
            for name, values in speeds.items():
                model: BaseAlgorithm
                if name == "scoreflow":
                    model = ScoReFlowPPO("FlowPolicy", make_vec_env(env_id, n_envs=8), device="cpu")
                else:
                    model = PPO("MlpPolicy", make_vec_env(env_id, n_envs=1), device="cpu")
                start = time.perf_counter()
                model.learn(STEPS)
                values.append(STEPS / (time.perf_counter() - start))
        ratio = float(np.median(speeds["scoreflow"]) / np.median(speeds["sb3_ppo"]))
        results[env_id] = {"steps_per_second": speeds, "ratio_of_medians": ratio}
        print(env_id, {name: round(float(np.median(values))) for name, values in speeds.items()}, round(ratio, 2))
    (ROOT / "benchmarks/results/steps_per_second.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

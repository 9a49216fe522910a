"""A script that defines its environment and trains in a process of multiprocessing."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from multiprocessing import get_context

import gymnasium as gym
import numpy as np

from sb3_scoreflow.distributed import RayVecEnv


class Counter(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    steps = 0

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(1, self.steps, np.float32), 0.0, False, False, {}

    def apply(self, function):
        return function(self.steps)


def double(steps):
    return 2 * steps


def main():
    env = RayVecEnv(Counter, n_envs=2)
    env.reset()
    for _ in range(3):
        observations = env.step(np.zeros((2, 1)))[0]
    print(observations.ravel().tolist(), env.env_method("apply", double))
    env.close()


if __name__ == "__main__":
    process = get_context("spawn").Process(target=main)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


def test_environments_of_a_script_whose_name_is_another_in_this_process(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert printed.returncode == 0, printed.stderr
    assert "[3.0, 3.0] [6, 6]" in printed.stdout

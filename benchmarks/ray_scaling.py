"""
``RayVecEnv`` on one machine: steps per second beside Stable-Baselines3's environments, time per step by size of the message,
workers that sleep instead of simulating, memory of a worker, and what the learner takes (docs/scaling.md).

    python -m benchmarks.ray_scaling

What is compared takes turns. On a machine that does other things as well, only ratios count. Ray is started anew, by itself.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from benchmarks import study
from benchmarks.provenance import provenance
from sb3_scoreflow import ActionChunking, ScoReFlowPPO
from sb3_scoreflow.distributed import RayVecEnv
from sb3_scoreflow.envs import make_robomimic

N_ENVS, WORKERS, HORIZON = 8, (1, 2, 4, 8), 4
#: Bytes of an observation
SIZES = (1_000, 100_000, 1_000_000, 10_000_000)
#: Workers, environments in each, and seconds that each of these sleeps in a step
SLEEPERS, SLEEP = ((1, 1), (8, 8), (8, 32)), 0.02


class Idle(gym.Env):
    """
    Does nothing in a step, but sleep.

    :param space: of observations
    :param action_space: of actions
    :param seconds: that a step sleeps
    """

    def __init__(self, space: spaces.Space, action_space: spaces.Space, seconds: float = 0.0) -> None:
        self.observation_space, self.action_space, self.seconds = space, action_space, seconds
        self.observation: Any = np.zeros(space.shape or (), space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observation, {}

    def step(self, action: np.ndarray) -> Any:
        if self.seconds:
            time.sleep(self.seconds)
        return self.observation, 1.0, False, False, {}


def make_tasks() -> dict[str, tuple[Callable[[], gym.Env], int, int]]:
    """:return: of each task the function that makes it, the number of environments, and of steps in a turn"""
    hopper = partial(_chunked, partial(gym.make, "Hopper-v5"))
    lift = partial(_chunked, partial(make_robomimic, "lift", terminate_on_success=False))
    return {"hopper": (hopper, N_ENVS, 100), "lift": (lift, 2, 4)}


def _chunked(make: Callable[[], gym.Env]) -> gym.Env:
    return ActionChunking(make(), HORIZON)


def idle(n_bytes: int, seconds: float = 0.0) -> Callable[[], gym.Env]:
    """:return: a function that makes an environment that does nothing, with observations of a size"""
    space = spaces.Box(0, 255, (n_bytes,), np.uint8)
    return partial(Idle, space, spaces.Box(-1, 1, (HORIZON, 3), np.float32), seconds)


def seconds_per_step(env: VecEnv, n_steps: int) -> float:
    """
    :param env: that has been reset; stepped with random actions, the same in every call
    :param n_steps: number of steps
    :return: seconds on the clock
    """
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (16, env.num_envs, *(env.action_space.shape or ()))).astype(np.float32)
    begin = time.perf_counter()
    for turn in range(n_steps):
        env.step(actions[turn % 16])
    return (time.perf_counter() - begin) / n_steps


def take_turns(envs: dict[str, VecEnv], n_steps: int, repeats: int) -> dict[str, list[float]]:
    """:return: seconds per step of each, in each turn"""
    for env in envs.values():
        env.seed(0)
        env.reset()
        seconds_per_step(env, 2)
    turns: dict[str, list[float]] = {name: [] for name in envs}
    for _ in range(repeats):
        for name, env in envs.items():
            turns[name].append(seconds_per_step(env, n_steps))
    return turns


def memory_mb(pid: int) -> float:
    """:return: of a process, with its share of what it shares with others"""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def compare_on_task(make: Callable[[], gym.Env], n_envs: int, n_steps: int, repeats: int) -> dict[str, Any]:
    """:return: environment steps per second of Stable-Baselines3's environments and of workers, and over DummyVecEnv's"""
    functions = [make] * n_envs
    envs: dict[str, VecEnv] = {"dummy": DummyVecEnv(functions), "subproc": SubprocVecEnv(functions)}
    memory = {}
    for n_workers in [n for n in WORKERS if n <= n_envs]:
        env = RayVecEnv(functions, envs_per_worker=n_envs // n_workers)
        envs[f"ray {n_workers}"] = env
        memory[f"ray {n_workers}"] = round(float(np.mean([memory_mb(worker.process) for worker in env.pool.workers])))
    turns = take_turns(envs, n_steps, repeats)
    for each in envs.values():
        each.close()
    rates = {name: HORIZON * n_envs / float(np.median(seconds)) for name, seconds in turns.items()}
    ratios = {name: round(rate / rates["dummy"], 2) for name, rate in rates.items()}
    return dict(n_envs=n_envs, seconds_per_step=turns, env_steps_per_second=rates, over_dummy=ratios, worker_mb=memory)


def compare_sizes(repeats: int) -> dict[str, Any]:
    """:return: milliseconds per step of one environment that does nothing, by bytes of its observation"""
    found = {}
    for n_bytes in SIZES:
        functions = [idle(n_bytes)]
        envs: dict[str, VecEnv] = {"subproc": SubprocVecEnv(functions), "ray": RayVecEnv(functions, envs_per_worker=1)}
        turns = take_turns(envs, 20 if n_bytes > 1e6 else 200, repeats)
        for env in envs.values():
            env.close()
        found[str(n_bytes)] = {name: round(1e3 * float(np.median(seconds)), 2) for name, seconds in turns.items()}
    return found


def compare_with_ideal(repeats: int) -> list[dict[str, Any]]:
    """:return: of workers that sleep, the seconds per step, and the share that is sleep"""
    found = []
    for n_workers, envs_per_worker in SLEEPERS:
        env = RayVecEnv([idle(100, SLEEP)] * (n_workers * envs_per_worker), envs_per_worker=envs_per_worker)
        seconds = take_turns({"ray": env}, max(20 // envs_per_worker, 3), repeats)["ray"]
        env.close()
        ideal, median = SLEEP * envs_per_worker, float(np.median(seconds))
        found.append(
            dict(
                workers=n_workers,
                n_envs=n_workers * envs_per_worker,
                ideal_ms=1e3 * ideal,
                ms=round(1e3 * median, 1),
                efficiency=round(ideal / median, 3),
            )
        )
    return found


def learner(repeats: int, n_envs: int = 40, n_steps: int = 100) -> dict[str, Any]:
    """:return: milliseconds that the learner takes for a chunk, sampling and updating, of its processor, at its defaults"""
    hopper = _chunked(partial(gym.make, "Hopper-v5"))
    make = partial(Idle, hopper.observation_space, hopper.action_space)
    model = ScoReFlowPPO("FlowPolicy", make_vec_env(make, n_envs), n_steps=n_steps, batch_size=1000, device="cpu", seed=0)
    turns = []
    for _ in range(repeats):
        begin = time.process_time()
        model.learn(n_envs * n_steps)
        turns.append(1e3 * (time.process_time() - begin) / (n_envs * n_steps))
    return dict(n_envs=n_envs, n_steps=n_steps, n_epochs=model.n_epochs, cpu_ms_per_chunk=round(float(np.median(turns)), 3))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "ray_scaling", repeats=5)
    options = parser.parse_args(arguments)
    th.set_num_threads(1)
    results: dict[str, Any] = {**provenance(), "repeats": options.repeats, "horizon": HORIZON}
    results["versions"]["ray"] = version("ray")
    results["load_of_others"] = [round(load, 1) for load in os.getloadavg()]
    parts: dict[str, Callable[[], Any]] = {"learner": partial(learner, options.repeats)}
    parts["sizes"] = partial(compare_sizes, options.repeats)
    for name, (make, n_envs, n_steps) in make_tasks().items():
        parts[name] = partial(compare_on_task, make, n_envs, n_steps, options.repeats)
    parts["sleepers"] = partial(compare_with_ideal, options.repeats)
    for name, part in parts.items():
        results[name] = part()
        print(name, results[name], flush=True)
        study.write_summary(options.output, results)


if __name__ == "__main__":
    main()

"""
Measure ``RayVecEnv`` on one machine: steps per second compared with Stable-Baselines3's vectorized environments, time per step
by size of the message, efficiency of workers on simulated nodes that sleep instead of simulating, bytes on the network, memory
of a worker, and processor time of the learner (docs/scaling.md).

    MUJOCO_GL=egl python -m benchmarks.ray_scaling --repeats 3

Compared measurements take turns. On a machine with other load, only ratios are meaningful. Each part starts a separate Ray
instance.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
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
#: Numbers of simulated nodes, each with one worker; environments per worker; seconds that each environment sleeps in a step
NODES, PER_NODE, SLEEP = (1, 2, 4, 8), (1, 32), 0.02
#: Bytes of the object store of a simulated node
STORE = 80 * 2**20
#: Height and width of images whose bytes on the network are counted
IMAGES = (84, 256)


class Idle(gym.Env):
    """
    An environment that only sleeps in a step.

    :param space: observation space
    :param action_space: action space
    :param seconds: duration of the sleep
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
    """:return: task -> function that creates it, number of environments, number of steps per turn"""
    hopper = partial(_chunked, partial(gym.make, "Hopper-v5"))
    lift = partial(make_robomimic, "lift", terminate_on_success=False)
    images = partial(lift, cameras="agentview", reflections=False)
    return {
        "hopper": (hopper, N_ENVS, 100),
        "lift": (partial(_chunked, lift), 4, 6),
        "lift_images": (partial(_chunked, images), 2, 3),
    }


def _chunked(make: Callable[[], gym.Env]) -> gym.Env:
    return ActionChunking(make(), HORIZON)


def idle(n_bytes: int, seconds: float = 0.0) -> Callable[[], gym.Env]:
    """:return: function that creates an :class:`Idle` environment with observations of this size"""
    space = spaces.Box(0, 255, (n_bytes,), np.uint8)
    return partial(Idle, space, spaces.Box(-1, 1, (HORIZON, 3), np.float32), seconds)


def seconds_per_step(env: VecEnv, n_steps: int) -> float:
    """
    :param env: environment that has been reset; it is stepped with random actions, which are the same in every call
    :param n_steps: number of steps
    :return: seconds per step, on the clock
    """
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (16, env.num_envs, *(env.action_space.shape or ()))).astype(np.float32)
    begin = time.perf_counter()
    for turn in range(n_steps):
        env.step(actions[turn % 16])
    return (time.perf_counter() - begin) / n_steps


def take_turns(envs: dict[str, VecEnv], n_steps: int, repeats: int) -> dict[str, list[float]]:
    """:return: name -> seconds per step in each turn"""
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
    """:return: memory of a process in MB; memory that several processes share is divided among them"""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def compare_on_task(make: Callable[[], gym.Env], n_envs: int, n_steps: int, repeats: int) -> dict[str, Any]:
    """
    :return: environment steps per second of Stable-Baselines3's environments and of Ray's workers, their ratios to
        DummyVecEnv, and the memory of a worker
    """
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
    """:return: bytes of an observation -> milliseconds per step of one idle environment"""
    found = {}
    for n_bytes in SIZES:
        functions = [idle(n_bytes)]
        envs: dict[str, VecEnv] = {"subproc": SubprocVecEnv(functions), "ray": RayVecEnv(functions, envs_per_worker=1)}
        turns = take_turns(envs, 20 if n_bytes > 1e6 else 200, repeats)
        for env in envs.values():
            env.close()
        found[str(n_bytes)] = {name: round(1e3 * float(np.median(seconds)), 2) for name, seconds in turns.items()}
    return found


@contextmanager
def simulated_cluster() -> Iterator[Any]:
    """A cluster on this machine to which nodes can be added. This program runs on its head node, which has no processors."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, object_store_memory=STORE))
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def compare_with_ideal(repeats: int) -> dict[str, Any]:
    """:return: milliseconds per step with one sleeping worker on each simulated node, and the share of sleep in this time"""
    found = []
    with simulated_cluster() as cluster:
        for n_nodes in NODES:
            while len(cluster.list_all_nodes()) < 1 + n_nodes:
                cluster.add_node(num_cpus=1, object_store_memory=STORE)
            for envs_per_worker in PER_NODE:
                functions = [idle(100, SLEEP)] * (n_nodes * envs_per_worker)
                env = RayVecEnv(functions, envs_per_worker=envs_per_worker, address=cluster.address)
                seconds = take_turns({"ray": env}, max(40 // envs_per_worker, 3), repeats)["ray"]
                env.close()
                ideal, median = SLEEP * envs_per_worker, float(np.median(seconds))
                found.append(
                    dict(
                        nodes=n_nodes,
                        n_envs=n_nodes * envs_per_worker,
                        ideal_ms=1e3 * ideal,
                        ms=round(1e3 * median, 1),
                        efficiency=round(ideal / median, 3),
                        range=[round(ideal / slow, 3) for slow in (max(seconds), min(seconds))],
                    )
                )
                print(found[-1], flush=True)
    return dict(sleep_ms=1e3 * SLEEP, rows=found)


def loopback_bytes() -> int:
    """:return: number of bytes that this machine has sent to itself since it was started"""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def count_bytes(repeats: int) -> dict[str, Any]:
    """
    :param repeats: number of turns
    :return: bytes on the network per step of an environment, in both directions, between this process and a worker with 8
        environments on another (simulated) node, minus the bytes sent in the same time without steps
    """
    images = {f"image_{size}": [idle(size * size * 3)] * N_ENVS for size in IMAGES}
    found = {}
    with simulated_cluster() as cluster:
        cluster.add_node(num_cpus=1, object_store_memory=STORE)
        for name, functions in {"hopper": [make_tasks()["hopper"][0]] * N_ENVS, **images}.items():
            env = RayVecEnv(functions, envs_per_worker=N_ENVS, address=cluster.address)
            n_steps, turns = 200 if name == "hopper" else 50, []
            env.reset()
            seconds_per_step(env, 5)
            for _ in range(repeats):
                before = loopback_bytes()
                seconds = n_steps * seconds_per_step(env, n_steps)
                between = loopback_bytes()
                time.sleep(seconds)
                turns.append((2 * between - before - loopback_bytes()) / (n_steps * N_ENVS))
            env.close()
            found[name] = dict(bytes_per_env_step=round(float(np.median(turns))), turns=[round(turn) for turn in turns])
    return found


def learner(
    repeats: int, space: spaces.Box | None = None, n_envs: int = 40, n_steps: int = 100, batch_size: int = 1000
) -> dict[str, Any]:
    """
    :param repeats: number of turns
    :param space: observation space; None: as in Hopper
    :param n_envs: number of environments
    :param n_steps: steps per environment and iteration
    :param batch_size: minibatch size
    :return: milliseconds of processor time that the learner takes per chunk for sampling and updating, at its defaults
    """
    hopper = _chunked(partial(gym.make, "Hopper-v5"))
    make = partial(Idle, space or hopper.observation_space, hopper.action_space)
    env = make_vec_env(make, n_envs)
    model = ScoReFlowPPO("FlowPolicy", env, n_steps=n_steps, batch_size=batch_size, device="cpu", seed=0)
    turns = []
    for _ in range(repeats):
        begin = time.process_time()
        model.learn(n_envs * n_steps)
        turns.append(1e3 * (time.process_time() - begin) / (n_envs * n_steps))
    return dict(
        n_envs=n_envs,
        n_steps=n_steps,
        batch_size=batch_size,
        n_epochs=model.n_epochs,
        parameters=sum(parameter.numel() for parameter in model.policy.parameters()),
        cpu_ms_per_chunk=round(float(np.median(turns)), 3),
        range=[round(min(turns), 3), round(max(turns), 3)],
    )


def parts_of(repeats: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """:return: name of a part -> function that measures it"""
    image = spaces.Box(0, 255, (IMAGES[0], IMAGES[0], 3), np.uint8)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "learner": partial(learner, repeats),
        "learner_images": partial(learner, repeats, image, 8, 16, 64),
        "sizes": partial(compare_sizes, repeats),
    }
    for name, (make, n_envs, n_steps) in make_tasks().items():
        parts[name] = partial(compare_on_task, make, n_envs, n_steps, repeats)
    return {**parts, "network": partial(count_bytes, repeats), "nodes": partial(compare_with_ideal, repeats)}


def measure(name: str, repeats: int) -> dict[str, Any]:
    """:return: results of a part"""
    th.set_num_threads(1)
    return parts_of(repeats)[name]()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "ray_scaling", repeats=5)
    names = list(parts_of(1))
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="what to measure (default: all)")
    options = parser.parse_args(arguments)
    origin = provenance()
    origin["versions"]["ray"] = version("ray")
    for name in options.parts:
        about = {"repeats": options.repeats, "load_of_others": [round(load, 1) for load in os.getloadavg()]}
        with ProcessPoolExecutor(1, get_context("spawn")) as process:  # each part starts a separate Ray instance
            found = {**process.submit(measure, name, options.repeats).result(), "origin": {**origin, **about}}
        print(name, found, flush=True)
        study.update_summary(options.output, name, found)


if __name__ == "__main__":
    main()

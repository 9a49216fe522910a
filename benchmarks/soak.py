"""
Measure whether resident memory, open files or threads of a process grow over long runs, by sampling them during each run.

    python -m benchmarks.soak

For each algorithm in the registry, the script runs three parts on a trivial environment, each in a separate process:

- ``learn``: one call of ``learn`` with TensorBoard, evaluations and checkpoints, for ``--timesteps`` environment steps
- ``calls``: 100 calls of ``learn`` with TensorBoard, on one model
- ``files``: 1000 cycles of saving and loading a model

A series is flat if two conditions hold. First, at some point in its last quarter, the numbers of files and of threads are not
above their maximum in the first quarter (a sample may include a thread that is about to end). Second, the median memory of the
last quarter exceeds the median of the second quarter by less than 2%. The memory of Stable-Baselines3's ``Monitor`` does not
count: around every environment, it keeps return, length and time of every episode for its ``get_episode_rewards``. The script
needs Linux.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks import study
from benchmarks.provenance import provenance
from sb3_scoreflow import ALGORITHMS
from sb3_scoreflow.callbacks import FlowEvalCallback

#: Columns of a sample of the process
COLUMNS = ("at", "memory_mb", "files", "threads", "monitor_mb")
MAX_GROWTH = 0.02
N_ENVS, LENGTH, SAMPLES = 32, 50, 200
CALLS, CYCLES = 100, 1000

Series = list[list[float]]


class Point(gym.Env):
    """A point that is to be kept near the origin, for 50 steps."""

    observation_space = spaces.Box(-2, 2, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.count = self.np_random.uniform(-1, 1, 2).astype(np.float32), 0
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.state = np.clip(self.state + 0.1 * action, -2, 2).astype(np.float32)
        return self.state, -abs(float(self.state[0])), False, self.count == LENGTH, {}


def held(at: float, env: VecEnv) -> list[float]:
    """:return: a sample of this process, with the columns ``COLUMNS``"""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    kept = [list_ for name in ("episode_returns", "episode_lengths", "episode_times") for list_ in env.get_attr(name)]
    # Python's allocator rounds up to 16 bytes; small integers are shared
    size = sum(sys.getsizeof(each) + sum(32 for item in each if isinstance(item, float)) for each in kept) / 1e6
    return [at, round(memory, 2), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), round(size, 2)]


class Watch(BaseCallback):
    """Samples the process about ``SAMPLES`` times, and deletes all but the newest checkpoints of ``CheckpointCallback``."""

    def __init__(self, total: int, series: Series, checkpoints: Path) -> None:
        super().__init__()
        self.every = max(total // SAMPLES, 1)
        self.series, self.checkpoints = series, checkpoints

    def _on_step(self) -> bool:
        if self.num_timesteps // self.every > (self.num_timesteps - N_ENVS) // self.every:
            self.series.append(held(self.num_timesteps, self.training_env))
            for path in sorted(self.checkpoints.glob("*.zip"), key=os.path.getmtime)[:-3]:
                path.unlink()
        return True


def make_env(n_envs: int = N_ENVS) -> VecEnv:
    return make_vec_env(Point, n_envs=n_envs, seed=0)


def make_model(name: str, folder: Path, n_steps: int = 64) -> Any:
    """A model with small networks and few gradient steps, because leaks are more likely in the code around them."""
    arguments: dict[str, Any] = dict(n_steps=n_steps, batch_size=min(n_steps * N_ENVS, 512), n_epochs=1)
    if ALGORITHMS[name].capabilities.replay:
        arguments = dict(n_steps=n_steps, batch_size=64, critic_steps=4, n_refreshes=2, refresh_size=512, actor_steps=2)
        arguments |= dict(actor_batch_size=16, critic_warmup_transitions=0)
    return ALGORITHMS[name](
        "FlowPolicy", make_env(), policy_kwargs=dict(net_arch=[16]), tensorboard_log=str(folder), device="cpu", **arguments
    )


def learn(name: str, folder: Path, n: int) -> Series:
    """One call of ``learn`` with the usual callbacks."""
    series: Series = []
    every = max(n // SAMPLES // N_ENVS, 30)
    callbacks: list[BaseCallback] = [
        EvalCallback(make_env(2), n_eval_episodes=2, eval_freq=every, log_path=str(folder / "evaluations"), verbose=0),
        FlowEvalCallback(make_env(2), clone=None, n_eval_episodes=2, eval_freq=every, verbose=0),
        CheckpointCallback(every, str(folder / "checkpoints")),
        Watch(n, series, folder / "checkpoints"),
    ]
    make_model(name, folder).learn(n, callback=CallbackList(callbacks))
    return series


def calls(name: str, folder: Path, n: int) -> Series:
    """Many calls of ``learn``."""
    model, series = make_model(name, folder, n_steps=2), []
    for call in range(n):
        model.learn(2 * N_ENVS, reset_num_timesteps=call % 2 == 0)
        series.append(held(call + 1, model.get_env()))
    return series


def files(name: str, folder: Path, n: int) -> Series:
    """Many cycles of saving and loading."""
    model, series, env = make_model(name, folder).learn(64 * N_ENVS), [], make_env()
    for cycle in range(n):
        model.save(folder / "model")
        model = type(model).load(folder / "model", env=env if cycle % 2 else None, device="cpu")
        if (cycle + 1) % max(n // SAMPLES, 1) == 0:
            series.append(held(cycle + 1, env))
    return series


#: Part -> function that runs it
PARTS: dict[str, Callable[[str, Path, int], Series]] = {"learn": learn, "calls": calls, "files": files}


def judge(series: Series) -> dict[str, Any]:
    """
    :param series: at least eight rows with the columns ``COLUMNS``
    :return: whether the series is flat (see the module's docstring), and the numbers that decide it
    """
    rows = np.array(series)
    quarter = len(rows) // 4
    first, second, last = rows[:quarter], rows[quarter : 2 * quarter], rows[-quarter:]
    before, after = (np.median(part[:, 1] - part[:, 4]) for part in (second, last))
    growth = float(after / before - 1)
    excess = last[:, 2:4].min(0) - first[:, 2:4].max(0)
    more = {name: max(int(number), 0) for name, number in zip(COLUMNS[2:4], excess, strict=True)}
    return {
        "flat": growth < MAX_GROWTH and not any(more.values()),
        "memory_mb": [round(float(before), 1), round(float(after), 1)],
        "memory_growth": round(growth, 4),
        "monitor_mb": [float(np.median(part[:, 4])) for part in (second, last)],
        "more": more,
    }


def measure(part: str, name: str, n: int) -> Series:
    """Run a part for an algorithm in this process."""
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return PARTS[part](name, Path(folder), n)


def run(options: argparse.Namespace) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """:return: iterator over part, algorithm and result"""
    amounts = {"learn": options.timesteps, "calls": options.calls, "files": options.cycles}
    for part, n in amounts.items():
        for name in ALGORITHMS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                series = pool.submit(measure, part, name, n).result()
            yield part, name, {"amount": n, **judge(series), "series": series}


def plot(parts: dict[str, dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(4.5 * len(parts), 3.5), layout="constrained")
    units = {"learn": "environment steps", "calls": "calls of learn", "files": "files saved and loaded"}
    for axes, (part, results) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts.items(), strict=True):
        for name, result in results.items():
            rows = np.array(result["series"])
            axes.plot(rows[:, 0], rows[:, 1] - rows[:, 4], label=ALGORITHMS[name].__name__)
        axes.set(xlabel=units[part], ylabel="resident memory without Monitor's, MB", ylim=(0, None))
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=75)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "soak", timesteps=10_000_000)
    parser.add_argument("--calls", type=int, default=CALLS, help=f"calls of learn (default {CALLS})")
    parser.add_argument("--cycles", type=int, default=CYCLES, help=f"cycles of saving and loading (default {CYCLES})")
    options = parser.parse_args(arguments)
    summary: dict[str, Any] = {**provenance(), "repeats": 1, "columns": COLUMNS, "parts": {}}
    for part, name, result in run(options):
        summary["parts"].setdefault(part, {})[name] = result
        print(part, name, {key: value for key, value in result.items() if key != "series"}, flush=True)
        study.write_summary(options.output, summary)
    plot(summary["parts"], options.output / "figure.png")


if __name__ == "__main__":
    main()

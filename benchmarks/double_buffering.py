"""
Measure how much time double buffering saves, that is, collecting the next rollout while the policy is updated (as in APPO),
and how well ``ScoReFlowPPO`` learns from rollouts that are one update old (docs/scaling.md). The times are measured on the
clock, with simulators on this machine and with workers that sleep as long as the workers of a cluster would simulate.

    python -m benchmarks.double_buffering --parts times
    python -m benchmarks.double_buffering --parts learning

Both ways of collecting take turns. Learning is measured in one thread, which gives the same numbers as two threads.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from benchmarks import study
from benchmarks.curves import RETURNS, CurveTable, Run, as_curve
from benchmarks.finetune import ITERATION, start
from benchmarks.learning import final_return, mean_and_interval
from benchmarks.locomotion import demonstrations_of, make_env, make_envs
from benchmarks.provenance import provenance
from benchmarks.ray_scaling import Idle, make_tasks
from benchmarks.study import Variant
from sb3_scoreflow import FlowMatchingPolicy, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.distributed import RayVecEnv
from sb3_scoreflow.ppo.buffers import WideActions

ENV = "Hopper-v5"
#: Numbers of cores that simulate Lift; number of sleeping environments that stand for them, and of their workers
CORES, N_SLEEPERS, N_WORKERS = (2, 8, 16, 32, 64), 64, 2
#: Number of chunks over which the processor time of a simulator is measured
N_CHUNKS = 40
#: Minibatches of the clones; fewer than usual, because the clones need not be good
CLONE_BATCHES = 2000


class Timed(ScoReFlowPPO):
    """Records when updates begin and end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []
        super().__init__(*args, **kwargs)

    def train(self) -> None:
        self.began.append(time.perf_counter())
        super().train()
        self.ended.append(time.perf_counter())


class DoubleBuffered(Timed):
    """
    Collects the next rollout in a thread during the update, with a copy of the policy from before the update.

    A rollout is one update old when the model learns from it. Its log-probabilities and values are those of the copy, so
    PPO's ratio corrects for the age. There are as many rollouts and updates as without double buffering, because no rollout is
    collected during the last update.
    """

    #: Whether to use a thread. Without it, the rollout is collected before the update, with the same numbers
    threaded = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._collector: DoubleBuffered | None = None
        self._rollout: Future[bool] | None = None
        self._spare: WideActions | None = None
        self._callback: BaseCallback | None = None

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as self._thread:
            try:
                return super().learn(*args, **kwargs)
            finally:
                self._collector = self._rollout = None

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Take over the rollout that was collected during the last update; the first rollout is collected here."""
        self._callback = callback
        if self._collector is None:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        assert self._rollout is not None
        collector, going_on = self._collector, self._rollout.result()
        self._collector = self._rollout = None
        self._spare, self.rollout_buffer = self.rollout_buffer, collector.rollout_buffer
        for name in ("_last_obs", "_last_episode_starts", "num_timesteps", "num_env_steps", "return_statistics"):
            setattr(self, name, getattr(collector, name))
        callback.on_rollout_start()  # in this thread, because callbacks may evaluate the policy, which is updated now
        callback.on_rollout_end()
        return going_on

    def train(self) -> None:
        """Update the policy, and before that, start the next rollout unless this update is the last."""
        counted = self.num_timesteps
        if counted < self._total_timesteps:
            self._start_rollout()
        super().train()
        if self._rollout is not None:
            wait([self._rollout])
            self.num_timesteps = counted  # `learn` ends when the model has learned from all counted steps

    def _start_rollout(self) -> None:
        assert self.env is not None and self._callback is not None
        if self._spare is None:
            self._spare = copy.deepcopy(self.rollout_buffer)
        collector = copy.copy(self)  # shares the episodes, their statistics and the environments
        collector.policy, collector.rollout_buffer = copy.deepcopy(self.policy), self._spare
        self.return_statistics = copy.deepcopy(self.return_statistics)  # of the rollouts that the model has learned from
        collect = partial(
            ScoReFlowPPO.collect_rollouts,
            collector,
            self.env,
            _Steps(self, collector, self._callback),
            collector.rollout_buffer,
            self.n_steps,
        )
        self._collector = collector
        if self.threaded:
            self._rollout = self._thread.submit(collect)
        else:
            self._rollout = Future()
            self._rollout.set_result(collect())


class _Steps(BaseCallback):
    """
    Passes steps, but not the start and end of rollouts, to the user's callback, and counts the steps in the learner.

    :param learner: the model that callbacks know
    :param collector: the copy that collects the rollout
    :param callback: the user's callback
    """

    def __init__(self, learner: DoubleBuffered, collector: DoubleBuffered, callback: BaseCallback) -> None:
        super().__init__()
        self.learner, self.collector, self.callback = learner, collector, callback
        self.model = collector

    def update_locals(self, locals_: dict[str, Any]) -> None:
        self.callback.update_locals(locals_)

    def _on_step(self) -> bool:
        self.learner.num_timesteps = self.collector.num_timesteps
        return self.callback.on_step()


WAYS: dict[str, type[Timed]] = {"sequential": Timed, "overlapped": DoubleBuffered}

# ---------------------------------------------------------------- time


def simulation_ms(make: Callable[[], gym.Env]) -> float:
    """:return: milliseconds of processor time that an environment takes for a chunk of random actions"""
    env = make()
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    space: Any = env.action_space
    begin = time.process_time()
    for _ in range(N_CHUNKS):
        _, _, terminated, truncated, _ = env.step(rng.uniform(space.low, space.high).astype(space.dtype))
        if terminated or truncated:
            env.reset()
    seconds = time.process_time() - begin
    env.close()
    return 1e3 * seconds / N_CHUNKS


def compare(env: VecEnv, n_steps: int, batch_size: int, n_iterations: int, repeats: int) -> dict[str, Any]:
    """
    :param env: environment, which is closed afterwards
    :param n_steps: steps per environment and iteration
    :param batch_size: minibatch size
    :param n_iterations: iterations per turn
    :param repeats: turns of each way of collecting
    :return: name -> value: seconds per iteration for both ways, in each turn; seconds of the rollout and of the update; and
        ``gain``, the ratio of sequential to overlapped time
    """
    models = {
        name: way("FlowPolicy", env, n_steps=n_steps, batch_size=batch_size, device="cpu", seed=0)
        for name, way in WAYS.items()
    }
    turns: dict[str, list[float]] = {name: [] for name in WAYS}
    updates: list[float] = []
    for turn in range(repeats):
        for name in list(WAYS)[:: 1 if turn % 2 else -1]:
            model = models[name]
            model.began, model.ended = [], []
            model.learn(n_iterations * n_steps * env.num_envs, log_interval=None)
            # Nothing overlaps with the first rollout and the last update
            turns[name].append(float(np.mean(np.diff(model.began))))
            if name == "sequential":
                updates.append(float(np.mean(np.subtract(model.ended, model.began))))
    env.close()
    sequential, overlapped = (float(np.median(turns[name])) for name in WAYS)
    update = float(np.median(updates))
    pairs = [one / other for one, other in zip(*turns.values(), strict=True)]
    return dict(
        chunks=n_steps * env.num_envs,
        n_envs=env.num_envs,
        seconds_per_iteration=turns,
        rollout_seconds=sequential - update,
        update_seconds=update,
        ideal=sequential / max(update, sequential - update),
        gain=sequential / overlapped,
        range=[min(pairs), max(pairs)],
    )


def sleepers(chunk_ms: float, cores: int, repeats: int) -> dict[str, Any]:
    """:return: result of ``compare`` with workers that sleep as long as this number of cores would simulate"""
    hopper = make_tasks()["hopper"][0]()
    seconds = chunk_ms * N_SLEEPERS / cores / 1e3
    make = partial(Idle, hopper.observation_space, hopper.action_space)
    per_worker = N_SLEEPERS // N_WORKERS
    functions = [partial(make, seconds if index % per_worker == 0 else 0.0) for index in range(N_SLEEPERS)]
    env = RayVecEnv(functions, envs_per_worker=per_worker)
    return {"ms_per_step": 1e3 * seconds, **compare(env, 8, 256, max(cores // 4, 3), repeats)}


def measure(options: argparse.Namespace) -> None:
    th.set_num_threads(1)
    section: dict[str, Any] = {"origins": {"times": provenance()}, "repeats": options.repeats}
    section["load_of_others"] = [round(load, 1) for load in os.getloadavg()]
    makers = {name: make_tasks()[name][0] for name in ("hopper", "lift")}
    section["simulation_ms"] = {name: simulation_ms(make) for name, make in makers.items()}
    print(section["simulation_ms"], flush=True)
    sizes = {"hopper": (8, 64, 256, 6), "lift": (4, 16, 64, 4)}
    parts: dict[str, Callable[[], Any]] = {}
    for cores in reversed(CORES):
        parts[str(cores)] = partial(sleepers, section["simulation_ms"]["lift"], cores, options.repeats)
    for name, make in makers.items():
        parts[name] = partial(_here, make, *sizes[name], options.repeats)
    for name, part in parts.items():
        section[name] = part()
        print(name, section[name], flush=True)
        study.update_summary(options.output, "times", section)


def _here(make: Callable[[], gym.Env], n_envs: int, *arguments: int) -> dict[str, Any]:
    return compare(SubprocVecEnv([make] * n_envs), *arguments)


# ---------------------------------------------------------------- learning


class Lagged(DoubleBuffered):
    """Learns the same as ``DoubleBuffered``, in one thread."""

    threaded = False


VARIANTS = {
    "sequential": Variant("one after the other", Timed, ITERATION),
    "overlapped": Variant("rollouts one update old", Lagged, ITERATION),
}


@lru_cache(maxsize=1)
def clone(seed: int) -> FlowMatchingPolicy:
    """The clone from which both ways start with this seed."""
    th.manual_seed(seed)
    env = make_env(ENV, 1, 1000 * seed)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    pretrain_bc(policy, demonstrations_of(ENV), n_batches=CLONE_BATCHES, seed=seed)
    return policy


def run(options: argparse.Namespace, variant: str, seed: int, variants: Mapping[str, Variant] = VARIANTS) -> study.Result:
    env, eval_env = make_envs(ENV, seed)
    model, eval_env = start(variants[variant], env, eval_env, demonstrations_of(ENV), lambda: clone(seed), seed)
    rows = CurveTable(options.output).record(Run(variant, ENV, seed), model, options.timesteps, eval_env)
    print(variant, seed, {name: round(final_return(as_curve(rows), name)) for name in RETURNS}, flush=True)
    return {"curves": {ENV: rows}}


def summarize(options: argparse.Namespace, made: study.Made) -> None:
    table = CurveTable(options.output).read()
    curves = {name: [table[Run(name, ENV, seed)] for seed in options.seeds] for name in VARIANTS}
    before = study.read_summary(options.output).get("learning", {})
    section: dict[str, Any] = {
        "origins": study.origins(before, made),
        "env": ENV,
        "seeds": options.seeds,
        "timesteps": options.timesteps,
        "clone_batches": CLONE_BATCHES,
    }
    for column in RETURNS:
        final = {name: [final_return(curve, column) for curve in runs] for name, runs in curves.items()}
        section[column] = {name: mean_and_interval(values) for name, values in final.items()}
        section[column]["difference"] = mean_and_interval(np.subtract(final["overlapped"], final["sequential"]).tolist())
        print(column, section[column], flush=True)
    study.update_summary(options.output, "learning", section)
    labelled = {VARIANTS[name].label: runs for name, runs in curves.items()}
    study.plot([study.return_panels(ENV, labelled)], options.output / "figure.png")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study.parser(__doc__, "double_buffering", seeds=(0, 1, 2), variants=VARIANTS, timesteps=24_000, repeats=3)
    parser.add_argument("--parts", nargs="+", choices=("times", "learning"), default=["times", "learning"])
    options = parser.parse_args(arguments)
    if "times" in options.parts:
        measure(options)
    if "learning" in options.parts:
        summarize(options, study.make_runs(options, run, VARIANTS))


if __name__ == "__main__":
    main()

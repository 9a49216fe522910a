"""
Growth of the cost with the number of denoising steps, batch size, number of environments, widths and number of particles.

The part also writes a plot next to its JSON file. The plot includes the last results of the part "memory".
"""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.speed.setting import N_CHAINS, N_ENVS, OBS_DIM, K, Task, make_model, make_policy
from benchmarks.speed.timing import in_turns, medians
from sb3_scoreflow import RLDT, ScoReFlowPPO

Functions = dict[int, Callable[[], Any]]
UPDATE_CHAINS = 500


def sampling(batch: int = N_ENVS, denoising_steps: int = K, obs_dim: int = OBS_DIM, width: int = 12) -> Callable[[], Any]:
    """:return: function that samples a batch of chains, with values and log-probabilities"""
    policy, obs = make_policy(denoising_steps, obs_dim, (width,)), th.randn(batch, obs_dim)
    return th.no_grad()(partial(policy, obs))


def update(
    denoising_steps: int = K, obs_dim: int = OBS_DIM, width: int = 12, batch_size: int = UPDATE_CHAINS
) -> Callable[[], Any]:
    """:return: function that does a forward and a backward pass over a minibatch of chains"""
    policy = make_policy(denoising_steps, obs_dim, (width,))
    obs, chains = th.randn(batch_size, obs_dim), th.randn(batch_size, (denoising_steps + 1) * width)

    def run() -> None:
        values, log_prob, entropy = policy.evaluate_actions(obs, chains)
        policy.optimizer.zero_grad()
        (values.mean() + log_prob.mean() + entropy.mean()).backward()

    return run


def iteration(n_envs: int) -> Callable[[], Any]:
    """:return: function that runs an iteration of 4000 chains, including the rollout, with this number of environments"""
    model = make_model(ScoReFlowPPO, UPDATE_CHAINS, n_envs)
    return lambda: model.learn(N_CHAINS, reset_num_timesteps=False)


def actor_step(n_particles: int) -> Callable[[], Any]:
    """:return: function that runs an iteration of RLDT with 8 actor steps on 32 states and a single step of the critics"""
    model = RLDT(
        "MlpPolicy",
        make_vec_env(Task, n_envs=8, seed=0),
        n_steps=8,
        n_particles=n_particles,
        actor_batch_size=32,
        critic_steps=1,
        n_refreshes=1,
        actor_steps=8,
        refresh_size=64,
        critic_warmup_transitions=0,
        device="cpu",
        seed=0,
    )
    model.learn(64)
    return model.train


def cases() -> dict[str, Functions]:
    """:return: quantity -> value of the quantity -> function to time"""
    steps, batches = (1, 2, 4, 8, 16, 32), (1, 4, 16, 64, 256, 1024)
    return {
        "sampling, K": {k: sampling(denoising_steps=k) for k in steps},
        "update, K": {k: update(denoising_steps=k) for k in steps},
        "sampling, batch": {n: sampling(n) for n in batches},
        "update, minibatch": {n: update(batch_size=n) for n in (16, 64, 256, 1024, 4000)},
        "iteration of 4000 chains, environments": {n: iteration(n) for n in (4, 8, 20, 40, 100)},
        "update, action width": {d: update(width=d) for d in (3, 12, 48, 192)},
        "update, observation width": {d: update(obs_dim=d) for d in (4, 16, 64, 256, 1024)},
        "RLDT's actor, particles": {p: actor_step(p) for p in (2, 4, 8, 16, 32, 64)},
    }


def exponent(sizes: list[int], milliseconds: list[float]) -> float:
    """Slope between the last two points on logarithmic axes; 1 is linear growth."""
    (a, b), (x, y) = milliseconds[-2:], sizes[-2:]
    return round(float(np.log(b / a) / np.log(y / x)), 2)


def measure(repeats: int) -> dict[str, Any]:
    """Measure milliseconds, and the exponent of growth at the upper end of every range."""
    curves = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns of K = 1
        for name, functions in cases().items():
            times = medians(in_turns({str(size): function for size, function in functions.items()}, repeats, warmup=1))
            sizes, milliseconds = list(functions), list(times.values())
            curves[name] = {"sizes": sizes, "milliseconds": milliseconds, "exponent": exponent(sizes, milliseconds)}
    return {"curves": curves}


def plot(folder: Path) -> None:
    """
    Plot every curve with a line of linear growth through its last point, and the results of the part "memory".

    :param folder: folder with the results of both parts; without those of "memory", their panel stays empty
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = list(figure.subplots(3, 3).flat)
    curves = json.loads((folder / "growth.json").read_text())["curves"]
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        sizes, milliseconds = np.array(curve["sizes"]), np.array(curve["milliseconds"])
        axes.loglog(sizes, milliseconds, "o-")
        axes.loglog(sizes, milliseconds[-1] * sizes / sizes[-1], ":", color="gray", label="linear")
        what, quantity = name.rsplit(", ", 1)
        axes.set_ylim(milliseconds.min() / 2, milliseconds.max() * 2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set(title=what, xlabel=f"{quantity} (exponent {curve['exponent']})", ylabel="ms of processor time")
        axes.legend()
    measured = folder / "memory.json"
    memory = json.loads(measured.read_text())["cases"] if measured.exists() else []
    for batch_size in (250, 1000, 4000) if memory else ():
        chosen = [case for case in memory if case["algorithm"] == "ScoReFlowPPO" and case["batch_size"] == batch_size]
        points = [case["n_steps"] * case["n_envs"] * case["denoising_steps"] for case in chosen]
        panels[-1].plot(points, [case["peak_megabytes"] for case in chosen], "o", label=f"minibatch {batch_size}")
    if memory:
        panels[-1].axhline(memory[0]["peak_megabytes"], linestyle=":", color="gray", label="imports alone")
        panels[-1].legend()
    panels[-1].set(title="peak memory", xlabel="n_steps x n_envs x K", ylabel="MB", xscale="log", ylim=(0, None))
    figure.savefig(folder / "growth.png", dpi=80)

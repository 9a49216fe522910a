"""
Measure how many of eight equally good actions a policy keeps: RLDT with both kernels, ScoReFlowPPO and a Gaussian PPO.

    python -m benchmarks.modes

Episodes have one step, a constant observation and a two-dimensional action; the reward is a bump of width 0.1 around each of
eight peaks on a circle. For each seed, the flow policies start from one clone of actions around all the peaks, with a standard
deviation of 0.2; the Gaussian starts with the mean and standard deviation of these actions. The script draws 4000 samples
after training and reports the share of samples within 0.15 of a peak, and the number of peaks that get at least a quarter of
their equal share.
"""

import argparse
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from benchmarks import study
from benchmarks.learning import mean_and_interval
from benchmarks.study import Variant
from sb3_scoreflow import RLDT, Demonstrations, FlowMatchingPolicy, ScoReFlowPPO, pretrain_bc

N_PEAKS, RADIUS, WIDTH, NEAR = 8, 0.7, 0.1, 0.15
ANGLES = 2 * np.pi * np.arange(N_PEAKS) / N_PEAKS
PEAKS = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)
N_SAMPLES = 4000
K = 8  # four steps cannot make eight clusters
SHARED: dict[str, Any] = dict(
    denoising_steps=K, learning_rate=3e-4, critic_warmup_transitions=5_000, learning_rate_warmup_steps=100
)
VARIANTS = {
    "rldt_rbf": Variant("RLDT, rbf", RLDT, dict(transport=dict(kernel="rbf"), **SHARED)),
    "rldt_rbf_warm": Variant(
        "RLDT, rbf, temperature 0.1", RLDT, dict(transport=dict(kernel="rbf", temperature=0.1), **SHARED)
    ),
    "rldt_delta": Variant("RLDT, delta", RLDT, dict(transport=dict(kernel="delta"), **SHARED)),
    "scoreflow": Variant("ScoReFlowPPO", ScoReFlowPPO, dict(denoising_steps=K, n_steps=50, batch_size=250, min_std=0.05)),
    "gaussian_ppo": Variant(
        "Gaussian PPO", PPO, dict(n_steps=50, batch_size=250, policy_kwargs=dict(log_std_init=math.log(0.53)))
    ),
}


class Peaks(gym.Env[np.ndarray, np.ndarray]):
    """The task: one step and one constant observation; see the module's docstring."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        squared = ((np.asarray(action) - PEAKS) ** 2).sum(-1).min()
        return np.zeros(1, np.float32), float(np.exp(-squared / (2 * WIDTH**2))), True, False, {}


def imprecise_demonstrations(seed: int, n: int = 10_000) -> Demonstrations:
    rng = np.random.default_rng(seed)
    actions = PEAKS[rng.integers(N_PEAKS, size=n)] + 0.2 * rng.normal(size=(n, 2))
    actions = actions.clip(-1, 1).astype(np.float32)
    done = np.ones(n, bool)
    return Demonstrations(np.zeros((n, 1), np.float32), actions, np.zeros(n, np.float32), done, ~done)


def draw(model: BaseAlgorithm | FlowMatchingPolicy) -> np.ndarray:
    return model.predict(np.zeros((N_SAMPLES, 1), np.float32), deterministic=False)[0]


def measure(samples: np.ndarray) -> dict[str, float]:
    distances = np.linalg.norm(samples[:, None] - PEAKS, axis=-1)
    on_peak = distances.min(1) < NEAR
    shares = np.bincount(distances.argmin(1)[on_peak], minlength=N_PEAKS) / len(samples)
    return {"on_a_peak": float(on_peak.mean()), "peaks_kept": int((shares >= 0.25 / N_PEAKS).sum())}


@lru_cache(maxsize=1)
def clone(seed: int) -> tuple[FlowMatchingPolicy, np.ndarray]:
    """The clone from which the variants start with this seed, and samples of it."""
    th.manual_seed(seed)
    start = FlowMatchingPolicy(Peaks.observation_space, Peaks.action_space, denoising_steps=K)
    pretrain_bc(start, imprecise_demonstrations(seed), n_batches=3000, seed=seed)
    return start, draw(start)


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    start, samples = clone(seed)
    if variant in VARIANTS:
        _, algorithm, settings = VARIANTS[variant]
        env = make_vec_env(Peaks, n_envs=20, seed=seed)
        model: Any = algorithm("MlpPolicy", env, seed=seed, device="cpu", **settings)
        if algorithm is not PPO:
            model.load_clone(start)
        model.learn(options.timesteps)
        samples = draw(model)
        print(seed, variant, measure(samples), flush=True)
    return {"samples": samples.tolist()}


def plot(samples: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(2.6 * len(samples), 2.9), layout="constrained")
    panels = figure.subplots(1, len(samples), sharex=True, sharey=True)
    for axes, (variant, points) in zip(panels, samples.items(), strict=True):
        axes.scatter(*points[:1500].T, s=2, alpha=0.4)
        axes.scatter(*PEAKS.T, s=60, facecolors="none", edgecolors="tab:red")
        title = VARIANTS[variant].label if variant in VARIANTS else variant
        axes.set(title=title, aspect="equal", xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        axes.title.set_fontsize(9)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    options = study.parser(__doc__, "modes", seeds=(0, 1, 2), timesteps=20_000).parse_args(arguments)
    options.variants = ["clone", *VARIANTS]
    made = study.make_runs(options, run, {"clone": None, **VARIANTS})
    samples = {key: np.array(facts["samples"]) for key, facts in made.facts.items()}
    variants = {}
    for variant in options.variants:
        measures = [measure(samples[variant, seed]) for seed in options.seeds]
        variants[variant] = {name: mean_and_interval([m[name] for m in measures]) for name in measures[0]}
    settings = {name: repr(variant.settings) for name, variant in VARIANTS.items()}
    setting = {"seeds": options.seeds, "timesteps": options.timesteps, "settings": settings}
    study.write_summary(options.output, {**made.origin, **setting, "variants": variants})
    plot({v: samples[v, options.seeds[0]] for v in options.variants}).savefig(options.output / "figure.png", dpi=100)


if __name__ == "__main__":
    main()

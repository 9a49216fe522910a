"""
Time of sampling (one batch of 40 observations) and of the update (4000 chains), one thread, beside the same matrix products
alone.

    python -m benchmarks.timing

K = 4, chunks of 4 actions of 3 dimensions, 11 observations, velocity field 512x3, critic 256x3. What is compared is timed
alternately in one process; medians go to ``benchmarks/results/timing.json``.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import Env, spaces
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.provenance import ROOT, provenance
from sb3_scoreflow import ScoReFlowPPO

N_ENVS, N_CHAINS, K, WIDTH, CRITIC_WIDTH, OBS_DIM, ACTION_SHAPE = 40, 4000, 4, 512, 256, 11, (4, 3)
ACTION_DIM = int(np.prod(ACTION_SHAPE))


class Task(Env[np.ndarray, np.ndarray]):
    """Hopper's shapes, chunked by 4, without its physics."""

    observation_space = spaces.Box(-np.inf, np.inf, (OBS_DIM,))
    action_space = spaces.Box(-1.0, 1.0, ACTION_SHAPE)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(size=OBS_DIM).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.np_random.normal(size=OBS_DIM).astype(np.float32), float(action.mean()), False, False, {}


def products(rows: int, width: int, dims: tuple[int, int], calls: int, backward: bool) -> Callable[[], None]:
    """
    The matrix products of an MLP with three hidden layers, by ``torch.mm`` into buffers: forward, or forward and backward.
    """
    sizes = [(dims[0], width), (width, width), (width, width), (width, dims[1])]
    weights = [th.randn(a, b) for a, b in sizes]
    inputs, outputs = [th.randn(rows, a) for a, _ in sizes], [th.randn(rows, b) for _, b in sizes]
    weight_gradients, input_gradients = [th.empty(a, b) for a, b in sizes], [th.empty(rows, a) for a, _ in sizes]

    def run() -> None:
        for _ in range(calls):
            for x, w, y in zip(inputs, weights, outputs, strict=True):
                th.mm(x, w, out=y)
            if backward:
                for x, w, y, gw, gx in zip(inputs, weights, outputs, weight_gradients, input_gradients, strict=True):
                    th.mm(x.T, y, out=gw)
                    th.mm(y, w.T, out=gx)

    return run


def alternate(functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, timed in turns so that a busy moment of the machine hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(repeats + 3):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if i >= 3:  # the first rounds warm up
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def main() -> None:
    th.set_num_threads(1)
    env = make_vec_env(Task, n_envs=N_ENVS)
    net_arch = dict(pi=[WIDTH] * 3, vf=[CRITIC_WIDTH] * 3)
    model = ScoReFlowPPO(
        "FlowPolicy",
        env,
        n_steps=N_CHAINS // N_ENVS,
        batch_size=N_CHAINS,
        n_epochs=1,
        policy_kwargs=dict(net_arch=net_arch),
        device="cpu",
    )
    model.learn(N_CHAINS)  # fills the rollout buffer
    obs = th.as_tensor(env.reset())
    floors = dict(dims=(OBS_DIM + 16 + ACTION_DIM, ACTION_DIM))

    def sample() -> None:
        with th.no_grad():
            model.policy(obs)

    field = [
        products(rows, WIDTH, floors["dims"], calls, grad)
        for rows, calls, grad in ((N_ENVS, K, False), (N_CHAINS * K, 1, True))
    ]
    critic = [products(rows, CRITIC_WIDTH, (OBS_DIM, 1), 1, grad) for rows, grad in ((N_ENVS, False), (N_CHAINS, True))]
    sampling = alternate({"sampling_ms": sample, "field_products_ms": field[0], "critic_products_ms": critic[0]}, 200)
    update = alternate({"update_ms": model.train, "field_products_ms": field[1], "critic_products_ms": critic[1]}, 15)
    results: dict[str, Any] = {
        **provenance(),
        "threads": 1,
        "setting": dict(
            n_envs=N_ENVS,
            n_chains=N_CHAINS,
            denoising_steps=K,
            width=WIDTH,
            critic_width=CRITIC_WIDTH,
            action_shape=ACTION_SHAPE,
        ),
    }
    for name, times, total in (("sampling", sampling, "sampling_ms"), ("update", update, "update_ms")):
        floor = times["field_products_ms"] + times["critic_products_ms"]
        results[name] = {
            **{key: round(value, 3) for key, value in times.items()},
            "ratio_to_products": round(times[total] / floor, 2),
        }
    path = ROOT / "benchmarks/results/timing.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({name: results[name] for name in ("sampling", "update")}, indent=2))


if __name__ == "__main__":
    main()

"""Time of gradient steps of behavior cloning."""

import copy
from typing import Any

import numpy as np
import torch as th

from benchmarks.speed.products import field_products
from benchmarks.speed.sequential import SequentialPolicy
from benchmarks.speed.setting import make_policy
from benchmarks.speed.timing import in_turns, medians, ratio, target
from sb3_scoreflow import load_demonstrations, pretrain_bc

BATCH_SIZE, N_BATCHES = 256, 50


def measure(repeats: int) -> dict[str, Any]:
    """Time gradient steps. Every turn has ``N_BATCHES`` gradient steps; the results are per step."""
    demonstrations = load_demonstrations("builtin:hopper-medium")
    policy = make_policy()
    plain = SequentialPolicy(policy)
    average = copy.deepcopy(plain)
    optimizer = th.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=1e-6, foreach=False)
    chunks, rng = demonstrations.chunks(4), np.random.default_rng(0)

    def sequential() -> None:
        for _ in range(N_BATCHES):
            batch = chunks[rng.integers(len(chunks), size=BATCH_SIZE)]
            actions = th.as_tensor(batch.actions, dtype=th.float32).flatten(1)
            obs, noise, t = th.as_tensor(batch.observations), th.randn_like(actions), th.rand(len(actions), 1)
            error = plain.cloning_loss(obs, actions, noise, t).view(BATCH_SIZE, 4, -1)
            mask = th.as_tensor(batch.mask).unsqueeze(-1)
            optimizer.zero_grad()
            ((error * mask).sum() / (mask.sum() * error.shape[-1])).backward()
            optimizer.step()
            with th.no_grad():
                for mean, new in zip(average.parameters(), plain.parameters(), strict=True):
                    mean.mul_(0.995).add_(0.005 * new)

    times = in_turns(
        {
            "cloning": lambda: pretrain_bc(policy, demonstrations, n_batches=N_BATCHES, batch_size=BATCH_SIZE, seed=0),
            "sequential": sequential,
            "products": field_products(BATCH_SIZE, N_BATCHES, backward=True),
        },
        repeats,
    )
    times = {name: values / N_BATCHES for name, values in times.items()}
    milliseconds = medians(times)
    to_products = ratio(times["cloning"], times["products"])
    return {
        "batch_size": BATCH_SIZE,
        "milliseconds_per_step": milliseconds,
        "steps_per_second": round(1e3 / milliseconds["cloning"]),
        "ratio": {"cloning_to_products": to_products, "sequential_to_cloning": ratio(times["sequential"], times["cloning"])},
        "targets": {"behavior cloning over its products": target(to_products, 1.5)},
    }

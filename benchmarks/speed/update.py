"""Time of one epoch of the update over 4000 chains, in minibatches of several sizes."""

from typing import Any

import torch as th
from stable_baselines3 import PPO

from benchmarks.speed.products import critic_products, field_products
from benchmarks.speed.sequential import SequentialPolicy, trainer
from benchmarks.speed.setting import N_CHAINS, K, make_model
from benchmarks.speed.timing import in_turns, medians, ratio, target
from sb3_scoreflow import ScoReFlowPPO

BATCH_SIZES = (N_CHAINS, 500, 250)


def measure(repeats: int) -> dict[str, Any]:
    """Time ``train()`` with one epoch, including checks, diagnostics and logs."""
    result: dict[str, Any] = {"milliseconds": {}, "ratio": {}}
    for batch_size in BATCH_SIZES:
        model, ppo = make_model(ScoReFlowPPO, batch_size), make_model(PPO, batch_size)
        plain = SequentialPolicy(model.policy)
        step = trainer(plain)

        def sequential(plain: SequentialPolicy = plain, step: Any = step, model: Any = model) -> None:
            for batch in model.rollout_buffer.get(model.batch_size):
                step(plain.loss(batch, 0.02, model.vf_coef, model.ent_coef))

        calls = N_CHAINS // batch_size
        times = in_turns(
            {
                "update": model.train,
                "sequential": sequential,
                "sb3_ppo": ppo.train,
                "products_field": field_products(batch_size * K, calls, backward=True),
                "products_critic": critic_products(batch_size, calls, backward=True),
            },
            repeats,
        )
        assert all(bool(th.isfinite(p).all()) for p in plain.parameters())
        times["products"] = times.pop("products_field") + times.pop("products_critic")
        label = f"minibatches of {batch_size}"
        result["milliseconds"][label] = medians(times)
        result["ratio"][label] = {
            "update_to_products": ratio(times["update"], times["products"]),
            "sequential_to_update": ratio(times["sequential"], times["update"]),
            "update_to_sb3_ppo": ratio(times["update"], times["sb3_ppo"]),
        }
    whole = result["ratio"][f"minibatches of {N_CHAINS}"]
    result["targets"] = {"update of 4000 chains over its products": target(whole["update_to_products"], 1.25)}
    return result

"""
Compare bfloat16 matrix products (autocast on a CPU) with float32: the time of updates and of sampling, the deviation of the
first PPO ratio from 1, and the error of cloning. The speed is only meaningful on a processor with avx512_bf16 or amx_bf16.

    python -m benchmarks.bfloat16
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from benchmarks.provenance import ROOT, provenance
from benchmarks.speed.setting import ACTION_DIM, OBS_DIM, make_policy, make_update
from benchmarks.speed.timing import in_turns, medians, ratio
from sb3_scoreflow.common.kept_memory import kept_memory

OUTPUT = ROOT / "benchmarks/results/bfloat16/summary.json"
REPEATS, SEEDS, STEPS = 5, (0, 1, 2), 300


def flags() -> list[str]:
    """The processor's bfloat16 features, according to Linux."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return sorted(words & {"avx512_bf16", "amx_bf16"})


def speed() -> dict[str, Any]:
    """Time updates of 250 and 4000 chains and sampling of 40 and 256 chains, with bfloat16 and float32 in turns."""
    policy, result = make_policy(), {}
    for chains in (250, 4000):
        functions = {str(dtype): make_update(policy, chains, chains, dtype) for dtype in (None, th.bfloat16)}
        times = in_turns({"float32": functions["None"], "bfloat16": functions["torch.bfloat16"]}, REPEATS, warmup=1)
        result[f"update of {chains} chains"] = {
            "milliseconds": medians(times),
            "bfloat16_to_float32": ratio(times["bfloat16"], times["float32"]),
        }

    @th.no_grad()
    def sample(obs: th.Tensor, enabled: bool) -> None:
        with th.autocast("cpu", th.bfloat16, enabled=enabled):
            policy(obs)

    for batch in (40, 256):
        obs = th.randn(batch, OBS_DIM)
        functions = {"float32": partial(sample, obs, False), "bfloat16": partial(sample, obs, True)}
        times = in_turns(functions, 4 * REPEATS, calls=2)
        result[f"sampling of {batch} chains"] = {
            "milliseconds": medians(times),
            "bfloat16_to_float32": ratio(times["bfloat16"], times["float32"]),
        }
    return result


@th.no_grad()
def first_ratio() -> dict[str, dict[str, float]]:
    """
    Deviation of the first PPO ratio from 1 over 4000 chains that were sampled in float32: its maximum, its mean, and the share
    of chains whose ratio is outside the usual clip range of 0.02.
    """
    policy, obs = make_policy(), th.randn(4000, OBS_DIM)
    records, _, old = policy(obs)
    result = {}
    for name in ("float32", "bfloat16"):
        with th.autocast("cpu", th.bfloat16, enabled=name == "bfloat16"):
            log_prob = policy.evaluate_actions(obs, records)[1]
        deviation = ((log_prob.float() - old).exp() - 1).abs()
        result[name] = {
            "largest": float(f"{deviation.max():.3g}"),
            "mean": float(f"{deviation.mean():.3g}"),
            "beyond_clip_range": round((deviation > 0.02).float().mean().item(), 4),
        }
    return result


def learn(seed: int, enabled: bool) -> float:
    """
    Clone a known function of the observation by flow matching.

    :return: root mean square error of the deterministic actions, in [-1, 1], on new observations
    """
    th.manual_seed(seed)
    policy = make_policy()
    optimizer = th.optim.AdamW(policy.parameters(), lr=1e-3)
    weights = th.randn(OBS_DIM, ACTION_DIM, generator=th.Generator().manual_seed(seed)) / OBS_DIM**0.5

    def expert(obs: th.Tensor) -> th.Tensor:
        return 0.9 * th.tanh(obs @ weights)

    for _ in range(STEPS):
        obs = 2 * th.randn(256, OBS_DIM) + 1
        noise, t = th.randn(256, ACTION_DIM), th.rand(256)
        with th.autocast("cpu", th.bfloat16, enabled=enabled):
            error = policy.flow_matching_loss(obs, expert(obs), noise, t)
        optimizer.zero_grad()
        error.float().mean().backward()
        optimizer.step()
    obs = 2 * th.randn(1024, OBS_DIM) + 1
    with th.no_grad():
        actions = policy.sample_ode(obs, th.zeros(1024, ACTION_DIM))
    return round((actions - expert(obs)).pow(2).mean().sqrt().item(), 4)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    th.set_num_threads(1)
    th.manual_seed(0)
    result = {**provenance(), "processor_has": flags(), "repeats": REPEATS, "seeds": list(SEEDS), "steps": STEPS}
    with kept_memory():
        result |= {"speed": speed(), "first_ratio": first_ratio()}
        result["cloning_error"] = {
            name: [learn(seed, name == "bfloat16") for seed in SEEDS] for name in ("float32", "bfloat16")
        }
    result["mean_cloning_error"] = {name: round(float(np.mean(of)), 4) for name, of in result["cloning_error"].items()}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

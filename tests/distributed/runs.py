"""A study of toy runs, some of which fail; ``python -m tests.distributed.runs FOLDER ...`` makes it in another process."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import PPO

from benchmarks import study
from benchmarks.curves import CurveTable, Run
from tests.conformance.envs import make_toy

VARIANTS: dict[str, Any] = {name: {} for name in ("plain", "killed_once", "killed", "broken", "slow")}


def options(folder: Path, *given: str) -> argparse.Namespace:
    parser = study.parser("", "study", seeds=(0,), variants=VARIANTS, timesteps=48)
    return parser.parse_args(["--output", str(folder), *given])


def run(options: argparse.Namespace, variant: str, seed: int) -> study.Result:
    started = options.output / f"started_{variant}_{seed}"
    first = not started.exists()
    started.write_text(str(os.getpid()))
    if variant == "killed" or (variant == "killed_once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if variant == "broken":
        raise OverflowError(f"{variant} is too large")
    if variant == "slow" and seed > 0 and not (options.output / "go").exists():
        time.sleep(600)
    model = PPO("MlpPolicy", make_toy(), n_steps=16, batch_size=16, n_epochs=2, device="cpu", seed=seed)
    evaluation = (make_toy(), 16, 1)
    rows = CurveTable(options.output).record(Run(variant, "toy", seed), model, options.timesteps, *evaluation)
    weights = th.cat([p.detach().flatten() for p in model.policy.parameters()]).tolist()
    process = {"threads": th.get_num_threads(), "process": os.getpid()}
    return {"curves": {"toy": rows}, "weights": weights, "drawn": th.rand(3).tolist(), **process}


def main(arguments: Sequence[str]) -> None:
    study.make_runs(options(Path(arguments[0]), *arguments[1:]), run, VARIANTS)


if __name__ == "__main__":
    main(sys.argv[1:])

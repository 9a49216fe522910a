"""A program that clones with a checkpoint, to be killed and run again."""

import sys
import time
from pathlib import Path

import torch as th

from sb3_scoreflow import pretrain_bc
from tests.bc.helpers import make_demonstrations, make_model


def main(checkpoint: Path, output: Path) -> None:
    """Clone, and save the policy."""
    model = make_model()
    print("begins", flush=True)
    settings = dict(n_batches=300, batch_size=16, log_interval=5, critic_batches=20, seed=1)
    # A callback that takes its time, so that kills hit every part of an interval, and none comes after the end
    pretrain_bc(model, make_demonstrations(), callback=lambda _: time.sleep(0.01), checkpoint=checkpoint, **settings)  # type: ignore[arg-type]
    model.policy.save(output)


if __name__ == "__main__":
    th.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))

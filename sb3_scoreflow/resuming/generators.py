"""The states of all global random number generators."""

import random
from typing import Any

import numpy as np
import torch as th


def generator_states() -> dict[str, Any]:
    """:return: picklable states of the generators of Python, NumPy and torch, including those of CUDA devices"""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  # Stable-Baselines3 draws from this generator
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
    }


def set_generator_states(states: dict[str, Any]) -> None:
    """:param states: result of :func:`generator_states`; states of CUDA are ignored if the number of devices differs"""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    th.set_rng_state(states["torch"])
    if th.cuda.is_available() and len(states["cuda"]) == th.cuda.device_count():
        th.cuda.set_rng_state_all(states["cuda"])

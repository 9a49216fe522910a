"""What error messages about files of other programs advise, followed."""

import re
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations

N = 40
RNG = np.random.default_rng(0)
OBS, ACTS = RNG.normal(size=(N, 3)).astype(np.float32), RNG.uniform(-1, 1, (N, 2)).astype(np.float32)
REWS = RNG.random(N).astype(np.float32)
ENDS = np.arange(N) % 20 == 19
PARTS = (slice(0, 20), slice(20, 40))


def message_of(source: Any) -> str:
    with pytest.raises((OSError, ValueError)) as error:
        load_demonstrations(source)
    return str(error.value)


def follow(message: str) -> Demonstrations:
    """:return: The demonstrations that the code in the message makes, or its call of load_demonstrations"""
    head, *lines = message.split("\n")
    variables: dict[str, Any] = {}
    if lines:
        assert all(line.startswith("    ") for line in lines)
        exec(textwrap.dedent("\n".join(lines)), variables)
        return variables["demonstrations"]
    call = re.search(r"load_demonstrations\('[^']*'(, allow_pickle=True)?\)", head)
    assert call is not None, head
    return eval(call.group(), {"load_demonstrations": load_demonstrations})


def check(d: Demonstrations, rewards: bool = True, terminated: bool = True) -> None:
    observations = d.observations
    if isinstance(observations, dict):
        (observations,) = (value for key, value in observations.items() if "q" in key)
    np.testing.assert_array_equal(observations, OBS)
    np.testing.assert_array_equal(d.actions, ACTS)
    np.testing.assert_array_equal(d.rewards, REWS if rewards else np.zeros(N))
    np.testing.assert_array_equal(d.terminations, ENDS if terminated else np.zeros(N))
    np.testing.assert_array_equal(d.truncations, np.zeros(N) if terminated else ENDS)


def hdf5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name.replace("__", "/")] = value
    return path


def episodes(last: bool = True) -> list[dict[str, Any]]:
    """Episodes as dicts, perhaps with the observation after the last action."""
    return [
        {
            "observations": np.concatenate([OBS[part], OBS[:1]]) if last else OBS[part],
            "actions": ACTS[part],
            "rewards": REWS[part],
            "terminals": ENDS[part],
        }
        for part in PARTS
    ]

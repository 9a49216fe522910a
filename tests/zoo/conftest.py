"""rl_zoo3 replaces a class of gymnasium, for good, when it is imported: here for the length of a test only."""

import importlib

import gymnasium as gym
import pytest


@pytest.fixture(autouse=True)
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gym.wrappers, gym.wrappers.common, gym.envs.registration):
        if hasattr(module, "TimeLimit"):
            monkeypatch.setattr(module, "TimeLimit", gym.wrappers.TimeLimit)
    patches = importlib.import_module("rl_zoo3.gym_patches")
    importlib.reload(patches)

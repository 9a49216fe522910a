"""The study of how many actions of a chunk are executed, against stepping the environment by hand."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from benchmarks import execution
from benchmarks.locomotion import Chunks
from benchmarks.tasks.families import TASKS
from sb3_scoreflow import FlowMatchingPolicy


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FlowMatchingPolicy:
    """An untrained policy of chunks, which takes the place of the clone."""
    env = TASKS["hopper-precise"].make_env("test", 1, 0)
    th.manual_seed(0)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    policy.save(str(tmp_path / "clone.zip"))
    monkeypatch.setattr(execution, "demonstrations_of", lambda *_: SimpleNamespace(episode_returns=np.array([3.0, 5.0])))
    monkeypatch.setattr(execution, "kept_clone", lambda *_: tmp_path / "clone.zip")
    return policy


def test_returns_are_those_of_the_first_actions_of_each_chunk(policy: FlowMatchingPolicy, tmp_path: Path) -> None:
    options = argparse.Namespace(task="hopper-precise", data=tmp_path, clones=tmp_path, episodes=10)
    single, means = gym.make("Hopper-v5"), set()
    for variant, (_, n_executed) in execution.VARIANTS.items():
        if variant == "no_chunks":  # of another clone
            continue
        found = execution.run(options, variant, 0)
        assert found.keys() == {"demonstrations", "deterministic", "random_x0"} and found["demonstrations"] == 4.0
        returns = []
        for seed in range(700, 710):
            observation, total, ended = single.reset(seed=seed)[0], 0.0, False
            while not ended:
                for action in policy.predict(observation, deterministic=True)[0][:n_executed]:
                    observation, reward, terminated, truncated, _ = single.step(action)
                    total, ended = total + float(reward), terminated or truncated
                    if ended:
                        break
            returns.append(total)
        assert found["deterministic"] == pytest.approx(np.mean(returns), rel=1e-6)
        means.add(found["deterministic"])
    assert len(means) == 4


@pytest.mark.parametrize("task", ["peg-insert-side-v3", "lift", "lunar-lander"])
def test_every_family_executes_a_part_of_its_chunks(task: str) -> None:
    env = TASKS[task].make_env("test", 1, 0, Chunks(4, 3))
    env.reset()
    assert env.action_space.shape[0] == 4  # type: ignore[index]
    infos = env.step(np.array([env.action_space.sample()]))[3]
    assert infos[0]["n_env_steps"] == 3
    env.close()

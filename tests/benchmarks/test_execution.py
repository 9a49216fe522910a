"""The study of how many actions of a chunk are executed, against stepping the environment by hand."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from benchmarks import execution
from benchmarks.tasks.families import TASKS
from sb3_scoreflow import FlowMatchingPolicy


def test_returns_are_those_of_the_first_actions_of_each_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = TASKS["hopper-precise"].make_env("test", 1, 0)
    th.manual_seed(0)
    policy = FlowMatchingPolicy(env.observation_space, env.action_space)  # type: ignore[arg-type]
    policy.save(str(tmp_path / "clone.zip"))
    demonstrations = SimpleNamespace(episode_returns=np.array([3.0, 5.0]))
    monkeypatch.setattr(execution, "demonstrations_of", lambda *_: demonstrations)
    monkeypatch.setattr(execution, "kept_clone", lambda *_: tmp_path / "clone.zip")
    options = argparse.Namespace(task="hopper-precise", data=tmp_path, clones=tmp_path, episodes=10)
    found = execution.run(options, "default", 0)
    assert found["demonstrations"] == 4.0 and found["random_x0"].keys() == found["deterministic"].keys() == {*"1234"}
    single = gym.make("Hopper-v5")
    for number, mean in found["deterministic"].items():
        returns = []
        for seed in range(700, 710):
            observation, total, ended = single.reset(seed=seed)[0], 0.0, False
            while not ended:
                for action in policy.predict(observation, deterministic=True)[0][: int(number)]:
                    observation, reward, terminated, truncated, _ = single.step(action)
                    total, ended = total + float(reward), terminated or truncated
                    if ended:
                        break
            returns.append(total)
        assert mean == pytest.approx(np.mean(returns), rel=1e-6)
    assert len(set(found["deterministic"].values())) == 4


@pytest.mark.parametrize("task", ["peg-insert-side-v3", "lift", "lunar-lander"])
def test_every_family_executes_a_part_of_its_chunks(task: str) -> None:
    env = TASKS[task].make_env("test", 1, 0, 3)
    env.reset()
    assert env.action_space.shape[0] == 4  # type: ignore[index]
    infos = env.step(np.array([env.action_space.sample()]))[3]
    assert infos[0]["n_env_steps"] == 3
    env.close()

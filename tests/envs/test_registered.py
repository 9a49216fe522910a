"""Tasks by ids of Gymnasium are what the functions make."""

import gymnasium as gym
import numpy as np
import pytest

from sb3_scoreflow.envs import make_metaworld, make_robomimic, register_tasks


def test_all_of_meta_world() -> None:
    known = pytest.importorskip("metaworld.env_dict").ALL_V3_ENVIRONMENTS
    assert {f"sb3_scoreflow/{name}" for name in known} == {
        env_id for env_id in gym.registry if env_id.startswith("sb3_scoreflow/") and env_id.endswith("-v3")
    }


def test_meta_world() -> None:
    pytest.importorskip("metaworld")
    env = gym.make("sb3_scoreflow/soccer-v3", max_episode_steps=5, split="test")
    same_run(env, make_metaworld("soccer-v3", "test", max_episode_steps=5))


@pytest.mark.parametrize(("name", "task"), [("Lift", "lift"), ("Can", "can")])
def test_robosuite(name: str, task: str) -> None:
    pytest.importorskip("robosuite")
    same_run(gym.make(f"sb3_scoreflow/{name}-v0", horizon=5), make_robomimic(task, horizon=5))


def same_run(env: gym.Env, other: gym.Env) -> None:
    assert env.observation_space == other.observation_space and env.action_space == other.action_space
    observation, others = env.reset(seed=3)[0], other.reset(seed=3)[0]
    env.action_space.seed(0)
    ends = False
    while not ends:
        np.testing.assert_equal(observation, others)
        action = env.action_space.sample()
        observation, *answer, _ = env.step(action)
        others, *expected, _ = other.step(action)
        assert answer == expected
        ends = any(answer[1:])
    env.close()
    other.close()


def test_registering_again_changes_nothing() -> None:
    before = dict(gym.registry)
    register_tasks()
    assert dict(gym.registry) == before

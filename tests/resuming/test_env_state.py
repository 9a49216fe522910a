"""An environment whose state was saved goes on as if it had not been: observations, rewards and resets, to the last bit."""

import pickle
import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, NormalizeObservation
from stable_baselines3.common.monitor import Monitor

from sb3_scoreflow import ActionChunking
from sb3_scoreflow.envs import Resumable, make_kitchen, make_metaworld, make_robomimic
from sb3_scoreflow.envs.state import NoStateError, attributes_state, env_state, set_attributes, set_env_state


def follow(env: gym.Env, actions: list[Any]) -> list[np.ndarray]:
    """:return: all that the environment says while it takes the actions, with a reset after each episode"""
    seen = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen += [*parts(observation), np.array([reward, terminated, truncated], np.float64)]
        if terminated or truncated:
            seen += parts(env.reset()[0])
    return seen


def parts(observation: Any) -> list[np.ndarray]:
    if isinstance(observation, dict):
        return [np.array(observation[key]) for key in sorted(observation)]
    return [np.array(observation)]


def check(make: Callable[[], gym.Env], n_before: int = 17, n_after: int = 60) -> None:
    """Save in the middle of an episode, and let another environment go on."""
    env = make()
    env.reset(seed=3)
    env.action_space.seed(1)
    follow(env, [env.action_space.sample() for _ in range(n_before)])
    state = pickle.loads(pickle.dumps(env_state(env)))
    actions = [env.action_space.sample() for _ in range(n_after)]
    expected = follow(env, actions)
    other = make()  # never reset
    set_env_state(other, state)
    actual = follow(other, actions)
    assert len(actual) == len(expected) and all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))
    # The test sees what a state is: another moment is another future
    set_env_state(other, state)
    other.step(actions[0])
    assert any(not np.array_equal(a, b) for a, b in zip(follow(other, actions), expected, strict=False))
    env.close()
    other.close()


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0", "CartPole-v1", "Acrobot-v1"])
def test_classic_control(env_id: str) -> None:
    check(lambda: gym.make(env_id))


@pytest.mark.parametrize(
    "env_id", ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Reacher-v5", "InvertedPendulum-v5"]
)
def test_mujoco(env_id: str) -> None:
    check(lambda: gym.make(env_id))


def test_wrappers() -> None:
    check(lambda: NormalizeObservation(ActionChunking(Monitor(gym.make("Hopper-v5")), horizon=3)))
    check(lambda: Resumable(gym.make("Hopper-v5", max_episode_steps=10)))


@pytest.mark.parametrize("tasks", ["peg-insert-side-v3", ["push-v3", "window-open-v3"]])
def test_metaworld(tasks: Any) -> None:
    pytest.importorskip("metaworld")
    check(lambda: ActionChunking(make_metaworld(tasks, max_episode_steps=20), horizon=2), n_after=25)


def test_kitchen() -> None:
    pytest.importorskip("gymnasium_robotics")
    check(lambda: make_kitchen(max_episode_steps=20), n_after=25)


@pytest.mark.parametrize("task", ["lift", "can", "square"])
def test_robosuite(task: str) -> None:
    pytest.importorskip("robosuite")
    check(lambda: FlattenObservation(make_robomimic(task, horizon=20)), n_after=25)


def test_robosuite_episodes_that_cannot_be_begun_again() -> None:
    pytest.importorskip("robosuite")
    env = make_robomimic("lift", horizon=20)
    with pytest.raises(NoStateError, match="before reset"):
        env_state(env)
    env.reset(seed=0)
    env_state(env)
    env.reset_to(env.state)
    with pytest.raises(NoStateError, match="reset_to"):
        env_state(env)
    env.close()


def test_gymnasium_robotics() -> None:
    robotics = pytest.importorskip("gymnasium_robotics")
    gym.register_envs(robotics)
    for env_id in ("FetchPush-v4", "PointMaze_UMaze-v3"):
        check(lambda: gym.make(env_id))  # noqa: B023  # called at once


def test_episode_statistics_go_on() -> None:
    """Monitor's return of an episode is the whole one's."""
    env = Monitor(gym.make("Pendulum-v1", max_episode_steps=20))
    env.reset(seed=0)
    action = np.zeros(1, np.float32)
    before = sum(float(env.step(action)[1]) for _ in range(12))
    state = env_state(env)
    other = Monitor(gym.make("Pendulum-v1", max_episode_steps=20))
    set_env_state(other, state)
    steps = [other.step(action) for _ in range(8)]
    assert steps[-1][4]["episode"]["r"] == pytest.approx(before + sum(float(step[1]) for step in steps), abs=1e-5)
    assert steps[-1][4]["episode"]["l"] == 20


class Hidden(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))


def test_environments_that_do_not_tell() -> None:
    with pytest.raises(NoStateError, match=r"Hidden does not provide its state.*get_checkpoint\(\).*set_checkpoint\(state\)"):
        env_state(ActionChunking(Hidden(), 2))


def test_attributes_that_do_not_pickle() -> None:
    env = Monitor(gym.make("Pendulum-v1"))
    env.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(NoStateError, match=r"\['lock'\] of Monitor cannot be pickled"):
        env_state(env)


def test_other_wrappers_are_refused() -> None:
    state = env_state(gym.make("Pendulum-v1"))  # in PatchedTimeLimit where a test has imported rl_zoo3
    with pytest.raises(ValueError, match=r"layer 0 is Monitor, but the checkpoint has \w*TimeLimit"):
        set_env_state(Monitor(gym.make("Pendulum-v1")), state)


def test_views_stay_views() -> None:
    """An attribute may be a window on the simulator's memory."""

    class Owner:
        def __init__(self, memory: np.ndarray) -> None:
            self.window = memory[1:]

    memory = np.zeros(3)
    owner = Owner(memory)
    set_attributes(owner, attributes_state(Owner(np.array([0.0, 5.0, 6.0]))))
    assert memory.tolist() == [0.0, 5.0, 6.0] and np.shares_memory(memory, owner.window)

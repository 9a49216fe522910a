"""Demonstrations of the controllers that come with Gymnasium, of the script for FetchPickAndPlace, and of regulators."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.box2d.bipedal_walker import BipedalWalkerHeuristics

from benchmarks.tasks.families import TASKS
from benchmarks.tasks.heuristics import demonstrations_of, regulator
from sb3_scoreflow import Demonstrations


@pytest.mark.parametrize(("env_id", "least"), [("LunarLanderContinuous-v3", 200), ("BipedalWalker-v3", -150)])
def test_the_environment_pays_for_the_actions_what_was_recorded(env_id: str, least: float) -> None:
    recorded = demonstrations_of(env_id, 1, seed=3)
    env = gym.make(env_id)
    first, _ = env.reset(seed=3)
    np.testing.assert_array_equal(recorded.observations[0], first)  # type: ignore[index]
    rewards = [env.step(action)[1] for action in recorded.actions]
    np.testing.assert_allclose(recorded.rewards, np.array(rewards), rtol=1e-5, atol=1e-6)
    assert sum(map(float, rewards)) > least


def test_the_walker_begins_anew_with_every_episode() -> None:
    recorded = demonstrations_of("BipedalWalker-v3", 2, seed=0)
    assert isinstance(recorded.observations, np.ndarray)
    ends = np.flatnonzero(recorded.terminations | recorded.truncations)
    assert len(ends) == 2
    for begin, end in zip([0, ends[0] + 1], ends + 1, strict=True):
        controller = BipedalWalkerHeuristics()
        observations = recorded.observations[begin:end]
        actions = [controller.step_heuristic(observation).copy() for observation in observations]  # it reuses the array
        np.testing.assert_allclose(recorded.actions[begin:end], actions, atol=1e-6)


def test_the_script_carries_the_object_to_every_goal() -> None:
    recorded = demonstrations_of("gymnasium_robotics:FetchPickAndPlace-v4", 10, seed=3)
    assert isinstance(recorded.observations, dict)
    achieved, desired = (np.asarray(recorded.observations[f"{name}_goal"]) for name in ("achieved", "desired"))
    distances = np.linalg.norm(achieved - desired, axis=1).reshape(10, 50)
    assert (distances[:, -1] < 0.05).all(), "the environment's threshold"
    assert distances[:, 0].mean() > 0.15, "there is something to do"
    env = gym.make("gymnasium_robotics:FetchPickAndPlace-v4")
    first, _ = env.reset(seed=3)
    np.testing.assert_allclose(desired[0], first["desired_goal"], atol=1e-6)
    np.testing.assert_array_equal(recorded.rewards[:50], [env.step(action)[1] for action in recorded.actions[:50]])


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "InvertedDoublePendulum-v5"])
def test_the_regulator_brings_the_poles_upright(env_id: str) -> None:
    env = gym.make(env_id).unwrapped
    state = np.zeros(2 * env.model.nv)  # type: ignore[attr-defined]
    state[[0, 1]] = 0.05, 0.05
    env.reset(seed=0)
    env.set_state(*np.split(state, 2))  # type: ignore[attr-defined]
    for _ in range(500):
        state = np.concatenate([env.data.qpos, env.data.qvel])  # type: ignore[attr-defined]
        _, _, fell, *_ = env.step(np.clip(-regulator(env_id) @ state, env.action_space.low, env.action_space.high))  # type: ignore
        assert not fell
    positions, velocities = np.split(np.abs(state), 2)
    assert positions.max() < 0.02 and velocities.max() < 1e-6, "the single pole rests slightly off the upright position"
    recorded = demonstrations_of(env_id, 2, seed=0)
    assert len(recorded.actions) == 2000 and not recorded.terminations.any(), "the same from observations"


def test_seeds_have_separate_demonstrations() -> None:
    task = TASKS["lunar-lander"]
    first, again, other = (task.demonstrations(Path(), seed) for seed in (0, 0, 1))
    assert isinstance(first, Demonstrations) and first.n_episodes == other.n_episodes == 30
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions[:100], other.actions[:100])

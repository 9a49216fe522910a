"""Reading Minari datasets, and the envs that they record."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_scoreflow import ScoReFlowPPO, load_demonstrations, pretrain_bc
from sb3_scoreflow.demonstrations import make_evaluation_env
from sb3_scoreflow.envs import SelectObservations
from tests.demonstrations.minari_datasets import (
    IMAGE_SHAPE,
    REACH_KEYS,
    assert_same_data,
    create,
    edit_metadata,
    handmade,
    pendulum,
    reach,
    roll_out,
)


def test_flat_observations() -> None:
    buffers = pendulum(algorithm_name="random", ref_min_score=-1.0, ref_max_score=0.5, author="someone")
    d = load_demonstrations("minari:pendulum/random-v0")
    assert isinstance(d.observations, np.ndarray)
    np.testing.assert_array_equal(d.episode_lengths, [5, 5, 5])
    for episode, buffer in zip(d.episode_slices, buffers, strict=True):
        np.testing.assert_array_equal(d.observations[episode], np.array(buffer.observations)[:-1])  # without the final one
        np.testing.assert_array_equal(d.actions[episode], np.array(buffer.actions))
        np.testing.assert_array_equal(d.rewards[episode], np.array(buffer.rewards, np.float32))
        np.testing.assert_array_equal(d.truncations[episode], [0, 0, 0, 0, 1])
    assert not d.terminations.any()
    assert d.metadata == {
        "source": "minari:pendulum/random-v0",
        "env": "Pendulum-v1",
        "algorithm_name": "random",
        "ref_min_score": -1.0,
        "ref_max_score": 0.5,
    }


def test_dict_observations_are_flattened() -> None:
    buffers: list[Any] = reach()
    d = load_demonstrations("minari:reach/random-v1")
    assert isinstance(d.observations, dict) and d.observations.keys() == REACH_KEYS
    assert d.observation_shape == {
        "desired_goal_x": (1,),
        "desired_goal_y": (1,),
        "image": IMAGE_SHAPE,
        "observation": (2,),
    }
    assert d.observations["observation"].dtype == np.float32 and d.observations["image"].dtype == np.uint8
    for episode, buffer in zip(d.episode_slices, buffers, strict=True):
        for name, values in (
            ("observation", buffer.observations["observation"]),
            ("desired_goal_x", buffer.observations["desired_goal"]["x"]),
            ("desired_goal_y", buffer.observations["desired_goal"]["y"]),
        ):
            np.testing.assert_array_equal(d.observations[name][episode], np.array(values[:-1], np.float32))
        np.testing.assert_array_equal(d.terminations[episode], buffer.terminations)
        np.testing.assert_array_equal(d.truncations[episode], buffer.truncations)


def test_observation_keys() -> None:
    reach()
    full = load_demonstrations("minari:reach/random-v1")
    assert isinstance(full.observations, dict)
    some = load_demonstrations("minari:reach/random-v1", observation_keys=["observation", "desired_goal_y"])
    assert isinstance(some.observations, dict) and set(some.observations) == {"observation", "desired_goal_y"}
    np.testing.assert_array_equal(some.observations["desired_goal_y"], full.observations["desired_goal_y"])
    one = load_demonstrations("minari:reach/random-v1", observation_keys="observation")
    np.testing.assert_array_equal(one.observations, full.observations["observation"])
    for keys in ("desired_goal", ["observation", "goal"], []):
        with pytest.raises(ValueError, match=r"'reach/random-v1' has the observation keys \[.*'desired_goal_x'.*; got `obs"):
            load_demonstrations("minari:reach/random-v1", observation_keys=keys)


def test_limits() -> None:
    pendulum()
    full = load_demonstrations("minari:pendulum/random-v0")
    assert_same_data(load_demonstrations("minari:pendulum/random-v0", n_episodes=2), full.take(n_episodes=2))
    assert load_demonstrations("minari:pendulum/random-v0", n_transitions=11).n_episodes == 2
    assert load_demonstrations("minari:pendulum/random-v0", n_episodes=9).n_episodes == 3
    with pytest.raises(ValueError, match="`n_episodes` must be at least 1, got 0"):
        load_demonstrations("minari:pendulum/random-v0", n_episodes=0)


@pytest.mark.parametrize("once", [True, False, None])
def test_kitchen_rewards(root: Path, once: bool | None) -> None:
    """Whether a task is rewarded once, or in every step after it is complete, is told as the env was."""
    pendulum()
    kwargs = {} if once is None else {"remove_task_when_completed": once}
    spec = json.loads(gym.spec("Pendulum-v1").to_json())
    edit_metadata(root, "pendulum/random-v0", env_spec=json.dumps({**spec, "kwargs": kwargs}))
    metadata = load_demonstrations("minari:pendulum/random-v0").metadata
    assert metadata.get("remove_task_when_completed") is once


def test_episode_ends(root: Path) -> None:
    handmade(
        [
            {},  # without an end
            {},  # of which nothing is left
            {"terminations": np.array([0, 1, 0], bool), "truncations": np.array([0, 0, 1], bool)},  # stepped on
            {"observations": np.full((3, 1), 7.0), "terminations": np.array([0, 0, 1], bool)},  # no final observation
        ]
    )
    with h5py.File(root / "handmade-v0/data/main_data.hdf5", "a") as file:
        for key, array in file["episode_1"].items():
            array.resize(1 if key == "observations" else 0, axis=0)
    d = load_demonstrations("minari:handmade-v0")
    np.testing.assert_array_equal(np.asarray(d.observations)[:, 0], [0, 1, 2, 0, 1, 2, 7, 7, 7])
    np.testing.assert_array_equal(d.terminations, [0, 0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(d.truncations, [0, 0, 1, 0, 0, 1, 0, 0, 0])
    assert d.metadata == {"source": "minari:handmade-v0"}


@pytest.mark.parametrize("keys", [None, "observation"])
def test_a_dataset_pretrains(keys: str | None) -> None:
    env = SelectObservations(gym.make("MinariReach-v0"), ["desired_goal_x", "desired_goal_y", "observation"])
    create("reach/small-v0", roll_out(env, 6), env)
    d = load_demonstrations("minari:reach/small-v0", observation_keys=keys)
    train_env = make_vec_env(lambda: make_evaluation_env("minari:reach/small-v0", observation_keys=keys), n_envs=2)
    model = ScoReFlowPPO("FlowPolicy", train_env, n_steps=4, batch_size=4, n_epochs=1, seed=0, device="cpu")
    history = pretrain_bc(model, d, n_batches=5, batch_size=8)
    assert history["batch"] == [5] and np.isfinite(history["bc/loss"]).all()
    model.learn(8)


def test_evaluation_env() -> None:
    pendulum(eval_env=gym.make("Pendulum-v1", max_episode_steps=7, g=5.0))
    d = load_demonstrations("minari:pendulum/random-v0")
    for source in (str(d.metadata["source"]), "pendulum/random-v0"):
        env = make_evaluation_env(source, render_mode="rgb_array")
        assert env.spec is not None and env.spec.max_episode_steps == 7 and env.spec.kwargs["g"] == 5.0
        assert env.render_mode == "rgb_array" and isinstance(env.observation_space, spaces.Box)
        assert not isinstance(env, SelectObservations)


def test_evaluation_env_has_the_keys_of_the_demonstrations() -> None:
    reach()
    for keys in (None, "observation", ["observation", "desired_goal_x"]):
        d = load_demonstrations("minari:reach/random-v1", observation_keys=keys)
        env = make_evaluation_env("minari:reach/random-v1", observation_keys=keys)
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        if isinstance(d.observations, dict):
            assert {key: space.shape for key, space in env.observation_space.items()} == d.observation_shape  # type: ignore[attr-defined]
            np.testing.assert_allclose(observation["desired_goal_x"], d.observations["desired_goal_x"][0], rtol=1e-6)
        else:
            assert env.observation_space.shape == d.observation_shape


def test_evaluation_env_that_cannot_be_made(root: Path) -> None:
    handmade([{}])
    with pytest.raises(
        ValueError, match=r"the Minari dataset 'handmade-v0' does not record an environment\. Create it yourself"
    ):
        make_evaluation_env("minari:handmade-v0")
    pendulum()
    spec = gym.spec("Pendulum-v1").to_json().replace("gymnasium.envs.classic_control.pendulum", "absent_package")
    edit_metadata(root, "pendulum/random-v0", env_spec=spec)
    with pytest.raises(
        ImportError,
        match=r"environment of the Minari dataset 'pendulum/random-v0' cannot be created: .*absent_package.*Install it",
    ):
        make_evaluation_env("minari:pendulum/random-v0")

"""The Adroit hand of Gymnasium-Robotics needs nothing of ours: cloned and fine-tuned as any env."""

from functools import partial
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_scoreflow import (
    ActionChunking,
    Demonstrations,
    collect_demonstrations,
    load_demonstrations,
    normalized_score,
    pretrain_bc,
)
from sb3_scoreflow.demonstrations.d4rl import DATASETS
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS

#: task -> sizes of observations and actions in D4RL's data
SIZES = {"pen": (45, 24), "hammer": (46, 26), "door": (39, 28), "relocate": (39, 30)}
PEN = "gymnasium_robotics:AdroitHandPen-v1"  # the part before the colon is imported first, in worker processes too


def write_d4rl(directory: Path, name: str, demonstrations: Demonstrations) -> None:
    """A file of D4RL's Adroit data: no terminals, timeouts at the step limit."""
    directory.mkdir()
    with h5py.File(directory / DATASETS[name].rpartition("/")[2], "w") as file:
        file["observations"] = demonstrations.observations
        file["actions"] = demonstrations.actions
        file["rewards"] = demonstrations.rewards
        file["terminals"] = np.zeros(len(demonstrations), bool)
        file["timeouts"] = demonstrations.truncations
        file["infos/qpos"] = np.zeros((len(demonstrations), 30))


@pytest.mark.parametrize("task", SIZES)
def test_spaces_are_those_of_the_data(task: str) -> None:
    env = gym.make(f"gymnasium_robotics:AdroitHand{task.capitalize()}-v1")
    assert (env.observation_space.shape, env.action_space.shape) == ((SIZES[task][0],), (SIZES[task][1],))
    assert isinstance(env.action_space, gym.spaces.Box)
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    env.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_clone_and_fine_tune(tmp_path: Path, algorithm: Algorithm) -> None:
    policy = np.random.default_rng(0)
    recorded = collect_demonstrations(
        lambda _: policy.uniform(-1, 1, 24), gym.make(PEN, max_episode_steps=8), n_episodes=3, seed=0
    )
    write_d4rl(tmp_path / "d4rl", "pen-human-v1", recorded)
    demonstrations = load_demonstrations("d4rl:pen-human-v1", directory=tmp_path / "d4rl")
    np.testing.assert_array_equal(np.asarray(demonstrations.observations), np.asarray(recorded.observations))
    np.testing.assert_array_equal(demonstrations.episode_lengths, [8, 8, 8])
    assert not demonstrations.terminations.any()
    assert demonstrations.metadata["env"] == "AdroitHandPen-v1"
    scores = normalized_score("pen-human-v1", demonstrations.episode_returns)
    np.testing.assert_allclose(scores, 100 * (recorded.episode_returns - 96.262799) / (3076.8331018 - 96.262799), rtol=1e-6)

    env = make_vec_env(
        PEN, n_envs=2, seed=0, env_kwargs=dict(max_episode_steps=8), wrapper_class=partial(ActionChunking, horizon=4)
    )
    at_once = algorithm.known(dict(rollback=False, validation_fraction=0.0))  # otherwise, episodes measure the clone first
    model = algorithm.make("FlowPolicy", env, n_steps=4, batch_size=8, policy_kwargs=dict(net_arch=[256, 256]), **at_once)
    history = pretrain_bc(model, demonstrations, n_batches=60, log_interval=30, seed=0)
    assert history["bc/loss"][-1] < history["bc/loss"][0]
    cloned = {name: value.clone() for name, value in model.policy.velocity_field.state_dict().items()}
    model.learn(16)
    assert (model.num_timesteps, model.num_env_steps) == (16, 64)
    # Two episodes of 8 steps in each env
    assert [episode["l"] for episode in model.ep_info_buffer or []] == [8] * 8
    assert any(not value.equal(cloned[name]) for name, value in model.policy.velocity_field.state_dict().items())

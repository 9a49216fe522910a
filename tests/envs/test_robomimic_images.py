from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_scoreflow.envs import RobomimicEnv, make_robomimic
from tests.envs.test_robomimic import SIZES, assert_same, roll_out


@pytest.fixture(scope="module")
def camera_env() -> Iterator[RobomimicEnv]:
    env = make_robomimic("lift", cameras=("agentview", "robot0_eye_in_hand"), render_mode="rgb_array")
    yield env
    env.close()


def test_images(camera_env: RobomimicEnv) -> None:
    assert isinstance(camera_env.observation_space, gym.spaces.Dict)
    images = ("agentview_image", "robot0_eye_in_hand_image")
    # Not told where the cube is: that is what the images are for
    assert set(camera_env.observation_space) == {*SIZES, *images}
    observation, _ = camera_env.reset(seed=0)
    for key in images:
        assert camera_env.observation_space[key] == gym.spaces.Box(0, 255, (84, 84, 3), np.uint8)
        assert observation[key].dtype == np.uint8 and observation[key].flags.c_contiguous
    # Upright: the robot is behind the table, the grey wall above its white top, and the red cube in between
    image = observation["agentview_image"].astype(int)
    assert image[:10].mean() < 150 < 220 < image[-10:].mean()
    redness = image[..., 0] - image[..., 1:].max(axis=-1)
    row, column = (indices.mean() for indices in np.nonzero(redness > 60))
    assert 30 < row < 60 and 25 < column < 60
    picture = camera_env.render()
    assert picture is not None and picture.shape == (256, 256, 3) and picture.dtype == np.uint8
    # The same view, three times finer
    coarse = picture[: 84 * 3, : 84 * 3].reshape(84, 3, 84, 3, 3).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), image.ravel())[0, 1] > 0.8
    sb3_check_env(camera_env)


def test_images_are_of_the_present(camera_env: RobomimicEnv) -> None:
    first = camera_env.reset(seed=0)[0]
    moved = camera_env.step(np.array([0, 0, 1, 0, 0, 0, 0]))[0]
    assert (moved["robot0_eye_in_hand_image"] != first["robot0_eye_in_hand_image"]).any()
    assert_same([camera_env.reset(seed=0)[0]], [first])


def test_images_of_several_envs(camera_env: RobomimicEnv) -> None:
    """In one process; robosuite by itself draws all in the context of the last one made."""
    expected = roll_out(camera_env, 0, 2)
    other = make_robomimic("can", cameras="agentview", camera_size=32, reflections=False)
    other.reset(seed=0)
    assert_same(roll_out(camera_env, 0, 2), expected)
    assert other.reset(seed=0)[0]["agentview_image"].shape == (32, 32, 3)
    other.close()
    other.close()
    assert_same(roll_out(camera_env, 0, 2), expected)


def test_without_reflections(camera_env: RobomimicEnv) -> None:
    plain = camera_env.reset(seed=0)[0]["agentview_image"].astype(int)
    camera_env.reflections = False
    difference = np.abs(camera_env.reset(seed=0)[0]["agentview_image"] - plain)
    camera_env.reflections = True
    assert 0.0 < difference.mean() < 2.0

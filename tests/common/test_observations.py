"""Rows of observations, and images with their channels last."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_scoreflow import FlowMatchingPolicy
from sb3_scoreflow.common.encoders import ViTExtractor
from sb3_scoreflow.common.observations import take
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.remedies import follow


def test_take_picks_rows_of_every_part() -> None:
    rows, array = th.tensor([3, 0, 3]), th.randn(5, 2)
    assert th.equal(take(array, rows), th.stack([array[3], array[0], array[3]]))  # type: ignore[arg-type]
    parts = {"camera": th.randint(0, 256, (5, 3, 8, 8), dtype=th.uint8), "state": array, "mode": array[:, 0]}
    taken = take(parts, rows)
    assert isinstance(taken, dict) and list(taken) == list(parts)
    for key, part in parts.items():
        assert taken[key].dtype == part.dtype and th.equal(taken[key], th.stack([part[3], part[0], part[3]]))


class FloatImages(gym.Env):
    """Observations are in [0, 1] and have their channels last."""

    def __init__(self, key: str) -> None:
        image = spaces.Box(0.0, 1.0, (48, 64, 3), np.float32)
        self.observation_space = spaces.Dict({key: image, "state": spaces.Box(-1.0, 1.0, (2,))}) if key else image
        self.action_space = spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@pytest.mark.parametrize("key", ["", "camera"])
def test_float_images_with_their_channels_last_have_a_remedy(algorithm: Algorithm, key: str) -> None:
    """Stable-Baselines3 transposes bytes only, so its wrapper is no remedy."""

    def make(env: gym.Env) -> Any:
        kind = "dict" if key else "image"
        return algorithm.make("FlowPolicy", env, kind, policy_kwargs=dict(normalize_images=False), **algorithm.once)

    with pytest.raises(ValueError, match=r"observation_space.*\(48, 64, 3\)") as error:
        make(FloatImages(key))
    assert not key or f"observation_space[{key!r}]" in str(error.value)
    env = follow(error, FloatImages(key))
    image = env.observation_space[key] if key else env.observation_space  # type: ignore[index]
    assert image == spaces.Box(0.0, 1.0, (3, 48, 64), np.float32)
    model = make(env).learn(algorithm.iteration())
    obs = env.reset()[0]
    assert env.observation_space.contains(obs) and model.policy.image_keys == [key]
    assert model.predict(obs, deterministic=True)[0].shape == (2,)


@pytest.mark.parametrize("extractor", [None, ViTExtractor])
@pytest.mark.parametrize("key", ["", "camera"])
def test_bare_policy_refuses_channels_last(extractor: Any, key: str) -> None:
    """As an environment gives them; an encoder would take the height for the channels."""
    image, actions = spaces.Box(0, 255, (48, 48, 3), np.uint8), spaces.Box(-1.0, 1.0, (2,))
    space = spaces.Dict({key: image, "state": spaces.Box(-1.0, 1.0, (2,))}) if key else image
    name = "observation_space['camera']" if key else "observation_space"
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*\(48, 48, 3\).*VecTransposeImage"):
        FlowMatchingPolicy(space, actions, features_extractor_class=extractor)
    first = VecTransposeImage.transpose_space(image)
    FlowMatchingPolicy(spaces.Dict({**space.spaces, key: first}) if key else first, actions)  # type: ignore[union-attr]

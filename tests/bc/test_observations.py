"""How cloning sees observations: statistics, dictionaries, images and their random shifts."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_scoreflow import FlowMatchingPolicy
from tests.bc.helpers import (
    IMAGE,
    OBS,
    VECTOR,
    BlankEnv,
    assert_same,
    clone,
    make_demonstrations,
    make_model,
    make_policy,
    state_of,
)


def test_normalizer_is_fitted_to_the_demonstrations() -> None:
    demonstrations = make_demonstrations()
    assert isinstance(demonstrations.observations, np.ndarray)
    for mode in ("auto", "fixed", "running"):
        policy = make_policy(observation_normalization=mode)
        policy.normalizer.update(th.full((1000, OBS), 50.0))  # statistics of an earlier life are forgotten
        clone(policy, demonstrations)
        data = demonstrations.observations.astype(np.float64)
        np.testing.assert_allclose(policy.normalizer.get_buffer("mean_0"), data.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(policy.normalizer.get_buffer("var_0"), data.var(0), rtol=1e-5)
        assert float(policy.normalizer.count) == len(data)


def test_normalizer_can_be_switched_off() -> None:
    policy = make_policy(observation_normalization="none")
    clone(policy)
    assert not policy.normalizer.fitted


def test_dict_observations_and_images() -> None:
    """Vectors are fitted, images and discrete parts are not; keys that the policy does not know are ignored."""
    space = spaces.Dict({"camera": IMAGE, "state": VECTOR, "mode": spaces.Discrete(3)})
    rng, n = np.random.default_rng(0), 20
    obs: dict[str, np.ndarray] = {
        "camera": rng.integers(0, 256, (n, *IMAGE.shape), dtype=np.uint8),
        "state": rng.normal(4.0, 2.0, (n, OBS)),
        "mode": rng.integers(0, 3, n),
        "unknown": rng.normal(size=(n, 7)),
    }
    policy = make_policy(space)
    before = state_of(policy)
    clone(policy, make_demonstrations(n, observations=obs), n_batches=2)
    assert set(policy.normalizer.state_dict()) == {"count", "mean_0", "var_0"}
    np.testing.assert_allclose(policy.normalizer.get_buffer("mean_0"), obs["state"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(policy.normalizer.get_buffer("var_0"), obs["state"].var(0), rtol=1e-5)
    extractor = [name for name, _ in policy.features_extractor.named_parameters()]
    assert len(extractor) > 0
    for name in extractor:  # the image encoder is part of the actor, and is trained
        assert not th.equal(policy.features_extractor.get_parameter(name), before[f"features_extractor.{name}"]), name


def test_channel_last_images() -> None:
    """Demonstrations recorded from an environment whose images SB3 transposes."""
    policy, rng = make_policy(IMAGE), np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 36, 36, 3), dtype=np.uint8)
    losses = [
        clone(make_policy(IMAGE), make_demonstrations(20, observations=obs))["bc/loss"]
        for obs in (images, images.transpose(0, 3, 1, 2))
    ]
    assert losses[0] == losses[1]
    assert not policy.normalizer.keys


def test_critic_starts_from_the_cloned_encoder() -> None:
    """With an extractor of its own; they are two from then on. A shared one needs nothing."""
    rng = np.random.default_rng(0)
    demonstrations = make_demonstrations(20, observations=rng.integers(0, 256, (20, *IMAGE.shape), dtype=np.uint8))
    model = make_model(BlankEnv(IMAGE))
    clone(model, demonstrations)
    actor, critic = model.policy.features_extractor, model.policy.vf_features_extractor
    assert_same(critic, state_of(actor))
    assert actor is not critic
    clone(make_model(BlankEnv(IMAGE), policy_kwargs=dict(net_arch=[16], share_features_extractor=True)), demonstrations)


def test_random_shift_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, and as large as asked for; held-out images are seen as they are, as is everything without images."""
    seen: list[tuple[bool, int]] = []
    augment = FlowMatchingPolicy.augment

    def spy(policy: FlowMatchingPolicy, obs: Any, pixels: int, generator: Any = None) -> Any:
        result = augment(policy, obs, pixels, generator)
        assert isinstance(result, th.Tensor) and result.dtype == th.uint8
        seen.append((not th.equal(result, obs), pixels))
        return result

    monkeypatch.setattr(FlowMatchingPolicy, "augment", spy)
    rng = np.random.default_rng(0)
    demonstrations = make_demonstrations(20, observations=rng.integers(0, 256, (20, *IMAGE.shape), dtype=np.uint8))
    clone(make_policy(IMAGE), demonstrations, n_batches=2, validation_fraction=0.5)
    assert seen == [(True, 4), (True, 4), (False, 0)]
    losses = [clone(make_policy(IMAGE), demonstrations, random_shift=pixels)["bc/loss"] for pixels in (0, 2, 2)]
    assert losses[0] != losses[1] == losses[2]

"""Recording experts with and without noise."""

from typing import Any

import numpy as np
import pytest

from benchmarks.make_expert_demonstrations import NOISE, record


class Expert:
    """Acts by the observation alone."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        assert deterministic
        return 0.5 * np.tanh(np.asarray(observation)[..., :3]).astype(np.float32), state


def test_precise_demonstrations_are_the_experts_actions() -> None:
    demonstrations = record(Expert(), "Hopper-v5", NOISE["precise"], n_episodes=3, seed=0)  # type: ignore[arg-type]
    expected, _ = Expert().predict(demonstrations.observations, deterministic=True)
    np.testing.assert_allclose(demonstrations.actions, expected, atol=1e-6)
    assert demonstrations.n_episodes == 3


def test_noise_has_its_standard_deviation() -> None:
    noisy = record(Expert(), "Hopper-v5", NOISE["noisy"], n_episodes=20, seed=0)  # type: ignore[arg-type]
    noise = noisy.actions - Expert().predict(noisy.observations, deterministic=True)[0]
    n = noise.size  # the standard deviation of n numbers is known to about 1 / sqrt(2 n)
    assert noise.std() == pytest.approx(NOISE["noisy"], rel=4 / (2 * n) ** 0.5)
    assert abs(noise.mean()) < 4 * NOISE["noisy"] / n**0.5
    again = record(Expert(), "Hopper-v5", NOISE["noisy"], n_episodes=20, seed=0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.actions, noisy.actions)

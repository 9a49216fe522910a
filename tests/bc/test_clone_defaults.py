"""What cloning does where it is not told: how long, and how well that suits the data."""

import math
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_scoreflow.ppo.critic_pretraining import CriticPretraining
from tests.bc.helpers import ACTION, IMAGE, OBS, VECTOR, clone, make_demonstrations, make_model, make_policy


@pytest.mark.parametrize(
    ("transitions", "batch_size", "steps"),
    [
        (60, 16, 1000),  # 800 steps in 200 passes of 4
        (100, 16, 1400),  # passes of 7
        (2000, 100, 4000),
        (2000, 16, 10_000),  # 25,000 in 200 passes of 125
    ],
)
def test_default_is_a_number_of_passes_within_bounds(transitions: int, batch_size: int, steps: int) -> None:
    """By the learning rate of the second step, after which the callback ends the run."""
    arguments: dict[str, Any] = dict(n_batches=None, log_interval=2, learning_rate=1e-3, final_learning_rate=1e-4)
    demonstrations = make_demonstrations(transitions)
    history = clone(make_policy(), demonstrations, batch_size=batch_size, callback=lambda _: False, **arguments)
    rate = 1e-4 + 0.5 * 9e-4 * (1 + math.cos(math.pi / steps))
    assert history["bc/learning_rate"] == [pytest.approx(rate, rel=1e-12)]


@pytest.mark.slow
def test_few_demonstrations_are_not_learned_by_heart() -> None:
    """Their held-out loss ends close to the least on the way; ten thousand steps, whatever the data, pass it by far."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(200, OBS)).astype(np.float32)
    actions = np.clip(0.5 * np.tanh(observations[:, :ACTION]) + 0.2 * rng.normal(size=(200, ACTION)), -1, 1)
    demonstrations = make_demonstrations(200, observations=observations, actions=actions)
    arguments: dict[str, Any] = dict(batch_size=32, validation_fraction=0.5, log_interval=100)

    def excess(n_batches: int | None) -> float:
        held_out: list[float] = []

        def far_past_the_least(metrics: dict[str, float]) -> bool:
            held_out.append(metrics["bc/validation_loss"])
            return held_out[-1] < 1.4 * min(held_out)

        clone(make_policy(net_arch=[64, 64]), demonstrations, n_batches=n_batches, callback=far_past_the_least, **arguments)
        return held_out[-1] / min(held_out)

    assert excess(None) < 1.2
    assert excess(10_000) > 1.4


@pytest.mark.parametrize(
    ("lengths", "critic_batches", "expected"),
    [(dict(n_batches=None), None, 2000), (dict(n_batches=40), None, 8), (dict(n_batches=None), 5, 5)],
)
def test_default_of_the_critic_does_not_depend_on_the_size_of_the_data(
    monkeypatch: pytest.MonkeyPatch, lengths: dict[str, Any], critic_batches: int | None, expected: int
) -> None:
    counts: list[int] = []

    def run(fit: CriticPretraining) -> dict[str, float]:
        counts.append(fit.n_batches)
        return {}

    monkeypatch.setattr(CriticPretraining, "run", run)
    clone(make_model(), critic_batches=critic_batches, log_interval=1, callback=lambda _: False, **lengths)
    assert counts == [expected]


@pytest.mark.parametrize(("space", "rate"), [(VECTOR, 3e-3), (IMAGE, 1e-3)])
def test_default_rate_is_lower_with_images(space: spaces.Box, rate: float) -> None:
    observations = np.stack([space.sample() for _ in range(60)])
    history = clone(make_policy(space), make_demonstrations(observations=observations), n_batches=1)
    assert history["bc/learning_rate"] == [rate]


def test_epochs_are_logged() -> None:
    history = clone(make_policy(), n_batches=10, batch_size=16, log_interval=4)  # four batches are a pass
    assert history["bc/epochs"] == [1.0, 2.0, 2.5]


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_the_residual_is_the_demonstrators_noise(noise: float) -> None:
    """Where the clone has found the mean of a demonstrator whose noise is known."""
    rng, n = np.random.default_rng(0), 2000
    observations = rng.normal(size=(n, OBS)).astype(np.float32)
    actions = np.clip(0.3 * np.tanh(observations[:, :ACTION]) + noise * rng.normal(size=(n, ACTION)), -1, 1)
    history = clone(
        make_policy(), make_demonstrations(n, observations=observations, actions=actions), n_batches=400, batch_size=256
    )
    assert history["bc/action_residual"] == [pytest.approx(noise, rel=0.15)]

"""What single numbers may do to running statistics, against statistics that never saw them."""

import re
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_scoreflow.common.magnitudes import check_magnitudes
from sb3_scoreflow.common.networks import ObservationNormalizer
from sb3_scoreflow.common.utils import DivergenceError
from sb3_scoreflow.ppo.reward_scaling import ReturnStatistics
from sb3_scoreflow.rldt.reward_magnitude import mean_magnitude

MEAN, STD = np.array([1e8, 0.0, -3.0]), np.array([1e6, 1e-3, 0.5])  # pressures, positions, temperatures


def normalizer() -> ObservationNormalizer:
    return ObservationNormalizer(spaces.Box(-np.inf, np.inf, (3,)))


def rollouts(n: int, seed: int = 0) -> list[np.ndarray]:
    """Each of 200 steps in 2 environments."""
    rng = np.random.default_rng(seed)
    return [(MEAN + STD * rng.standard_normal((200, 2, 3))).astype(np.float32) for _ in range(n)]


def statistics(fitted: ObservationNormalizer) -> tuple[np.ndarray, np.ndarray]:
    return fitted.get_buffer("mean_0").numpy(), fitted.get_buffer("var_0").numpy() ** 0.5


def fed(batches: list[np.ndarray]) -> ObservationNormalizer:
    fitted = normalizer()
    for batch in batches:
        fitted.update(th.as_tensor(batch))
    return fitted


@pytest.mark.parametrize("value", [1e10, 1e15, -1e18])
@pytest.mark.parametrize("when", [0, 1, 3])
@pytest.mark.parametrize("component", [1, 2])
def test_an_absurd_observation_hardly_moves_the_statistics(value: float, when: int, component: int) -> None:
    batches = rollouts(4)
    truth = np.concatenate([batch.reshape(-1, 3) for batch in batches]).astype(np.float64)
    batches[when][17, 1, component] = value
    with pytest.warns(
        UserWarning, match=re.escape(f"component {component} at step 17 of environment 1 is {value:.4g}, far from")
    ):
        mean, std = statistics(fed(batches))
    np.testing.assert_allclose(std, truth.std(0), rtol=0.15)
    assert (np.abs(mean - truth.mean(0)) < 0.05 * truth.std(0)).all()


def test_the_warning_names_keys_and_comes_once() -> None:
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (2, 2))})
    fitted = ObservationNormalizer(space)
    generator = th.Generator().manual_seed(0)
    batch = {"a": th.randn(300, 2, generator=generator), "b": th.randn(300, 2, 2, generator=generator)}
    batch["b"][5, 1, 0] = 1e12
    with pytest.warns(UserWarning, match=r"observations\['b'\]: component \(1, 0\) at transition 5 is 1e\+12") as caught:
        fitted.update(batch)
        fitted.update(batch)
    assert len(caught) == 1


def test_nothing_changes_where_nothing_is_absurd() -> None:
    """Large units, sparse signals and a change of what is observed are data: to the last bit what the formula says."""
    batches = rollouts(4)
    for batch in batches:
        batch[:, :, 1] = 0
    batches[0][3, 0, 1] = 5e5  # a rare contact before anything is known
    batches[2][:100, :, 2] += 1e9  # another regime: most of what is seen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, std = statistics(fed(batches))
    count, expected_mean, expected_var = 0.0, th.zeros(3), th.ones(3)
    for batch in batches:
        part = th.as_tensor(batch).double().reshape(-1, 3)
        delta, total = part.mean(0) - expected_mean.double(), count + len(part)
        m2 = expected_var.double() * count + part.var(0, unbiased=False) * len(part) + delta**2 * count * len(part) / total
        expected_mean, expected_var = (expected_mean.double() + delta * len(part) / total).float(), (m2 / total).float()
        count = total
    assert (mean == expected_mean.numpy()).all() and (std == expected_var.numpy() ** 0.5).all()


def test_a_few_samples_are_no_reference() -> None:
    batch = np.zeros((20, 2, 3), np.float32)
    batch[3, 1, 0] = 1e9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statistics(fed([batch]))[1][0] == pytest.approx(batch[:, :, 0].std(dtype=np.float64))


def test_a_number_whose_square_overflows_is_refused() -> None:
    values = np.ones((4, 2, 3))
    check_magnitudes("pressures", values * 1.8e19, 2, "")
    check_magnitudes("pixels", np.full(3, 255, np.uint8), 1, "")
    values[1, 1, 2] = -2e19
    with pytest.raises(
        DivergenceError, match=r"^pressures are .*: component 2 at step 1 of environment 1 is -2e\+19 \(1 such"
    ):
        check_magnitudes("pressures", values, 2, "")


def test_an_absurd_reward_hardly_moves_the_unit_of_returns() -> None:
    rng = np.random.default_rng(0)
    rewards, dones = 1 + rng.standard_normal((3000, 2)), rng.random((3000, 2)) < 0.01
    clean, spoiled = ReturnStatistics(0.99), ReturnStatistics(0.99)
    with pytest.warns(UserWarning, match=r"The reward of environment 1 is 1e\+15, far from all others") as caught:
        for step, (reward, done) in enumerate(zip(rewards, dones, strict=True)):
            clean.update(reward, done)
            spoiled.update(np.where([False, step % 1000 == 500], 1e15, reward), done)
            if step == 600:
                spoiled.update(np.array([1e30, 0.0]), done)  # is refused with its rollout
    assert len(caught) == 1
    assert spoiled.scale == pytest.approx(clean.scale, rel=0.05)
    assert np.isfinite(spoiled.returns).all()


def test_a_first_reward_sets_the_unit() -> None:
    statistics = ReturnStatistics(0.0)
    for _ in range(300):
        statistics.update(np.zeros(1), np.zeros(1, bool))
    statistics.update(np.array([1e9]), np.ones(1, bool))
    assert statistics.scale == pytest.approx(np.std([0.0] * 300 + [1e9]))


@pytest.mark.parametrize("magnitude", [0.0, 1.0])
def test_an_absurd_reward_hardly_moves_its_magnitude(magnitude: float) -> None:
    rewards = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    rewards[::2] = 0
    truth = float(np.abs(rewards[1::2]).mean(dtype=np.float64))
    assert mean_magnitude(rewards, magnitude) == (truth, None)
    rewards[13, 1] = -1e15
    spoiled, where = mean_magnitude(rewards, magnitude)
    assert spoiled == pytest.approx(truth, rel=0.1) and where == (13, 1)

"""The statistics that the learning benchmarks report, on scores whose answers are known."""

import numpy as np
import pytest

from benchmarks.learning import (
    all_steps_to,
    chance_of_lower,
    final_return,
    interquartile_means,
    lowest_over_clone,
    mean_and_interval,
    performance_profiles,
    probabilities_of_gain,
    probabilities_of_improvement,
    steps_to,
)

NAN = float("nan")
CURVE = {
    "env_steps": np.array([0.0, 50.0, 100.0, 200.0]),
    "return_exploring": np.array([NAN, 20.0, 20.0, 40.0]),
    "return_deterministic": np.array([10.0, 5.0, 30.0, 20.0]),
}


def test_interquartile_mean_ignores_the_outer_quarters() -> None:
    found = interquartile_means({"ours": np.array([[-1000.0, 2.0], [1.0, 1000.0]])})
    assert found["ours"]["value"] == 1.5


def test_probability_of_improvement() -> None:
    low, high = np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])
    # Better on the first task, worse on the second
    scores = {"low": low, "high": high, "first": np.hstack([high, low]), "second": np.hstack([low, high])}
    pairs = [("high", "low"), ("low", "low"), ("first", "second")]
    found = probabilities_of_improvement(scores, pairs)
    assert [each["value"] for each in found.values()] == [1.0, 0.5, 0.5]
    assert list(found) == ["high over low", "low over low", "first over second"]


def test_probability_of_improvement_is_that_of_rliable() -> None:
    from rliable import metrics

    rng = np.random.default_rng(0)
    scores = {name: rng.integers(4, size=(3, 5)).astype(float) for name in "ab"}  # with ties
    found = probabilities_of_improvement(scores, [("a", "b")])["a over b"]["value"]
    assert found == pytest.approx(metrics.probability_of_improvement(scores["a"], scores["b"]))
    assert found not in (0.0, 0.5, 1.0)


def test_probability_of_gain_counts_no_change_half() -> None:
    found = probabilities_of_gain({"ours": np.array([[0.1, 0.0], [0.2, -0.1]]), "worse": np.full((2, 2), -1.0)})
    assert found["ours"]["value"] == (1 + 1 + 0.5 + 0) / 4
    assert found["worse"] == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_performance_profile_is_the_share_above_each_threshold() -> None:
    found = performance_profiles({"ours": np.array([[0.1, 0.4], [0.6, 0.4]])}, [0.0, 0.4, 0.5, 1.0])
    assert found["ours"]["value"] == [1.0, 0.25, 0.25, 0.0]
    low, high = found["ours"]["ci95"]
    # Of each task two seeds are drawn: those of the first may all be the better one
    assert (low, high) == ([1.0, 0.0, 0.0, 0.0], [1.0, 0.5, 0.5, 0.0])


def test_bootstrap_draws_the_same_each_time_and_leaves_the_global_generator_alone() -> None:
    scores = {"ours": np.random.default_rng(0).normal(size=(5, 3))}
    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    assert interquartile_means(scores) == interquartile_means(scores)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]  # noqa: NPY002


def test_bootstrap_draws_within_tasks() -> None:
    # Tasks of different levels without spread: no uncertainty, unless seeds were drawn across tasks
    constant = interquartile_means({"ours": np.tile([1.0, 3.0], (5, 1))})
    assert constant == {"ours": {"value": 2.0, "ci95": [2.0, 2.0]}}


@pytest.mark.slow
def test_bootstrap_interval_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    found = interquartile_means({str(i): rng.normal(size=(20, 1)) for i in range(12)})
    intervals = [each["ci95"] for each in found.values()]
    assert 0.8 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 1.0
    assert 0.4 < np.mean([high - low for low, high in intervals]) < 1.6


def test_interval_of_the_mean() -> None:
    result = mean_and_interval([1.0, 2.0, 3.0])
    assert result["mean"] == 2.0 and result["per_seed"] == [1.0, 2.0, 3.0]
    assert result["ci95"] == pytest.approx([2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])  # t of two degrees of freedom
    assert mean_and_interval([5.0]) == {"mean": 5.0, "per_seed": [5.0]}


def test_steps_to_a_return() -> None:
    assert steps_to(CURVE, "return_deterministic", 20) == 80
    assert steps_to(CURVE, "return_exploring", 30) == 150
    assert steps_to(CURVE, "return_exploring", 20) == 50
    assert steps_to(CURVE, "return_exploring", 41) == float("inf")


def test_median_of_the_steps_is_null_where_half_of_the_seeds_do_not_get_there() -> None:
    slow = {**CURVE, "return_deterministic": np.array([10.0, 5.0, 5.0, 5.0])}
    assert all_steps_to([CURVE, slow, CURVE], "return_deterministic", 20) == {
        "threshold": 20,
        "per_seed": [80.0, None, 80.0],
        "median": 80.0,
    }
    assert all_steps_to([CURVE, slow], "return_deterministic", 20)["median"] is None


def test_ends_of_a_curve() -> None:
    assert final_return(CURVE, "return_exploring") == pytest.approx(80 / 3)
    assert final_return(CURVE, "return_exploring", 4) == pytest.approx(80 / 3)  # without what is not known
    assert lowest_over_clone(CURVE) == 0.5


def test_chance_of_a_low_evaluation() -> None:
    """Six evaluations of 20 episodes of a policy with 44 successes in 50: simulated, with the rate drawn from its posterior"""
    generator = np.random.default_rng(0)
    rates = generator.beta(44.5, 6.5, 100_000)
    lowest = generator.binomial(20, rates[:, None], (100_000, 6)).min(1) / 20
    assert chance_of_lower(44, 50, 20, 6, 0.9) == pytest.approx((lowest < 0.9 * 0.88).mean(), abs=0.01)


def test_a_low_evaluation_excludes_the_bound() -> None:
    """With a known rate of 1, an evaluation of ten is below 90% from eight successes on; one with nine is not."""
    certain = chance_of_lower(10**6, 10**6, 10, 1, 0.9)
    half = chance_of_lower(500_000, 10**6, 10, 1, 0.8)  # fewer than four of ten
    assert certain == pytest.approx(0, abs=1e-6) and half == pytest.approx(176 / 1024, abs=1e-3)

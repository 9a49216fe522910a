"""Schedules stay within their bounds, go one way, and come back from a file; none depends on how training is cut."""

import io
import math
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback

from sb3_scoreflow import CosineSchedule, HalfLifeSchedule, HoldCosineSchedule
from sb3_scoreflow.common.schedules import Progress, as_schedule
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import make_toy
from tests.properties.strategies import COSTLY

VALUES = st.floats(0, 1e3)
FRACTIONS = st.floats(0, 0.99)
COUNTS = st.integers(0, 10**9)


def slack(a: float, b: float) -> float:
    """A few roundings of the larger one."""
    return 1e-12 * max(a, b) + 1e-300


@given(VALUES, VALUES, st.floats(1e-3, 1e9), COUNTS, COUNTS)
@example(1.0, 0.0, 1e-3, 0, 10**9)
def test_half_life(initial: float, final: float, half_life: float, a: int, b: int) -> None:
    schedule = HalfLifeSchedule(initial, final, half_life)
    low, high = sorted((initial, final))
    early, late = (schedule(Progress(0.5, n)) for n in sorted((a, b)))
    assert low - slack(initial, final) <= late <= high + slack(initial, final)
    assert (late - early) * (final - initial) >= 0 or abs(late - early) <= slack(initial, final), "towards the final value"
    assert schedule(Progress(1.0, 0)) == schedule(0.3) == pytest.approx(initial, rel=1e-12)
    distance = schedule(Progress(1.0, a)) - final
    later = HalfLifeSchedule(initial, final, half_life * 2)(Progress(1.0, 2 * a)) - final
    assert later == pytest.approx(distance, rel=1e-9, abs=slack(initial, final))


@given(VALUES, VALUES, FRACTIONS, st.floats(0, 1), st.floats(0, 1))
def test_hold_cosine(initial: float, final: float, hold: float, a: float, b: float) -> None:
    schedule = HoldCosineSchedule(initial, final, hold)
    low, high = sorted((initial, final))
    early, late = (schedule(remaining) for remaining in sorted((a, b), reverse=True))
    assert low - slack(initial, final) <= late <= high + slack(initial, final)
    assert (late - early) * (final - initial) >= -slack(initial, final) * high
    assert schedule(1.0) == pytest.approx(initial) and schedule(0.0) == pytest.approx(final, abs=slack(initial, final))
    if 1 - a < hold:
        assert schedule(a) == pytest.approx(initial)


@given(VALUES, VALUES, FRACTIONS, st.floats(0, 1), st.floats(0, 1))
def test_cosine(initial: float, final: float, warmup: float, a: float, b: float) -> None:
    schedule = CosineSchedule(initial, final, warmup)
    low, high = sorted((initial, final))
    early, late = (schedule(remaining) for remaining in sorted((a, b), reverse=True))
    assert -slack(initial, final) <= late <= high + slack(initial, final)
    if 1 - max(a, b) >= warmup:  # both after the warm-up
        assert low - slack(initial, final) <= late
        assert (late - early) * (final - initial) >= -slack(initial, final) * high
    elif 1 - min(a, b) < warmup:
        assert early <= late + slack(initial, final)
    assert schedule(0.0) == pytest.approx(final, abs=slack(initial, final))
    assert warmup == 0 or schedule(1.0) == 0


SCHEDULES = st.one_of(
    st.builds(HalfLifeSchedule, VALUES, VALUES, st.floats(1, 1e6)),
    st.builds(CosineSchedule, VALUES, VALUES, FRACTIONS),
    st.builds(HoldCosineSchedule, VALUES, VALUES, FRACTIONS),
    VALUES,
    VALUES.map(str),
    VALUES.map(lambda value: f"lin_{value}"),
)


@given(SCHEDULES, st.floats(0, 1), COUNTS)
def test_from_a_file(value: Any, remaining: float, n: int) -> None:
    schedule = as_schedule(value)
    progress = Progress(remaining, n)
    again = cloudpickle.loads(cloudpickle.dumps(schedule))
    assert again(progress) == schedule(progress) and math.isfinite(schedule(progress))
    assert repr(again) == repr(schedule)


@given(st.floats(-1e3, 1e3), COUNTS)
def test_progress_is_within_bounds(remaining: float, n: int) -> None:
    progress = Progress(remaining, n)
    assert 0 <= progress <= 1 and progress.n_transitions == n
    assert float(progress) == remaining or not 0 <= remaining <= 1


class Rates(BaseCallback):
    """Keeps what the learning rate is at the beginning of every rollout."""

    def __init__(self, rates: list[float]) -> None:
        super().__init__()
        self.rates = rates

    def _on_rollout_start(self) -> None:
        self.rates.append(self.model._scheduled("learning_rate"))  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


@COSTLY
@pytest.mark.filterwarnings("ignore:.*ends within the critics' warm-up")
@given(st.sampled_from(ALGORITHMS), st.lists(st.tuples(st.integers(1, 2), st.booleans(), st.booleans()), max_size=3))
def test_half_life_whatever_learn_is_cut_into(algorithm: Any, cuts: list[tuple[int, bool, bool]]) -> None:
    """Into how many calls, whether they count anew, and whether the model is saved and loaded in between."""
    schedule = HalfLifeSchedule(1e-3, 1e-5, 20)
    arguments = {**algorithm.cheap, **algorithm.once, "n_steps": 2, "batch_size": 4}
    model = algorithm.cls(
        "MlpPolicy", make_toy(n_envs=2), learning_rate=schedule, policy_kwargs=dict(net_arch=[4]), device="cpu", **arguments
    )
    rates: list[float] = []
    for iterations, anew, saved in cuts:
        model.learn(4 * iterations, callback=Rates(rates), reset_num_timesteps=anew)
        if saved:
            file = io.BytesIO()
            model.save(file)
            file.seek(0)
            model = algorithm.cls.load(file, make_toy(n_envs=2))
    np.testing.assert_allclose(rates, [1e-5 + (1e-3 - 1e-5) * 0.5 ** (4 * i / 20) for i in range(len(rates))], rtol=1e-9)
    assert len(rates) == sum(iterations for iterations, *_ in cuts)

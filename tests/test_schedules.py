"""Schedules: their values in closed form, and that those over transitions do not depend on how training is cut."""

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.utils import FloatSchedule

from sb3_scoreflow import HalfLifeSchedule
from sb3_scoreflow.schedules import Progress
from tests.conformance.algorithms import ALGORITHMS, Algorithm
from tests.conformance.envs import make_toy


@pytest.mark.parametrize("n", [0, 1, 500, 1000, 3000, 10**9])
def test_half_life_schedule_values(n: int) -> None:
    schedule = HalfLifeSchedule(0.24, 0.1, 1000)
    expected = 0.1 + 0.14 * math.exp(-n / 1000 * math.log(2))
    assert schedule(Progress(0.3, n)) == FloatSchedule(schedule)(Progress(0.3, n)) == pytest.approx(expected, rel=1e-12)
    assert schedule(1) == 0.24, "of a plain number, only the start is known"
    assert pickle.loads(pickle.dumps(schedule))(Progress(0.3, n)) == schedule(Progress(0.9, n))
    assert repr(schedule) == "HalfLifeSchedule(0.24, 0.1, half_life=1000.0)"


@pytest.mark.parametrize("half_life", [0, -1, math.nan, math.inf])
def test_impossible_half_life_is_refused(half_life: float) -> None:
    with pytest.raises(ValueError, match=f"half_life must be a positive number of transitions, got {half_life}: try 25_000"):
        HalfLifeSchedule(1.0, 0.0, half_life)


@pytest.mark.parametrize(("remaining", "expected"), [(1.5, 1.0), (1.0, 1.0), (0.25, 0.25), (0.0, 0.0), (-3.0, 0.0)])
def test_progress_is_a_share(remaining: float, expected: float) -> None:
    progress = Progress(remaining, 7)
    assert (float(progress), progress.n_transitions) == (expected, 7)
    again = pickle.loads(pickle.dumps(progress))
    assert (type(again), float(again), again.n_transitions) == (Progress, expected, 7)


class Recorder:
    """What every iteration's update was made with."""

    def __init__(self, model: Any) -> None:
        self.model, self.rates, self.train = model, [], model.train  # type: ignore[var-annotated]
        model.train = self

    def __call__(self) -> None:
        bounds = getattr(self.model.policy, "log_std_bounds", th.zeros(0)).tolist()
        self.train()
        self.rates.append((bounds, *(group["lr"] for group in self.model.policy.optimizer.param_groups)))


RATES = {
    "ScoReFlowPPO": dict(noise_learning_rate=HalfLifeSchedule(2e-2, 1e-4, 30), max_std=HalfLifeSchedule(0.4, 0.1, 30)),
    "RLDT": dict(critic_learning_rate=HalfLifeSchedule(2e-2, 1e-4, 30)),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.filterwarnings("ignore:learn:UserWarning")
def test_rates_do_not_depend_on_how_learn_is_cut(algorithm: Algorithm, n_envs: int, tmp_path: Path) -> None:
    """One call, a call for each rollout, calls that end within one, calls that count anew, and files in between."""
    size, iterations, rates, weights = algorithm.iteration(n_envs), 4, {}, {}

    def make() -> Any:
        arguments: Any = dict(RATES[str(algorithm)], learning_rate=HalfLifeSchedule(1e-2, 1e-4, 30))
        return algorithm.make("FlowPolicy", make_toy(n_envs=n_envs), **arguments)

    for way, calls in dict(once=[4 * size], each=[size] * 4, halves=[1, 2 * size + 1]).items():
        model = make()
        recorder = Recorder(model)
        for n in calls:
            model.learn(n, reset_num_timesteps=False)
        rates[way], weights[way] = recorder.rates, model.policy.state_dict()
    rates["anew"], rates["file"] = [], []
    for way in ("anew", "file"):
        model = make()
        for _ in range(iterations):
            recorder = Recorder(model)
            model.learn(size, reset_num_timesteps=way == "anew")
            rates[way] += recorder.rates
            del model.train
            if way == "file":
                model.save(tmp_path / "model")
                model = algorithm.cls.load(tmp_path / "model", make_toy(n_envs=n_envs), device="cpu")
    expected = [1e-4 + 9.9e-3 * 0.5 ** ((i + 1) * size / 30) for i in range(iterations)]
    assert [rate[1] for rate in rates["once"]] == pytest.approx(expected, rel=1e-9)
    for way in rates:
        assert rates[way] == rates["once"], way
    for way in weights:
        assert all(th.equal(tensor, weights["once"][name]) for name, tensor in weights[way].items()), way


def test_pretraining_starts_schedules_over_transitions_anew() -> None:
    for algorithm in ALGORITHMS:
        model = algorithm.make("FlowPolicy", make_toy(), learning_rate=HalfLifeSchedule(1e-2, 1e-4, 30))
        model.learn(3 * algorithm.iteration())
        assert model.n_transitions == 3 * algorithm.iteration()
        model.on_pretrained()
        assert model.n_transitions == 0
        assert model.lr_schedule(model._current_progress_remaining) == 1e-2

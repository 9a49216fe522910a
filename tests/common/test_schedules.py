"""Schedules: their values in closed form, and that those over transitions do not depend on how training is cut."""

import math
import pickle
import re
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from sb3_scoreflow import CosineSchedule, HalfLifeSchedule, HoldCosineSchedule
from sb3_scoreflow.common.checks import OrNone, Schedule
from sb3_scoreflow.common.schedules import Progress
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.conformance.envs import make_toy
from tests.conformance.saving import saved


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
    with pytest.raises(ValueError, match=rf"half_life.*{half_life}\b") as error:
        HalfLifeSchedule(1.0, 0.0, half_life)
    remedy = re.search(r"try (\w+)", str(error.value))
    assert remedy is not None and HalfLifeSchedule(1.0, 0.0, int(remedy[1]))(Progress(1.0, 25_000)) == 0.5


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


def scheduled(algorithm: Algorithm) -> list[str]:
    """Arguments that may be schedules from 0 on."""
    rules = {name: rule.rule if isinstance(rule, OrNone) else rule for name, rule in algorithm.cls.rules.items()}
    return [name for name, rule in rules.items() if isinstance(rule, Schedule) and name != "max_std"]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@pytest.mark.parametrize("n_envs", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.filterwarnings("ignore:learn:UserWarning")
def test_rates_do_not_depend_on_how_learn_is_cut(algorithm: Algorithm, n_envs: int, tmp_path: Path) -> None:
    """One call, a call for each rollout, calls that end within one, calls that count anew, and files in between."""
    size, iterations, names, used, weights = algorithm.iteration(n_envs), 4, scheduled(algorithm), {}, {}

    def make() -> Any:
        rates: dict[str, Any] = {name: HalfLifeSchedule(2e-2, 1e-4, 30) for name in names if name.endswith("learning_rate")}
        rates["learning_rate"] = HalfLifeSchedule(1e-2, 1e-4, 30)
        if "max_std" in algorithm.cls.rules:
            rates["max_std"] = HalfLifeSchedule(0.4, 0.1, 30)
        return algorithm.make("FlowPolicy", make_toy(n_envs=n_envs), **rates)

    for way, calls in dict(once=[4 * size], each=[size] * 4, halves=[1, 2 * size + 1]).items():
        model = make()
        recorder = Recorder(model)
        for n in calls:
            model.learn(n, reset_num_timesteps=False)
        used[way], weights[way] = recorder.rates, model.policy.state_dict()
    used["anew"], used["file"] = [], []
    for way in ("anew", "file"):
        model = make()
        for _ in range(iterations):
            recorder = Recorder(model)
            model.learn(size, reset_num_timesteps=way == "anew")
            used[way] += recorder.rates
            del model.train
            if way == "file":
                model.save(tmp_path / "model")
                model = algorithm.cls.load(tmp_path / "model", make_toy(n_envs=n_envs), device="cpu")
    expected = [1e-4 + 9.9e-3 * 0.5 ** ((i + 1) * size / 30) for i in range(iterations)]
    assert [rate[1] for rate in used["once"]] == pytest.approx(expected, rel=1e-9)
    for way in used:
        assert used[way] == used["once"], way
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


# ------------------------------------------------------------------ what schedules are asked


class Asked:
    """A schedule that keeps what it was asked."""

    def __init__(self, value: float) -> None:
        self.value, self.asked = value, []  # type: ignore[var-annotated]

    def __call__(self, progress_remaining: float) -> float:
        self.asked.append(float(progress_remaining))
        return self.value * progress_remaining


def test_which_arguments_are_scheduled() -> None:
    """What the tests below go by."""
    names = {str(algorithm): set(scheduled(algorithm)) for algorithm in ALGORITHMS}
    shared = {"learning_rate", "critic_learning_rate", "averaging_horizon"}
    assert names["ScoReFlowPPO"] == {*shared, "noise_learning_rate", "clip_range", "clip_range_vf"}
    assert names["RLDT"] == {*shared, "encoder_learning_rate"}


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@pytest.mark.parametrize("total", [1, 16, 17, 40])
def test_schedules_are_asked_within_bounds(algorithm: Algorithm, total: int) -> None:
    """Also where training is shorter than a rollout, or no multiple of it: the last rollout passes the end."""
    schedules = {name: Asked(1e-2) for name in scheduled(algorithm)}
    model = algorithm.make("CnnPolicy", make_toy("image"), "image", **schedules)
    used: list[float] = []
    step = model._step

    def recorded(*args: Any) -> None:
        step(*args)
        used.extend(group["lr"] for group in model.policy.optimizer.param_groups)

    model._step = recorded
    model.learn(total)
    iterations = -(-total // 16)
    assert model.num_timesteps == 16 * iterations and model.n_iterations == iterations
    expected = {1.0, *(max(1 - 16 * (i + 1) / total, 0) for i in range(iterations)), 0.0}
    for name, schedule in schedules.items():
        assert min(schedule.asked) == 0 and max(schedule.asked) == 1, name
        assert all(min(abs(asked - p) for p in expected) < 1e-12 for asked in schedule.asked), name
    assert min(used) == 0.0 and max(used) <= 1e-2
    model.learn(total, reset_num_timesteps=False)
    assert min(used) == 0.0
    assert all(0 <= asked <= 1 for schedule in schedules.values() for asked in schedule.asked)


@pytest.mark.parametrize(
    "max_std",
    [
        lambda p: 0.1 + 0.14 * p,
        lambda p: 0.24 - 0.14 * (1 - p),  # 0.09999999999999998 in the end
        LinearSchedule(0.24, 0.1, 1.0),  # the same
        FloatSchedule(LinearSchedule(0.24, 0.1, 0.8)),
        HoldCosineSchedule(0.24, 0.1),
    ],
)
def test_noise_may_end_at_its_lower_bound(max_std: Any) -> None:
    algorithm = ALGORITHMS[0]
    model = algorithm.make("FlowPolicy", make_toy(), max_std=max_std, min_std=0.1).learn(40)
    assert model.num_timesteps == 48 and model._current_progress_remaining == 0
    assert model.policy.log_std_bounds.exp().tolist() == pytest.approx([0.1, 0.1], rel=1e-6)
    assert model.policy.log_std_bounds[0] <= model.policy.log_std_bounds[1]
    loaded = algorithm.cls.load(saved(model), make_toy())
    assert loaded.policy.log_std_bounds.exp().tolist() == pytest.approx([0.1, 0.1], rel=1e-6)
    loaded.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@pytest.mark.filterwarnings("ignore:clip_range=")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3e-4", [3e-4, 3e-4]),
        ("lin_3e-4", [1.5e-4, 0.0]),
        (np.float32(0.25), [0.25, 0.25]),
        (np.int64(1), [1, 1]),
        (Fraction(1, 4), [0.25, 0.25]),
        (lambda p: np.float64(p), [0.5, 0.0]),
        (lambda p: th.tensor(p), [0.5, 0.0]),
        (lambda p: np.array(p), [0.5, 0.0]),
    ],
)
def test_schedules_as_rl_zoo3_writes_them(algorithm: Algorithm, value: Any, expected: list[float]) -> None:
    names = scheduled(algorithm)
    model = algorithm.make("FlowPolicy", make_toy(), **dict.fromkeys(names, value))
    logged: dict[str, list[float]] = {name: [] for name in names}
    train = model.train

    def recorded() -> None:
        train()
        for name in names:
            logged[name].append(model.logger.name_to_value.get(f"train/{name}", math.nan))

    model.train = recorded
    model.learn(2 * algorithm.iteration())
    # Flat observations have no encoder, and the horizon is not logged (tests/conformance/test_averaging.py)
    for name in set(names) - {"encoder_learning_rate", "averaging_horizon"}:
        assert logged[name] == pytest.approx(expected), name
    del model.train
    assert algorithm.cls.load(saved(model), make_toy()).lr_schedule(0.5) == pytest.approx(expected[0])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@pytest.mark.parametrize("total", [0, -5, 0.0])
def test_learning_nothing_returns_as_ppo_does(algorithm: Algorithm, total: Any) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), learning_rate=HalfLifeSchedule(1e-2, 1e-4, 30))
    theirs = PPO("MlpPolicy", make_toy(), n_steps=16, batch_size=16)
    names = ("num_timesteps", "_total_timesteps", "_n_updates", "_current_progress_remaining")
    for n in (total, 24, total):
        for reset in (False, True):
            before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert model.learn(n, reset_num_timesteps=reset) is model
            theirs.learn(n, reset_num_timesteps=reset)
            for name in names[:2]:
                assert getattr(model, name) == getattr(theirs, name), name
            assert model._current_progress_remaining == max(theirs._current_progress_remaining, 0)
            if n == total:
                assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    assert model.n_transitions == 64


def test_length_of_learning_may_be_a_float() -> None:
    for algorithm in ALGORITHMS:
        assert algorithm.make("FlowPolicy", make_toy()).learn(3.2e1).num_timesteps == 32


def test_cosine_schedule_values() -> None:
    schedule = CosineSchedule(1.0, 0.2)
    expected = {1.0: 1.0, 0.75: 0.2 + 0.4 * (1 + math.cos(math.pi / 4)), 0.5: 0.6, 0.0: 0.2, -0.1: 0.2}
    for remaining, value in expected.items():
        assert schedule(remaining) == pytest.approx(value, abs=1e-12)
    warm = CosineSchedule(1.0, 0.2, warmup_fraction=0.2)
    for remaining, value in {1.0: 0.0, 0.95: 0.25, 0.9: 0.5, 0.8: 1.0, 0.4: 0.6, 0.0: 0.2}.items():
        assert warm(remaining) == pytest.approx(value, abs=1e-12)


def test_hold_cosine_schedule_values() -> None:
    schedule = HoldCosineSchedule(0.24, 0.198)  # published: 0.1 + 0.7 * (0.24 - 0.1) at the end
    halfway = 1 - (0.35 + 0.65 / 2)
    for remaining, value in {1.0: 0.24, 0.66: 0.24, 0.65: 0.24, halfway: 0.219, 0.0: 0.198, -0.1: 0.198}.items():
        assert schedule(remaining) == pytest.approx(value, abs=1e-12)
    quarter = 1 - (0.35 + 0.65 / 4)
    assert schedule(quarter) == pytest.approx(0.198 + 0.042 * 0.5 * (1 + math.cos(math.pi / 4)), abs=1e-12)


def test_schedules_pickle_and_show_their_arguments() -> None:
    for schedule in (CosineSchedule(1e-3, 1e-4, warmup_fraction=0.1), HoldCosineSchedule(0.3, 0.1, hold_fraction=0.5)):
        again = pickle.loads(pickle.dumps(schedule))
        assert [again(p) for p in np.linspace(0, 1, 11)] == [schedule(p) for p in np.linspace(0, 1, 11)]
        assert repr(again) == repr(schedule)
    assert repr(CosineSchedule(1, 0.5, 0.1)) == "CosineSchedule(1.0, 0.5, warmup_fraction=0.1)"
    assert repr(HoldCosineSchedule(1, 0.5)) == "HoldCosineSchedule(1.0, 0.5, hold_fraction=0.35)"


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_impossible_schedules_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"warmup_fraction.*{fraction}"):
        CosineSchedule(1.0, 0.0, warmup_fraction=fraction)
    with pytest.raises(ValueError, match=rf"hold_fraction.*{fraction}"):
        HoldCosineSchedule(1.0, 0.0, hold_fraction=fraction)

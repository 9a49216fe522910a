"""Models whose averages are validated: options, remedies of warnings, other environments, files and logs."""

import contextlib
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_scoreflow import ScoReFlowPPO, learn_resumable
from sb3_scoreflow.common.schedules import END, START, Progress, as_schedule
from sb3_scoreflow.scoreflow_ppo import validation
from tests.resuming.runs import KillAt, Killed
from tests.scoreflow_ppo.slope import (
    DOWN_AND_UP,
    N_ENVS,
    N_STEPS,
    OBS,
    SIZE,
    ResumableSlope,
    Shifts,
    Slope,
    few_episodes,  # noqa: F401
    make,
    monitored,
    reward_of,
)

pytestmark = [pytest.mark.filterwarnings("ignore:A resumed run"), pytest.mark.usefixtures("few_episodes")]


def test_training_from_scratch_has_none() -> None:
    model = ScoReFlowPPO("FlowPolicy", monitored(), n_steps=12, batch_size=24, device="cpu").learn(SIZE)
    assert model.validation_fraction == 0 and model._window is None and model.rollout_buffer.learned.all()


@pytest.mark.parametrize(
    ("arguments", "first", "last"),
    [({}, 10_000, 2_500), (dict(validation_fraction=0.3), 10_000, 2_500), (dict(validation_fraction=0), 40_000, 10_000)],
)
def test_averages_without_validation_are_longer(arguments: dict[str, Any], first: float, last: float, tmp_path: Path) -> None:
    """Also in a model that is saved, and if the argument is set later."""
    defaults = dict(averaging_horizon=None, validation_fraction=None)
    model = make(**{**defaults, **arguments})
    model.save(tmp_path / "model")
    loaded = ScoReFlowPPO.load(tmp_path / "model")
    later = make(**defaults)
    if arguments:
        later.validation_fraction = arguments["validation_fraction"]
    later.learn(SIZE)
    for each in (model, loaded, later):
        horizon = as_schedule(each.averaging_horizon)
        assert (horizon(START), horizon(END)) == (first, last)


def test_averages_that_cannot_be_validated_are_longer() -> None:
    """Without a ``Monitor``, which the first episode shows; an environment with one then shortens them again."""
    model = make(DummyVecEnv([Slope] * N_ENVS), averaging_horizon=None)
    with pytest.warns(UserWarning, match="validation_fraction has no effect"):
        model.learn(SIZE)
    assert as_schedule(model.averaging_horizon)(START) == 40_000
    model.set_env(monitored())
    model.learn(SIZE)
    assert as_schedule(model.averaging_horizon)(START) == 10_000


@pytest.mark.parametrize(("fraction", "half_way", "end"), [(0.1, 0.13, 0.005), (0.0, 0.60, 0.27)])
def test_the_clones_weight_in_an_average(fraction: float, half_way: float, end: float) -> None:
    """The figures of docs/implementation.md, for 30,000 transitions: an average of 1 at first, and of 0 afterwards"""
    model = make(averaging_horizon=None, validation_fraction=fraction, n_steps=125, batch_size=1000)
    model.policy.start_average()
    average, weights = model.policy.copy_acting(), [1.0]
    for parameter in average.parameters():
        parameter.fill_(1.0)
    for own in (parameter for part in average for parameter in getattr(model.policy, part).parameters()):
        own.data.zero_()
    model._running_average = lambda: average  # type: ignore[method-assign]
    model._setup_learn(SIZE)
    for n in range(1000, 30_001, 1000):
        model._current_progress_remaining = Progress(1 - n / 30_000, n)
        model._average()
        weights.append(next(average.parameters()).flatten()[0].item())
    assert weights[15] == pytest.approx(half_way, rel=0.05) and weights[30] == pytest.approx(end, rel=0.2)


@pytest.mark.parametrize("name", ["validation_fraction", "averaging_horizon"])
def test_a_callback_turns_it_off(name: str) -> None:
    """Deterministic actions then come from the average that follows the weights, or from the weights."""

    class Off(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 12 * SIZE:
                setattr(self.model, name, 0.0)
            return True

    model = make()
    model.learn(12 * SIZE, callback=[Off(), Shifts([-0.3] * 10)])
    assert model._window is None and not hasattr(model, "kept_actors")
    assert reward_of(model) < -0.5 and (model.policy.averaged is None) == (name == "averaging_horizon")
    assert model.learn(SIZE, reset_num_timesteps=False).rollout_buffer.learned.all()


def test_remedies_for_environments_without_returns(tmp_path: Path) -> None:
    model = make(DummyVecEnv([Slope] * N_ENVS))
    with pytest.warns(UserWarning, match="validation_fraction has no effect") as caught:
        model.learn(12 * SIZE, callback=Shifts([-0.3] * 10))
    assert len([each for each in caught if "validation_fraction" in str(each.message)]) == 1
    assert reward_of(model) < -0.5, "the average itself"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(VecMonitor(DummyVecEnv([Slope] * N_ENVS))).learn(12 * SIZE)
        make(DummyVecEnv([Slope] * N_ENVS), validation_fraction=0).learn(4 * SIZE)
        path = tmp_path / "model"
        model.save(path)
        monitored_envs = VecMonitor(DummyVecEnv([Slope] * N_ENVS))
        loaded = ScoReFlowPPO.load(path, monitored_envs, device="cpu").learn(12 * SIZE)
        model.set_env(monitored_envs)
        model.learn(12 * SIZE)
    assert model._window is not None and model._window.best and loaded._window is not None and loaded._window.best


def test_remedy_for_episodes_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_STEPS", 30)
    model = make(monitored(n_steps=np.inf))
    with pytest.warns(UserWarning, match="did not end within 30 steps.*TimeLimit"):
        model.learn(6 * SIZE)
    assert model._window is None and model.rollout_buffer.learned.all()
    limited = VecMonitor(DummyVecEnv([lambda: gym.wrappers.TimeLimit(Slope(np.inf), 10)] * N_ENVS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(limited).learn(12 * SIZE)


def test_first_episodes_that_never_end_are_not_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_STEPS", 30)
    model = make(monitored(n_steps=np.inf))
    model._demonstrated_return = 1.0
    with pytest.warns(UserWarning, match="validation_fraction has no effect"):
        model.learn(8 * SIZE)


def test_other_noise_or_another_environment_is_measured_anew() -> None:
    """The score, and with it deterministic actions, depend on the scale of the noise."""
    model = make()
    model.learn(8 * SIZE)
    assert model._window is not None and model._window.best
    best = model._window.best
    model.noise_scale = 0.19
    model._prepare_rollout()
    assert model._window.best is best, "almost the same"
    model.noise_scale = 0.1
    model._prepare_rollout()
    assert model._window.best == []
    model.learn(8 * SIZE, callback=Shifts([-0.1] * 8))
    average = model.kept_actors["average"]["velocity_field"]  # type: ignore[index]
    model.set_env(monitored())
    model.learn(1)
    assert model.kept_actors["average"]["velocity_field"] is average, "the average goes on"  # type: ignore[index]
    assert not th.equal(*(list(part.parameters())[-1] for part in (average, model.policy.acting("velocity_field"))))
    assert model._window is not None and model._window.best == []


def test_a_users_rollout_is_not_validation() -> None:
    """Its rows are stochastic, and episodes that it continues no longer validate."""
    model = make()
    model.learn(SIZE)
    assert model._window is not None and model._window.rows.any()
    buffer = deepcopy(model.rollout_buffer)
    _, callback = model._setup_learn(SIZE, None, reset_num_timesteps=False)
    assert model.env is not None and model.collect_rollouts(model.env, callback, buffer, 12)
    assert not model._window.rows.any() and model.policy.validation is None


def test_a_users_rollout_after_an_interrupted_one() -> None:
    class Stops(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < (N_STEPS + 1) * N_ENVS

    model, seen = make(), list[int]()

    class Looks(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(int(self.model.policy.validation is not None))
            return True

    model.learn(SIZE, callback=Stops())
    assert model._window is not None and model._window.rows.any() and not model.rollout_buffer.full
    _, callback = model._setup_learn(SIZE, Looks(), reset_num_timesteps=False)
    before = model.rollout_buffer._left_out.copy()
    assert model.env is not None and model.collect_rollouts(model.env, callback, deepcopy(model.rollout_buffer), 7)
    assert seen == [0] * 7 and not model._window.rows.any() and (model.rollout_buffer._left_out == before).all()


@pytest.mark.parametrize("trusted", [True, False])
def test_a_saved_model_goes_on(trusted: bool, tmp_path: Path) -> None:
    model = make()
    model.learn(9 * SIZE, callback=Shifts(DOWN_AND_UP))
    model.save(tmp_path / "model")
    loaded = ScoReFlowPPO.load(tmp_path / "model", monitored(), device="cpu", trusted=trusted)
    assert vars(loaded._window) == vars(model._window)
    for name, tensor in model.kept_actors.state_dict().items():
        assert th.equal(loaded.kept_actors.state_dict()[name], tensor)
    callback = Shifts(DOWN_AND_UP[9:])
    loaded.learn(21 * SIZE, reset_num_timesteps=False, callback=callback)
    assert min(callback.rewards) >= reward_of(model) - 0.04 and reward_of(loaded) > reward_of(model) + 0.5
    fewer = ScoReFlowPPO.load(tmp_path / "model", monitored(n_envs=3), device="cpu", trusted=trusted)
    fewer.learn(SIZE, reset_num_timesteps=False)
    assert fewer._window is not None and len(fewer._window.rows) == 3 and fewer._window.best[:5] == model._window.best[:5]  # type: ignore[union-attr]
    model.policy.save(str(tmp_path / "policy"))
    acting = type(model.policy).load(str(tmp_path / "policy"))
    np.testing.assert_array_equal(acting.predict(OBS, deterministic=True)[0], model.predict(OBS, deterministic=True)[0])


@pytest.mark.parametrize("kill_at", [3 * SIZE, 9 * SIZE])
def test_interrupted_runs_are_the_same(kill_at: int, tmp_path: Path) -> None:
    clone = make(learning_rate=1e-3)

    def run(folder: str, kill_at: int | None = None) -> ScoReFlowPPO:
        model = make(monitored(ResumableSlope), learning_rate=1e-3, averaging_horizon=100.0)
        with contextlib.suppress(Killed):
            start = lambda of: of.load_clone(clone)  # noqa: E731
            callback = KillAt(kill_at)
            learn_resumable(model, 15 * SIZE, tmp_path / folder, start=start, callback=callback, save_freq=SIZE)
        return model

    whole, _, resumed = run("whole"), run("killed", kill_at), run("killed")
    assert whole._window is not None and whole._window.n_validating >= 15 * N_STEPS
    states = [model.policy.state_dict() for model in (whole, resumed)]
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])


def test_evaluations_and_a_users_buffer() -> None:
    """An evaluation during a rollout acts as after it; buffers of users leave rows out, too."""

    class Own(RolloutBuffer):
        pass

    class Evaluates(BaseCallback):
        seen = 0

        def _on_step(self) -> bool:
            if self.n_calls % 5 == 0 and self.model.policy.validation is not None:
                during, policy = self.model.predict(OBS[:N_ENVS], deterministic=True)[0], deepcopy(self.model.policy)
                policy.validation = None  # type: ignore[assignment]
                np.testing.assert_array_equal(during, policy.predict(OBS[:N_ENVS], deterministic=True)[0])
                self.seen += 1
            return True

    model, callback = make(rollout_buffer_class=Own), Evaluates()
    model.learn(6 * SIZE, callback=callback)
    assert callback.seen and isinstance(model.rollout_buffer, Own) and not model.rollout_buffer.learned.all()


def test_logs(tmp_path: Path) -> None:
    model = make()
    rows: list[dict[str, float]] = []

    class Keeps(Shifts):
        def _on_rollout_end(self) -> None:
            rows.append(dict(self.logger.name_to_value))

    model.learn(12 * SIZE, callback=Keeps([-0.15] * 12))
    found = [row for row in rows if "validation/ep_rew_mean" in row]
    assert len(found) >= 2 and found[0]["validation/accepted"] == 1 and found[-1]["validation/accepted"] == 0
    assert found[-1]["validation/ep_rew_mean"] < found[0]["validation/ep_rew_mean"] - 1


def test_an_environment_may_be_set_before_the_networks_exist() -> None:
    model = ScoReFlowPPO("FlowPolicy", monitored(), n_steps=12, batch_size=24, device="cpu", _init_setup_model=False)
    model.set_env(monitored())
    model._setup_model()
    assert model.learn(SIZE).num_timesteps == SIZE

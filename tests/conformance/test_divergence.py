"""NaN stops training, is named, and spoils no file."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_scoreflow import DivergenceError
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import Foreign, make_toy


class Autosave(BaseCallback):
    """Overwrites one file at every step; may plant a NaN before it does."""

    def __init__(self, path: Path, nan_at: int | None = None, parameter: str | None = None) -> None:
        super().__init__()
        self.path, self.nan_at, self.parameter = path, nan_at, parameter

    def _on_step(self) -> bool:
        if self.n_calls == self.nan_at:
            with th.no_grad():
                dict(self.model.policy.named_parameters())[self.parameter or ""].view(-1)[0] = th.nan
        else:
            self.model.save(self.path)
        return True


def assert_usable(algorithm: Algorithm, path: Path, num_timesteps: int) -> None:
    """The file is from that step, and training goes on from it."""
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    loaded = algorithm.cls.load(path, make_toy(n_envs=2))
    assert loaded.num_timesteps == num_timesteps
    loaded.learn(2 * algorithm.iteration(2), reset_num_timesteps=False)
    action = loaded.predict(np.zeros(3, np.float32), deterministic=True)[0]
    assert np.isfinite(action).all()
    if hasattr(loaded, "return_statistics"):
        assert np.isfinite(loaded.return_statistics.statistics.var)
        assert loaded.return_statistics.scale == pytest.approx(float(loaded.return_statistics.statistics.var) ** 0.5)


def test_divergence_ends_a_trial_and_not_a_study() -> None:
    """rl_zoo3 and Optuna's users catch AssertionError and ValueError; code of 0.1.0 caught FloatingPointError."""
    assert issubclass(DivergenceError, FloatingPointError) and issubclass(DivergenceError, ValueError)


def test_nan_reward(algorithm: Algorithm, tmp_path: Path) -> None:
    env = Foreign(make_toy(n_envs=2, fault="reward", faulty_from=21))
    model = algorithm.make("FlowPolicy", env)
    message = (
        r"The environment returned NaN or infinite rewards \(24 entries, the first at step 4 of environment 0\): "
        "fix the environment"
    )
    with pytest.raises(DivergenceError, match=message):
        model.learn(4 * algorithm.iteration(2), callback=Autosave(tmp_path / "last.zip"))
    # Its policy is as it was before that rollout, and what was saved during it is good.
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert_usable(algorithm, tmp_path / "last.zip", 64)


@pytest.mark.parametrize("kind", ["flat", "float64"])
def test_nan_observation(algorithm: Algorithm, kind: str) -> None:
    model = algorithm.make("FlowPolicy", Foreign(make_toy(kind, fault="observation", faulty_from=21)))
    with pytest.raises(
        DivergenceError, match="The policy produced a NaN or infinite action: an observation, or an output of the networks"
    ):
        model.learn(4 * algorithm.iteration())
    assert model.num_timesteps == 21
    assert all(th.isfinite(parameter).all() for parameter in model.policy.state_dict().values())


def test_nan_in_the_observation_after_the_rollout(algorithm: Algorithm) -> None:
    """It is not stored, but its value is bootstrapped from."""
    model = algorithm.make("FlowPolicy", Foreign(make_toy(fault="observation", faulty_from=16, length=100)))
    with pytest.raises(
        DivergenceError, match=r"is nan in iteration 1, before the parameters changed: check rewards and observations"
    ):
        model.learn(4 * algorithm.iteration())
    assert all(th.isfinite(parameter).all() for parameter in model.policy.state_dict().values())


def test_infinite_observation_is_named(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The normalizer bounds it, so the policy acts on; the update refuses it."""
    env = make_toy(n_envs=2)
    step = env.step_wait

    def faulty() -> Any:
        obs, rewards, dones, infos = step()
        if model.num_timesteps == 8:  # the steps counted before this one
            obs = np.array(obs)
            obs[1, 2] = np.inf
        return obs, rewards, dones, infos

    monkeypatch.setattr(env, "step_wait", faulty)
    model = algorithm.make("FlowPolicy", env)
    with pytest.raises(
        DivergenceError, match=r"NaN or infinite observations \(1 entries, the first at step 5 of environment 1\)"
    ):
        model.learn(algorithm.iteration(2))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_loss_that_overflows_is_named_before_it_does_harm(algorithm: Algorithm, tmp_path: Path) -> None:
    arguments = algorithm.known(dict(reward_scale=1.0, normalize_reward=False))  # scaled, no rewards are too large for it
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2, fault="huge", faulty_from=17), **arguments)
    with pytest.raises(DivergenceError, match=r"\w+_loss is (nan|inf) in iteration 2, before the parameters changed"):
        model.learn(4 * algorithm.iteration(2))
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    assert model.num_timesteps == 2 * algorithm.iteration(2)


def test_huge_rewards_are_scaled(replay: Algorithm) -> None:
    """All are alike: they are no outliers, and no square of theirs is computed."""
    model = replay.make("FlowPolicy", make_toy(n_envs=2, fault="huge", faulty_from=17)).learn(2 * replay.iteration(2))
    assert model.reward_magnitude == pytest.approx(1e17)  # a share of 0.01 of the running mean
    assert model.policy.reward_scale.item() == pytest.approx(1e17)
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())


def test_rollout_with_nan_is_not_kept(replay: Algorithm) -> None:
    env = Foreign(make_toy(n_envs=2, fault="reward", faulty_from=21))
    model = replay.make("FlowPolicy", env).learn(replay.iteration(2))
    with pytest.raises(DivergenceError, match="The environment returned NaN or infinite rewards"):
        model.learn(replay.iteration(2), reset_num_timesteps=False)
    assert (model.rollout_buffer.n_rollouts, model.rollout_buffer.fill) == (1, pytest.approx(1 / 3))
    model.set_env(make_toy(n_envs=2))
    model.learn(2 * replay.iteration(2), reset_num_timesteps=False)
    assert model.rollout_buffer.fill == 1 and np.isfinite(model.rollout_buffer._rewards).all()


def test_parameter_that_becomes_nan_in_the_update_is_named(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    model = algorithm.make("FlowPolicy", make_toy(), **algorithm.once)
    step = model.policy.optimizer.step

    def faulty_step() -> None:
        step()
        bias = model.policy.velocity_field.output_layer.bias
        if bias.grad is not None:  # the actor's step, the last one
            with th.no_grad():
                bias[1] = th.inf

    monkeypatch.setattr(model.policy.optimizer, "step", faulty_step)
    message = r"Parameter 'velocity_field\.output_layer\.bias' became NaN or infinite in iteration 1: lower the learning rates"
    with pytest.raises(DivergenceError, match=message):
        model.learn(algorithm.iteration())
    with pytest.raises(DivergenceError, match="Not saved"):
        model.save(io.BytesIO())


def test_last_checkpoint_survives_a_nan_parameter(algorithm: Algorithm, tmp_path: Path) -> None:
    """The file is overwritten at every step, but not with NaN, wherever that is noticed first."""
    parameter = "velocity_field.output_layer.bias"
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2))
    with pytest.raises(DivergenceError, match=rf"the policy's parameter '{re.escape(parameter)}' is not finite"):
        model.learn(4 * algorithm.iteration(2), callback=Autosave(tmp_path / "last.zip", 20, parameter))
    assert_usable(algorithm, tmp_path / "last.zip", 38)
    unused_in_acting = next((name for name, _ in model.policy.named_parameters() if name.startswith(("value_net", "critic."))))
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2))
    with pytest.raises(DivergenceError, match=rf"Not saved: parameter '{re.escape(unused_in_acting)}' is NaN"):
        model.learn(4 * algorithm.iteration(2), callback=Autosave(tmp_path / "last.zip", 20, unused_in_acting))
    assert_usable(algorithm, tmp_path / "last.zip", 38)

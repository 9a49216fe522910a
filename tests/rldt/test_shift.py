"""How far RLDT's actor moves in an iteration, and how ``max_shift`` bounds it."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from torch.distributions import MultivariateNormal, kl_divergence

from sb3_scoreflow import RLDT, FlowMatchingPolicy
from sb3_scoreflow.common.networks import VelocityField
from sb3_scoreflow.rldt import rldt as module
from sb3_scoreflow.rldt.actor import Reference, evaluate_actor, relative_shift
from sb3_scoreflow.rldt.policies import RLDTPolicy
from sb3_scoreflow.rldt.transport import Transport
from tests.rldt.helpers import SIZE, iterate, logs_of, make_model, spy_steps

OBS, ACTION = 3, 2


class Constant(VelocityField):
    """The same velocity everywhere: the action is the noise, moved by it."""

    def __init__(self, value: float) -> None:
        super().__init__(OBS, ACTION, [8])
        self.value = value

    def forward(self, x: th.Tensor, time: Any, condition: th.Tensor) -> th.Tensor:
        return self.value + 0.0 * super().forward(x, time, condition)


def _shift(value: float, before: float, std: float, n_particles: int, monkeypatch: pytest.MonkeyPatch) -> float:
    th.manual_seed(0)
    policy = RLDTPolicy(
        spaces.Box(-np.inf, np.inf, (OBS,)), spaces.Box(-1, 1, (ACTION,)), lambda _: 1e-3, observation_normalization="none"
    )
    policy.velocity_field = Constant(value)
    noise = th.randn
    monkeypatch.setattr(th, "randn", lambda *args, **kwargs: std * noise(*args, **kwargs))
    reference = Reference(policy.features_extractor, Constant(before))
    evaluation = evaluate_actor(policy, reference, th.zeros(500, OBS), n_particles, Transport())
    monkeypatch.setattr(th, "randn", noise)
    return relative_shift(evaluation).item()


@pytest.mark.parametrize("std", [0.05, 0.2])
def test_shift_is_the_divergence_of_gaussians(std: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The actions are Gaussian with this deviation, before and after."""
    shift = _shift(0.13, 0.1, std, 8, monkeypatch)
    before, after = (MultivariateNormal(mean * th.ones(ACTION), std**2 * th.eye(ACTION)) for mean in (0.1, 0.13))
    assert shift**2 * ACTION / 2 == pytest.approx(kl_divergence(after, before).item(), rel=0.05)


def test_shift_without_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that always gives the same action counts as spreading by 0.02; nothing is known of a single particle's."""
    assert _shift(0.13, 0.1, 1e-9, 8, monkeypatch) == pytest.approx(0.03 / 0.02, rel=1e-3)
    assert _shift(0.13, 0.1, 0.2, 1, monkeypatch) == 0.0


def _shifts_and_rates(monkeypatch: pytest.MonkeyPatch, n: int, **kwargs: Any) -> tuple[RLDT, np.ndarray, np.ndarray]:
    """Of a model's first iterations: the shift before the last actor step, and the rate of all of them."""
    shifts: list[float] = []
    diagnose = module.actor_diagnostics

    def spy(*args: Any) -> dict[str, th.Tensor]:
        result = diagnose(*args)
        shifts.append(result["actor_shift"].item())
        return result

    monkeypatch.setattr(module, "actor_diagnostics", spy)
    model = make_model(**kwargs)
    steps = spy_steps(model)
    iterate(model, n)
    rates = np.array([rate for kind, rate, _ in steps if kind == "velocity"]).reshape(n, -1)
    assert (rates == rates[:, :1]).all()  # it changes between iterations only
    return model, np.array(shifts).reshape(n, -1)[:, -1], rates[:, 0]


def test_iterations_move_the_flow_as_far_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _, free, rates = _shifts_and_rates(patch, 12, learning_rate=1e-2, max_shift=math.inf)
    np.testing.assert_array_equal(rates, 1e-2)
    bound = float(np.median(free)) / 20
    model, shifts, rates = _shifts_and_rates(monkeypatch, 12, learning_rate=1e-2, max_shift=bound)
    assert shifts[0] > 3 * bound  # nothing is known before the first iteration
    assert shifts[4:].max() < 3 * bound and 0.3 * bound < np.median(shifts[4:]) < 1.5 * bound
    # By hand: in proportion where it was too far, half as much again where it was not half as far, at most the full rate
    for before, rate, shift in zip(rates, rates[1:], shifts, strict=False):
        factor = bound / shift if shift > bound else 1.5 if shift < bound / 2 else 1.0
        assert rate == pytest.approx(min(factor * before, 1e-2), rel=1e-6)
    assert logs_of(model)["learning_rate"] == pytest.approx(rates[-1])


def test_the_rate_rises_again_to_the_full_one() -> None:
    model = make_model(learning_rate=1e-3, max_shift=1e-3)
    iterate(model, 2)
    low = model.actor_rate_factor
    assert low < 0.2
    model.max_shift = 1e9
    factors = []
    for _ in range(24):
        iterate(model)
        factors.append(model.actor_rate_factor)
    np.testing.assert_allclose(factors, np.minimum(low * 1.5 ** np.arange(1, 25), 1.0), rtol=1e-6)
    assert factors[-1] == 1.0


def test_a_rate_that_is_set_during_training_is_obeyed_at_once() -> None:
    """Although the default's was held back: the limit is a default of the default rate."""
    model = make_model(learning_rate=None, actor_steps=8)
    model.policy.pretrained.fill_(1.0)
    model.on_pretrained()
    model.critic_warmup_transitions = 0
    iterate(model)
    assert model.max_shift == 0.3
    model.actor_rate_factor = 0.1  # as an iteration that went too far leaves it
    model.learning_rate = 1e-4
    steps = spy_steps(model)
    iterate(model)
    assert model.max_shift == math.inf
    assert {rate for kind, rate, _ in steps if kind == "velocity"} == {1e-4}


def test_the_rate_is_saved_and_forgotten_with_a_new_clone(tmp_path: Any) -> None:
    model = make_model(learning_rate=1e-2, max_shift=1e-3)
    iterate(model, 2)
    assert model.actor_rate_factor < 0.2
    model.save(tmp_path / "model")
    loaded = RLDT.load(tmp_path / "model", device="cpu")
    assert loaded.actor_rate_factor == model.actor_rate_factor and loaded.max_shift == 1e-3
    model.on_pretrained()
    assert model.actor_rate_factor == 1.0


def test_a_rollout_without_actor_steps_leaves_the_rate() -> None:
    model = make_model(learning_rate=1e-2, max_shift=1e-3, critic_warmup_transitions=2 * SIZE)
    iterate(model, 2)
    assert model.actor_rate_factor == 1.0
    iterate(model, 2)
    assert model.actor_rate_factor < 0.2


class Walk(gym.Env):
    """A reward of 1 per step until a time limit of 1000, as a gait that goes on has."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return self._observation(), 1.0, False, self.steps == 1000, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


@pytest.mark.parametrize(("td_lambda", "low", "high"), [(None, 85, 110), pytest.param(0.0, 5, 50, marks=pytest.mark.slow)])
def test_critics_of_a_clone_know_long_episodes_before_it_changes(td_lambda: float | None, low: float, high: float) -> None:
    """
    Every state is worth ``1 / (1 - gamma) = 100``: the time limit is no end. With one-step targets, values reach less than
    half of that within the warm-up, and a clone would unlearn what pays later.
    """
    env = make_vec_env(Walk, n_envs=20, seed=0)
    small: dict[str, Any] = dict(net_arch=[32, 32])
    clone = FlowMatchingPolicy(env.observation_space, env.action_space, **small)  # type: ignore[arg-type]
    clone.pretrained.fill_(1.0)
    sizes: dict[str, Any] = dict(batch_size=64, refresh_size=1000)  # for speed
    model = RLDT("FlowPolicy", env, td_lambda=td_lambda, policy_kwargs=small, seed=0, device="cpu", **sizes)
    assert model.td_lambda == 0.0
    model.load_clone(clone)
    assert model.td_lambda == (0.95 if td_lambda is None else td_lambda) and model.max_shift == 0.3
    assert RLDT("FlowPolicy", env, learning_rate=1e-4, policy_kwargs=small).max_shift == math.inf
    with pytest.warns(UserWarning, match="critic_warmup_transitions"):
        model.learn(model.critic_warmup_transitions)
    with th.no_grad():
        values = model.policy.predict_values(th.rand(200, 2) * 2 - 1)
    assert low < values.min() and values.max() < high

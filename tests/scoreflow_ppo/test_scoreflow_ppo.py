"""ScoReFlowPPO's own part of the update: score coefficient, noise, entropy and clamped log-probabilities."""

import math

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import HoldCosineSchedule
from tests.ppo.helpers import ACTION, SIZE, STEPS, collect, logs_of, make_model, moved_in, rooms_of, state_of

# ---------------------------------------------------------------------- score coefficient


def test_learned_score_coefficient_is_trained() -> None:
    """Defect 1 of the official code: the coefficient was never handed to the optimizer."""
    model = make_model(score_drift="learned", n_epochs=4)
    t = th.arange(STEPS) / STEPS
    before = model.policy.score_coefficient(t)
    assert before is not None
    state = state_of(model.policy)
    model.learn(2 * SIZE)
    after = model.policy.score_coefficient(t)
    assert after is not None
    assert ((after - before).abs() > 1e-4).all()
    moved = {name for name in moved_in(model.policy, state) if name.startswith("score_coefficient_net")}
    assert moved == {f"score_coefficient_net.{name}" for name, _ in model.policy.score_coefficient_net.named_parameters()}


def test_score_coefficient_can_be_frozen() -> None:
    model = make_model(score_drift="learned", noise_learning_rate=0.0)
    before = state_of(model.policy)
    model.learn(2 * SIZE)
    assert not rooms_of(moved_in(model.policy, before)) & {"score_coefficient_net", "noise_net"}


def test_constant_score_coefficient_stays() -> None:
    model = make_model(score_drift="constant")
    model.learn(2 * SIZE)
    alpha = model.policy.score_coefficient(th.arange(STEPS) / STEPS)
    assert alpha is not None
    np.testing.assert_allclose(alpha, math.log1p(math.exp(-2)) * (1 - np.arange(STEPS) / STEPS), rtol=1e-6)
    assert not [name for name in model.policy.state_dict() if name.startswith("score_coefficient")]


def test_without_score_there_is_no_coefficient() -> None:
    model = make_model(score_drift="none")
    collect(model)
    model.train()
    assert model.policy.score_coefficient(th.zeros(1)) is None
    assert not [name for name in model.policy.state_dict() if name.startswith("score_coefficient")]
    assert not [name for name in logs_of(model) if name.startswith("score_coefficient")]


# ---------------------------------------------------------------------- noise


def test_max_std_schedule_moves_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of each rollout are those of the progress at its start, from the first one on, and again in a second run."""
    schedule, iterations = HoldCosineSchedule(0.5, 0.2, hold_fraction=0.25), 4
    model = make_model(max_std=schedule, min_std=0.1, noise="constant", learning_rate=0.0, critic_learning_rate=0.0)
    original, bounds, measured = model.train, [], []

    def train() -> None:
        bounds.append(model.policy.log_std_bounds.exp().tolist())
        chain = th.as_tensor(model.rollout_buffer.actions).view(-1, STEPS + 1, ACTION)
        obs = th.as_tensor(model.rollout_buffer.observations).view(-1, 2)
        mean = model.policy.evaluate_chain(obs, chain).mean.detach()
        measured.append(float((chain[:, 1:] - mean).std()))
        original()

    monkeypatch.setattr(model, "train", train)
    model.learn(iterations * SIZE)
    model.learn(iterations * SIZE)
    expected = 2 * [schedule(1 - i / iterations) for i in range(iterations)]
    np.testing.assert_allclose(bounds, [[0.1, value] for value in expected], rtol=1e-5)
    np.testing.assert_allclose(measured, expected, rtol=0.15)  # 256 deviates each: a standard error of 5%
    assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(schedule(0.0), rel=1e-5)


# ---------------------------------------------------------------------- entropy and clamped log-probabilities


def test_entropy_is_normalized_once() -> None:
    """Defect 3 of the official code, which divided by K + 1 twice. Closed form at a constant standard deviation."""
    model = make_model(noise="constant", max_std=0.3, ent_coef=0.5)
    collect(model)
    model.train()
    per_number = 0.5 * math.log(2 * math.pi * math.e)
    entropy = ((STEPS + 1) * ACTION * per_number + STEPS * ACTION * math.log(0.3)) / ((STEPS + 1) * ACTION)
    assert logs_of(model)["entropy_loss"] == pytest.approx(-entropy, rel=1e-5)


def test_entropy_bonus_raises_the_noise() -> None:
    raised, plain = make_model(ent_coef=1.0, n_epochs=20), make_model(ent_coef=0.0, n_epochs=20)
    for model in (raised, plain):
        collect(model)
        model.train()
    assert logs_of(raised)["std_step2_mean"] > 1.01 * logs_of(plain)["std_step2_mean"]


def test_log_prob_clip_is_logged_and_stops_gradients() -> None:
    """Defect 4 of the official code as an option: the fraction of samples that lose their gradient is visible."""
    model = make_model(log_prob_clip=0.5, ent_coef=0.0)
    collect(model)
    log_prob = model.rollout_buffer.log_probs.copy()
    model.train()
    fraction = (np.abs(log_prob) > 0.5).mean()
    assert 0 < fraction < 1
    assert logs_of(model)["log_prob_clip_fraction"] == pytest.approx(fraction, abs=1e-6)

    silent = make_model(log_prob_clip=1e-6, ent_coef=0.0)
    before = state_of(silent.policy)
    collect(silent)
    silent.train()
    assert logs_of(silent)["log_prob_clip_fraction"] == 1
    assert logs_of(silent)["grad_norm_velocity"] == logs_of(silent)["grad_norm_noise"] == 0
    assert rooms_of(moved_in(silent.policy, before)) == {"value_net"}

    free = make_model()
    collect(free)
    free.train()
    assert "log_prob_clip_fraction" not in logs_of(free)
    assert logs_of(free)["grad_norm_velocity"] > 0

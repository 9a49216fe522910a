"""The other noises and starts that ``benchmarks.exploration`` tries."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.exploration import CORRELATION, AnnealedPull, OtherPPO, choose_start
from sb3_scoreflow.common import flow
from tests.scoreflow_ppo.needle import Needle


def make(n_envs: int = 4, **arguments: Any) -> OtherPPO:
    env = make_vec_env(Needle, n_envs, seed=0, env_kwargs=dict(width=0.25))
    options = dict(n_steps=8, batch_size=16, n_epochs=1, policy_kwargs=dict(net_arch=[16]))
    return OtherPPO("FlowPolicy", env, **{**options, **arguments}, seed=0, device="cpu")


def test_correlated_noise_has_the_same_marginals() -> None:
    policy: Any = make().policy
    policy.correlation = CORRELATION
    draws = th.stack([policy._deviates(th.Size((5000, 2)), dtype=th.float32, device=th.device("cpu")) for _ in range(4)])
    flat = draws.flatten(1).numpy()
    assert np.abs(flat).max() <= 3
    np.testing.assert_allclose(flat.std(1), 0.98658, rtol=0.03)  # SciPy's truncnorm(-3, 3).std()
    for lag in (1, 2, 3):
        assert np.corrcoef(flat[0], flat[lag])[0, 1] == pytest.approx(CORRELATION**lag, abs=0.03)


def test_noise_of_each_dimension() -> None:
    """The spread of the chains' points and their density both have the factor"""
    policy: Any = make(noise="constant", min_std=0.2, max_std=0.2).policy
    policy.dimension_factors = th.tensor([0.25, 2.0])
    obs = th.zeros(4000, 1)
    with th.no_grad():
        records, _, log_prob = policy(obs)
        chain, _ = policy.split_record(records)
        evaluation = policy.evaluate_chain(obs, chain)
    spread = (chain[:, 1:] - evaluation.mean).std(dim=(0, 1)).numpy()
    np.testing.assert_allclose(spread, 0.98658 * np.array([0.05, 0.4]), rtol=0.02)
    assert th.allclose(log_prob, evaluation.log_prob, atol=1e-5)


def test_another_start_of_deterministic_actions() -> None:
    """The action is the end of the chain of means from the start"""
    model = make(score_drift="none")
    policy: Any = model.policy
    policy.start = th.tensor([0.7, -0.3])
    obs = th.rand(3, 1)
    x = policy.start.repeat(3, 1)
    features = policy.extract_features(obs)
    with th.no_grad():
        for k, t in enumerate(flow.time_grid(4)):
            time = policy.velocity_field.time_features(flow.time_grid(4)).at(th.tensor([k]))
            assert float(t) == k / 4
            x = (x + policy.velocity_field(x, time, policy.velocity_field.condition(features)) / 4).clamp(-1, 1)
    np.testing.assert_allclose(model.predict(obs.numpy(), deterministic=True)[0], policy.unscale_action(x.numpy()), atol=1e-5)


def test_the_best_start_is_chosen_and_tried_in_other_episodes() -> None:
    model = make()
    found = choose_start(model, make_vec_env(Needle, 4, env_kwargs=dict(width=0.25)), seed=0)
    assert len(found["tried"]) == 16 and model.policy.start is None
    assert max(found["tried"]) > min(found["tried"]), "the start matters to an untrained policy"
    assert found["chosen"] >= found["zero"]


def test_the_pull_ends_at_zero() -> None:
    model = make(bc_coef=10.0)
    seen = []

    class Pull(AnnealedPull):
        def _on_step(self) -> bool:
            proceeds = super()._on_step()
            seen.append(model.bc_coef)
            return proceeds

    model.learn(128, callback=Pull(10.0, 128))
    np.testing.assert_allclose(seen, [10 * (1 - 4 * (i + 1) / 128) for i in range(32)])


def test_the_score_does_not_follow_the_noise() -> None:
    """Neither its scale, nor the factors of a trial"""
    policy: Any = make(score_drift="constant", noise="constant", max_std=0.1).policy
    t = flow.time_grid(4)
    policy.set_noise(0.05, 0.05, 0.5)
    alpha = (1 - t) * np.log1p(np.exp(-2))
    np.testing.assert_allclose(policy.score_coefficient(t), alpha, rtol=1e-5)
    features, x = policy.extract_features(th.rand(2, 1)), th.tensor([[0.9, -0.4]]).repeat(2, 1)
    with th.no_grad():
        _, means, std = policy._sample_chain(features, x, 4, None, False, th.tensor([1.0, 0.5]))
        time = policy.velocity_field.time_features(t).at(th.tensor([0]))
        velocity = policy.velocity_field(x, time, policy.velocity_field.condition(features))
    expected = (x + (velocity - alpha[0] * x) / 4).clamp(-1, 1)  # at t = 0, the score is -x
    th.testing.assert_close(means[:, 0], expected)
    np.testing.assert_allclose(std[:, 0, 0], [0.025, 0.0125], rtol=1e-5)

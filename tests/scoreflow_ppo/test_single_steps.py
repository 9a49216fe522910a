"""``single_step_fraction``: how such chains are drawn and scored, and what their records hold."""

from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats

from sb3_scoreflow import Demonstrations, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.scoreflow_ppo.policies import Noise, ScoreDrift, ScoReFlowPolicy
from sb3_scoreflow.scoreflow_ppo.transition import transition_mean
from tests.ppo.helpers import SIZE, collect, logs_of, make_model, perturb
from tests.scoreflow_ppo.helpers import ACTION, IMAGE, MIXED, STEPS, make_obs, make_policy

WIDTH = (STEPS + 1) * ACTION


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def mixed_policy(*args: object, **kwargs: object) -> ScoReFlowPolicy:
    return make_policy(*args, **{"single_step_fraction": 0.6, **kwargs})  # type: ignore[arg-type]


def test_one_step_of_single_step_chains_leaves_its_mean() -> None:
    """
    Which one is drawn uniformly; all steps of the others do. Deviates are truncated normal, starts 0 or normal. The rows are
    the same in each call: an environment keeps its kind.
    """
    policy, n = mixed_policy(zero_start_fraction=0.3), 8000
    obs = make_obs(n)
    with th.no_grad():
        records, _, _ = policy(obs)
        chain, step = policy.split_record(records)
        every = policy.evaluate_chain(obs, chain)  # all transitions, by the code for full chains
    assert step is not None and records.shape == (n, WIDTH + 1)
    single = (step >= 0).numpy()
    deviates = ((chain[:, 1:] - every.mean) / every.std).double().numpy()
    noisy = np.abs(deviates).max(2) > 1e-3
    np.testing.assert_array_equal(noisy[single], np.eye(STEPS, dtype=bool)[step[single]])
    assert noisy[~single].all()
    np.testing.assert_array_equal(single, np.arange(n) < 4800)
    assert stats.chisquare(np.bincount(step[single], minlength=STEPS)).pvalue > 0.01
    drawn = deviates[single, step[single]]
    assert stats.kstest(drawn.ravel(), stats.truncnorm(-3, 3).cdf).pvalue > 0.01
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(ACTION), atol=0.06)
    zero = (chain[:, 0] == 0).all(1).numpy()
    assert not zero[~single].any() and stats.binomtest(zero[single].sum(), single.sum(), 0.3).pvalue > 0.01
    assert stats.kstest(chain[:, 0][~th.as_tensor(zero)].double().numpy().ravel(), "norm").pvalue > 0.01


def test_shares_are_rounded_at_random() -> None:
    """A single environment is of both kinds, and five have 2.5 of one on average."""
    policy = make_policy(single_step_fraction=0.5)
    for n, possible in ((1, {0, 1}), (5, {2, 3})):
        counts = []
        for _ in range(400):
            _, step = policy._single_steps(th.randn(n, ACTION))
            assert step is not None
            counts.append(int((step >= 0).sum()))
        assert set(counts) == possible
        assert stats.binomtest(sum(np.array(counts) == max(possible)), 400, 0.5).pvalue > 0.01


def test_exploring_predict_spreads_as_rollouts_do() -> None:
    """By ``predict`` and by ``forward``; the less, the more chains have a single noisy step."""
    obs = np.zeros((20_000, 5), dtype=np.float32)
    spread = {}
    for fraction in (0.0, 0.5, 1.0):
        policy = make_policy(single_step_fraction=fraction, perturb=False)
        with th.no_grad():
            forward = policy(th.as_tensor(obs))[0][:, -ACTION:].clamp(-1, 1).std(0)
        predicted = policy.predict(obs)[0].std(0)
        np.testing.assert_allclose(predicted, forward, rtol=0.05)
        spread[fraction] = float(predicted.mean())
    assert spread[1.0] < 0.9 * spread[0.5] < 0.81 * spread[0.0]


@pytest.mark.parametrize(
    ("score_drift", "noise"),
    [pair for pair in product(get_args(ScoreDrift), get_args(Noise)) if pair != ("none", "score_matched")],  # refused
)
def test_log_prob_and_entropy_are_those_of_what_was_noisy(score_drift: str, noise: str) -> None:
    """SciPy's normal density per dimension and number drawn, with means from the public pieces, in float64."""
    policy, n = mixed_policy(score_drift=score_drift, noise=noise), 12
    obs = make_obs(n)
    assert isinstance(obs, th.Tensor)
    with th.no_grad():
        records, values, log_prob = policy(obs)
        policy.double()
        chain, step = policy.split_record(records.double())
        evaluation = policy.evaluate_chain(obs, chain, step)
        every = policy.evaluate_chain(obs, chain)
        assert step is not None and {-1} < set(step.tolist())  # both kinds
        for row, single in enumerate(step.tolist()):
            full = single == -1
            density = [stats.norm.logpdf(chain[row, 0])] if full else []
            entropy = [np.full(ACTION, stats.norm.entropy())] if full else []
            for k in range(STEPS) if full else [single]:
                t, x = th.tensor([k / STEPS], dtype=th.float64), chain[row : row + 1, k]
                velocity = policy.velocity(obs[row : row + 1], x, t)
                mean = transition_mean(x, velocity, t, policy.score_coefficient(t), STEPS, policy.score_clip)
                normal = stats.norm(mean[0], every.std[row, k])
                density.append(normal.logpdf(chain[row, k + 1]))
                entropy.append(normal.entropy())
            assert evaluation.log_prob[row].item() == pytest.approx(np.mean(density), rel=1e-10)
            assert log_prob[row].item() == pytest.approx(np.mean(density), rel=1e-4)
            assert evaluation.entropy[row].item() == pytest.approx(np.mean(entropy), rel=1e-10)
    th.testing.assert_close(evaluation.values, values.flatten().double(), rtol=1e-4, atol=1e-5)
    scored = policy.evaluate_actions(obs, records.double())
    for part, whole in zip(scored, (evaluation.values.unsqueeze(1), *evaluation[1:3]), strict=True):
        th.testing.assert_close(part, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("space", [IMAGE, MIXED], ids=["image", "dict"])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_images_dicts_and_chunks_are_scored_as_sampled(space: spaces.Space, steps: int) -> None:
    policy = mixed_policy(space, spaces.Box(-2, 1, (4, 3)), denoising_steps=steps)
    obs = make_obs(8, space)
    with th.no_grad():
        records, _, log_prob = policy(obs)
        evaluation = policy.evaluate_actions(obs, records)
    th.testing.assert_close(evaluation[1], log_prob, rtol=1e-5, atol=1e-6)
    assert log_prob.std() > 1e-3


@pytest.mark.parametrize(("fraction", "transitions"), [(1.0, 6), (0.0, 6 * STEPS)])
def test_a_minibatch_costs_the_transitions_that_were_noisy(fraction: float, transitions: int) -> None:
    policy, rows = mixed_policy(single_step_fraction=fraction), []
    records = policy(make_obs(6))[0]
    policy.velocity_field.register_forward_hook(lambda module, args, output: rows.append(output.numel() // ACTION))
    policy.evaluate_actions(make_obs(6), records)
    assert rows == [transitions]


def test_deterministic_forward_draws_nothing_and_is_scored_as_a_full_chain() -> None:
    policy, obs = mixed_policy(), make_obs(10)
    full = ScoReFlowPolicy(**{**policy._get_constructor_parameters(), "single_step_fraction": 0.0})
    full.load_state_dict(policy.state_dict())
    state = th.random.get_rng_state()
    with th.no_grad():
        records, _, log_prob = policy(obs, deterministic=True)
        expected, _, expected_log_prob = full.eval()(obs, deterministic=True)
    assert th.equal(th.random.get_rng_state(), state)
    assert (records[:, 0] == -1).all()
    th.testing.assert_close(records[:, 1:], expected, rtol=0, atol=0)
    th.testing.assert_close(log_prob, expected_log_prob)
    th.testing.assert_close(policy.evaluate_actions(obs, records)[1], log_prob)


@pytest.mark.parametrize("width", [ACTION, WIDTH - 1, WIDTH + 2])
def test_what_is_no_record_is_refused(width: int) -> None:
    policy = mixed_policy()
    with pytest.raises(ValueError, match=r"records = policy\(obs\)\[0\]"):
        policy.evaluate_actions(make_obs(2), th.zeros(2, width))
    policy.evaluate_actions(make_obs(2), policy(make_obs(2))[0])  # the remedy


# ---------------------------------------------------------------------- the algorithm


def clone(model: ScoReFlowPPO) -> ScoReFlowPPO:
    rng = np.random.default_rng(0)
    observations, actions = rng.uniform(-1, 1, (2, 64, 2)).astype(np.float32)
    demonstrations = Demonstrations(observations, actions, rewards=np.ones(64), terminations=np.arange(64) % 8 == 7)
    pretrain_bc(model, demonstrations, n_batches=3, batch_size=16, seed=0)
    return model


def shares(model: ScoReFlowPPO) -> tuple[float, float, int]:
    """What the argument, the policy and the buffer say."""
    return model.single_step_fraction, model.policy.single_step_fraction, model.rollout_buffer.action_dim


FULL, HALF = (0.0, 0.0, 10), (0.5, 0.5, 11)  # (K + 1) * 2 numbers, and the step


def test_the_fraction_is_kept_in_files(tmp_path: Path) -> None:
    model = make_model(single_step_fraction=0.5)
    assert shares(model) == HALF
    clone(model).learn(SIZE)
    assert shares(model) == HALF
    model.save(tmp_path / "model.zip")
    loaded = ScoReFlowPPO.load(tmp_path / "model.zip", model.get_env())
    assert shares(loaded) == HALF
    loaded.learn(SIZE, reset_num_timesteps=False)
    model.policy.save(str(tmp_path / "policy.zip"))
    assert ScoReFlowPolicy.load(str(tmp_path / "policy.zip")).single_step_fraction == 0.5
    assert shares(make_model()) == FULL


@pytest.mark.parametrize(("given", "other"), [(0.0, 1.0), (1.0, 0.0)])
def test_who_gives_the_fraction_is_obeyed(given: float, other: float) -> None:
    model = make_model(single_step_fraction=given)
    for fraction in (given, given, other):
        model.single_step_fraction = fraction  # as a callback may
        model.learn(SIZE)
        assert shares(model) == (fraction, fraction, 11 if fraction else 10)
        clone(model)


@pytest.mark.parametrize("score_drift", get_args(ScoreDrift))
def test_first_ratio_is_one_and_later_ones_move(score_drift: str) -> None:
    model = make_model(single_step_fraction=0.5, score_drift=score_drift)
    collect(model)
    model.train()
    assert logs_of(model)["ratio_min"] == pytest.approx(1, abs=2e-6)
    assert logs_of(model)["ratio_max"] == pytest.approx(1, abs=2e-6)
    collect(model)
    perturb(model)
    model.train()
    assert logs_of(model)["ratio_std"] > 1e-2
    assert {f"std_step{k}_mean" for k in range(STEPS)} <= set(logs_of(model))
    model.single_step_fraction = 1.0
    collect(model)
    steps = set(model.rollout_buffer.actions[:, :, 0].astype(int).ravel())
    model.train()
    logged = {name for name in logs_of(model) if name.startswith("std_step")}
    assert logged == {f"std_step{k}_{number}" for k in steps for number in ("mean", "min", "max")}

"""``stochastic_steps="one"``: how chains are drawn and scored, what their records hold, and when it is the default."""

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


def one_step_policy(*args: object, **kwargs: object) -> ScoReFlowPolicy:
    return make_policy(*args, stochastic_steps="one", **kwargs)  # type: ignore[arg-type]


def test_one_step_of_each_chain_leaves_its_mean() -> None:
    """Which one is drawn uniformly; its deviate is a truncated normal of its own standard deviation."""
    policy, n = one_step_policy(), 8000
    obs = make_obs(n)
    with th.no_grad():
        records, _, _ = policy(obs)
        chain, step = policy.split_record(records)
        every = policy.evaluate_chain(obs, chain)  # all transitions, by the code for all
    assert step is not None and records.shape == (n, WIDTH + 1)
    deviates = ((chain[:, 1:] - every.mean) / every.std).double().numpy()
    noisy = np.abs(deviates).max(2) > 1e-3
    np.testing.assert_array_equal(noisy, np.eye(STEPS, dtype=bool)[step])
    assert stats.chisquare(np.bincount(step, minlength=STEPS)).pvalue > 0.01
    drawn = deviates[np.arange(n), step]
    assert stats.kstest(drawn.ravel(), stats.truncnorm(-3, 3).cdf).pvalue > 0.01
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(ACTION), atol=0.06)
    assert stats.kstest(chain[:, 0].double().numpy().ravel(), "norm").pvalue > 0.01


def test_exploring_predict_spreads_as_rollouts_do() -> None:
    """By ``predict`` and by ``forward``, less than with noise in all steps."""
    obs = np.zeros((20_000, 5), dtype=np.float32)
    spread = {}
    for mode in ("one", "all"):
        policy = make_policy(stochastic_steps=mode, perturb=False)
        with th.no_grad():
            forward = policy(th.as_tensor(obs))[0][:, -ACTION:].clamp(-1, 1).std(0)
        predicted = policy.predict(obs)[0].std(0)
        np.testing.assert_allclose(predicted, forward, rtol=0.05)
        spread[mode] = float(predicted.mean())
    assert spread["one"] < 0.9 * spread["all"]


@pytest.mark.parametrize(
    ("score_drift", "noise"),
    [pair for pair in product(get_args(ScoreDrift), get_args(Noise)) if pair != ("none", "score_matched")],  # refused
)
def test_log_prob_and_entropy_are_those_of_the_one_transition(score_drift: str, noise: str) -> None:
    """SciPy's normal density of the step that was noisy, per dimension, with means from the public pieces, in float64."""
    policy, n = one_step_policy(score_drift=score_drift, noise=noise), 12
    obs = make_obs(n)
    assert isinstance(obs, th.Tensor)
    with th.no_grad():
        records, values, log_prob = policy(obs)
        policy.double()
        chain, step = policy.split_record(records.double())
        evaluation = policy.evaluate_chain(obs, chain, step)
        every = policy.evaluate_chain(obs, chain)
        assert step is not None
        for row, k in enumerate(step.tolist()):
            t, x = th.tensor([k / STEPS], dtype=th.float64), chain[row : row + 1, k]
            velocity = policy.velocity(obs[row : row + 1], x, t)
            mean = transition_mean(x, velocity, t, policy.score_coefficient(t), STEPS, policy.score_clip)
            density = stats.norm(mean, every.std[row, k])
            expected = density.logpdf(chain[row, k + 1]).mean()
            assert evaluation.log_prob[row].item() == pytest.approx(expected, rel=1e-10)
            assert log_prob[row].item() == pytest.approx(expected, rel=1e-4)
            assert evaluation.entropy[row].item() == pytest.approx(density.entropy().mean(), rel=1e-10)
    th.testing.assert_close(evaluation.values, values.flatten().double(), rtol=1e-4, atol=1e-5)
    scored = policy.evaluate_actions(obs, records.double())
    for part, whole in zip(scored, (evaluation.values.unsqueeze(1), *evaluation[1:3]), strict=True):
        th.testing.assert_close(part, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("space", [IMAGE, MIXED], ids=["image", "dict"])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_images_dicts_and_chunks_are_scored_as_sampled(space: spaces.Space, steps: int) -> None:
    policy = one_step_policy(space, spaces.Box(-2, 1, (4, 3)), denoising_steps=steps)
    obs = make_obs(8, space)
    with th.no_grad():
        records, _, log_prob = policy(obs)
        evaluation = policy.evaluate_actions(obs, records)
    th.testing.assert_close(evaluation[1], log_prob, rtol=1e-5, atol=1e-6)
    assert log_prob.std() > 1e-3


def test_a_minibatch_needs_one_transition_per_chain() -> None:
    policy, shapes = one_step_policy(), []
    policy.velocity_field.output_layer.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    policy.evaluate_actions(make_obs(6), policy(make_obs(6))[0])
    assert shapes[-1] == (6, 1, ACTION)


def test_deterministic_forward_draws_nothing_and_scores_the_first_step() -> None:
    policy, obs = one_step_policy(), make_obs(10)
    state = th.random.get_rng_state()
    with th.no_grad():
        records, _, log_prob = policy(obs, deterministic=True)
    assert th.equal(th.random.get_rng_state(), state)
    assert records[:, : ACTION + 1].abs().max() == 0  # the step, and x_0
    th.testing.assert_close(records[:, -ACTION:], make_all(policy)(obs, deterministic=True)[0][:, -ACTION:])
    std = policy.evaluate_chain(obs, *policy.split_record(records)).std[:, 0]
    expected = (-0.5 * np.log(2 * np.pi) - std.log()).mean(1)  # the density's top: nothing deviates
    th.testing.assert_close(log_prob, expected.detach(), rtol=1e-5, atol=1e-5)


def make_all(policy: ScoReFlowPolicy) -> ScoReFlowPolicy:
    """The same policy with noise in all steps."""
    other = ScoReFlowPolicy(**{**policy._get_constructor_parameters(), "stochastic_steps": "all"})
    other.load_state_dict(policy.state_dict())
    return other.eval()


@pytest.mark.parametrize("width", [ACTION, WIDTH - 1, WIDTH + 2])
def test_what_is_no_record_is_refused(width: int) -> None:
    policy = one_step_policy()
    with pytest.raises(ValueError, match=r"records = policy\(obs\)\[0\]"):
        policy.evaluate_actions(make_obs(2), th.zeros(2, width))
    policy.evaluate_actions(make_obs(2), policy(make_obs(2))[0])  # the remedy


# ---------------------------------------------------------------------- the algorithm


def clone(model: ScoReFlowPPO) -> ScoReFlowPPO:
    rng = np.random.default_rng(0)
    rewards, ends = np.ones(64), np.arange(64) % 8 == 7
    arrays = [rng.uniform(-1, 1, (64, 2)).astype(np.float32) for _ in range(2)]
    demonstrations = Demonstrations(arrays[0], arrays[1], rewards=rewards, terminations=ends)
    pretrain_bc(model, demonstrations, n_batches=3, batch_size=16, seed=0)
    return model


def mode_of(model: ScoReFlowPPO) -> tuple[str | None, str, int]:
    """What the argument, the policy and the buffer say."""
    return model.stochastic_steps, model.policy.stochastic_steps, model.rollout_buffer.action_dim


ALL, ONE = ("all", "all", 10), ("one", "one", 11)  # (K + 1) * 2 numbers, and the step


def test_a_clone_has_one_stochastic_step_by_default(tmp_path: Path) -> None:
    model = make_model()
    assert mode_of(model) == ALL
    model.learn(SIZE)
    assert mode_of(clone(model))[:2] == ONE[:2]
    model.learn(SIZE)
    assert mode_of(model) == ONE
    model.save(tmp_path / "model.zip")
    loaded = ScoReFlowPPO.load(tmp_path / "model.zip", model.get_env())
    assert mode_of(loaded)[:2] == ONE[:2]
    loaded.learn(SIZE, reset_num_timesteps=False)
    assert mode_of(loaded) == ONE
    model.policy.save(str(tmp_path / "policy.zip"))
    assert ScoReFlowPolicy.load(str(tmp_path / "policy.zip")).stochastic_steps == "one"
    fresh = make_model()
    fresh.set_parameters(model.get_parameters())
    assert mode_of(fresh)[:2] == ONE[:2]


@pytest.mark.parametrize(("given", "expected"), [("all", ALL), ("one", ONE)])
def test_who_gives_it_is_obeyed(given: str, expected: tuple[str, str, int]) -> None:
    model = make_model(stochastic_steps=given)
    model.learn(SIZE)
    assert mode_of(model) == expected
    clone(model).learn(SIZE)
    assert mode_of(model) == expected
    model.stochastic_steps = "all" if given == "one" else "one"  # as a callback may
    model.learn(SIZE)
    assert mode_of(model) == (ALL if given == "one" else ONE)


@pytest.mark.parametrize("score_drift", get_args(ScoreDrift))
def test_first_ratio_is_one_and_later_ones_move(score_drift: str) -> None:
    model = make_model(stochastic_steps="one", score_drift=score_drift)
    collect(model)
    model.train()
    assert logs_of(model)["ratio_min"] == pytest.approx(1, abs=2e-6)
    assert logs_of(model)["ratio_max"] == pytest.approx(1, abs=2e-6)
    collect(model)
    perturb(model)
    model.train()
    assert logs_of(model)["ratio_std"] > 1e-2
    steps = {k for k in range(STEPS) if f"std_step{k}_mean" in logs_of(model)}
    assert steps == set(model.rollout_buffer.actions[:, 0].astype(int))

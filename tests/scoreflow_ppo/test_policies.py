"""ScoReFlowPolicy: sampling and scoring of chains, what is computed how often, parameter groups, bounds of the noise."""

from collections import Counter
from collections.abc import Callable
from itertools import chain as concatenated
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from torch import nn

from sb3_scoreflow.scoreflow_ppo.policies import Noise, ScoreDrift, ScoReFlowPolicy
from sb3_scoreflow.scoreflow_ppo.transition import chain_entropy, chain_log_prob, transition_mean
from tests.scoreflow_ppo.helpers import ACTION, IMAGE, MIXED, STEPS, VECTOR, make_obs, make_policy

Count = Callable[[nn.Module], Counter]


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


@pytest.fixture(name="count_calls")
def _count_calls() -> Count:
    def count(policy: nn.Module) -> Counter:
        calls: Counter = Counter()
        for name, module in policy.named_children():
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        return calls

    return count


# ---------------------------------------------------------------------- sampling


def test_chain_is_reproduced_by_its_means_and_deviations() -> None:
    """Every move is mean + std z with z a truncated normal, and the mean is that of the point it left from."""
    policy, n = make_policy(), 5000
    with th.no_grad():
        features = policy.extract_features(make_obs(n))
        chain, mean, std = policy._sample_chain(features, th.randn(n, ACTION), STEPS)
    assert std is not None
    z = ((chain[:, 1:] - mean) / std).double().numpy()
    assert np.abs(z).max() <= 3 + 1e-4
    assert stats.kstest(z.ravel(), stats.truncnorm(-3, 3).cdf).pvalue > 0.01
    np.testing.assert_allclose(np.corrcoef(z.reshape(n, -1).T), np.eye(STEPS * ACTION), atol=0.06)
    assert std.min() >= 0.1 - 1e-6 and std.max() <= 0.24 + 1e-6 and std.std() > 0.01
    field, condition = policy.velocity_field, policy.velocity_field.condition(features)
    for k in range(STEPS):
        t = th.tensor(k / STEPS)
        alpha = policy.score_coefficient_net(t.unsqueeze(0))
        velocity = field(chain[:, k], field.time_features(t), condition)
        expected = transition_mean(chain[:, k], velocity, t, alpha, STEPS, policy.score_clip)
        th.testing.assert_close(mean[:, k], expected, rtol=1e-5, atol=1e-6)


def test_forward_starts_from_a_standard_normal_and_stores_unclamped_actions() -> None:
    policy, n = make_policy(min_std=0.5, max_std=1.0), 20_000
    with th.no_grad():
        actions, values, log_prob = policy(make_obs(n))
    assert actions.shape == (n, (STEPS + 1) * ACTION) and values.shape == (n, 1) and log_prob.shape == (n,)
    start = actions[:, :ACTION].double().numpy()
    assert stats.kstest(start.ravel(), "norm").pvalue > 0.01
    outside = (actions[:, -ACTION:].abs() > 1).float().mean()
    assert 0.05 < outside < 0.95  # with such noise many last points pass the bounds, and stay there in the chain


def test_deterministic_forward_follows_the_means_from_zero() -> None:
    policy = make_policy()
    obs = make_obs(10)
    assert isinstance(obs, th.Tensor)
    with th.no_grad():
        actions, values, log_prob = policy(obs, deterministic=True)
        chain = actions.view(10, STEPS + 1, ACTION)
        evaluation = policy.evaluate_chain(obs, chain)
        state = th.random.get_rng_state()
        again = policy(obs, deterministic=True)[0]
    assert th.equal(th.random.get_rng_state(), state)  # nothing was drawn
    th.testing.assert_close(actions, again, rtol=0, atol=0)
    assert chain[:, 0].abs().max() == 0
    th.testing.assert_close(chain[:, 1:], evaluation.mean, rtol=1e-5, atol=1e-6)
    th.testing.assert_close(log_prob, evaluation.log_prob, rtol=1e-6, atol=1e-6)
    th.testing.assert_close(values.flatten(), evaluation.values, rtol=1e-6, atol=1e-6)
    predicted, _ = policy.predict(obs.numpy(), deterministic=True)
    np.testing.assert_allclose(predicted, chain[:, -1], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- scoring


@pytest.mark.parametrize(
    ("score_drift", "noise"),
    [pair for pair in product(get_args(ScoreDrift), get_args(Noise)) if pair != ("none", "score_matched")],  # refused
)
def test_scoring_a_chain_gives_the_log_prob_it_was_sampled_with(score_drift: str, noise: str) -> None:
    """Defect 2 of the official code: one time grid for sampling and scoring, so PPO's first ratio is 1."""
    policy = make_policy(score_drift=score_drift, noise=noise)
    _assert_scored_as_sampled(policy, make_obs(64), 64)


@pytest.mark.parametrize("space", [IMAGE, MIXED], ids=["image", "dict"])
@pytest.mark.parametrize("share", [False, True])
def test_scoring_of_images_and_dicts(space: spaces.Space, share: bool) -> None:
    policy = make_policy(space, share_features_extractor=share)
    _assert_scored_as_sampled(policy, make_obs(8, space), 8)


def test_scoring_of_chunked_actions_and_one_step() -> None:
    _assert_scored_as_sampled(make_policy(action_space=spaces.Box(-2, 1, (4, 3))), make_obs(16), 16)
    _assert_scored_as_sampled(make_policy(denoising_steps=1), make_obs(16), 16)


def _assert_scored_as_sampled(policy: ScoReFlowPolicy, obs: th.Tensor | dict[str, th.Tensor], n: int) -> None:
    for training in (False, True):
        policy.set_training_mode(training)
        with th.no_grad():
            actions, values, log_prob = policy(obs)
            evaluation = policy.evaluate_chain(obs, actions.view(n, policy.denoising_steps + 1, policy.action_dim))
            evaluated = policy.evaluate_actions(obs, actions)
        th.testing.assert_close(evaluation.log_prob, log_prob, rtol=1e-6, atol=1e-6)
        th.testing.assert_close(evaluation.values, values.flatten(), rtol=1e-6, atol=1e-6)
        th.testing.assert_close(policy.predict_values(obs), values, rtol=1e-6, atol=1e-6)
        assert log_prob.std() > 1e-3  # not a constant
        assert evaluated[0].shape == (n, 1)
        for part, whole in zip(evaluated, (values, log_prob, evaluation.entropy), strict=True):
            th.testing.assert_close(part, whole, rtol=1e-6, atol=1e-6)


def test_evaluation_is_that_of_transition_functions_in_float64() -> None:
    """A loop over rows and steps with the public pieces of the policy."""
    policy = make_policy().double()
    obs, chain = make_obs(6), 0.7 * th.randn(6, STEPS + 1, ACTION, dtype=th.float64)
    assert isinstance(obs, th.Tensor)
    with th.no_grad():
        evaluation = policy.evaluate_chain(obs, chain)
        for row in range(6):
            means, stds = [], []
            for k in range(STEPS):
                t, x = th.tensor([k / STEPS], dtype=th.float64), chain[row : row + 1, k]
                velocity = policy.velocity(obs[row : row + 1], x, t)
                alpha = policy.score_coefficient(t)
                means.append(transition_mean(x, velocity, t, alpha, STEPS, policy.score_clip))
                embedding = policy.velocity_field.time_embedding(t)
                features = policy.extract_features(obs[row : row + 1])
                stds.append(policy.noise_net(features, embedding, policy.log_std_bounds))
            mean, std = th.stack(means, dim=1), th.stack(stds, dim=1)
            th.testing.assert_close(evaluation.mean[row : row + 1], mean, rtol=1e-11, atol=1e-11)
            th.testing.assert_close(evaluation.std[row : row + 1], std, rtol=1e-11, atol=1e-11)
            expected = chain_log_prob(chain[row : row + 1], mean, std)
            th.testing.assert_close(evaluation.log_prob[row : row + 1], expected, rtol=1e-11, atol=1e-11)
            th.testing.assert_close(evaluation.entropy[row : row + 1], chain_entropy(std), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_scoring_calls_every_network_once(count_calls: Count, space: spaces.Space) -> None:
    policy = make_policy(space)
    obs, chain = make_obs(6, space), th.randn(6, STEPS + 1, ACTION)
    calls = count_calls(policy)
    rows: list[int] = []
    policy.features_extractor.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    policy.evaluate_chain(obs, chain)
    expected = ("normalizer", "features_extractor", "velocity_field", "noise_net", "score_coefficient_net")
    assert calls == dict.fromkeys((*expected, "vf_features_extractor", "value_net"), 1)
    assert rows == [6]  # one row of features per observation, not per transition


def test_sampling_computes_features_once(count_calls: Count) -> None:
    policy = make_policy()
    calls = count_calls(policy)
    policy(make_obs(6))
    assert calls["features_extractor"] == calls["normalizer"] == calls["noise_net"] == calls["score_coefficient_net"] == 1
    assert calls["velocity_field"] == STEPS
    calls.clear()
    policy.predict_values(make_obs(6))
    assert calls == {"normalizer": 1, "vf_features_extractor": 1, "value_net": 1}


# ---------------------------------------------------------------------- parameters and state


@pytest.mark.parametrize("score_drift", ["learned", "none"])
@pytest.mark.parametrize("noise", ["learned", "constant"])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("space", [VECTOR, IMAGE, MIXED], ids=["vector", "image", "dict"])
def test_parameter_groups_are_a_partition(space: spaces.Space, share: bool, noise: str, score_drift: str) -> None:
    """Defect 1 of the official code: the score coefficient was in no optimizer."""
    policy = make_policy(space, share_features_extractor=share, noise=noise, score_drift=score_drift, perturb=False)
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    grouped = {group: [names[id(p)] for p in parameters] for group, parameters in policy.parameter_groups().items()}
    assert sorted(concatenated.from_iterable(grouped.values())) == sorted(names.values())
    prefixes = {group: {name.split(".")[0] for name in members} for group, members in grouped.items()}
    assert "velocity_field" in prefixes["velocity"] and "value_net" in prefixes["critic"]
    assert prefixes["velocity"] <= {"velocity_field", "features_extractor"}
    assert prefixes["critic"] <= {"value_net", "vf_features_extractor"}
    expected = {"noise_net"} if noise == "learned" else set()
    assert prefixes["noise"] == (expected | {"score_coefficient_net"} if score_drift == "learned" else expected)
    optimized = {group["name"]: [names[id(p)] for p in group["params"]] for group in policy.optimizer.param_groups}
    assert optimized == {group: members for group, members in grouped.items() if members}


def test_the_noise_travels_with_the_state_dict() -> None:
    first, second = (make_policy(noise="constant", min_std=0.1, max_std=max_std) for max_std in (0.2, 0.4))
    first.set_noise(0.3, 0.6, 0.5)
    np.testing.assert_allclose(first.state_dict()["log_std_bounds"], np.log([0.15, 0.3]), rtol=1e-6)
    assert first.state_dict()["log_noise_scale"] == pytest.approx(np.log(0.5))
    second.load_state_dict(first.state_dict())
    std = second.evaluate_chain(make_obs(2), th.randn(2, STEPS + 1, ACTION)).std
    np.testing.assert_allclose(std, 0.3, rtol=1e-6)
    assert th.equal(second.log_noise_scale, first.log_noise_scale)


def test_files_of_earlier_versions_act_as_before() -> None:
    """Their score did not follow the noise."""
    policy = make_policy(min_std=0.05, max_std=0.1)
    state = policy.state_dict()
    del state["log_noise_scale"]
    other = make_policy(noise_scale=0.5)
    part = {name: value for name, value in other.state_dict().items() if name.startswith("velocity_field")}
    other.load_state_dict(part, strict=False)
    assert other.log_noise_scale == pytest.approx(np.log(0.5)), "a part says nothing about the noise"
    other.load_state_dict(state)
    assert "log_noise_scale" not in state
    obs = np.random.default_rng(0).normal(size=(5, *policy.observation_space.shape)).astype(np.float32)  # type: ignore[misc]
    expected = policy.predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(other.predict(obs, deterministic=True)[0], expected)
    assert th.equal(other.log_std_bounds, policy.log_std_bounds)


@pytest.mark.parametrize("bounds", [(0.0, 0.1), (-0.1, 0.1), (0.3, 0.2)])
def test_impossible_std_bounds_are_refused(bounds: tuple[float, float]) -> None:
    policy = make_policy()
    before = policy.log_std_bounds.clone()
    with pytest.raises(ValueError, match=f"min_std={bounds[0]}, max_std={bounds[1]}"):
        policy.set_noise(*bounds)
    th.testing.assert_close(policy.log_std_bounds, before, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [0.0, -0.5, float("nan"), float("inf")])
def test_impossible_noise_scales_are_refused(scale: float) -> None:
    policy = make_policy()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with pytest.raises(ValueError, match=f"noise_scale must be positive, got {scale}: pass 1.0"):
        policy.set_noise(0.1, 0.2, scale)
    assert all(th.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_equal_std_bounds_are_possible() -> None:
    policy = make_policy(min_std=0.2, max_std=0.2)
    std = policy.evaluate_chain(make_obs(2), th.randn(2, STEPS + 1, ACTION)).std
    np.testing.assert_allclose(std.detach(), 0.2, rtol=1e-6)


def test_noise_net_takes_its_widths_from_net_arch() -> None:
    policy = make_policy(net_arch=dict(pi=[8], vf=[8], noise=[5, 3]))
    assert [layer.out_features for layer in policy.noise_net.net if isinstance(layer, th.nn.Linear)] == [
        5,
        3,
        policy.action_dim,
    ]

"""FPOPolicy: records, the losses of their pairs, what is computed how often, and what is refused."""

from collections import Counter

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from torch import nn

from sb3_scoreflow.fpo.policies import FPOPolicy
from sb3_scoreflow.fpo.records import Record, record_width, unflatten

OBS, ACTION, STEPS, PAIRS = 5, 3, 4, 6
LOW, HIGH = np.array([-1.0, 0.5, -3.0], np.float32), np.array([3.0, 0.75, -2.0], np.float32)


@pytest.fixture(autouse=True)
def _seed() -> None:
    th.manual_seed(0)


def _policy(**kwargs: object) -> FPOPolicy:
    """A policy whose networks, unlike fresh ones, all depend on their inputs."""
    arguments = dict(net_arch=[16, 16], denoising_steps=STEPS, n_mc_samples=PAIRS, prior_std=0.5) | kwargs
    space = spaces.Box(-np.inf, np.inf, (OBS,))
    policy = FPOPolicy(space, spaces.Box(LOW, HIGH), lambda _: 1e-3, **arguments)  # type: ignore[arg-type]
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * th.randn_like(parameter))
        policy.set_value_scale(3.0)
    return policy.eval()


# ---------------------------------------------------------------------- records


def test_records_are_laid_out_as_documented() -> None:
    parts = [th.randn(7, PAIRS), th.randn(7, PAIRS, ACTION), th.randn(7, PAIRS), th.randn(7, ACTION), th.randn(7, ACTION)]
    flat = Record(*parts).flatten()
    assert flat.shape == (7, record_width(PAIRS, ACTION)) == (7, PAIRS * (ACTION + 2) + 2 * ACTION)
    assert all(th.equal(part, again) for part, again in zip(parts, unflatten(flat, PAIRS, ACTION), strict=True))
    assert th.equal(flat[:, :PAIRS], parts[0]) and th.equal(flat[:, -ACTION:], parts[-1]), "times first, action last"


def test_action_of_a_record_is_what_the_environment_gets() -> None:
    policy = _policy(prior_std=1.5)
    records, *_ = policy(th.randn(200, OBS))
    action = policy.unflatten(records).action
    assert action.abs().max() == 1 and (action.abs() < 1).any(), "some have been clamped"
    expected = LOW + (action.numpy(force=True) + 1) / 2 * (HIGH - LOW)
    np.testing.assert_allclose(policy.unscale_action(records.numpy(force=True)), expected, rtol=1e-6)


def test_actions_are_the_odes_from_the_recorded_noise() -> None:
    policy, obs = _policy(), th.randn(50, OBS)
    with th.no_grad():
        record = policy.unflatten(policy(obs)[0])
        th.testing.assert_close(record.action, policy.sample_ode(obs, record.start))
        deterministic = policy.unflatten(policy(obs, deterministic=True)[0])
    assert th.equal(deterministic.start, th.zeros(50, ACTION))
    np.testing.assert_allclose(
        policy.unscale_action(deterministic.flatten().numpy()), policy.predict(obs.numpy(), deterministic=True)[0], atol=1e-5
    )


def test_distribution_of_pairs_and_starts() -> None:
    policy = _policy(n_mc_samples=50)
    record = policy.unflatten(policy(th.randn(100, OBS))[0].detach())
    assert stats.kstest(record.t.numpy().ravel(), "uniform").pvalue > 0.01
    assert stats.kstest(record.noise.numpy().ravel(), "norm").pvalue > 0.01
    assert stats.kstest(record.start.numpy().ravel(), "norm").pvalue > 0.01
    assert len(record.t.unique()) > 0.99 * record.t.numel(), "each pair has a time of its own"


def test_some_pairs_have_no_noise() -> None:
    policy, obs = _policy(n_mc_samples=50), th.randn(100, OBS)
    policy.zero_noise_fraction = 0.2
    record = policy.unflatten(policy(obs)[0].detach())
    is_zero = (record.noise == 0).all(-1)
    assert stats.binomtest(int(is_zero.sum()), is_zero.numel(), 0.2).pvalue > 0.01
    assert stats.kstest(record.noise[~is_zero].numpy().ravel(), "norm").pvalue > 0.01
    assert stats.ks_2samp(record.t[is_zero].numpy(), record.t[~is_zero].numpy()).pvalue > 0.01, "whatever their time is"
    assert (record.start != 0).all(), "they score actions from any start"


# ---------------------------------------------------------------------- losses


def _numpy_loss(policy: FPOPolicy, obs: np.ndarray, action: np.ndarray, noise: np.ndarray, t: float) -> float:
    """The loss of one pair, computed from the weights alone."""
    w = {name: value.double().numpy() for name, value in policy.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return w[f"velocity_field.{name}.weight"] @ x + w.get(f"velocity_field.{name}.bias", 0.0)

    x = (1 - t) * noise + t * action
    frequencies = 2.0 ** np.linspace(0, 6, 8)
    embedding = linear("time_embedding.1", np.concatenate([np.sin(t * frequencies), np.cos(t * frequencies)]))
    embedding = linear("time_embedding.3", embedding * np.tanh(np.log1p(np.exp(embedding))))
    # Without statistics an observation without bounds tells its signs alone.
    hidden = linear("action_layer", x) + linear("time_layer", embedding) + linear("features_layer", np.sign(obs))
    hidden = hidden + linear("hidden_layers.0", np.maximum(hidden, 0))
    prior = policy.velocity_field.prior_std**2
    slope = (t * prior - (1 - t)) / ((1 - t) ** 2 + t**2 * prior)
    velocity = linear("output_layer", np.maximum(hidden, 0)) + slope * x
    return float(np.mean((velocity - (action - noise)) ** 2))


def test_losses_are_those_of_plain_numpy() -> None:
    policy, obs = _policy().double(), th.randn(9, OBS)
    with th.no_grad():
        records, values, log_prob = policy(obs)
        record = policy.unflatten(records)
        again = policy.evaluate_actions(obs, records)
    losses = np.array(
        [
            [_numpy_loss(policy, o, a, e, s) for e, s in zip(noise, t, strict=True)]
            for o, a, noise, t in zip(*(x.numpy() for x in (obs, record.action, record.noise, record.t)), strict=True)
        ]
    )
    np.testing.assert_allclose(record.losses, losses, rtol=1e-6)  # frequencies are powers in float32
    np.testing.assert_allclose(log_prob, -losses.mean(1), rtol=1e-6)
    assert again[2] is None and th.equal(again[0], values)
    np.testing.assert_allclose(again[1], log_prob, rtol=1e-12)
    th.testing.assert_close(values.flatten(), policy.predict_values(obs).flatten())


def test_losses_scored_again_are_bit_identical_and_for_other_batches_equal() -> None:
    obs = th.randn(64, OBS)
    for policy, tolerance in ((_policy(), 1e-5), (_policy().double(), 1e-12)):
        with th.no_grad():
            record = policy.unflatten(policy(obs)[0])
            assert th.equal(policy.evaluate_records(obs, record).losses, record.losses)
            rows = th.randperm(64)[:7]
            part = policy.evaluate_records(obs[rows], Record(*(x[rows] for x in record)))
        th.testing.assert_close(part.losses, record.losses[rows], rtol=tolerance, atol=tolerance)


def test_networks_are_called_once_for_all_pairs() -> None:
    policy, calls = _policy(), Counter[str]()
    for name, module in policy.named_children():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    obs = th.randn(8, OBS)
    records = policy(obs)[0]
    expected = dict(normalizer=1, features_extractor=1, vf_features_extractor=1, value_net=1)
    assert calls == {**expected, "velocity_field": STEPS + 1}
    calls.clear()
    policy.evaluate_actions(obs, records)
    assert calls == {**expected, "velocity_field": 1}


# ---------------------------------------------------------------------- what is refused


def test_actions_without_pairs_are_refused() -> None:
    policy, obs = _policy(), th.randn(4, OBS)
    message = r"shape \(batch, n_mc_samples \* .*\) = \(batch, 36\), got \(4, 3\): a flow policy gives no probability"
    with pytest.raises(ValueError, match=message):
        policy.evaluate_actions(obs, th.zeros(4, ACTION))
    records = policy(obs)[0]  # the remedy
    assert policy.evaluate_actions(obs, records)[1].shape == (4,)


@pytest.mark.parametrize("value", [0, 2.0, True])
def test_impossible_numbers_of_pairs_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="n_mc_samples must be a whole number of at least 1, got"):
        _policy(n_mc_samples=value)


def test_parameter_groups_hold_every_parameter_once() -> None:
    policy = _policy(features_extractor_class=None)
    groups = {group["name"]: group["params"] for group in policy.optimizer.param_groups}
    assert groups.keys() == {"velocity", "critic"}
    ids = [id(parameter) for parameters in groups.values() for parameter in parameters]
    assert sorted(ids) == sorted(id(parameter) for parameter in policy.parameters())
    assert isinstance(policy.value_net, nn.Sequential)

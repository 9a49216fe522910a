"""ScoReFlowPPO's loss, re-derived in NumPy from the weights alone, and its gradient by finite differences."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBufferSamples
from torch import nn

from sb3_scoreflow import ScoReFlowPPO
from sb3_scoreflow.common.update_log import UpdateLog
from tests.ppo.helpers import ACTION, SIZE, STEPS, collect, logs_of, make_model, perturb


def _numpy_evaluation(model: ScoReFlowPPO, obs: np.ndarray, records: np.ndarray) -> dict[str, np.ndarray]:
    """
    Values, log-probabilities and entropies from the weights alone (method, section 1), one row and step at a time; of records
    that tell a single stochastic step, that step's alone.
    """
    chain = records[:, -(STEPS + 1) * ACTION :].reshape(len(records), STEPS + 1, ACTION)
    steps = records[:, 0].astype(int) if records.shape[1] > (STEPS + 1) * ACTION else np.full(len(records), -1)
    policy = model.policy
    w = {name: value.double().numpy() for name, value in policy.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    def mish(x: np.ndarray) -> np.ndarray:
        return x * np.tanh(np.log1p(np.exp(x)))

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    frequencies = dict(policy.velocity_field.named_buffers())["time_embedding.0.frequencies"].double().numpy()
    np.testing.assert_allclose(frequencies, 2.0 ** np.linspace(0, 6, 8), rtol=1e-6)  # float32 powers
    variance = w["normalizer.var_0"]
    features = np.clip((obs - w["normalizer.mean_0"]) / np.sqrt(variance), -10, 10)
    log_bounds = w["log_std_bounds"]
    values, log_probs, entropies = [], [], []
    for s, points, step in zip(features, chain, steps, strict=True):
        single = step >= 0
        hidden = mish(linear("value_net.2", mish(linear("value_net.0", s))))
        values.append((linear("value_net.4", hidden) * w["value_scale"])[0])
        log_prob = 0.0 if single else np.sum(-0.5 * points[0] ** 2 - 0.5 * np.log(2 * np.pi))
        entropy = 0.0 if single else ACTION * 0.5 * np.log(2 * np.pi * np.e)
        for k in [step] if single else range(STEPS):
            t, x, dt = k / STEPS, points[k], 1 / STEPS
            embedding = np.concatenate([np.sin(t * frequencies), np.cos(t * frequencies)])
            embedding = linear("velocity_field.time_embedding.3", mish(linear("velocity_field.time_embedding.1", embedding)))
            inputs = [("action_layer", x), ("time_layer", embedding), ("features_layer", s)]
            hidden = sum((linear(f"velocity_field.{name}", part) for name, part in inputs), np.zeros(16))
            hidden = hidden + linear("velocity_field.hidden_layers.0", mish(hidden))
            prior = policy.velocity_field.prior_std**2
            slope = (t * prior - (1 - t)) / ((1 - t) ** 2 + t**2 * prior)
            v = linear("velocity_field.output_layer", mish(hidden)) + slope * x
            g = linear("score_coefficient_net.net.2", silu(linear("score_coefficient_net.net.0", np.array([t]))))
            g = linear("score_coefficient_net.net.4", silu(g))[0]
            alpha = min((1 - t) * np.log1p(np.exp(g)) * model.policy.score_scale, 2 * model.policy.score_scale)
            score = np.clip((t * v - x) / (1 - t), -model.policy.score_clip, model.policy.score_clip)
            mean = np.clip(x + (v + alpha * score) * dt, -1, 1)
            hidden = np.tanh(linear("noise_net.net.0", np.concatenate([s, embedding])))
            hidden = linear("noise_net.net.4", np.tanh(linear("noise_net.net.2", hidden)))
            std = np.exp(0.5 * np.interp(np.tanh(hidden), [-1, 1], 2 * log_bounds))
            log_prob += np.sum(-0.5 * ((points[k + 1] - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi))
            entropy += np.sum(0.5 * np.log(2 * np.pi * np.e * std**2))
        log_probs.append(log_prob / (ACTION if single else (STEPS + 1) * ACTION))
        entropies.append(entropy / (ACTION if single else (STEPS + 1) * ACTION))
    return dict(values=np.array(values), log_prob=np.array(log_probs), entropy=np.array(entropies))


def _double_batch(model: ScoReFlowPPO) -> RolloutBufferSamples:
    """The rollout as one minibatch, in float64."""
    (batch,) = model.rollout_buffer.get(SIZE)
    return RolloutBufferSamples(*(part.double() for part in batch))


def _numpy_losses(model: ScoReFlowPPO, batch: RolloutBufferSamples, clip_range: float) -> dict[str, float]:
    """The terms of the loss, before their coefficients."""
    parts = {name: part.numpy() for name, part in batch._asdict().items()}
    evaluation = _numpy_evaluation(model, parts["observations"], parts["actions"].reshape(SIZE, -1))
    advantages = parts["advantages"]
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8 * np.abs(advantages).max())
    ratio = np.exp(evaluation["log_prob"] - parts["old_log_prob"])
    surrogate = np.minimum(advantages * ratio, advantages * np.clip(ratio, 1 - clip_range, 1 + clip_range))
    values, scale = evaluation["values"], float(model.policy.value_scale)
    if model.clip_range_vf is not None:
        bound = model.clip_range_vf(1.0) * scale  # type: ignore[operator]
        values = parts["old_values"] + np.clip(values - parts["old_values"], -bound, bound)
    return dict(
        policy_gradient_loss=float(-surrogate.mean()),
        entropy_loss=float(-evaluation["entropy"].mean()),
        value_loss=float(np.square((parts["returns"] - values) / scale).mean()),
        clip_fraction=float((np.abs(ratio - 1) > clip_range).mean()),
        ratio_mean=float(ratio.mean()),
        ratio_std=float(ratio.std()),
        ratio_min=float(ratio.min()),
        ratio_max=float(ratio.max()),
        approx_kl=float((ratio - 1 - np.log(ratio)).mean()),
    )


def _prepared(**kwargs: Any) -> ScoReFlowPPO:
    """A model after some training and a rollout, whose policy has since moved; its activations are smooth."""
    policy_kwargs = dict(activation_fn=nn.Mish) | kwargs.pop("policy_kwargs", {})
    model = make_model(clip_range=0.02, ent_coef=0.03, vf_coef=0.7, policy_kwargs=policy_kwargs, **kwargs)
    model.learn(2 * SIZE)
    collect(model)
    perturb(model)
    return model


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        dict(single_step_fraction=0.5),
        dict(clip_range_vf=0.05),
        dict(normalize_advantage=False),
        dict(policy_kwargs=dict(score_clip=0.5)),
    ],
)
def test_loss_against_numpy(kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every term of the loss, and their sum as ``train`` logs it; then the same in float64 to 1e-10."""
    model = _prepared(**kwargs)
    model.policy.set_value_scale(model.return_statistics.scale)
    batch = _double_batch(model)
    expected = _numpy_losses(model, batch, 0.02)
    assert 0.1 < expected["clip_fraction"] < 0.9  # both sides of the clip are tested
    total = expected["policy_gradient_loss"] + 0.03 * expected["entropy_loss"] + 0.7 * expected["value_loss"]

    double = copy.deepcopy(model.policy).double()
    evaluation = double.evaluate_chain(batch.observations, *double.split_record(batch.actions))
    log = UpdateLog()
    with monkeypatch.context() as patch:
        patch.setattr(model, "policy", double)
        terms = dict(
            policy_gradient_loss=model._policy_loss(evaluation, batch, 0.02, log),
            entropy_loss=-evaluation.entropy.mean(),
            value_loss=model._value_loss(evaluation.values, batch, log),
        )
    for name, term in terms.items():
        assert term.item() == pytest.approx(expected[name], rel=1e-10, abs=1e-12), name

    model.train()
    for name, value in expected.items():
        assert logs_of(model)[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert logs_of(model)["loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("noise", ["learned", "constant"])
def test_gradient_of_the_loss_by_finite_differences(noise: str, fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The whole objective as ``_train_epoch`` assembles it, in float64, one entry of every parameter, with the BC term.

    The learned noise passes no gradient to the time embedding, on purpose; that one is checked with constant noise.
    """
    model = _prepared(bc_coef=2.0, clip_range_vf=0.05, noise=noise, single_step_fraction=fraction)
    model.policy.double()
    model.reference.double()
    batch, losses = _double_batch(model), []
    monkeypatch.setattr(model.rollout_buffer, "get", lambda batch_size: iter([batch]))
    monkeypatch.setattr(model, "_step", lambda terms, logs: losses.append(th.stack(list(terms.values())).sum()))

    def loss() -> th.Tensor:
        losses.clear()
        model._train_epoch(0, UpdateLog())
        return losses[0]

    model.policy.zero_grad()
    loss().backward()
    rng, step = np.random.default_rng(0), 1e-6
    checked: dict[str, float] = {}
    for name, parameter in model.policy.named_parameters():
        assert parameter.grad is not None, name
        index = tuple(int(rng.integers(size)) for size in parameter.shape)
        values = []
        for sign in (1, -1):
            with th.no_grad():
                parameter[index] += sign * step
                values.append(loss().item())
                parameter[index] -= sign * step
        if noise == "constant" or "time_embedding" not in name:
            checked[name] = (values[0] - values[1]) / (2 * step)
            assert parameter.grad[index].item() == pytest.approx(checked[name], rel=1e-5, abs=1e-8), name
    networks = {"velocity_field", "score_coefficient_net", "value_net"} | ({"noise_net"} if noise == "learned" else set())
    assert {name.split(".")[0] for name, value in checked.items() if abs(value) > 1e-6} == networks


@pytest.mark.parametrize("batch_size", [SIZE, 8])
def test_ratio_is_one_at_the_start_of_every_iteration(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With running normalization, a moving noise bound and a rescaled critic: none may act between rollout and update."""
    model = make_model(max_std=lambda progress: 0.2 + 0.3 * progress, batch_size=batch_size, n_epochs=2)
    original, first = model._policy_loss, []

    def policy_loss(*args: Any) -> th.Tensor:
        loss = original(*args)
        log: UpdateLog = args[-1]
        if not log.numbers():  # no minibatch before this one
            first.append((log.minibatch["ratio_min"], log.minibatch["ratio_max"]))
        return loss

    monkeypatch.setattr(model, "_policy_loss", policy_loss)
    model.learn(4 * SIZE)
    np.testing.assert_allclose(first, np.ones((4, 2)), atol=2e-6)

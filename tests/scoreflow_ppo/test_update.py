"""The update of ScoReFlowPPO: losses against NumPy, what moves and what must not, schedules, statistics and logs."""

import copy
import io
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_scoreflow import CosineSchedule, Demonstrations, HoldCosineSchedule, ScoReFlowPPO, pretrain_bc
from sb3_scoreflow.common.update_log import UpdateLog
from sb3_scoreflow.ppo.reward_scaling import ReturnStatistics

STEPS, ACTION, N_ENVS, N_STEPS = 4, 2, 2, 16
SIZE = N_ENVS * N_STEPS


class TinyEnv(gym.Env):
    """Random observations, and a reward for actions near them. Episodes end in turn by termination and by truncation."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (ACTION,))

    def __init__(self) -> None:
        self.episode = self.step_count = 0
        self.history: list[tuple[float, bool]] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.step_count = self.episode + 1, 0
        self.obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 5.0 - 3.0 * float(np.square(action - self.obs).sum())
        self.step_count += 1
        self.obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        terminated = self.episode % 2 == 0 and self.step_count == 5
        truncated = self.step_count == 7
        self.history.append((reward, terminated or truncated))
        return self.obs, reward, terminated, truncated, {}


def _model(**kwargs: Any) -> ScoReFlowPPO:
    policy_kwargs = dict(net_arch=[16, 16]) | kwargs.pop("policy_kwargs", {})
    arguments = dict(n_steps=N_STEPS, batch_size=SIZE, n_epochs=1, seed=0, device="cpu", policy_kwargs=policy_kwargs) | kwargs
    return ScoReFlowPPO("FlowPolicy", DummyVecEnv([TinyEnv] * N_ENVS), **arguments)


def _collect(model: ScoReFlowPPO, total_timesteps: int = 100 * SIZE) -> None:
    """One rollout, as ``learn`` would make it, and no update."""
    _, callback = model._setup_learn(total_timesteps, reset_num_timesteps=model.num_timesteps == 0)
    callback.on_training_start({}, {})
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def _logs(model: ScoReFlowPPO) -> dict[str, float]:
    """What the last ``train`` recorded."""
    return {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}


def _state(module: nn.Module) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _moved(module: nn.Module, before: dict[str, th.Tensor]) -> set[str]:
    """Names of the parameters that are not bit-identical to ``before``."""
    return {name for name, value in module.named_parameters() if not th.equal(value, before[name])}


def _rooms(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _perturb(model: ScoReFlowPPO, scale: float = 0.05) -> None:
    """Move the policy away from the one that collected, so that ratios differ from 1."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(scale * th.randn(parameter.shape, generator=generator))


# ---------------------------------------------------------------------- what moves


def test_learned_score_coefficient_is_trained() -> None:
    """Defect 1 of the official code: the coefficient was never handed to the optimizer."""
    model = _model(score_drift="learned", n_epochs=4)
    t = th.arange(STEPS) / STEPS
    before = model.policy.score_coefficient(t)
    assert before is not None
    state = _state(model.policy)
    model.learn(2 * SIZE)
    after = model.policy.score_coefficient(t)
    assert after is not None
    assert ((after - before).abs() > 1e-4).all()
    moved = {name for name in _moved(model.policy, state) if name.startswith("score_coefficient_net")}
    assert moved == {f"score_coefficient_net.{name}" for name, _ in model.policy.score_coefficient_net.named_parameters()}


def test_score_coefficient_can_be_frozen() -> None:
    model = _model(score_drift="learned", noise_learning_rate=0.0)
    before = _state(model.policy)
    model.learn(2 * SIZE)
    assert not _rooms(_moved(model.policy, before)) & {"score_coefficient_net", "noise_net"}


def test_constant_score_coefficient_stays() -> None:
    model = _model(score_drift="constant")
    model.learn(2 * SIZE)
    alpha = model.policy.score_coefficient(th.arange(STEPS) / STEPS)
    assert alpha is not None
    np.testing.assert_allclose(alpha, math.log1p(math.exp(-2)) * (1 - np.arange(STEPS) / STEPS), rtol=1e-6)
    assert not [name for name in model.policy.state_dict() if name.startswith("score_coefficient")]


def test_without_score_there_is_no_coefficient() -> None:
    model = _model(score_drift="none")
    _collect(model)
    model.train()
    assert model.policy.score_coefficient(th.zeros(1)) is None
    assert not [name for name in model.policy.state_dict() if name.startswith("score_coefficient")]
    assert not [name for name in _logs(model) if name.startswith("score_coefficient")]


def test_zero_learning_rate_freezes_the_velocity() -> None:
    model = _model(learning_rate=0.0, n_epochs=3)
    before = _state(model.policy)
    model.learn(2 * SIZE)
    assert _rooms(_moved(model.policy, before)) == {"noise_net", "score_coefficient_net", "value_net"}


def test_zero_learning_rates_freeze_each_group_alone() -> None:
    model = _model(critic_learning_rate=0.0)
    before = _state(model.policy)
    model.learn(SIZE)
    assert _rooms(_moved(model.policy, before)) == {"noise_net", "score_coefficient_net", "velocity_field"}
    model.learn(SIZE, reset_num_timesteps=False)
    # Rescaling the critic's unit, once it has one, changes its last layer, not its predictions
    assert {name for name in _moved(model.policy, before) if "value_net" in name} == {"value_net.4.weight", "value_net.4.bias"}


def test_everything_moves_without_special_settings() -> None:
    model = _model(n_epochs=3)
    before = _state(model.policy)
    model.learn(2 * SIZE)
    assert _moved(model.policy, before) == {name for name, _ in model.policy.named_parameters()}


def test_critic_warmup_leaves_the_actor_bit_identical() -> None:
    model = _model(critic_warmup_iterations=2, n_epochs=2, policy_kwargs=dict(observation_normalization="none"))
    for iteration in range(4):
        before = _state(model.policy)
        _collect(model)
        model.train()
        moved = _rooms(_moved(model.policy, before))
        if iteration < 2:
            assert moved == {"value_net"}
            assert {"value_loss", "grad_norm_critic"} <= set(_logs(model))
            assert "policy_gradient_loss" not in _logs(model)
            assert _logs(model)["loss"] == pytest.approx(0.5 * _logs(model)["value_loss"], rel=1e-6)
        else:
            assert moved == {"velocity_field", "noise_net", "score_coefficient_net", "value_net"}
        model.logger.dump()
    assert model.n_iterations == 4


def test_critic_warmup_reduces_the_value_error() -> None:
    policy_kwargs = dict(observation_normalization="none")
    model = _model(critic_warmup_iterations=1, n_epochs=200, critic_learning_rate=1e-2, policy_kwargs=policy_kwargs)
    _collect(model)
    buffer = copy.deepcopy(model.rollout_buffer)
    model.train()
    values = model.policy.predict_values(th.as_tensor(model.rollout_buffer.observations)).detach().numpy()
    after = np.square(values - model.rollout_buffer.returns).mean()
    assert after < 0.2 * np.square(buffer.values - buffer.returns).mean()


# ---------------------------------------------------------------------- target_kl and gradient clipping


def test_target_kl_ends_the_iteration_and_not_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 8 of the official code: a break in one epoch switched off all later ones."""
    target = 1e-4
    model = _model(target_kl=target, n_epochs=100, batch_size=8, learning_rate=2e-3, noise_learning_rate=2e-3)
    original, kls, steps, passed = model._policy_loss, [], [], []

    def policy_loss(*args: Any) -> th.Tensor:
        loss = original(*args)
        kls.append(args[-1].minibatch["approx_kl"])
        return loss

    monkeypatch.setattr(model, "_policy_loss", policy_loss)
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    for _ in range(4):
        kls.clear()
        steps.clear()
        _collect(model)
        model.train()
        assert 1 <= len(steps) < 100 * SIZE // 8
        # The minibatch that passed the limit made no step, and it was the first to pass it
        assert len(steps) == len(kls) - 1
        assert kls[-1] > 1.5 * target and max(kls[:-1]) <= 1.5 * target
        passed += kls[:-1]
    assert max(passed) > target  # the limit is 1.5 times the argument, as in Stable-Baselines3


def test_without_target_kl_every_minibatch_makes_a_step() -> None:
    model, steps = _model(n_epochs=5, batch_size=8, learning_rate=1e-2), []
    model.policy.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    model.learn(SIZE)
    assert len(steps) == 5 * SIZE // 8


def _group_norms(model: ScoReFlowPPO) -> dict[str, float]:
    norms = {}
    for group in model.policy.optimizer.param_groups:
        squares = [float(p.grad.double().pow(2).sum()) for p in group["params"] if p.grad is not None]
        norms[group["name"]] = math.sqrt(sum(squares))
    return norms


def test_each_group_is_clipped_by_itself() -> None:
    free = _model(max_grad_norm=1e9)
    _collect(free)
    free.train()
    norms = _group_norms(free)
    assert sorted(norms) == ["critic", "noise", "velocity"]
    bound = sorted(norms.values())[1]  # one group is below it and one above
    model, clipped = _model(max_grad_norm=bound * 0.99), []
    model.policy.optimizer.register_step_pre_hook(lambda *_: clipped.append(_group_norms(model)))
    _collect(model)
    model.train()
    assert len(clipped) == 1
    for name, norm in norms.items():
        assert clipped[0][name] == pytest.approx(min(norm, bound * 0.99), rel=1e-4)
        assert _logs(model)[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-4)  # as it was before clipping
        assert _logs(free)[f"grad_norm_{name}"] == pytest.approx(norm, rel=1e-4)


def test_a_huge_value_loss_does_not_drown_the_actor() -> None:
    """With one norm over all parameters, the second actor would hardly move."""
    states = []
    for vf_coef in (0.5, 1e6):
        model = _model(vf_coef=vf_coef)
        _collect(model)
        model.train()
        states.append(_state(model.policy))
    first, second = states
    for name in first:
        if not name.startswith("value_net"):
            assert th.equal(first[name], second[name]), name


# ---------------------------------------------------------------------- the loss, re-derived


def _numpy_evaluation(model: ScoReFlowPPO, obs: np.ndarray, chain: np.ndarray) -> dict[str, np.ndarray]:
    """Values, log-probabilities and entropies from the weights alone (method, section 1), one row and step at a time."""
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
    for s, points in zip(features, chain, strict=True):
        hidden = mish(linear("value_net.2", mish(linear("value_net.0", s))))
        values.append((linear("value_net.4", hidden) * w["value_scale"])[0])
        log_prob = np.sum(-0.5 * points[0] ** 2 - 0.5 * np.log(2 * np.pi))
        entropy = ACTION * 0.5 * np.log(2 * np.pi * np.e)
        for k in range(STEPS):
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
            alpha = min((1 - t) * np.log1p(np.exp(g)) * model.score_scale, 2 * model.score_scale)
            score = np.clip((t * v - x) / (1 - t), -model.score_clip, model.score_clip)
            mean = np.clip(x + (v + alpha * score) * dt, -1, 1)
            hidden = np.tanh(linear("noise_net.net.0", np.concatenate([s, embedding])))
            hidden = linear("noise_net.net.4", np.tanh(linear("noise_net.net.2", hidden)))
            std = np.exp(0.5 * np.interp(np.tanh(hidden), [-1, 1], 2 * log_bounds))
            log_prob += np.sum(-0.5 * ((points[k + 1] - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi))
            entropy += np.sum(0.5 * np.log(2 * np.pi * np.e * std**2))
        log_probs.append(log_prob / ((STEPS + 1) * ACTION))
        entropies.append(entropy / ((STEPS + 1) * ACTION))
    return dict(values=np.array(values), log_prob=np.array(log_probs), entropy=np.array(entropies))


def _double_batch(model: ScoReFlowPPO) -> RolloutBufferSamples:
    """The rollout as one minibatch, in float64."""
    (batch,) = model.rollout_buffer.get(SIZE)
    return RolloutBufferSamples(*(part.double() for part in batch))


def _numpy_losses(model: ScoReFlowPPO, batch: RolloutBufferSamples, clip_range: float) -> dict[str, float]:
    """The terms of the loss, before their coefficients."""
    parts = {name: part.numpy() for name, part in batch._asdict().items()}
    chain = parts["actions"].reshape(SIZE, STEPS + 1, ACTION)
    evaluation = _numpy_evaluation(model, parts["observations"], chain)
    advantages = parts["advantages"]
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8 * np.abs(advantages).max())
    ratio = np.exp(evaluation["log_prob"] - parts["old_log_prob"])
    surrogate = np.minimum(advantages * ratio, advantages * np.clip(ratio, 1 - clip_range, 1 + clip_range))
    values, scale = evaluation["values"], float(model.policy.value_scale)
    if model.clip_range_vf is not None:
        assert isinstance(model.clip_range_vf, float)
        bound = model.clip_range_vf * scale
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
    policy_kwargs = dict(activation_fn=nn.Mish)
    model = _model(clip_range=0.02, ent_coef=0.03, vf_coef=0.7, policy_kwargs=policy_kwargs, **kwargs)
    model.learn(2 * SIZE)
    _collect(model)
    _perturb(model)
    return model


@pytest.mark.parametrize("kwargs", [{}, dict(clip_range_vf=0.05), dict(normalize_advantage=False), dict(score_clip=0.5)])
def test_loss_against_numpy(kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every term of the loss, and their sum as ``train`` logs it; then the same in float64 to 1e-10."""
    model = _prepared(**kwargs)
    model.policy.set_value_scale(model.return_statistics.scale)
    batch = _double_batch(model)
    expected = _numpy_losses(model, batch, 0.02)
    assert 0.1 < expected["clip_fraction"] < 0.9  # both sides of the clip are tested
    total = expected["policy_gradient_loss"] + 0.03 * expected["entropy_loss"] + 0.7 * expected["value_loss"]

    double = copy.deepcopy(model.policy).double()
    evaluation = double.evaluate_chain(batch.observations, batch.actions.view(SIZE, STEPS + 1, ACTION))
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
        assert _logs(model)[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert _logs(model)["loss"] == pytest.approx(total, rel=1e-4)


def test_value_clipping_is_at_work() -> None:
    """In units of the critic's scale; the numbers of ``test_loss_against_numpy`` differ with and without."""
    clipped, free = _prepared(clip_range_vf=0.05), _prepared()
    losses = []
    for model in (clipped, free):
        model.policy.set_value_scale(model.return_statistics.scale)
        losses.append(_numpy_losses(model, _double_batch(model), 0.02)["value_loss"])
    assert abs(losses[0] - losses[1]) > 0.01 * losses[1]


@pytest.mark.parametrize("noise", ["learned", "constant"])
def test_gradient_of_the_loss_by_finite_differences(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The whole objective as ``_train_epoch`` assembles it, in float64, one entry of every parameter, with the BC term.

    The learned noise passes no gradient to the time embedding, on purpose; that one is checked with constant noise.
    """
    model = _prepared(bc_coef=2.0, clip_range_vf=0.05, noise=noise)
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


def test_one_update_is_one_adam_step_on_that_gradient() -> None:
    """First Adam step: lr * g / (|g| + eps), with each group's own learning rate."""
    rates = dict(learning_rate=1e-3, noise_learning_rate=2e-3, critic_learning_rate=3e-3)
    model = _model(max_grad_norm=1e9, normalize_reward=False, **rates)
    before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    _collect(model)
    model.train()
    names = dict(velocity="learning_rate", noise="noise_learning_rate", critic="critic_learning_rate")
    group_of = {id(p): name for name, members in model.policy.parameter_groups().items() for p in members}
    for name, parameter in model.policy.named_parameters():
        assert parameter.grad is not None
        rate = rates[names[group_of[id(parameter)]]]
        expected = before[name] - rate * parameter.grad / (parameter.grad.abs() + 1e-5)
        np.testing.assert_allclose(parameter.detach(), expected.detach(), rtol=1e-4, atol=1e-6, err_msg=name)


# ---------------------------------------------------------------------- entropy and clamped log-probabilities


def test_entropy_is_normalised_once() -> None:
    """Defect 3 of the official code, which divided by K + 1 twice. Closed form at a constant standard deviation."""
    model = _model(noise="constant", max_std=0.3, ent_coef=0.5)
    _collect(model)
    model.train()
    per_number = 0.5 * math.log(2 * math.pi * math.e)
    entropy = ((STEPS + 1) * ACTION * per_number + STEPS * ACTION * math.log(0.3)) / ((STEPS + 1) * ACTION)
    assert _logs(model)["entropy_loss"] == pytest.approx(-entropy, rel=1e-5)


def test_entropy_bonus_raises_the_noise() -> None:
    raised, plain = _model(ent_coef=1.0, n_epochs=20), _model(ent_coef=0.0, n_epochs=20)
    for model in (raised, plain):
        _collect(model)
        model.train()
    assert _logs(raised)["std_step2_mean"] > 1.01 * _logs(plain)["std_step2_mean"]


def test_log_prob_clip_is_logged_and_stops_gradients() -> None:
    """Defect 4 of the official code as an option: the fraction of samples that lose their gradient is visible."""
    model = _model(log_prob_clip=0.5, ent_coef=0.0)
    _collect(model)
    log_prob = model.rollout_buffer.log_probs.copy()
    model.train()
    fraction = (np.abs(log_prob) > 0.5).mean()
    assert 0 < fraction < 1
    assert _logs(model)["log_prob_clip_fraction"] == pytest.approx(fraction, abs=1e-6)

    silent = _model(log_prob_clip=1e-6, ent_coef=0.0)
    before = _state(silent.policy)
    _collect(silent)
    silent.train()
    assert _logs(silent)["log_prob_clip_fraction"] == 1
    assert _logs(silent)["grad_norm_velocity"] == _logs(silent)["grad_norm_noise"] == 0
    assert _rooms(_moved(silent.policy, before)) == {"value_net"}

    free = _model()
    _collect(free)
    free.train()
    assert "log_prob_clip_fraction" not in _logs(free)
    assert _logs(free)["grad_norm_velocity"] > 0


# ---------------------------------------------------------------------- behaviour cloning term


def _demonstrations(n_episodes: int = 4, length: int = 10) -> Demonstrations:
    rng = np.random.default_rng(0)
    n = n_episodes * length
    ends = np.arange(n) % length == length - 1
    obs = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    return Demonstrations(obs, np.clip(obs, -0.9, 0.9), rng.normal(size=n), terminations=ends)


def _actor(state: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    names = ("features_extractor", "velocity_field", "normalizer", "pretrained", "_inference_steps")
    return {name: value.clone() for name, value in state.items() if name.startswith(names)}


def test_reference_is_the_pretrained_policy_and_stays() -> None:
    model = _model(bc_coef=0.5, n_epochs=3)
    pretrain_bc(model, _demonstrations(), n_batches=5, batch_size=16, seed=0)
    pretrained = _actor(_state(model.policy))
    model.learn(2 * SIZE)
    model.learn(2 * SIZE, reset_num_timesteps=False)
    reference = model.reference.state_dict()
    assert set(reference) == set(pretrained)
    for name, value in pretrained.items():
        assert th.equal(reference[name], value), name
    assert "velocity_field" in _rooms(_moved(model.policy, _state(model.policy) | pretrained))
    assert not any(p.requires_grad for p in model.reference.parameters())


def test_reference_follows_a_second_pretraining() -> None:
    model = _model(bc_coef=0.5)
    for n_batches in (3, 6):
        pretrain_bc(model, _demonstrations(), n_batches=n_batches, batch_size=16, seed=0)
        pretrained = _actor(_state(model.policy))
        model.learn(SIZE)
        for name, value in model.reference.state_dict().items():
            assert th.equal(value, pretrained[name]), name


def test_bc_loss_starts_at_zero_and_is_the_distance_of_ode_actions() -> None:
    model = _model(bc_coef=3.0)
    pretrain_bc(model, _demonstrations(), n_batches=5, batch_size=16, seed=0)
    _collect(model)
    model.train()
    assert _logs(model)["bc_loss"] == 0
    _collect(model)
    _perturb(model)
    (batch,) = model.rollout_buffer.get(SIZE)
    noise, actions = batch.actions[:, :ACTION], []
    for policy in (model.policy, model.reference):
        x = noise
        for k in range(STEPS):
            x = x + policy.velocity(batch.observations, x, th.tensor(k / STEPS)) / STEPS
        actions.append(x.clamp(-1, 1).detach().numpy())
    expected = np.square(actions[0] - actions[1]).mean()
    assert expected > 1e-4
    model.train()
    logs = _logs(model)
    assert logs["bc_loss"] == pytest.approx(expected, rel=1e-4)
    total = logs["policy_gradient_loss"] + 0.5 * logs["value_loss"] + 3.0 * logs["bc_loss"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


def test_bc_term_holds_the_policy_back() -> None:
    distances = []
    for bc_coef in (1e-9, 100.0):
        model = _model(bc_coef=bc_coef, n_epochs=30, learning_rate=1e-3, score_drift="none")
        pretrain_bc(model, _demonstrations(), n_batches=5, batch_size=16, seed=0)
        model.learn(3 * SIZE)
        obs, noise = th.rand(200, 2) * 2 - 1, th.randn(200, ACTION, generator=th.Generator().manual_seed(0))
        with th.no_grad():
            difference = model.policy.sample_ode(obs, noise) - model.reference.sample_ode(obs, noise)
        distances.append(float(difference.pow(2).mean()))
    assert distances[1] < 0.2 * distances[0]


def test_reference_is_saved_once(tmp_path: Path) -> None:
    model = _model(bc_coef=0.5, policy_kwargs=dict(net_arch=[128, 128]))
    pretrain_bc(model, _demonstrations(), n_batches=3, batch_size=16, seed=0)
    model.learn(SIZE)
    model.save(tmp_path / "with")
    without = _model(policy_kwargs=dict(net_arch=[128, 128]))
    without.learn(SIZE)
    without.save(tmp_path / "without.zip")
    archives = {}
    for name in ("with", "without"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            archives[name] = {info.filename: info.file_size for info in archive.infolist()}
            data = json.loads(archive.read("data"))
            assert "reference" not in data and "policy" not in data
    assert set(archives["with"]) - set(archives["without"]) == {"reference.pth"}
    actor_bytes = sum(value.numel() * value.element_size() for value in model.reference.state_dict().values())
    assert actor_bytes < archives["with"]["reference.pth"] < actor_bytes + 20_000
    for member in set(archives["without"]):
        assert archives["with"][member] == pytest.approx(archives["without"][member], abs=3000), member
    loaded = ScoReFlowPPO.load(tmp_path / "with.zip", env=model.env)
    expected, trained = model.reference.state_dict(), model.policy.state_dict()
    loaded.learn(SIZE, reset_num_timesteps=False)
    for name, value in loaded.reference.state_dict().items():
        assert th.equal(value, expected[name]), name
    assert any(not th.equal(trained[name], value) for name, value in expected.items())


def test_without_bc_term_there_is_no_reference() -> None:
    model = _model()
    model.learn(SIZE)
    assert not hasattr(model, "reference")
    buffer = io.BytesIO()
    model.save(buffer)
    assert "reference.pth" not in zipfile.ZipFile(buffer).namelist()


# ---------------------------------------------------------------------- logs


def test_logged_values_before_the_first_update() -> None:
    """One minibatch: its statistics are those of the policy that collected. With a frozen noise group, so is alpha."""
    model = _model(
        noise_learning_rate=0.0, min_std=0.1, max_std=0.4, learning_rate=1e-3, critic_learning_rate=2e-3, clip_range=0.03
    )
    model.policy.set_value_scale(1.0)  # as if it had been trained: values are not 0
    _collect(model)
    buffer = copy.deepcopy(model.rollout_buffer)
    model.train()
    logs = _logs(model)
    assert logs["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert logs["ratio_min"] == pytest.approx(1, abs=1e-5) and logs["ratio_max"] == pytest.approx(1, abs=1e-5)
    assert logs["ratio_std"] == pytest.approx(0, abs=1e-5)
    assert logs["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert logs["clip_fraction"] == 0
    # Normalised advantages have mean 0, and every ratio is 1
    assert logs["policy_gradient_loss"] == pytest.approx(0, abs=1e-5)
    for k in range(STEPS):
        for statistic in ("mean", "min", "max"):
            assert logs[f"std_step{k}_{statistic}"] == pytest.approx(0.2, rel=1e-5)  # geometric mean of the bounds
        alpha = (1 - k / STEPS) * math.log1p(math.exp(-2))
        assert logs[f"score_coefficient_t{k / STEPS:.2f}"] == pytest.approx(alpha, rel=1e-5)
    last = buffer.actions.reshape(-1, (STEPS + 1) * ACTION)[:, -ACTION:]
    assert logs["clamped_action_fraction"] == pytest.approx((np.abs(last) > 1).mean(), abs=1e-6)
    assert 0 <= logs["clamped_mean_fraction"] < 0.5
    error = np.square((buffer.returns - buffer.values) / logs["value_scale"]).mean()
    assert logs["value_loss"] == pytest.approx(error, rel=1e-4)
    explained = 1 - np.var(buffer.returns - buffer.values) / np.var(buffer.returns)
    assert logs["explained_variance"] == pytest.approx(explained, rel=1e-4, abs=1e-6)
    assert logs["loss"] == pytest.approx(logs["policy_gradient_loss"] + 0.5 * logs["value_loss"], rel=1e-5)
    settings = dict(learning_rate=1e-3, noise_learning_rate=0.0, critic_learning_rate=2e-3, clip_range=0.03, n_updates=1)
    for name, value in settings.items():
        assert logs[name] == pytest.approx(value)
    assert logs["max_std"] == pytest.approx(0.4, rel=1e-5)
    assert all(logs[f"grad_norm_{name}"] > 0 for name in ("velocity", "noise", "critic"))


def test_clamped_fractions_count_what_is_clamped() -> None:
    """Defect 5 of the official code: samples outside the bounds are visible in the log."""
    model = _model(min_std=0.8, max_std=1.0, policy_kwargs=dict(prior_std=3.0))
    _collect(model)
    actions = model.rollout_buffer.actions.reshape(-1, STEPS + 1, ACTION).copy()
    observations = model.rollout_buffer.observations.reshape(-1, 2).copy()
    mean = model.policy.evaluate_chain(th.as_tensor(observations), th.as_tensor(actions)).mean.detach().numpy()
    expected = (np.abs(actions[:, -1]) > 1).mean(), (np.abs(mean) == 1).mean()
    assert min(expected) > 0.05
    model.train()
    assert _logs(model)["clamped_action_fraction"] == pytest.approx(expected[0], abs=1e-6)
    assert _logs(model)["clamped_mean_fraction"] == pytest.approx(expected[1], abs=1e-6)


def test_extremes_are_those_over_all_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(n_epochs=4, batch_size=8, learning_rate=3e-3, noise_learning_rate=3e-3)
    recorded: dict[str, list[float]] = {}
    original = model._log_update

    def log_update(log: UpdateLog) -> None:
        recorded.update({name: numbers.tolist() for name, numbers in log.numbers().items()})
        original(log)

    monkeypatch.setattr(model, "_log_update", log_update)
    _collect(model)
    model.train()
    logs = _logs(model)
    assert len(recorded["ratio_min"]) == 4 * SIZE // 8
    assert logs["ratio_min"] == min(recorded["ratio_min"]) < 1 < logs["ratio_max"] == max(recorded["ratio_max"])
    assert logs["std_step1_max"] == max(recorded["std_step1_max"])
    assert logs["ratio_mean"] == pytest.approx(np.mean(recorded["ratio_mean"]))


def test_update_waits_for_its_device_once_per_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number taken out of a tensor makes a GPU finish its queue."""
    counts = []
    for batch_size in (8, 4):
        model = _model(n_epochs=4, batch_size=batch_size)
        _collect(model)
        taken: list[str] = []
        with monkeypatch.context() as patch:
            for name in ("__bool__", "__float__", "item", "tolist"):
                patch.setattr(th.Tensor, name, _counting(getattr(th.Tensor, name), name, taken))
            model.train()
        counts.append(len(taken))
    assert counts[1] - counts[0] == 4 * SIZE // 4 - 4 * SIZE // 8


def _counting(method: Callable[[th.Tensor], Any], name: str, taken: list[str]) -> Callable[[th.Tensor], Any]:
    def counted(x: th.Tensor) -> Any:
        taken.append(name)
        return method(x)

    return counted


@pytest.mark.parametrize("batch_size", [SIZE, 8])
def test_ratio_is_one_at_the_start_of_every_iteration(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With running normalisation, a moving noise bound and a rescaled critic: none may act between rollout and update."""
    model = _model(max_std=lambda progress: 0.2 + 0.3 * progress, batch_size=batch_size, n_epochs=2)
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


# ---------------------------------------------------------------------- return statistics


def test_return_statistics_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    rewards = (3 + 5 * rng.standard_normal((500, 3))).astype(np.float32)  # the precision that environments give
    dones = rng.random((500, 3)) < 0.1
    statistics = ReturnStatistics(gamma=0.9)
    assert statistics.scale == 1
    for reward, done in zip(rewards, dones, strict=True):
        statistics.update(reward, done)
    returns = []
    for env in range(3):
        total = 0.0
        for reward, done in zip(rewards[:, env], dones[:, env], strict=True):
            total = 0.9 * total + float(reward)
            returns.append(total)
            total = 0.0 if done else total
    assert statistics.scale == pytest.approx(np.std(returns), rel=1e-10)


def test_constant_returns_leave_the_scale_at_one() -> None:
    """Sparse rewards: before the first one, a tiny scale would make the critic's first errors enormous."""
    statistics = ReturnStatistics(gamma=0.99)
    for _ in range(10):
        statistics.update(np.zeros(2), np.zeros(2, dtype=bool))
    assert statistics.scale == 1
    statistics.update(np.array([1.0, 0.0]), np.zeros(2, dtype=bool))
    assert statistics.scale == pytest.approx(np.std([1.0] + 21 * [0.0]), rel=1e-10)


def test_critic_unit_is_the_scale_of_the_true_returns() -> None:
    """The rewards of the environment, without Stable-Baselines3's timeout bootstrap, over two iterations."""
    model = _model(gamma=0.9)
    model.learn(2 * SIZE)
    returns = []
    assert isinstance(model.env, DummyVecEnv)
    for env in model.env.envs:
        history = env.unwrapped.history  # type: ignore[attr-defined]
        assert len(history) == 2 * N_STEPS and sum(done for _, done in history) >= 2
        total = 0.0
        for reward, done in history:
            total = 0.9 * total + float(reward)
            returns.append(total)
            total = 0.0 if done else total
    assert model.return_statistics.scale == pytest.approx(np.std(returns), rel=1e-4)
    assert float(model.policy.value_scale) == pytest.approx(np.std(returns), rel=1e-4)
    assert np.std(returns) > 2


def test_critic_unit_can_be_switched_off() -> None:
    model = _model(normalize_reward=False)
    model.learn(2 * SIZE)
    assert float(model.policy.value_scale) == 1


# ---------------------------------------------------------------------- schedules


def test_cosine_schedule_values() -> None:
    schedule = CosineSchedule(1.0, 0.2)
    expected = {1.0: 1.0, 0.75: 0.2 + 0.4 * (1 + math.cos(math.pi / 4)), 0.5: 0.6, 0.0: 0.2, -0.1: 0.2}
    for remaining, value in expected.items():
        assert schedule(remaining) == pytest.approx(value, abs=1e-12)
    warm = CosineSchedule(1.0, 0.2, warmup_fraction=0.2)
    for remaining, value in {1.0: 0.0, 0.95: 0.25, 0.9: 0.5, 0.8: 1.0, 0.4: 0.6, 0.0: 0.2}.items():
        assert warm(remaining) == pytest.approx(value, abs=1e-12)


def test_hold_cosine_schedule_values() -> None:
    schedule = HoldCosineSchedule(0.24, 0.198)  # published: 0.1 + 0.7 * (0.24 - 0.1) at the end
    halfway = 1 - (0.35 + 0.65 / 2)
    for remaining, value in {1.0: 0.24, 0.66: 0.24, 0.65: 0.24, halfway: 0.219, 0.0: 0.198, -0.1: 0.198}.items():
        assert schedule(remaining) == pytest.approx(value, abs=1e-12)
    quarter = 1 - (0.35 + 0.65 / 4)
    assert schedule(quarter) == pytest.approx(0.198 + 0.042 * 0.5 * (1 + math.cos(math.pi / 4)), abs=1e-12)


def test_schedules_pickle_and_show_their_arguments() -> None:
    for schedule in (CosineSchedule(1e-3, 1e-4, warmup_fraction=0.1), HoldCosineSchedule(0.3, 0.1, hold_fraction=0.5)):
        again = pickle.loads(pickle.dumps(schedule))
        assert [again(p) for p in np.linspace(0, 1, 11)] == [schedule(p) for p in np.linspace(0, 1, 11)]
        assert repr(again) == repr(schedule)
    assert repr(CosineSchedule(1, 0.5, 0.1)) == "CosineSchedule(1.0, 0.5, warmup_fraction=0.1)"
    assert repr(HoldCosineSchedule(1, 0.5)) == "HoldCosineSchedule(1.0, 0.5, hold_fraction=0.35)"


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_impossible_schedules_are_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=rf"warmup_fraction must be in \[0, 1\), got {fraction}"):
        CosineSchedule(1.0, 0.0, warmup_fraction=fraction)
    with pytest.raises(ValueError, match=rf"hold_fraction must be in \[0, 1\), got {fraction}"):
        HoldCosineSchedule(1.0, 0.0, hold_fraction=fraction)


def test_every_group_follows_its_own_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    cosine, iterations = CosineSchedule(1e-3, 1e-4, warmup_fraction=0.3), 5
    model = _model(
        learning_rate=cosine,
        noise_learning_rate=lambda progress: 2e-3 * progress,
        critic_learning_rate=5e-4,
        clip_range=lambda progress: 0.1 * progress,
    )
    original, seen, clips = model._step, [], []

    def step(losses: Any, logs: Any) -> None:
        seen.append({group["name"]: group["lr"] for group in model.policy.optimizer.param_groups})
        original(losses, logs)

    original_loss = model._policy_loss

    def policy_loss(*args: Any) -> th.Tensor:
        clips.append(args[2])
        return original_loss(*args)

    monkeypatch.setattr(model, "_step", step)
    monkeypatch.setattr(model, "_policy_loss", policy_loss)
    model.learn(iterations * SIZE)
    remaining = [1 - (i + 1) / iterations for i in range(iterations)]
    for rates, clip, progress in zip(seen, clips, remaining, strict=True):
        expected = dict(velocity=cosine(progress), noise=2e-3 * progress, critic=5e-4)
        assert rates == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert clip == pytest.approx(0.1 * progress, abs=1e-12)


def test_max_std_schedule_moves_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of each rollout are those of the progress at its start, from the first one on, and again in a second run."""
    schedule, iterations = HoldCosineSchedule(0.5, 0.2, hold_fraction=0.25), 4
    model = _model(max_std=schedule, min_std=0.1, noise="constant", learning_rate=0.0, critic_learning_rate=0.0)
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


# ---------------------------------------------------------------------- NaN


class BrokenEnv(TinyEnv):
    """Returns NaN once, as a reward or as an observation."""

    broken = "reward"

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, *rest = super().step(action)
        if len(self.history) == 3:
            return (obs, float("nan"), *rest) if self.broken == "reward" else (obs * np.nan, reward, *rest)  # type: ignore[return-value]
        return (obs, reward, *rest)  # type: ignore[return-value]


def test_nan_reward_stops_training_before_the_update() -> None:
    model = ScoReFlowPPO("FlowPolicy", BrokenEnv(), n_steps=8, batch_size=8, seed=0, policy_kwargs=dict(net_arch=[8]))
    before = _state(model.policy)
    with pytest.raises(FloatingPointError, match=r"NaN or infinite rewards \(1 entries, the first at step 2 of env 0\)"):
        model.learn(8)
    assert not _moved(model.policy, before)


def test_nan_parameter_is_named_and_not_saved(tmp_path: Path) -> None:
    model = _model()
    model.learn(SIZE)
    model.save(tmp_path / "model.zip")
    good = (tmp_path / "model.zip").read_bytes()
    with th.no_grad():
        model.policy.get_parameter("noise_net.net.0.weight")[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"Not saved: parameter 'noise_net.net.0.weight' is NaN or infinite"):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_non_finite_loss_is_named_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    _collect(model)
    before = _state(model.policy)
    monkeypatch.setattr(model, "_value_loss", lambda *args: th.tensor(float("inf")))
    with pytest.raises(FloatingPointError, match="value_loss is inf in iteration 1, before the parameters changed"):
        model.train()
    # All but the critic's last layer, which the change of unit has rescaled
    assert _rooms(_moved(model.policy, before)) <= {"value_net"}

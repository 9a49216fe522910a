"""Behavior cloning: a distribution known in closed form, bookkeeping against independent loops, impossible arguments."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from torch import nn

from sb3_scoreflow import Demonstrations, FlowMatchingPolicy, load_demonstrations
from sb3_scoreflow.demonstrations import ActionChunks, ChunkBatch
from tests.bc.helpers import (
    ACTION,
    CHUNKS,
    OBS,
    BlankEnv,
    assert_same,
    clone,
    ends_of,
    make_demonstrations,
    make_model,
    make_policy,
    refused,
    state_of,
)

# ---------------------------------------------------------------------- the distribution


MEAN, STD = np.array([0.3, -0.2]), np.array([0.15, 0.25])


@pytest.fixture(scope="module", name="gaussian_clone")
def _gaussian_clone() -> tuple[FlowMatchingPolicy, dict[str, list[float]]]:
    """A small net trained on actions ~ N(MEAN, STD^2) that have nothing to do with the observations."""
    rng, n = np.random.default_rng(0), 10_000
    actions = np.clip(rng.normal(MEAN, STD, (n, ACTION)), -1, 1)
    demonstrations = make_demonstrations(n, actions=actions)
    policy = make_policy(net_arch=[64, 64], denoising_steps=32)
    history = clone(policy, demonstrations, n_batches=1000, batch_size=512, log_interval=250, learning_rate=3e-3)
    return policy, history


def _exact_velocity(x: np.ndarray, t: float) -> np.ndarray:
    """E[x_1 - x_0 | x_t = x] per dimension, by the rule of conditioning a Gaussian."""
    covariance, variance = t * STD**2 - (1 - t), (1 - t) ** 2 + t**2 * STD**2
    return MEAN + covariance / variance * (x - t * MEAN)


def test_cloning_recovers_the_velocity_of_a_gaussian(gaussian_clone: tuple[FlowMatchingPolicy, dict]) -> None:
    """
    Root-mean-square error over the marginal of each t. This run is off by 0.015 to 0.035, growing with t as the marginal gets
    narrow, an untrained field by 0.3 to 0.8: the tolerance leaves room for other machines and none for no training.
    """
    policy, untrained = gaussian_clone[0], make_policy(net_arch=[64, 64])
    rng = np.random.default_rng(1)
    obs = th.as_tensor(make_demonstrations(2000, seed=2).observations)
    for t in (0.0, 0.2, 0.4, 0.6, 0.8):
        x = (1 - t) * rng.normal(size=(2000, ACTION)) + t * rng.normal(MEAN, STD, (2000, ACTION))
        errors = []
        for field in (policy, untrained):
            with th.no_grad():
                velocity = field.velocity(obs, th.as_tensor(x).float(), th.tensor(t)).double().numpy()
            errors.append(math.sqrt(np.square(velocity - _exact_velocity(x, t)).mean()))
        assert errors[0] < 0.08 and errors[0] < errors[1] / 5, (t, errors)


def test_cloning_reaches_the_smallest_possible_loss(gaussian_clone: tuple[FlowMatchingPolicy, dict]) -> None:
    """
    The loss cannot go below Var(x_1 - x_0 | x_t), averaged over t with its weight; 128 000 numbers give it a standard error of
    0.6%.
    """

    def average(t: np.ndarray) -> float:
        conditional = 1 + STD**2 - (t * STD**2 - (1 - t)) ** 2 / ((1 - t) ** 2 + t**2 * STD**2)
        return float((np.minimum(1, 32 * (1 - t)) ** 2 * conditional).mean())

    grid, anywhere = np.arange(32)[:, None] / 32, (np.arange(10_000)[:, None] + 0.5) / 10_000
    assert gaussian_clone[1]["bc/loss"][-1] == pytest.approx(0.75 * average(grid) + 0.25 * average(anywhere), rel=0.03)


def test_clone_samples_the_demonstrated_distribution(gaussian_clone: tuple[FlowMatchingPolicy, dict]) -> None:
    policy, n = gaussian_clone[0], 4000
    obs = th.as_tensor(make_demonstrations(n, seed=3).observations)
    with th.no_grad():
        actions = policy.sample_ode(obs, th.randn(n, ACTION, generator=th.Generator().manual_seed(0))).numpy()
    np.testing.assert_allclose(actions.mean(0), MEAN, atol=0.03)
    np.testing.assert_allclose(actions.std(0), STD, rtol=0.12)


# ---------------------------------------------------------------------- schedule, batches, loss


def test_learning_rate_is_a_cosine_over_the_run() -> None:
    history = clone(make_policy(), n_batches=8, learning_rate=1e-2, final_learning_rate=1e-3, log_interval=1)
    expected = [1e-3 + 0.5 * 9e-3 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert history["bc/learning_rate"] == pytest.approx(expected, rel=1e-9)
    assert history["batch"] == list(range(1, 9))


def test_first_step_is_adamw_with_decoupled_decay() -> None:
    """p (1 - lr wd) - lr g / (|g| + eps), with the gradient of the loss on a batch that can be drawn again."""
    policy, plain = make_policy(), make_policy()
    before = state_of(policy)
    for model, weight_decay in ((policy, 0.5), (plain, 0.0)):
        clone(model, n_batches=1, learning_rate=1e-2, weight_decay=weight_decay)
    for name, parameter in policy.velocity_field.named_parameters():
        start, without = before[f"velocity_field.{name}"], plain.velocity_field.get_parameter(name)
        th.testing.assert_close(parameter, without - 0.005 * start, rtol=1e-5, atol=1e-7)
        # One step of Adam from zero moments moves every entry by the learning rate, whatever the gradient's size
        moved = (without - start).abs()
        assert moved.max() <= 1.001e-2 and (moved > 0.9e-2).float().mean() > 0.5


@pytest.fixture(name="drawn")
def _drawn(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Indices of all chunks gathered, batch by batch."""
    original, batches = ActionChunks.__getitem__, []

    def gather(self: ActionChunks, indices: np.ndarray) -> ChunkBatch:
        batches.append(indices)
        return original(self, indices)

    monkeypatch.setattr(ActionChunks, "__getitem__", gather)
    return batches


def test_epochs_visit_every_transition_equally(drawn: list[np.ndarray]) -> None:
    history = clone(make_policy(), n_batches=None, n_epochs=3, batch_size=16)
    assert [len(batch) for batch in drawn[:12]] == 3 * [16, 16, 16, 12]
    assert history["batch"] == [12]
    for epoch in range(3):
        assert sorted(np.concatenate(drawn[4 * epoch : 4 * epoch + 4])) == list(range(60))
    assert not np.array_equal(drawn[0], drawn[4])  # shuffled anew


def test_batches_are_counted_across_epochs(drawn: list[np.ndarray]) -> None:
    history = clone(make_policy(), n_batches=6, batch_size=16, log_interval=4)
    assert [len(batch) for batch in drawn[:6]] == [16, 16, 16, 12, 16, 16]
    assert history["batch"] == [4, 6]


def test_logged_loss_is_the_mean_since_the_last_log_point() -> None:
    fine, coarse = (clone(make_policy(), n_batches=7, log_interval=interval)["bc/loss"] for interval in (1, 3))
    assert coarse == pytest.approx([np.mean(fine[:3]), np.mean(fine[3:6]), fine[6]], rel=1e-5)


def test_loss_is_the_mean_squared_error_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Noise is standard normal, three quarters of the times are the sampler's and the others uniform, actions are scaled to [-1,
    1], and the loss is the mean over elements with weights that fall from the sampler's last time on.
    """
    space = spaces.Box(np.array([0.0, -10.0]), np.array([1.0, 30.0]))
    rng, n = np.random.default_rng(0), 4096
    actions = rng.uniform(space.low, space.high, (n, ACTION))
    policy, seen, steps = make_policy(action_space=space, denoising_steps=5), [], 5
    original = policy.flow_matching_loss

    def loss(obs: Any, actions: th.Tensor, noise: th.Tensor, t: th.Tensor) -> th.Tensor:
        error = original(obs, actions, noise, t)
        seen.append((actions, noise, t, error.detach()))
        return error

    monkeypatch.setattr(policy, "flow_matching_loss", loss)
    history = clone(policy, make_demonstrations(n, length=8, actions=actions), n_batches=2, batch_size=n, log_interval=1)
    for (scaled, noise, t, error), logged in zip(seen, history["bc/loss"], strict=True):
        expected = 2 * (actions - space.low) / (space.high - space.low) - 1
        order = np.lexsort(scaled.numpy().round(4).T), np.lexsort(expected.round(4).T)
        np.testing.assert_allclose(scaled.numpy()[order[0]], expected[order[1]], atol=2e-4)
        assert abs(noise.mean()) < 0.05 and noise.std() == pytest.approx(1, abs=0.05)
        for time in range(steps):  # exactly the float that the sampler asks for
            assert float((t == th.tensor(time) / steps).float().mean()) == pytest.approx(0.75 / steps, abs=0.03)
        others = t[~th.isin(t, th.arange(steps) / steps)]
        assert len(others) / n == pytest.approx(0.25, abs=0.03)
        assert others.min() >= 0 and others.max() <= 1 and others.mean() == pytest.approx(0.5, abs=0.04)
        assert others.std() == pytest.approx(math.sqrt(1 / 12), abs=0.02)
        weights = np.array([1.0 if time <= 0.8 else (steps * (1 - time)) ** 2 for time in t.double().tolist()])
        assert logged == pytest.approx(float((weights[:, None] * error.double().numpy()).mean()), rel=1e-5)
    assert not th.equal(seen[0][1][:10], seen[1][1][:10])  # drawn anew


# ---------------------------------------------------------------------- chunks and masks


def test_chunks_of_demonstrated_actions_are_learned() -> None:
    """The actions of the next four steps, which the step number in the observation decides, in the environment's units."""
    n, length = 200, 8
    step = np.arange(n) % length
    actions = np.stack([step / 4 - 1, 1 - step / 4, np.full(n, 0.5)], axis=1)
    obs = np.repeat(step[:, None], OBS, axis=1) / 4.0
    demonstrations = Demonstrations(obs, actions, terminations=ends_of(n, length))
    policy = make_policy(action_space=CHUNKS, net_arch=[64, 64], denoising_steps=8)
    clone(policy, demonstrations, n_batches=500, batch_size=128, learning_rate=3e-3, ema_decay=0.98)
    # Chunks that stay within the episode; the noise in x_0 = 0 leaves errors far below the 0.25 between two steps
    chunks = policy.predict(obs[:5].astype(np.float32), deterministic=True)[0]
    assert chunks.shape == (5, 4, 3)
    for start in range(5):
        np.testing.assert_allclose(chunks[start], actions[start : start + 4], atol=0.1)


def test_padding_is_not_trained() -> None:
    """In episodes of one step, all but the first action of a chunk is padding: those outputs keep their weights."""
    policy = make_policy(action_space=CHUNKS)
    before = state_of(policy.velocity_field)
    n = 40
    actions = np.random.default_rng(0).uniform(-1, 1, (n, 3))
    demonstrations = make_demonstrations(n, actions=actions, terminations=np.ones(n, dtype=bool))
    clone(policy, demonstrations, weight_decay=0.0)
    for name in ("output_layer.weight", "output_layer.bias"):
        after = policy.velocity_field.get_parameter(name)
        assert th.equal(after[3:], before[name][3:])
        assert (after[:3] - before[name][:3]).abs().min() > 0


def test_loss_does_not_see_padded_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Absurd padding leaves the logged loss as it is. The net must not read the action (its layer is zeroed): a padded action is
    still part of the point x_t that the others are predicted from.
    """
    losses = []
    demonstrations = make_demonstrations(60, length=5, actions=np.random.default_rng(0).uniform(-1, 1, (60, 3)))
    original: Callable = ActionChunks.__getitem__
    for absurd in (None, 2.0, -1.7):

        def gather(self: ActionChunks, indices: np.ndarray, absurd: float | None = absurd) -> ChunkBatch:
            batch = original(self, indices)
            assert 0 < batch.mask.mean() < 1
            if absurd is None:
                return batch
            return batch._replace(actions=np.where(batch.mask[..., None], batch.actions, np.float32(absurd)))

        monkeypatch.setattr(ActionChunks, "__getitem__", gather)
        policy = make_policy(action_space=CHUNKS)
        nn.init.zeros_(policy.velocity_field.action_layer.weight)
        losses.append(clone(policy, demonstrations, learning_rate=0.0, final_learning_rate=0.0, log_interval=1)["bc/loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-5)


def test_masked_loss_is_a_mean_over_what_is_left(monkeypatch: pytest.MonkeyPatch, drawn: list[np.ndarray]) -> None:
    policy, errors = make_policy(action_space=CHUNKS), []
    original = policy.flow_matching_loss

    def loss(*args: Any) -> th.Tensor:
        error, t = original(*args), args[3]
        errors.append(error.detach().double() * (4 * (1 - t)).clamp(max=1).square().unsqueeze(-1))  # 4 denoising steps
        return error

    monkeypatch.setattr(policy, "flow_matching_loss", loss)
    demonstrations = make_demonstrations(60, length=5, actions=np.random.default_rng(0).uniform(-1, 1, (60, 3)))
    history = clone(policy, demonstrations, log_interval=1)
    for indices, error, logged in zip(drawn[: len(errors)], errors, history["bc/loss"], strict=True):
        total = count = 0.0
        for row, index in enumerate(indices):
            left = min(4, 5 - index % 5)  # actions before the end of the episode
            total += float(error[row, : 3 * left].sum())
            count += 3 * left
        assert logged == pytest.approx(total / count, rel=1e-5)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(n_epochs=1, n_batches=2),
        dict(n_batches=0),
        dict(n_epochs=-1, n_batches=None),
        dict(batch_size=0),
        dict(log_interval=0),
        dict(ema_decay=1.0),
        dict(ema_decay=-0.1),
        dict(validation_fraction=1.0),
        dict(validation_fraction=-0.5),
        dict(critic_batches=-1),
        dict(learning_rate=-1e-3),
        dict(final_learning_rate=float("nan")),
        dict(weight_decay=-1.0),
    ],
    ids=str,
)
def test_impossible_arguments_are_named_with_their_values(kwargs: dict[str, Any]) -> None:
    named = {name: value for name, value in kwargs.items() if value is not None}
    refused(*named, *map(str, named.values()), **kwargs)


def test_model_of_another_kind() -> None:
    for model, name in ((PPO("MlpPolicy", BlankEnv(), n_steps=16, batch_size=16, device="cpu"), "PPO"), ({}, "dict")):
        with pytest.raises(ValueError, match=rf"^model\b.*\b{name}\b"):
            clone(model)


def test_demonstrations_of_another_kind() -> None:
    """The remedy: what is named loads them."""
    refused("demonstrations", "str", "load_demonstrations", demonstrations="builtin:hopper-medium")
    assert isinstance(load_demonstrations("builtin:hopper-medium"), Demonstrations)


def test_critic_of_a_bare_policy() -> None:
    refused("critic_batches=5", "critic_batches=0", model=make_policy(), critic_batches=5)
    assert "bc/critic_loss" not in clone(make_policy(), critic_batches=0)


def test_nan_loss_keeps_the_previous_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good clone, then a run that diverges at its third batch: everything is as the good run left it."""
    model = make_model()
    clone(model)
    before, training = state_of(model.policy), model.policy.training
    original, calls = model.policy.flow_matching_loss, []

    def loss(*args: Any) -> th.Tensor:
        calls.append(1)
        return original(*args) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(model.policy, "flow_matching_loss", loss)
    with pytest.raises(FloatingPointError, match=r"\bnan\b.*\b4\b.*learning_rate=0\.05"):
        clone(model, make_demonstrations(seed=1), n_batches=10, log_interval=4, learning_rate=0.05)
    assert_same(model.policy, before)
    assert model.policy.training == training
    assert len(calls) == 4  # it stopped at the log point


def test_nan_gradient_names_the_parameter_and_keeps_the_previous_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss whose gradient is not: only the parameters tell."""
    policy = make_policy()
    before, original, bias = state_of(policy), policy.flow_matching_loss, policy.velocity_field.output_layer.bias
    monkeypatch.setattr(policy, "flow_matching_loss", lambda *args: original(*args) + (bias - bias).sqrt())
    with pytest.raises(FloatingPointError, match=r"'velocity_field\.output_layer\.bias'"):
        clone(policy, n_batches=1)
    assert_same(policy, before)
    assert not bool(policy.pretrained) and not policy.normalizer.fitted

"""Behaviour cloning: a distribution known in closed form, bookkeeping against independent loops, and every way to refuse."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import FloatSchedule
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_scoreflow import Demonstrations, FlowMatchingPolicy, HalfLifeSchedule
from sb3_scoreflow.demonstrations import ActionChunks, ChunkBatch
from sb3_scoreflow.scoreflow_ppo.defaults import DEFAULTS
from tests.bc.helpers import (
    ACTION,
    CHUNKS,
    IMAGE,
    OBS,
    PLAIN,
    VECTOR,
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
    """The loss cannot go below Var(x_1 - x_0 | x_t), averaged over t; 128 000 numbers give it a standard error of 0.6%."""
    t = (np.arange(10_000)[:, None] + 0.5) / 10_000
    conditional = 1 + STD**2 - (t * STD**2 - (1 - t)) ** 2 / ((1 - t) ** 2 + t**2 * STD**2)
    assert gaussian_clone[1]["bc/loss"][-1] == pytest.approx(conditional.mean(), rel=0.03)


def test_clone_samples_the_demonstrated_distribution(gaussian_clone: tuple[FlowMatchingPolicy, dict]) -> None:
    policy, n = gaussian_clone[0], 4000
    obs = th.as_tensor(make_demonstrations(n, seed=3).observations)
    with th.no_grad():
        actions = policy.sample_ode(obs, th.randn(n, ACTION, generator=th.Generator().manual_seed(0))).numpy()
    np.testing.assert_allclose(actions.mean(0), MEAN, atol=0.03)
    np.testing.assert_allclose(actions.std(0), STD, rtol=0.12)


# ---------------------------------------------------------------------- moving average, schedule, batches


@pytest.mark.parametrize(("decay", "n_batches"), [(0.0, 6), (0.7, 160), (0.995, 160)])
def test_policy_ends_with_the_moving_average(decay: float, n_batches: int) -> None:
    """Weights after every step, averaged again by hand; the first step starts the average, which then warms up."""
    policy, steps = make_policy(), []
    actor = [*policy.features_extractor.named_parameters(), *policy.velocity_field.named_parameters()]
    handle = register_optimizer_step_post_hook(
        lambda *_: steps.append({name: p.detach().clone().double() for name, p in actor})
    )
    try:
        clone(policy, n_batches=n_batches, ema_decay=decay, learning_rate=1e-2)
    finally:
        handle.remove()
    assert len(steps) == n_batches
    for name, parameter in actor:
        average = steps[0][name]
        for n, step in enumerate(steps[1:], start=1):
            warm = min(decay, 1 - 1 / max(n / 40, 1))
            average = warm * average + (1 - warm) * step[name]
        np.testing.assert_allclose(parameter.detach(), average, rtol=1e-5, atol=1e-7)
        assert (parameter - steps[-1][name]).abs().max() > 1e-5 or decay == 0


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
    assert [len(batch) for batch in drawn] == 3 * [16, 16, 16, 12]
    assert history["batch"] == [12]
    for epoch in range(3):
        assert sorted(np.concatenate(drawn[4 * epoch : 4 * epoch + 4])) == list(range(60))
    assert not np.array_equal(drawn[0], drawn[4])  # shuffled anew


def test_batches_are_counted_across_epochs(drawn: list[np.ndarray]) -> None:
    history = clone(make_policy(), n_batches=6, batch_size=16, log_interval=4)
    assert [len(batch) for batch in drawn] == [16, 16, 16, 12, 16, 16]
    assert history["batch"] == [4, 6]


def test_default_is_ten_thousand_batches() -> None:
    """By the learning rate of the second batch, after which the callback ends the run."""
    history = clone(make_policy(), n_batches=None, log_interval=2, callback=lambda metrics: False)
    rate = 1e-4 + 0.5 * 9e-4 * (1 + math.cos(math.pi / 10_000))
    assert history["bc/learning_rate"] == [pytest.approx(rate, rel=1e-12)]


def test_logged_loss_is_the_mean_since_the_last_log_point() -> None:
    fine, coarse = (clone(make_policy(), n_batches=7, log_interval=interval)["bc/loss"] for interval in (1, 3))
    assert coarse == pytest.approx([np.mean(fine[:3]), np.mean(fine[3:6]), fine[6]], rel=1e-5)


def test_loss_is_the_mean_squared_error_of_the_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is standard normal, times are uniform, actions are scaled to [-1, 1], and the loss is the mean over elements."""
    space = spaces.Box(np.array([0.0, -10.0]), np.array([1.0, 30.0]))
    rng, n = np.random.default_rng(0), 4096
    actions = rng.uniform(space.low, space.high, (n, ACTION))
    policy, seen = make_policy(action_space=space), []
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
        assert t.min() >= 0 and t.max() <= 1 and t.mean() == pytest.approx(0.5, abs=0.025)
        assert t.std() == pytest.approx(math.sqrt(1 / 12), abs=0.01)
        assert logged == pytest.approx(float(error.double().mean()), rel=1e-5)
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
        errors.append(original(*args))
        return errors[-1]

    monkeypatch.setattr(policy, "flow_matching_loss", loss)
    demonstrations = make_demonstrations(60, length=5, actions=np.random.default_rng(0).uniform(-1, 1, (60, 3)))
    history = clone(policy, demonstrations, log_interval=1)
    for indices, error, logged in zip(drawn, errors, history["bc/loss"], strict=True):
        total = count = 0.0
        for row, index in enumerate(indices):
            left = min(4, 5 - index % 5)  # actions before the end of the episode
            total += float(error[row, : 3 * left].detach().double().sum())
            count += 3 * left
        assert logged == pytest.approx(total / count, rel=1e-5)


# ---------------------------------------------------------------------- validation


def _numbered_episodes(n_episodes: int, length: int) -> Demonstrations:
    """Observations that name their episode."""
    n = n_episodes * length
    obs = np.repeat((np.arange(n) // length)[:, None], OBS, axis=1).astype(np.float32)
    return make_demonstrations(n, length, observations=obs)


def test_validation_episodes_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    original, seen = policy.flow_matching_loss, {True: set[float](), False: set[float]()}

    def loss(obs: th.Tensor, *args: Any) -> th.Tensor:
        seen[policy.training].update(obs[:, 0].tolist())
        return original(obs, *args)

    monkeypatch.setattr(policy, "flow_matching_loss", loss)
    clone(policy, _numbered_episodes(10, 6), n_batches=None, n_epochs=1, validation_fraction=0.3)
    training, validation = seen[True], seen[False]
    assert len(training) == 7 and len(validation) == 3 and not training & validation
    # The normaliser belongs to training, too
    assert float(policy.normalizer.count) == 42
    mean = policy.normalizer.get_buffer("mean_0")
    np.testing.assert_allclose(mean, np.full(OBS, np.mean(list(training))), rtol=1e-6)


def test_validation_loss_belongs_to_the_averaged_weights_and_one_noise() -> None:
    """With frozen weights it does not move; after training it is that of the policy that is left behind."""
    arguments: dict[str, Any] = dict(validation_fraction=0.3, log_interval=1)
    policy = make_policy()
    frozen = clone(policy, learning_rate=0.0, final_learning_rate=0.0, weight_decay=0.0, **arguments)
    assert len(set(frozen["bc/validation_loss"])) == 1 and len(set(frozen["bc/loss"])) == 4
    trained = clone(policy, learning_rate=3e-2, ema_decay=0.9, n_batches=12, **arguments)
    after = clone(policy, learning_rate=0.0, final_learning_rate=0.0, weight_decay=0.0, n_batches=1, **arguments)
    assert after["bc/validation_loss"][0] == pytest.approx(trained["bc/validation_loss"][-1], rel=1e-6)
    assert trained["bc/validation_loss"][-1] != trained["bc/validation_loss"][-2]


def test_validating_often_changes_nothing() -> None:
    """The averaged weights are only lent to the policy."""
    states = []
    for interval in (1, 100):
        policy = make_policy()
        clone(policy, n_batches=8, validation_fraction=0.3, log_interval=interval, learning_rate=1e-2)
        states.append(state_of(policy))
    for name, value in states[0].items():
        assert th.equal(value, states[1][name]), name


def test_no_validation_by_default() -> None:
    assert "bc/validation_loss" not in clone(make_policy())


def test_validation_needs_two_episodes() -> None:
    with pytest.raises(ValueError, match="needs at least 2 episodes, there is 1"):
        clone(make_policy(), make_demonstrations(10, length=10), validation_fraction=0.5)


# ---------------------------------------------------------------------- observations


def test_normalizer_is_fitted_to_the_demonstrations() -> None:
    demonstrations = make_demonstrations()
    assert isinstance(demonstrations.observations, np.ndarray)
    for mode in ("auto", "fixed", "running"):
        policy = make_policy(observation_normalization=mode)
        policy.normalizer.update(th.full((1000, OBS), 50.0))  # statistics of an earlier life are forgotten
        clone(policy, demonstrations)
        data = demonstrations.observations.astype(np.float64)
        np.testing.assert_allclose(policy.normalizer.get_buffer("mean_0"), data.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(policy.normalizer.get_buffer("var_0"), data.var(0), rtol=1e-5)
        assert float(policy.normalizer.count) == len(data)


def test_normalizer_can_be_switched_off() -> None:
    policy = make_policy(observation_normalization="none")
    clone(policy)
    assert not policy.normalizer.fitted


def test_dict_observations_and_images() -> None:
    """Vectors are fitted, images and discrete parts are not; keys that the policy does not know are ignored."""
    space = spaces.Dict({"camera": IMAGE, "state": VECTOR, "mode": spaces.Discrete(3)})
    rng, n = np.random.default_rng(0), 20
    obs: dict[str, np.ndarray] = {
        "camera": rng.integers(0, 256, (n, *IMAGE.shape), dtype=np.uint8),
        "state": rng.normal(4.0, 2.0, (n, OBS)),
        "mode": rng.integers(0, 3, n),
        "unknown": rng.normal(size=(n, 7)),
    }
    policy = make_policy(space)
    before = state_of(policy)
    clone(policy, make_demonstrations(n, observations=obs), n_batches=2)
    assert set(policy.normalizer.state_dict()) == {"count", "mean_0", "var_0"}
    np.testing.assert_allclose(policy.normalizer.get_buffer("mean_0"), obs["state"].mean(0), rtol=1e-5)
    np.testing.assert_allclose(policy.normalizer.get_buffer("var_0"), obs["state"].var(0), rtol=1e-5)
    extractor = [name for name, _ in policy.features_extractor.named_parameters()]
    assert len(extractor) > 0
    for name in extractor:  # the image encoder is part of the actor, and is trained
        assert not th.equal(policy.features_extractor.get_parameter(name), before[f"features_extractor.{name}"]), name


def test_channel_last_images() -> None:
    """Demonstrations recorded from an environment whose images SB3 transposes."""
    policy, rng = make_policy(IMAGE), np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 36, 36, 3), dtype=np.uint8)
    losses = [
        clone(make_policy(IMAGE), make_demonstrations(20, observations=obs))["bc/loss"]
        for obs in (images, images.transpose(0, 3, 1, 2))
    ]
    assert losses[0] == losses[1]
    assert not policy.normalizer.keys


def test_critic_starts_from_the_cloned_encoder() -> None:
    """With an extractor of its own; they are two from then on. A shared one needs nothing."""
    rng = np.random.default_rng(0)
    demonstrations = make_demonstrations(20, observations=rng.integers(0, 256, (20, *IMAGE.shape), dtype=np.uint8))
    model = make_model(BlankEnv(IMAGE))
    clone(model, demonstrations)
    actor, critic = model.policy.features_extractor, model.policy.vf_features_extractor
    assert_same(critic, state_of(actor))
    assert actor is not critic
    clone(make_model(BlankEnv(IMAGE), policy_kwargs=dict(net_arch=[16], share_features_extractor=True)), demonstrations)


def test_random_shift_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, and as large as asked for; held-out images are seen as they are, as is everything without images."""
    seen: list[tuple[bool, int]] = []
    augment = FlowMatchingPolicy.augment

    def spy(policy: FlowMatchingPolicy, obs: Any, pixels: int, generator: Any = None) -> Any:
        result = augment(policy, obs, pixels, generator)
        assert isinstance(result, th.Tensor) and result.dtype == th.uint8
        seen.append((not th.equal(result, obs), pixels))
        return result

    monkeypatch.setattr(FlowMatchingPolicy, "augment", spy)
    rng = np.random.default_rng(0)
    demonstrations = make_demonstrations(20, observations=rng.integers(0, 256, (20, *IMAGE.shape), dtype=np.uint8))
    clone(make_policy(IMAGE), demonstrations, n_batches=2, validation_fraction=0.5)
    assert seen == [(True, 4), (True, 4), (False, 0)]
    losses = [clone(make_policy(IMAGE), demonstrations, random_shift=pixels)["bc/loss"] for pixels in (0, 2, 2)]
    assert losses[0] != losses[1] == losses[2]


# ---------------------------------------------------------------------- what may call it, and what it leaves behind


def test_only_the_actor_is_trained() -> None:
    model = make_model()
    before = state_of(model.policy)
    clone(model)
    moved = {name.split(".")[0] for name, p in model.policy.named_parameters() if not th.equal(p, before[name])}
    assert moved == {"velocity_field"}


def test_bare_policy_works_like_a_model() -> None:
    """The same weights in, the same seed: the same weights out, and no logger needed."""
    model, policy = make_model(), make_policy()
    policy.load_state_dict({name: value for name, value in model.policy.state_dict().items() if name in policy.state_dict()})
    histories = [clone(model), clone(policy)]
    state = model.policy.state_dict()
    assert_same(policy, {name: state[name] for name in policy.state_dict()})
    assert histories[0]["bc/loss"] == histories[1]["bc/loss"]
    assert bool(policy.pretrained)


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_restored(training: bool) -> None:
    policy = make_policy()
    policy.set_training_mode(training)
    clone(policy, validation_fraction=0.2)
    assert policy.training == policy.velocity_field.training == training


def test_pretrained_defaults_take_over_and_moments_are_forgotten() -> None:
    """Both columns of defaults.py, and Adam's memory of the weights before."""
    model = make_model()
    assert not bool(model.policy.pretrained) and model.policy.updates_observation_statistics
    columns = []
    for column in ("scratch", "pretrained"):
        model.learn(16, reset_num_timesteps=False)
        progress = model._current_progress_remaining
        values = {**DEFAULTS[column]}
        if column == "scratch":  # rates come down in 50,000 transitions per dimension of an action, of which there are two
            values.update({f"{part}learning_rate": HalfLifeSchedule(3e-4, 1e-4, 100_000) for part in ("", "noise_")})
            values["clip_range"] = HalfLifeSchedule(0.2 / 10**0.5, 0.02, 100_000)  # of (4 + 1) * 2 numbers
        defaults = {name: FloatSchedule(value)(progress) for name, value in values.items()}
        rates = {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}
        expected = dict(
            velocity=defaults["learning_rate"],
            noise=defaults["noise_learning_rate"],
            critic=defaults["critic_learning_rate"],
        )
        assert rates == pytest.approx(expected)
        assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(defaults["max_std"], rel=1e-5)
        clip_range = model.clip_range(progress)  # type: ignore[operator,misc]
        assert clip_range == pytest.approx(defaults["clip_range"], rel=1e-12)
        assert model.logger.name_to_value.get("train/clip_range", clip_range) == clip_range
        columns.append(expected)
        assert len(model.policy.optimizer.state) > 0
        if column == "scratch":
            clone(model)
            assert len(model.policy.optimizer.state) == 0
            assert bool(model.policy.pretrained) and not model.policy.updates_observation_statistics
            pretrained = {name: FloatSchedule(value) for name, value in DEFAULTS["pretrained"].items()}
            assert model.lr_schedule(1.0) == pretrained["learning_rate"](1.0)
            # The noise is that of the new column even before learning
            max_std = pretrained["max_std"](model._current_progress_remaining)
            assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(max_std, rel=1e-5)
    assert columns[0] != columns[1]


@pytest.mark.parametrize("min_std", [0.05, 0.2, 0.5])
def test_default_noise_makes_way_for_min_std(min_std: float) -> None:
    """The default's upper bound decays; it must not pass a lower bound of the user's after hours of training."""
    model = make_model(min_std=min_std)
    clone(model)
    assert model.policy.log_std_bounds.exp().tolist() == pytest.approx([min_std, max(min_std, 0.24)], rel=1e-5)
    model.n_transitions = 10**6  # the decay is over
    model.learn(64)
    assert model.policy.log_std_bounds.exp().tolist() == pytest.approx([min_std, max(min_std, 0.1)], rel=1e-5)


def test_explicit_arguments_survive_pretraining() -> None:
    model = make_model(learning_rate=7e-4, max_std=0.33)
    clone(model)
    model.learn(16)
    rates = {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}
    assert rates["velocity"] == pytest.approx(7e-4)
    assert model.policy.log_std_bounds[1].exp().item() == pytest.approx(0.33, rel=1e-5)


# ---------------------------------------------------------------------- seeds


def test_seed_makes_runs_equal_and_leaves_global_generators_alone() -> None:
    th.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    runs = []
    for seed in (3, 3, 4):
        model = make_model()
        before = th.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
        history = clone(model, _numbered_episodes(8, 5), seed=seed, critic_batches=3, validation_fraction=0.25)
        assert th.equal(th.random.get_rng_state(), before[0])
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]  # noqa: NPY002
        runs.append((state_of(model.policy), {k: v for k, v in history.items() if "time" not in k}))
    assert runs[0][1] == runs[1][1] != runs[2][1]
    for name, value in runs[0][0].items():
        assert th.equal(value, runs[1][0][name]), name
    assert any(not th.equal(value, runs[2][0][name]) for name, value in runs[0][0].items())


# ---------------------------------------------------------------------- history, logger, callback, evaluation


def test_history_goes_through_the_models_logger(tmp_path: Path) -> None:
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    history = clone(model, n_batches=9, log_interval=4, validation_fraction=0.2, critic_batches=0)
    assert history["batch"] == [4, 8, 9]
    table = pd.read_csv(tmp_path / "progress.csv")
    for key in ("bc/loss", "bc/learning_rate", "bc/validation_loss"):
        assert len(history[key]) == 3
        np.testing.assert_allclose(table[key], history[key], rtol=1e-6)


def test_model_without_logger_gets_one_like_its_own(tmp_path: Path) -> None:
    model = make_model(tensorboard_log=str(tmp_path))
    clone(model)
    assert [path.name for path in tmp_path.iterdir()] == ["BC_1"]


def test_callback_sees_the_metrics_and_can_stop() -> None:
    seen: list[dict[str, float]] = []

    def callback(metrics: dict[str, float]) -> bool | None:
        seen.append(metrics)
        return False if len(seen) == 3 else None

    policy = make_policy()
    history = clone(policy, n_batches=50, log_interval=2, callback=callback)
    assert history["batch"] == [2, 4, 6]
    assert [metrics["bc/loss"] for metrics in seen] == history["bc/loss"]
    assert bool(policy.pretrained)  # what it has is kept


def test_stopped_run_keeps_the_average_so_far() -> None:
    """Stopping after 81 of many batches: the last weights with the average of those before, at its warmed-up rate of 1/2."""
    policy, steps = make_policy(), []
    weight = policy.velocity_field.output_layer.weight
    handle = register_optimizer_step_post_hook(lambda *_: steps.append(weight.detach().clone()))
    try:
        clone(policy, n_batches=500, log_interval=1, ema_decay=0.9, callback=lambda metrics: len(steps) < 81)
    finally:
        handle.remove()
    assert len(steps) == 81
    average = steps[0]
    for n, step in enumerate(steps[1:], start=1):
        average = average + (step - average) / max(n / 40, 1)
    th.testing.assert_close(weight.detach(), average, rtol=1e-5, atol=1e-7)
    assert not th.allclose(weight.detach(), steps[-1], rtol=1e-3)


def test_evaluation_is_deterministic_and_of_the_clone() -> None:
    policy = make_policy()
    history = clone(policy, eval_env=Monitor(BlankEnv()), n_eval_episodes=2)
    obs, total = np.full(OBS, 0.1, np.float32), 0.0
    for step in range(1, 4):
        total += float(policy.predict(obs, deterministic=True)[0][0]) - 0.5 * step
        obs = np.full(OBS, 0.1 * (step + 1), np.float32)
    assert history["bc/eval_return"] == [pytest.approx(total, rel=1e-5)]
    assert history["bc/eval_return_std"] == [0.0]


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    clone(make_policy(), n_batches=5, progress_bar=True)
    captured = capsys.readouterr()
    assert "behavior cloning" in captured.err + captured.out and "5/5" in captured.err + captured.out


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        (dict(n_epochs=1, n_batches=2), r"Give n_epochs or n_batches, not both \(got n_epochs=1, n_batches=2\)"),
        (dict(n_batches=0), "n_batches must be at least 1, got 0"),
        (dict(n_batches=None, n_epochs=-1), "n_epochs must be at least 1, got -1"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(log_interval=0), "log_interval must be at least 1, got 0"),
        (dict(ema_decay=1.0), r"ema_decay must be in \[0, 1\), got 1.0"),
        (dict(ema_decay=-0.1), r"ema_decay must be in \[0, 1\), got -0.1"),
        (dict(validation_fraction=1.0), r"validation_fraction must be in \[0, 1\), got 1.0"),
        (dict(validation_fraction=-0.5), r"validation_fraction must be in \[0, 1\), got -0.5"),
        (dict(critic_batches=-1), "critic_batches must not be negative, got -1"),
        (dict(learning_rate=-1e-3), "learning_rate must not be negative, got -0.001"),
        (dict(final_learning_rate=float("nan")), "final_learning_rate must not be negative, got nan"),
        (dict(weight_decay=-1.0), "weight_decay must not be negative, got -1.0"),
    ],
)
def test_impossible_arguments(kwargs: dict[str, Any], match: str) -> None:
    refused(match, **kwargs)


def test_model_of_another_kind() -> None:
    with pytest.raises(ValueError, match="model must be a FlowMatchingPolicy or an algorithm that has one, got PPO"):
        clone(PPO("MlpPolicy", BlankEnv(), n_steps=16, batch_size=16, device="cpu"))
    with pytest.raises(ValueError, match="got dict"):
        clone({})


def test_demonstrations_of_another_kind() -> None:
    refused(
        r"demonstrations must be Demonstrations \(see load_demonstrations\), got str", demonstrations="builtin:hopper-medium"
    )


def test_critic_of_a_bare_policy() -> None:
    refused("critic_batches=5 needs an algorithm with a value function", model=make_policy(), critic_batches=5)


@pytest.mark.parametrize(
    ("space", "observations", "match"),
    [
        (VECTOR, np.zeros((60, 4)), r"Demonstrated 'observations' have shape \(4,\), but the environment's have shape \(3,\)"),
        (VECTOR, np.zeros(60), r"Demonstrated 'observations' have shape \(\), but the environment's have shape \(3,\)"),
        (VECTOR, {"state": np.zeros((60, OBS))}, "the demonstrations hold dict observations"),
        (spaces.Dict(state=VECTOR), np.zeros((60, OBS)), "the demonstrations hold ndarray observations"),
        (
            spaces.Dict(state=VECTOR, hand=VECTOR, arm=VECTOR),
            {"state": np.zeros((60, OBS)), "extra": np.zeros((60, 1))},
            r"lack the observation keys \['arm', 'hand'\] of the policy's observation space; they have \['extra', 'state'\]",
        ),
        (
            spaces.Dict(state=VECTOR),
            {"state": np.zeros((60, 5))},
            r"Demonstrated 'state' have shape \(5,\), but the environment's have shape \(3,\)",
        ),
        (IMAGE, np.zeros((60, *IMAGE.shape)), "Demonstrated 'observations' have dtype float32, .*: give integers"),
        (spaces.Discrete(3), np.zeros(60), r"have dtype float32, but the observation space is Discrete\(3\): give integers"),
        (spaces.Discrete(3), np.arange(60) % 4, r"Demonstrated 'observations' are in \[0, 3\], outside Discrete\(3\)"),
        (spaces.Discrete(3), np.arange(60) % 3 - 1, r"are in \[-1, 1\], outside Discrete\(3\)"),
    ],
)
def test_observations_of_another_environment(space: spaces.Space, observations: Any, match: str) -> None:
    refused(match, model=make_policy(space), demonstrations=make_demonstrations(observations=observations))


@pytest.mark.parametrize(
    ("space", "shape", "match"),
    [
        (PLAIN, (3,), r"shape \(3,\), which fits neither the action space's shape \(2,\) nor chunks of it, \(horizon, 3\)"),
        (CHUNKS, (2,), r"shape \(2,\), which fits neither the action space's shape \(4, 3\) nor chunks of it, \(horizon, 2\)"),
        (CHUNKS, (4,), r"shape \(4,\), which fits neither"),
        (CHUNKS, (3, 4), r"shape \(3, 4\), which fits neither"),
    ],
)
def test_actions_of_another_environment(space: spaces.Box, shape: tuple[int, ...], match: str) -> None:
    refused(match, model=make_policy(action_space=space), demonstrations=make_demonstrations(actions=np.zeros((60, *shape))))


@pytest.mark.parametrize("space", [PLAIN, spaces.Box(-1, 1, (4, ACTION))], ids=["plain", "chunks"])
def test_actions_outside_the_bounds(space: spaces.Box) -> None:
    """The message says how many transitions and how far; a share of rounding is forgiven; clipping is an option."""
    actions = np.zeros((60, ACTION))
    actions[[3, 7, 7], [0, 0, 1]] = [1.25, -1.5, 1.1]
    demonstrations = make_demonstrations(actions=actions)
    refused(
        "2 of 60 demonstrated actions are outside the action space's bounds, by up to 0.5: pass clip_actions=True",
        model=make_policy(action_space=space),
        demonstrations=demonstrations,
    )
    clipped = clone(make_policy(action_space=space), demonstrations, clip_actions=True)
    expected = clone(make_policy(action_space=space), make_demonstrations(actions=np.clip(actions, -1, 1)))
    assert clipped["bc/loss"] == expected["bc/loss"]
    clone(make_policy(action_space=space), make_demonstrations(actions=np.full((60, ACTION), 1 + 5e-7)))


def test_one_bound_per_dimension() -> None:
    space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 10.0]))
    inside = np.tile([-1.0, 10.0], (60, 1))
    clone(make_policy(action_space=space), make_demonstrations(actions=inside))
    refused(
        "60 of 60 .* by up to 9",
        model=make_policy(action_space=space),
        demonstrations=make_demonstrations(actions=inside[:, ::-1]),
    )


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
    with pytest.raises(FloatingPointError, match=r"loss became nan before batch 4; .* Lower learning_rate=0.05"):
        clone(model, make_demonstrations(seed=1), n_batches=10, log_interval=4, learning_rate=0.05)
    assert_same(model.policy, before)
    assert model.policy.training == training
    assert len(calls) == 4  # it stopped at the log point


def test_nan_gradient_names_the_parameter_and_keeps_the_previous_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finite loss whose gradient is not: only the parameters tell."""
    policy = make_policy()
    before, original, bias = state_of(policy), policy.flow_matching_loss, policy.velocity_field.output_layer.bias
    monkeypatch.setattr(policy, "flow_matching_loss", lambda *args: original(*args) + (bias - bias).sqrt())
    with pytest.raises(FloatingPointError, match=r"made parameter 'velocity_field.output_layer.bias' NaN or infinite"):
        clone(policy, n_batches=1)
    assert_same(policy, before)
    assert not bool(policy.pretrained) and not policy.normalizer.fitted

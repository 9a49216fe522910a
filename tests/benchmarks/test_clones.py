"""The study of clones: its references are closed forms, and its command line leads to its summary."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from benchmarks import clones, study
from sb3_scoreflow import BehaviorCloning
from tests.bc.helpers import make_demonstrations, make_policy


def test_regression_is_the_mean_squared_error_of_the_action() -> None:
    demonstrations, policy = make_demonstrations(), make_policy(denoising_steps=1)
    arguments = dict(batch_size=60, seed=0, learning_rate=0.0, final_learning_rate=0.0)
    history = clones.Regression(policy, demonstrations, **arguments).train(n_batches=1)  # type: ignore[arg-type]
    actions = policy.predict(demonstrations.observations, deterministic=True)[0]  # type: ignore[arg-type]
    assert np.abs(actions).max() < 1, "none is clamped"
    assert history["bc/loss"] == [pytest.approx(np.square(actions - demonstrations.actions).mean(), rel=1e-5)]


def test_mean_prediction_is_the_flow_to_a_gaussian() -> None:
    """With a constant network, the velocity is the conditional mean of ``a - x_0`` given ``x_t``, for ``a ~ N(m, p^2)``."""
    policy = make_policy(prior_std=0.3)
    clones.MeanPrediction(policy, make_demonstrations(), seed=0)
    field = policy.velocity_field
    mean = th.linspace(-0.8, 0.9, policy.action_dim)
    with th.no_grad():
        field.output_layer.weight.zero_()
        field.output_layer.bias.copy_(mean)
    rng, features = np.random.default_rng(0), th.zeros(1, policy.features_dim)
    x_0 = rng.standard_normal((400_000, 1))
    actions = mean.numpy() + 0.3 * rng.standard_normal((400_000, 1))
    for t in (0.0, 0.25, 0.75):
        x_t = (1 - t) * x_0 + t * actions
        for column in range(policy.action_dim):  # the velocity is linear in x_t, so a regression estimates it
            slope, offset = np.polyfit(x_t[:, column], (actions - x_0)[:, column], 1)
            for x in (-0.5, 0.7):
                point = th.full((1, policy.action_dim), x)
                velocity = field(point, field.time_features(th.tensor([t])), field.condition(features))[0, column]
                assert float(velocity.detach()) == pytest.approx(slope * x + offset, abs=0.02)


def test_mean_predictions_loss_is_the_error_of_the_mean() -> None:
    """A change of the mean changes the loss by its square, at every time of the sampler's grid."""
    policy = make_policy(prior_std=0.3)
    cloning = clones.MeanPrediction(policy, make_demonstrations(), seed=0)
    field, time = policy.velocity_field, th.arange(4) / 4
    _, t, weights = cloning._draw(th.zeros(4000, policy.action_dim), th.Generator().manual_seed(0))
    x, condition = th.zeros(1, policy.action_dim), field.condition(th.zeros(1, policy.features_dim))
    before = field(x, field.time_features(time), condition)
    with th.no_grad():
        field.output_layer.bias.add_(0.1)
    change = (field(x, field.time_features(time), condition) - before)[:, 0].square()
    for index in range(4):
        expected = float(change[index].detach() * weights[t == index / 4][0])
        assert expected == pytest.approx(0.01, rel=1e-4)


def test_times_of_a_beta_distribution() -> None:
    """``Beta(1.5, 1)`` has the mean 0.6 and the variance 0.24 / 3.5, so times are nearer to 0 than to 1."""
    _, t, weights = clones.BetaTimes(make_policy(), make_demonstrations())._draw(
        th.zeros(200_000, 2), th.Generator().manual_seed(0)
    )
    assert 0 <= float(t.min()) and float(t.max()) < 1 and bool((weights == 1).all())
    assert float(t.mean()) == pytest.approx(0.999 * 0.4, abs=0.003)
    assert float(t.var()) == pytest.approx(0.999**2 * 0.24 / 3.5, rel=0.02)


def test_an_eighth_of_the_paths_starts_from_zero() -> None:
    arguments = (make_policy(), make_demonstrations())
    drawn = {
        cloning: cloning(*arguments)._draw(th.zeros(80, 2), th.Generator().manual_seed(0))
        for cloning in (clones.ZeroStarts, clones.BehaviorCloning)
    }
    (noise, *times), (usual_noise, *usual_times) = drawn.values()
    zero = (noise == 0).all(-1)
    assert int(zero.sum()) == 10 and not bool((usual_noise == 0).all(-1).any())
    assert th.equal(noise[~zero], usual_noise[~zero])
    assert all(th.equal(a, b) for a, b in zip(times, usual_times, strict=True))


def standardized(cloning: type[BehaviorCloning], observations: np.ndarray) -> np.ndarray:
    policy = make_policy()
    observations = make_demonstrations().observations + observations
    cloning(policy, make_demonstrations(observations=observations)).train(n_batches=1)
    return policy.normalizer(policy.obs_to_tensor(observations)[0]).numpy()


def test_components_that_hardly_vary_stay_small() -> None:
    """The components' standard deviations are about 1, 5 and 0.1."""
    nothing = np.zeros((60, 3))
    usual, floored = (standardized(cloning, nothing) for cloning in (BehaviorCloning, clones.FlooredScale))
    assert usual.std(0) == pytest.approx(1.0, rel=1e-3)
    raw = make_demonstrations().observations.std(0)  # type: ignore[union-attr]
    assert floored.std(0) == pytest.approx(raw / np.maximum(raw, raw.max() / 10), rel=1e-3)
    assert floored.std(0)[2] < 0.25


def test_a_tight_clip_bounds_outliers() -> None:
    outlier = np.zeros((60, 3))
    outlier[7, 0] = 50.0
    usual, clipped = (standardized(cloning, outlier) for cloning in (BehaviorCloning, clones.TightClip))
    assert usual.max() > 5 and clipped.max() == 3
    assert np.array_equal(clipped, usual.clip(-3, 3))


def test_from_the_command_line_to_the_summary(tmp_path: Path) -> None:
    common = ["--task", "hopper-medium", "--seeds", "0", "--episodes", "1", "--output", str(tmp_path)]
    clones.main([*common, "--n-batches", "2", "--variants", "earlier", "regression"])
    clones.main([*common, "--n-batches", "3", "--variants", "earlier"])
    section = study.read_summary(tmp_path)["hopper-medium"]
    assert section["seeds"] == [0] and set(section["origins"]) == {"earlier", "regression"}
    assert section["runs"]["earlier"]["0"]["batches"] == 3 and section["runs"]["regression"]["0"]["batches"] == 2
    assert set(section["mean"]["earlier"]) - set(section["mean"]["regression"]) == {"random_x0"}
    assert section["mean"]["regression"]["deterministic"]["mean"] > 0

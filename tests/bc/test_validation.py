"""Held-out episodes: which they are, and what their loss is."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_scoreflow import BehaviorCloning
from sb3_scoreflow.demonstrations import ChunkBatch
from tests.bc.helpers import OBS, clone, make_demonstrations, make_policy, numbered_episodes, state_of


def test_validation_episodes_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    original, seen = policy.flow_matching_loss, {True: set[float](), False: set[float]()}

    def loss(obs: th.Tensor, *args: Any) -> th.Tensor:
        seen[policy.training].update(obs[:, 0].tolist())
        return original(obs, *args)

    monkeypatch.setattr(policy, "flow_matching_loss", loss)
    clone(policy, numbered_episodes(10, 6), n_batches=None, n_epochs=1, validation_fraction=0.3)
    training, validation = seen[True], seen[False]
    assert len(training) == 7 and len(validation) == 3 and not training & validation
    # The normalizer belongs to training, too
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
    with pytest.raises(ValueError, match=r"\b2 episodes\b.*\b1\b"):
        clone(make_policy(), make_demonstrations(10, length=10), validation_fraction=0.5)
    assert len(clone(make_policy(), make_demonstrations(20, length=10), validation_fraction=0.5)["bc/validation_loss"]) == 1


@pytest.mark.parametrize("batch_size", [4, 7, 256])
def test_validation_loss_counts_every_action_once(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mean action in place of the loss: also if the last batch is small, and chunks end with their episode"""
    d = make_demonstrations()

    def mean_action(cloning: BehaviorCloning, batch: ChunkBatch, *_: Any) -> th.Tensor:
        weights = batch.mask[..., None] * np.ones_like(batch.actions)
        return th.tensor((batch.actions * weights).sum() / weights.sum(), requires_grad=True)

    monkeypatch.setattr(BehaviorCloning, "_loss", mean_action)
    cloning = BehaviorCloning(make_policy(), d, batch_size=batch_size, validation_fraction=0.3, seed=0)
    assert cloning.validation is not None
    chunks = cloning.validation.chunks(3)
    every = chunks[np.arange(len(chunks))]
    assert cloning._validation_loss(chunks) == pytest.approx(every.actions[every.mask].mean(), rel=1e-6)

"""Whatever stops cloning leaves the model as it was, or the averaged clone so far."""

import copy
import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_scoreflow import BehaviorCloning, ScoReFlowPPO, pretrain_bc
from tests.bc.helpers import BlankEnv, assert_same, make_demonstrations, make_model, state_of


class Unknown(BaseException):
    """No Exception: as a timeout that another library raises in the middle of anything."""


def raising(error: BaseException, at: int) -> Any:
    calls: list[dict[str, float]] = []

    def callback(metrics: dict[str, float]) -> None:
        calls.append(metrics)
        if len(calls) == at:
            raise error

    return callback


def bookkeeping(model: Any) -> dict[str, Any]:
    """What on_pretrained changes, and a VecNormalize's statistics."""
    normalizer = model.get_vec_normalize_env()
    return {
        "pretrained": bool(model.policy.pretrained),
        "training": model.policy.training,
        "moments": len(model.policy.optimizer.state),
        "transitions": model.n_transitions,
        "std": model.policy.log_std_bounds.tolist(),
        "statistics": None if normalizer is None else copy.deepcopy((vars(normalizer.obs_rms), vars(normalizer.ret_rms))),
    }


def trained_model(normalize: bool) -> ScoReFlowPPO:
    env: Any = make_vec_env(BlankEnv, 1)
    model = make_model(VecNormalize(env) if normalize else env)
    return model.learn(32)


ERRORS = [ValueError("x"), RuntimeError("x"), OSError("x"), MemoryError(), SystemExit(), Unknown()]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_while_cloning_leaves_everything_as_it_was(error: BaseException, normalize: bool) -> None:
    model = trained_model(normalize)
    before, marks = state_of(model.policy), bookkeeping(model)
    with pytest.raises(type(error)):
        pretrain_bc(
            model, make_demonstrations(), n_batches=9, batch_size=16, log_interval=3, callback=raising(error, 2), seed=0
        )
    assert_same(model.policy, before)
    assert str(bookkeeping(model)) == str(marks)


@pytest.mark.parametrize("error", [ValueError("x"), Unknown()], ids=lambda error: type(error).__name__)
def test_error_in_the_critics_fit_takes_the_clone_back_too(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained_model(False)
    before, marks = state_of(model.policy), bookkeeping(model)
    predict, calls = model.policy.predict_values, []

    def failing(obs: Any) -> th.Tensor:
        calls.append(0)
        if len(calls) == 5:
            raise error
        return predict(obs)

    monkeypatch.setattr(model.policy, "predict_values", failing)
    with pytest.raises(type(error)):
        pretrain_bc(model, make_demonstrations(), n_batches=4, batch_size=16, critic_batches=10, seed=0)
    assert len(calls) == 5
    assert_same(model.policy, before)
    assert str(bookkeeping(model)) == str(marks)


def test_interrupt_leaves_what_stopping_leaves() -> None:
    """Ctrl-C at the second log point, and a callback that says stop there: the same averaged clone, flags and defaults."""
    models = [make_model(), make_model()]
    with pytest.raises(KeyboardInterrupt):
        pretrain_bc(
            models[0], make_demonstrations(), n_batches=400, batch_size=16, log_interval=50,
            callback=raising(KeyboardInterrupt(), 3), seed=0,
        )  # fmt: skip
    counted = partial(next, itertools.count(1))
    pretrain_bc(
        models[1], make_demonstrations(), n_batches=400, batch_size=16, log_interval=50, critic_batches=0,
        callback=lambda metrics: counted() < 3, seed=0,
    )  # fmt: skip
    assert_same(models[0].policy, state_of(models[1].policy))
    assert bool(models[0].policy.pretrained) and str(bookkeeping(models[0])) == str(bookkeeping(models[1]))
    assert not models[0].policy.updates_observation_statistics
    models[0].learn(16)


def test_interrupted_run_keeps_its_history() -> None:
    cloning = BehaviorCloning(make_model(), make_demonstrations(), batch_size=16, seed=0)
    with pytest.raises(KeyboardInterrupt):
        cloning.train(n_batches=100, log_interval=10, callback=raising(KeyboardInterrupt(), 3))
    assert cloning.history["batch"] == [10, 20, 30]


def test_interrupt_before_the_first_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    before = state_of(model.policy)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.policy, "flow_matching_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain_bc(model, make_demonstrations(), n_batches=5)
    assert_same(model.policy, before)


def test_interrupt_in_the_critics_fit_leaves_the_clone_and_the_critic_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = make_model(), make_model()
    pretrain_bc(plain, make_demonstrations(), n_batches=4, batch_size=16, critic_batches=0, seed=0)
    predict, calls = model.policy.predict_values, []

    def interrupted(obs: Any) -> th.Tensor:
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return predict(obs)

    monkeypatch.setattr(model.policy, "predict_values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain_bc(model, make_demonstrations(), n_batches=4, batch_size=16, critic_batches=10, seed=0)
    assert_same(model.policy, state_of(plain.policy))


def test_false_of_numpy_stops_as_well() -> None:
    def callback(metrics: dict[str, float]) -> Any:
        return np.mean([metrics["bc/loss"]]) < 0

    history = pretrain_bc(make_model(), make_demonstrations(), n_batches=50, log_interval=10, callback=callback)
    assert history["batch"] == [10]

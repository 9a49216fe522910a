"""StopBelowClone: when it stops, for positive and for negative returns, and what is left then."""

from typing import Any

import pytest
from stable_baselines3.common.callbacks import CallbackList, EvalCallback

from sb3_scoreflow.callbacks import FlowEvalCallback, StopBelowClone
from tests.callbacks.envs import scripted
from tests.callbacks.test_evaluation import ITERATION, Copies, assert_same, make_model
from tests.conformance.envs import make_toy

Run = tuple[Any, FlowEvalCallback]


def run(levels: list[float], tolerance: float, patience: int, model: Any = None, **kwargs: Any) -> Run:
    """:return: a model that was evaluated to ``levels``, the first of which is the clone's, and its callback"""
    callback = FlowEvalCallback(
        scripted([level for level in levels for _ in range(2)]),
        callback_after_eval=StopBelowClone(tolerance, patience, verbose=0),
        n_eval_episodes=2,
        eval_freq=ITERATION,
        verbose=0,
        **kwargs,
    )
    model = make_model() if model is None else model
    model.learn((len(levels) - 1) * ITERATION, callback=callback)
    return model, callback


@pytest.mark.parametrize(
    ("levels", "tolerance", "patience", "stops_after"),
    [
        ([100, 91, 89, 88, 100], 0.1, 2, 3),
        ([100, 89, 91, 89, 88], 0.1, 2, 4),  # once above, it starts to count anew
        ([100, 99, 101], 0.0, 1, 1),
        ([100, 90, 90, 90], 0.1, 1, None),  # on the line is not below
        # Negative returns: a tenth below -100 is -110, not -90
        ([-100, -109, -111, -112, -1], 0.1, 2, 3),
        ([-100, -95, -109, -105], 0.1, 1, None),
        ([-100, -250, -299, -301], 2.0, 1, 3),
        ([0, 0, -1], 0.5, 1, 2),
    ],
)
def test_when_it_stops(levels: list[float], tolerance: float, patience: int, stops_after: int | None) -> None:
    model, callback = run(levels, tolerance, patience)
    n_evaluations = len(levels) - 1 if stops_after is None else stops_after
    assert model.num_timesteps == n_evaluations * ITERATION
    assert callback.last_mean_reward == levels[n_evaluations]


def test_the_best_weights_are_left() -> None:
    copies = Copies()
    stop = StopBelowClone(tolerance=0.0, patience=2, verbose=1)
    callback = FlowEvalCallback(
        scripted([10.0, 10.0, 12.0, 12.0, 9.0, 9.0, 8.0, 8.0]),
        callback_after_eval=CallbackList([copies, stop]),
        n_eval_episodes=2,
        eval_freq=ITERATION,
        restore_best=True,
        verbose=0,
    )
    model = make_model()
    model.learn(20 * ITERATION, callback=callback)
    assert model.num_timesteps == 3 * ITERATION
    assert_same(model.policy.state_dict(), copies.kept[0])
    assert_same(model.policy.state_dict(), copies.kept[2], same=False)
    assert stop.n_below == 0  # a second call has its patience again


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    callback = FlowEvalCallback(
        scripted([-10.0, -10.0, -12.5, -12.5]),
        callback_after_eval=StopBelowClone(0.2, 1),
        n_eval_episodes=2,
        eval_freq=ITERATION,
        verbose=0,
    )
    make_model().learn(ITERATION, callback=callback)
    assert "1 evaluations in a row below -12.00, the last mean reward is -12.50" in capsys.readouterr().out


def test_patience_lasts_over_calls_of_learn() -> None:
    levels = [10.0, 10.0, 1.0, 1.0, 1.0, 1.0]
    stop = StopBelowClone(0.1, 2, verbose=0)
    callback = FlowEvalCallback(scripted(levels), callback_after_eval=stop, n_eval_episodes=2, eval_freq=ITERATION, verbose=0)
    model = make_model()
    for expected in (1, 2):
        model.learn(ITERATION, callback=callback, reset_num_timesteps=False)
        assert model.num_timesteps == expected * ITERATION and stop.n_below == (1 if expected == 1 else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(tolerance=-0.1), "tolerance must be a share of the clone's return, at least 0, got -0.1: pass 0.1"),
        (dict(tolerance=float("inf")), "tolerance must be a share"),
        (dict(patience=0), "patience must be at least 1 evaluation, got 0: pass 3"),
    ],
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StopBelowClone(**arguments)


def test_it_needs_a_level() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="got EvalCallback: pass it as FlowEvalCallback"):
        model.learn(ITERATION, callback=EvalCallback(make_toy(), callback_after_eval=StopBelowClone()))
    with pytest.raises(ValueError, match="got NoneType"):
        model.learn(ITERATION, callback=StopBelowClone())
    model.learn(ITERATION)
    with pytest.warns(UserWarning, match="return is unknown"):
        with pytest.raises(ValueError, match="needs the clone's return, but the model was trained before: pass the clone"):
            run([1.0, 1.0], 0.1, 1, model)
    _, callback = run([1.0, 1.0], 0.1, 1, model, clone=make_model())
    assert callback.clone_evaluation is not None and callback.clone_evaluation.mean == 1

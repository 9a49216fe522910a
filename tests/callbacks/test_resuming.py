"""FlowEvalCallback in a run that is interrupted: it goes on where it was, the clone's level and the best weights included."""

from pathlib import Path
from typing import Any

import pytest

from sb3_scoreflow.callbacks import FlowEvalCallback, StopBelowClone
from tests.conformance.algorithm import Algorithm
from tests.conformance.algorithms import ALGORITHMS
from tests.resuming.runs import N_ENVS, difference, make_env, run


# The other algorithms' own parts of a checkpoint are in tests/resuming
@pytest.mark.parametrize(
    "algorithm", [ALGORITHMS[0], *(pytest.param(other, marks=pytest.mark.slow) for other in ALGORITHMS[1:])], ids=str
)
def test_it_goes_on_where_it_was(algorithm: Algorithm, tmp_path: Path) -> None:
    size = algorithm.iteration(N_ENVS)

    def learn(name: str, kill_at: int | None = None) -> tuple[Any, FlowEvalCallback]:
        callback = FlowEvalCallback(
            make_env("Pendulum-v1", 1, 9),
            callback_after_eval=StopBelowClone(tolerance=1.0, patience=100),
            n_eval_episodes=2,
            eval_freq=size // N_ENVS,
            stochastic=True,
            restore_best=True,
            log_path=tmp_path / f"{name}_best",
            best_model_save_path=tmp_path / f"{name}_best",
            verbose=0,
        )
        model, _ = run(algorithm, tmp_path / name, n_iterations=5, kill_at=kill_at, callbacks=(callback,))
        return model, callback

    whole, expected = learn("whole")
    learn("resumed", kill_at=int(2.5 * size))
    resumed, callback = learn("resumed")
    assert difference(whole, resumed) == 0
    assert len(expected.evaluations_stochastic) >= 5 and expected.clone_evaluation is not None
    for name in ("clone_evaluation", "best_lower_bound", "evaluations_stochastic", "n_calls"):
        assert getattr(callback, name) == getattr(expected, name), name
    best = (algorithm.cls.load(tmp_path / f"{name}_best" / "best_model.zip") for name in ("whole", "resumed"))
    assert difference(*best) == 0

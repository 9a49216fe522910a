"""What a run logs, and whom it tells: history, logger, callback, evaluation, progress bar."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

from tests.bc.helpers import OBS, BlankEnv, clone, make_model, make_policy


def test_history_goes_through_the_models_logger(tmp_path: Path) -> None:
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    history = clone(model, n_batches=9, log_interval=4, validation_fraction=0.2, critic_batches=0)
    assert history["batch"] == [4, 8, 9]
    table = pd.read_csv(tmp_path / "progress.csv")
    for key in ("bc/loss", "bc/learning_rate", "bc/validation_loss"):
        assert len(history[key]) == 3
        np.testing.assert_allclose(table[key].dropna(), history[key], rtol=1e-6)
    np.testing.assert_allclose(table["bc/action_residual"].dropna(), history["bc/action_residual"], rtol=1e-6)


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

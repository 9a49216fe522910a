"""What the learning benchmarks share: a recorder of learning curves, and the statistics of their summaries."""

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

#: Columns of a learning curve
Curve = dict[str, np.ndarray]
FIELDS = ("env_steps", "timesteps", "return_exploring", "return_deterministic", "wall_seconds", "cpu_seconds")
#: The returns among them
COLUMNS = ("return_exploring", "return_deterministic")


class CurveRecorder(BaseCallback):
    """
    One CSV row per evaluation, written at once: env steps, mean return of the episodes that ended since, deterministic return,
    training time on the clock and on the processor (which other processes do not slow down).

    :param path: CSV file
    :param eval_env: environment of the deterministic evaluation
    :param eval_every: environment steps (inside chunks) between evaluations
    :param n_eval_episodes: episodes per evaluation
    """

    def __init__(self, path: Path, eval_env: VecEnv, eval_every: int, n_eval_episodes: int = 10) -> None:
        super().__init__()
        self.path, self.eval_env, self.eval_every, self.n_eval_episodes = path, eval_env, eval_every, n_eval_episodes
        self.env_steps = self.next_evaluation = 0
        self.evaluation_seconds = self.evaluation_cpu_seconds = 0.0
        self.returns: list[float] = []
        self.rows: list[dict[str, float]] = []

    def _on_training_start(self) -> None:
        self.start, self.cpu_start = time.perf_counter(), time.process_time()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            csv.DictWriter(file, FIELDS).writeheader()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            self.env_steps += info.get("n_env_steps", 1)
            if "episode" in info:
                self.returns.append(info["episode"]["r"])
        return True

    def _on_rollout_start(self) -> None:
        # Here rather than inside a rollout, so that what is evaluated is what the last update made.
        if self.env_steps >= self.next_evaluation:
            self.record()
            self.next_evaluation += self.eval_every

    def _on_training_end(self) -> None:
        self.record()

    def record(self) -> None:
        began, cpu_began = time.perf_counter(), time.process_time()
        deterministic = float(np.mean(evaluate_policy(self.model, self.eval_env, self.n_eval_episodes)[0]))
        row = dict(
            env_steps=self.env_steps,
            timesteps=self.num_timesteps,
            return_exploring=float(np.mean(self.returns)) if self.returns else float("nan"),
            return_deterministic=deterministic,
            wall_seconds=began - self.start - self.evaluation_seconds,
            cpu_seconds=cpu_began - self.cpu_start - self.evaluation_cpu_seconds,
        )
        self.returns = []
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow({name: f"{row[name]:.6g}" for name in FIELDS})
        self.evaluation_seconds += time.perf_counter() - began
        self.evaluation_cpu_seconds += time.process_time() - cpu_began


def read_curve(path: Path) -> Curve:
    """
    :param path: CSV file of :class:`CurveRecorder`
    :return: its columns
    """
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row.get(name, "nan")) for row in rows]) for name in FIELDS}


def final_return(curve: Curve, column: str, n_last: int = 3) -> float:
    """Mean of the last evaluations, which a single lucky evaluation does not decide."""
    return float(np.nanmean(curve[column][-n_last:]))


def steps_to(curve: Curve, column: str, threshold: float) -> float:
    """Env steps at which the curve first reaches a threshold, interpolated linearly; infinity if it never does."""
    x, y = curve["env_steps"], curve[column]
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    above = np.flatnonzero(y >= threshold)
    if len(above) == 0:
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (threshold - y[i - 1]) / (y[i] - y[i - 1]) * (x[i] - x[i - 1]))


def finite_or_none(value: float) -> float | None:
    """JSON has no infinity: a threshold that was never reached is null."""
    return float(value) if np.isfinite(value) else None


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds with its 95% confidence interval (Student's t: for a handful of seeds a bootstrap is too narrow)."""
    array = np.asarray(values, dtype=float)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    return {
        "mean": float(array.mean()),
        "ci95": [float(array.mean() - half), float(array.mean() + half)],
        "per_seed": array.tolist(),
    }


def evaluate(model: BaseAlgorithm, env: VecEnv, n_episodes: int) -> float:
    return float(np.mean(evaluate_policy(model, env, n_episodes)[0]))


# ---------------------------------------------------------------- several tasks at once (arXiv 2108.13264)

#: One array of scores, one per seed, for every task
Scores = Sequence[np.ndarray]
Statistic = Callable[..., float]


def interquartile_mean(*tasks: np.ndarray) -> float:
    """Mean of the middle half of all runs of all tasks."""
    return float(stats.trim_mean(np.concatenate(tasks), 0.25))


def probability_of_improvement(*tasks: np.ndarray) -> float:
    """
    Probability that a run of the first beats a run of the second on the same task, ties counting half; mean over tasks.

    :param tasks: the scores of the first on every task, then those of the second
    """
    first, second = tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]
    wins = [np.sign(a[:, None] - b[None, :]) / 2 + 0.5 for a, b in zip(first, second, strict=True)]
    return float(np.mean([w.mean() for w in wins]))


def with_bootstrap_interval(statistic: Statistic, tasks: Scores) -> dict[str, Any]:
    """
    A statistic of the scores with its 95% confidence interval, by a percentile bootstrap that draws seeds within every task.

    :param statistic: of one array per task
    :param tasks: the arrays, at least two scores each
    """
    drawn = stats.bootstrap(tuple(tasks), statistic, n_resamples=2000, vectorized=False, method="percentile", rng=0)
    return {
        "value": statistic(*tasks),
        "ci95": [float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)],
    }

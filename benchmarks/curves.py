"""Learning curves: recorded run by run, and kept in one compressed table per study."""

import csv
import gzip
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

#: Columns of a learning curve
FIELDS = ("env_steps", "timesteps", "return_exploring", "return_deterministic", "wall_seconds", "cpu_seconds")
#: The returns among them
RETURNS = ("return_exploring", "return_deterministic")
Curve = dict[str, np.ndarray]
#: A curve as the recorder wrote it
Rows = list[dict[str, str]]


class Run(NamedTuple):
    """What a curve is of; the first columns of the table."""

    variant: str
    env: str
    seed: int


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
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow({name: f"{row[name]:.6g}" for name in FIELDS})
        self.evaluation_seconds += time.perf_counter() - began
        self.evaluation_cpu_seconds += time.process_time() - cpu_began


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder, which is made if it is missing: two commands of one study may run at the same time."""
    import fcntl  # not on Windows, where only this does not work

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class CurveTable:
    """
    ``curves.csv.gz`` of a study: a row per evaluation; variant, environment and seed stand before the recorder's columns.

    A run is recorded in ``runs/``, which git ignores; it enters the table as a whole.

    :param folder: of the study
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.runs = folder / "curves.csv.gz", folder / "runs"

    def record(
        self,
        run: Run,
        model: BaseAlgorithm,
        timesteps: int,
        eval_env: VecEnv,
        eval_every: int = 20_000,
        n_eval_episodes: int = 10,
        callbacks: Sequence[BaseCallback] = (),
    ) -> Rows:
        """
        Train, on whatever machine: the table stays as it is.

        :param run: what the curve is of
        :param model: what learns
        :param timesteps: calls of ``env.step``
        :param eval_env: environment of the deterministic evaluation
        :param eval_every: environment steps (inside chunks) between evaluations
        :param n_eval_episodes: episodes per evaluation
        :param callbacks: of ``learn``, after the recorder
        :return: the curve
        """
        path = self.runs / f"{run.env}_{run.variant}_seed{run.seed}.csv"
        model.learn(timesteps, callback=[CurveRecorder(path, eval_env, eval_every, n_eval_episodes), *callbacks])
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        path.unlink()
        return rows

    def add(self, runs: Mapping[Run, Rows]) -> None:
        """
        :param runs: rows of the recorder as they were written; they replace what the table has of these runs
        """
        with locked(self.path.parent):
            everything = {**self._rows(), **runs}
            temporary = self.path.with_suffix(".tmp")
            # Neither a name nor a time in the header: the same curves are the same bytes
            with temporary.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as compressed:
                with io.TextIOWrapper(compressed, "utf-8", newline="") as text:
                    writer = csv.DictWriter(text, (*Run._fields, *FIELDS), restval="", lineterminator="\n")
                    writer.writeheader()
                    for run in sorted(everything):
                        writer.writerows({**run._asdict(), **row} for row in everything[run])
            temporary.replace(self.path)

    def read(self) -> dict[Run, Curve]:
        """
        :return: all curves; times that an old one does not have are NaN
        """
        return {run: as_curve(rows) for run, rows in self._rows().items()}

    def _rows(self) -> dict[Run, Rows]:
        result: dict[Run, Rows] = {}
        if self.path.exists():
            with gzip.open(self.path, "rt", newline="") as file:
                for row in csv.DictReader(file):
                    run = Run(row.pop("variant"), row.pop("env"), int(row.pop("seed")))
                    result.setdefault(run, []).append(row)
        return result


def as_curve(rows: Sequence[Mapping[str, str]]) -> Curve:
    """
    :param rows: as they were recorded
    :return: its columns
    """
    return {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in FIELDS}


def complete(curves: Mapping[Run, Curve], env: str, variants: Iterable[str], seeds: Sequence[int]) -> dict[str, list[Curve]]:
    """
    :param curves: of a table
    :param env: environment
    :param variants: those to look for
    :param seeds: of the runs
    :return: one curve per seed, of the variants that have any
    :raises SystemExit: if one has some of the seeds only, with the runs that are missing
    """
    runs = {variant: [Run(variant, env, seed) for seed in seeds] for variant in variants}
    found = {variant: {run.seed for run in of if run in curves} for variant, of in runs.items()}
    check_seeds({variant: of for variant, of in found.items() if of}, seeds)
    return {variant: [curves[run] for run in of] for variant, of in runs.items() if found[variant]}


def check_seeds(found: Mapping[str, Iterable[int]], seeds: Sequence[int]) -> None:
    """
    :param found: seeds of which there are runs, by variant
    :param seeds: those that are to be averaged
    :raises SystemExit: if one of them is missing
    """
    missing = [f"{variant} seed {seed}" for variant, of in found.items() for seed in sorted({*seeds} - {*of})]
    if missing:
        sys.exit(
            f"error: There is no summary, as runs are missing: {', '.join(missing)}. Make them, or name with --seeds those "
            "that all variants have."
        )

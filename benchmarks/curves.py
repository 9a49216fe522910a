"""Learning curves. Each run records its curve, and each study keeps all curves in one compressed table."""

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
    """The run that a curve belongs to; its fields are the first columns of the table."""

    variant: str
    env: str
    seed: int


class CurveRecorder(BaseCallback):
    """
    Writes a CSV row after each evaluation: environment steps, mean return of the episodes that have ended since the previous
    row, deterministic return, and training time on the clock and on the processor (which other processes do not slow down).

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
        # Evaluate between rollouts, so that the policy is the result of the last update.
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
    """Lock a study's folder, because two commands of one study may run at the same time. A missing folder is created."""
    import fcntl  # Windows does not have this module; nothing else in this file needs it

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class CurveTable:
    """
    The file ``curves.csv.gz`` of a study, with one row per evaluation. The columns variant, environment and seed come before
    the recorder's columns.

    A run is recorded in ``runs/``, which git ignores; the table only contains completed runs.

    :param folder: folder of the study
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
        Train and record the curve. This may happen on any machine, so it does not change the table; see :meth:`add`.

        :param run: variant, environment and seed of the curve
        :param model: model to train
        :param timesteps: time steps of ``model.learn`` (chunks, with ``ActionChunking``)
        :param eval_env: environment of the deterministic evaluation
        :param eval_every: environment steps (inside chunks) between evaluations
        :param n_eval_episodes: episodes per evaluation
        :param callbacks: further callbacks for ``learn``, which are called after the recorder
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
        :param runs: rows as written by the recorder; they replace the rows of the same runs in the table
        """
        with locked(self.path.parent):
            everything = {**self._rows(), **runs}
            temporary = self.path.with_suffix(".tmp")
            # The header contains neither a name nor a time, so that the same curves give the same bytes
            with temporary.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as compressed:
                with io.TextIOWrapper(compressed, "utf-8", newline="") as text:
                    writer = csv.DictWriter(text, (*Run._fields, *FIELDS), restval="", lineterminator="\n")
                    writer.writeheader()
                    for run in sorted(everything):
                        writer.writerows({**run._asdict(), **row} for row in everything[run])
            temporary.replace(self.path)

    def read(self) -> dict[Run, Curve]:
        """
        :return: all curves; columns that an old curve does not have are NaN
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
    :param rows: rows as written by the recorder
    :return: column name -> values
    """
    return {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in FIELDS}


def complete(curves: Mapping[Run, Curve], env: str, variants: Iterable[str], seeds: Sequence[int]) -> dict[str, list[Curve]]:
    """
    :param curves: curves of a table
    :param env: environment
    :param variants: variants to look for
    :param seeds: seeds of the runs
    :return: variant -> one curve per seed, without variants that have no run
    :raises SystemExit: if a variant has only some of the seeds; the message names the missing runs
    """
    runs = {variant: [Run(variant, env, seed) for seed in seeds] for variant in variants}
    found = {variant: {run.seed for run in of if run in curves} for variant, of in runs.items()}
    check_seeds({variant: of for variant, of in found.items() if of}, seeds)
    return {variant: [curves[run] for run in of] for variant, of in runs.items() if found[variant]}


def check_seeds(found: Mapping[str, Iterable[int]], seeds: Sequence[int]) -> None:
    """
    :param found: variant -> seeds of its runs
    :param seeds: seeds to average over
    :raises SystemExit: if a variant does not have all of them
    """
    missing = [f"{variant} seed {seed}" for variant, of in found.items() for seed in sorted({*seeds} - {*of})]
    if missing:
        sys.exit(
            f"error: There is no summary, because runs are missing: {', '.join(missing)}. Make these runs, or pass to --seeds "
            "only the seeds that all variants have."
        )

"""
The zoo's search with its trials in Ray: Ray Tune starts and repeats them, and a file on the disk has Optuna's study.

Only :mod:`sb3_scoreflow.zoo.verbs` imports this module, for ``optimize --workers``.
"""

import importlib
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch as th
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune import FailureConfig, RunConfig, Stopper, TuneConfig, Tuner, report, with_parameters, with_resources
from ray.tune.search.optuna import OptunaSearch
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.utils import set_random_seed

from sb3_scoreflow.distributed import session
from sb3_scoreflow.zoo.cloning import SettingsError
from sb3_scoreflow.zoo.manager import FlowExperimentManager, Preprocessed
from sb3_scoreflow.zoo.registration import register

#: Receives a trial's results: ``step`` counts evaluations; ``end`` is empty until the trial is "complete" or "diverged"
Report = Callable[[dict[str, Any]], None]


class ParallelSearch(FlowExperimentManager):
    """
    The zoo's experiment with a search that runs trials in parallel, and continues an earlier search that was interrupted.

    :param experiment: arguments of the zoo's experiment
    :param workers: number of trials that run at the same time
    :param address: address of the Ray cluster, as in ``RayVecEnv``
    :param retries: number of times that a failed trial is repeated
    :param options: keyword arguments of the zoo's experiment
    """

    def __init__(self, *experiment: Any, workers: int, address: str | None, retries: int, **options: Any) -> None:
        super().__init__(*experiment, **options)
        self.workers, self.address, self.retries = workers, address, retries
        self.storage = self.storage or f"{self.log_path}optimize_{self.env_name}.log"
        self.study_name = self.study_name or str(self.env_name)
        if not self.storage.endswith(".log"):
            raise SettingsError(f"--storage {self.storage}: with --workers, it must be a file whose name ends in .log.")
        if self.n_jobs != 1:
            raise SettingsError(f"--n-jobs {self.n_jobs} and --workers {workers} set the same thing: leave --n-jobs out.")

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Preprocessed:
        self.requested = {name: str(value) for name, value in sorted(hyperparams.items())}
        return super()._preprocess_hyperparams(hyperparams)

    def hyperparameters_optimization(self) -> None:
        """
        As in the zoo, but the number of trials includes those of earlier searches in the same study.

        :raises SettingsError: if the study was made with other settings, if another search is running on it, if Ray cannot be
            reached, or if all of the first trials fail
        """
        path = Path(str(self.storage))
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock-of-search")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise SettingsError(f"Another search is running on {path}: wait for it, or pass another --storage.") from error
        with lock:
            left = self._prepare(path)
            if left > 0:
                self._search(path, left)
        self.max_total_trials = 0  # the zoo only reports
        super().hyperparameters_optimization()

    def _prepare(self, path: Path) -> int:
        """:return: number of trials to run; those that an interruption has left open come first"""
        study = optuna.create_study(
            storage=_storage(path), study_name=self.study_name, direction="maximize", load_if_exists=True
        )
        settings: dict[str, Any] = {
            "algo": self.algo,
            "env": str(self.env_name),
            "n_timesteps": self.n_timesteps,
            "n_evaluations": self.n_evaluations,
            "eval_episodes": self.n_eval_episodes,
            "hyperparams": self.requested,
        }
        known = study.user_attrs.get("settings", settings)
        others = [f"{name}: {known.get(name)}, not {value}" for name, value in settings.items() if known.get(name) != value]
        if others:
            raise SettingsError(
                f"The study {self.study_name!r} in {path} was made with other settings ({'; '.join(others)}): pass another "
                "--study-name, or delete the file."
            )
        study.set_user_attr("settings", settings)
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
        ended = len(study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED]))
        total = self.n_trials if self.max_total_trials is None else self.max_total_trials
        if study.trials:
            print(f"resumed: {ended} of {total} trials had ended before ({path})", flush=True)
        return total - ended

    def _search(self, path: Path, left: int) -> None:
        try:
            session.connect(self.address)
            session.check_resources(session.import_ray(), {"CPU": 1.0}, 1)
        except (OSError, ValueError) as error:
            raise SettingsError(str(error)) from error
        search = Search(self, path)
        with tempfile.TemporaryDirectory() as folder:  # all results are in the study
            tuner = Tuner(
                with_resources(with_parameters(run_trial, manager=self), {"cpu": 1}),
                tune_config=TuneConfig(search_alg=search, num_samples=left, max_concurrent_trials=self.workers),
                run_config=RunConfig(
                    name="search",
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=self.retries),
                    stop=Pruner(search, self.workers),
                    verbose=0,
                ),
            )
            results = tuner.fit()
        self._show_failures(path, [results[i] for i in range(len(results))], search.n_ended)

    def _show_failures(self, path: Path, results: Sequence[Any], n_ended: int) -> None:
        failed = [result for result in results if result.error]
        for result in failed:
            number = result.config["number"]
            log = Path(f"{path}.trial_{number}.error.txt")
            log.write_text(f"{json.dumps(result.config)}\n{result.error}\n")
            print(f"failed: trial {number}: {str(result.error).strip().splitlines()[-1]} ({log})", flush=True)
        if failed and not n_ended:
            raise SettingsError(f"All trials so far ({len(failed)}) failed, in {self.retries + 1} attempts each: see above.")


def run_trial(config: dict[str, Any], manager: ParallelSearch, report: Report = report) -> None:
    """
    Run a trial of the zoo; it may be in another process.

    :param config: drawn values of the hyperparameters, and the trial's ``number``
    :param manager: the experiment
    :param report: receives the results
    """
    register()
    for module in ("rl_zoo3.import_envs", *manager.args.gym_packages):
        importlib.import_module(module)
    number = config["number"]
    th.set_num_threads(max(manager.args.num_threads, 1))
    set_random_seed((manager.seed + number) % 2**32)
    trial = _Reporting({name: value for name, value in config.items() if name != "number"}, number)
    trial.send = report
    try:
        value = manager.objective(trial)  # type: ignore[arg-type]  # as the zoo uses it, it is a Trial
    except optuna.TrialPruned:  # it diverged
        report({"number": number, "value": math.nan, "step": 0, "end": "diverged"})
    else:
        report({"number": number, "value": float(value), "step": 0, "end": "complete"})


class _Reporting(optuna.trial.FixedTrial):
    """A trial that is never pruned here: the driver, which knows all trials, decides."""

    send: Report

    def report(self, value: float, step: int) -> None:
        self.send({"number": self.number, "value": float(value), "step": step, "end": ""})


class Search(OptunaSearch):
    """
    Optuna's search in the zoo's search space.

    :param manager: the experiment
    :param path: file of the study
    """

    def __init__(self, manager: ParallelSearch, path: Path) -> None:
        sampler, pruner = manager._create_sampler(manager.sampler), manager._create_pruner(manager.pruner)
        n_envs = 1 if manager.algo == "ars" else manager.n_envs
        replay = {
            "using_her_replay_buffer": manager._hyperparams.get("replay_buffer_class") == HerReplayBuffer,
            "her_kwargs": manager._hyperparams.get("replay_buffer_kwargs", {}),
        }

        def space(trial: Any) -> dict[str, Any]:
            trial.study.pruner = pruner
            HYPERPARAMS_SAMPLER[manager.algo](trial, manager.n_actions, n_envs, replay)
            self.trials[trial.number] = trial
            return {"number": trial.number}

        super().__init__(space, "value", "max", sampler=sampler, study_name=manager.study_name, storage=_storage(path))
        #: Optuna's trials by number
        self.trials: dict[int, Any] = {}
        #: Tune's names of the pruned trials
        self.stopped: set[str] = set()
        self.n_ended = self.n_failed = 0
        if optuna.load_study(storage=_storage(path), study_name=manager.study_name).trials:
            sampler.reseed_rng()  # otherwise it would repeat its first draws

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the :class:`Pruner` has passed it to Optuna."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Close the trial, unless an interruption has stopped it: the next search begins with such a trial."""
        end = (result or {}).get("end")
        if trial_id in self.stopped or end == "diverged":
            self.n_ended += 1
            super().on_trial_complete(trial_id)
        elif error or (end == "complete" and math.isnan(result["value"])):  # type: ignore[index]
            self.n_failed += 1
            super().on_trial_complete(trial_id, error=True)
        elif end == "complete":
            self.n_ended += 1
            super().on_trial_complete(trial_id, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on the disk."""


class Pruner(Stopper):
    """
    The zoo's pruner; it also stops a search in which every trial fails.

    :param search: the search, with Optuna's trials
    :param workers: number of failures, before any trial has ended, after which the search stops
    """

    def __init__(self, search: Search, workers: int) -> None:
        self.search, self.workers = search, workers

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if result["end"]:
            return False
        trial = self.search.trials[result["number"]]
        trial.report(result["value"], result["step"])
        if trial.should_prune():
            self.search.stopped.add(trial_id)
            return True
        return False

    def stop_all(self) -> bool:
        return self.search.n_failed >= self.workers and not self.search.n_ended


def _storage(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))

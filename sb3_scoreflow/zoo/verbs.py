"""The programs of rl_zoo3, under their names there."""

import argparse
import importlib
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from sb3_scoreflow.zoo.cloning import SettingsError
from sb3_scoreflow.zoo.registration import missing, register

_PROGRAM = "python -m sb3_scoreflow.zoo"


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _train() -> None:
    from sb3_scoreflow.zoo.manager import FlowExperimentManager

    _train_with(FlowExperimentManager)


def _train_with(manager: Callable[..., Any]) -> None:
    module = importlib.import_module("rl_zoo3.train")
    with _replaced(module, "ExperimentManager", manager):
        module.train()


def _optimize() -> None:
    parser = argparse.ArgumentParser(
        prog=sys.argv[0], add_help=False, allow_abbrev=False, usage=f"{sys.argv[0]} [options], with those of the zoo's below"
    )
    parser.add_argument("--workers", type=int, help="number of parallel trials, in Ray; without it, the zoo's own loop runs")
    parser.add_argument("--address", help="Ray cluster that runs the trials (default: Ray on this machine)")
    parser.add_argument("--retries", type=int, help="number of times that a failed trial is repeated (default 1)")
    ours, sys.argv[1:] = parser.parse_known_args(sys.argv[1:])
    if {"-h", "--help"} & {*sys.argv}:
        parser.print_help()
    sys.argv.append("-optimize")
    if ours.workers is None:
        if ours.address is not None or ours.retries is not None:
            parser.error("--address and --retries need --workers")
        return _train()
    if ours.workers < 1 or (ours.retries or 0) < 0:
        parser.error(f"--workers {ours.workers} must be at least 1, and --retries {ours.retries or 0} at least 0")
    try:
        search = importlib.import_module("sb3_scoreflow.zoo.search")
    except ImportError as error:
        raise SettingsError(
            f'--workers needs Ray Tune ({error}): pip install "sb3-scoreflow[ray]" "ray[tune]>=2.43"'
        ) from error
    retries = 1 if ours.retries is None else ours.retries
    return _train_with(partial(search.ParallelSearch, workers=ours.workers, address=ours.address, retries=retries))


def _call(name: str, function: str) -> None:
    getattr(importlib.import_module(name), function)()


def _run(name: str) -> None:
    """Run a module as a program."""
    runpy.run_module(name, run_name="__main__")


def _record_training() -> None:
    """Make the processes that record the models register this package's algorithms, too."""
    call = subprocess.call

    def call_ours(command: list[str]) -> int:
        return call([sys.executable, "-m", "sb3_scoreflow.zoo", "record_video", *command[3:]])

    with _replaced(subprocess, "call", call_ours):
        _run("rl_zoo3.record_training")


def _load_from_hub() -> None:
    """Make the zoo catch the error that current versions of huggingface_hub raise for a missing file."""
    exceptions, errors = (importlib.import_module(name) for name in ("requests.exceptions", "huggingface_hub.errors"))
    with _replaced(exceptions, "HTTPError", errors.HfHubHTTPError):
        _run("rl_zoo3.load_from_hub")


#: Name on the command line -> its function
VERBS: dict[str, Callable[[], None]] = {
    "train": _train,
    "optimize": _optimize,
    "enjoy": partial(_call, "rl_zoo3.enjoy", "enjoy"),
    "record_video": partial(_run, "rl_zoo3.record_video"),
    "record_training": _record_training,
    "load_from_hub": _load_from_hub,
    "plot": partial(_call, "rl_zoo3.plots", "plot_train"),
    "plot_train": partial(_call, "rl_zoo3.plots", "plot_train"),
    "all_plots": partial(_call, "rl_zoo3.plots", "all_plots"),
    "plot_from_file": partial(_call, "rl_zoo3.plots", "plot_from_file"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run a program of rl_zoo3.

    :param arguments: its name (see ``VERBS``) and its arguments; None: those of the command line
    :raises ImportError: if rl_zoo3 or another package that the program needs is not installed; the message names the extra
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog=_PROGRAM, usage=f"{_PROGRAM} VERB ... (VERB --help has its options)")
    parser.add_argument("verb", choices=VERBS)
    verb = parser.parse_args(given[:1]).verb
    register()
    with _replaced(sys, "argv", [f"{_PROGRAM} {verb}", *given[1:]]):
        try:
            VERBS[verb]()
        except SettingsError as error:
            sys.exit(f"{_PROGRAM} {verb}: error: {error}")
        except ModuleNotFoundError as error:
            raise missing(error) from error

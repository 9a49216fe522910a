"""Makes many runs, one after the other in this process, or as Ray tasks on any number of machines. Each has a result file."""

import argparse
import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.provenance import machine, provenance
from sb3_scoreflow.common.files import atomic_path
from sb3_scoreflow.distributed import session

#: Result of a run's function. Its optional entry ``versions`` contains the versions of further packages. The result file also
#: contains the settings and the ``origin``
Result = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Job:
    """
    One run.

    :param name: name of the run in messages and in the name of its result file
    :param settings: everything that the result depends on except the commit, as JSON types
    :param function: function that makes the run and returns its result as JSON types; it seeds everything that it draws
    """

    name: str
    settings: Mapping[str, Any]
    function: Callable[[], Result]

    def file(self, folder: Path) -> Path:
        """:return: path of the result file, which depends on the settings"""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        return folder / "runs" / f"{self.name.replace(' ', '_')}_{digest}.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: parser to which the options of :func:`make` are added
    """
    parser.add_argument(
        "--workers", type=_from(1), default=1, help="number of parallel runs; more than 1 needs Ray (default 1)"
    )
    parser.add_argument("--address", help="address of a Ray cluster; auto: the cluster of this machine")
    parser.add_argument("--retries", type=_from(0), default=1, help="how often to repeat a run that fails (default 1)")
    parser.add_argument("--again", action="store_true", help="also make the runs that have a result file")


def make(jobs: Sequence[Job], options: argparse.Namespace, ended: Callable[[Job, Result], None]) -> list[Result]:
    """
    Make the runs that have no result file. They start in the given order. Their numbers do not depend on where they run: each
    run computes in one thread, and with Ray in a separate process.

    :param jobs: all runs
    :param options: options of :func:`add_options`, and ``output``, a folder whose subfolder ``runs`` contains the result files
    :param ended: function that is called with every run that has a result, from this command or an earlier one
    :return: results of all runs, in the order of the jobs
    :raises SystemExit: if Ray or the cluster is not available, or, after all other runs have ended, if runs failed; the
        message names them
    """
    origin = provenance()  # at the start, because the working tree may have changed when the runs end
    files = {job: job.file(options.output) for job in jobs}
    results: dict[Job, Result] = {}
    for job, path in files.items():
        if path.exists() and not options.again:
            print(f"resumed: {job.name} has a result, {path} (--again makes the run again)", flush=True)
            results[job] = _read(path)
            ended(job, results[job])
    failed: list[str] = []
    for job, outcome in _outcomes([job for job in jobs if job not in results], options):
        log = files[job].with_suffix(".error.txt")
        if isinstance(outcome, Exception):
            _write(log, "".join(traceback.format_exception(outcome)))
            cause = getattr(outcome, "cause", None) or outcome  # Ray wraps the run's error
            failed.append(f"{job.name}: {traceback.format_exception_only(cause)[-1].splitlines()[0]} ({log})")
            print(f"failed: {failed[-1]}", file=sys.stderr, flush=True)
            continue
        results[job] = {"settings": job.settings, **outcome, "origin": {**origin, **outcome["origin"]}}
        _write(files[job], json.dumps(results[job]) + "\n")
        log.unlink(missing_ok=True)
        ended(job, results[job])
    if failed:
        listed = "\n  ".join(failed)
        sys.exit(
            f"error: {len(failed)} of {len(jobs)} runs failed (attempts: {options.retries + 1} each), so there is no summary. "
            f"Repeat the command to make only these runs again.\n  {listed}"
        )
    return [results[job] for job in jobs]


def _outcomes(jobs: Sequence[Job], options: argparse.Namespace) -> Iterator[tuple[Job, Result | Exception]]:
    if not jobs:
        return iter(())
    if options.workers == 1 and options.address is None:
        return ((job, _attempt(job, options.retries)) for job in jobs)
    return _in_ray(jobs, options.workers, options.address, options.retries)


def _attempt(job: Job, retries: int) -> Result | Exception:
    try:
        return _execute(job.function)
    except Exception as error:
        return _attempt(job, retries - 1) if retries else error


def _in_ray(jobs: Sequence[Job], workers: int, address: str | None, retries: int) -> Iterator[tuple[Job, Result | Exception]]:
    try:
        ray = session.import_ray()
        session.connect(address)
        session.check_resources(ray, {"CPU": 1.0}, 1)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    # Each run gets a separate process, so that neither leaked memory nor a crash affects other runs
    task = ray.remote(num_cpus=1, max_calls=1, max_retries=retries, retry_exceptions=True)(_execute)
    left = list(jobs)
    running: dict[Any, Job] = {}
    while left or running:
        while left and len(running) < workers:
            job = left.pop(0)
            running[task.options(name=job.name).remote(job.function)] = job
        (done,), _ = ray.wait(list(running))
        job, outcome = running.pop(done), None
        try:
            outcome = ray.get(done)
        except ray.exceptions.RayError as error:
            outcome = error
        yield job, outcome


def _execute(function: Callable[[], Result]) -> Result:
    th.set_num_threads(1)
    result, origin = function(), machine()
    origin["versions"].update(result.pop("versions", {}))
    return {**result, "origin": origin}


def _read(path: Path) -> Result:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        sys.exit(f"error: {path} is not a result of a run ({error}). Delete it to make the run again.")


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def _from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return number

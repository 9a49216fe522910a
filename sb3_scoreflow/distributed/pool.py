"""The workers of a ``RayVecEnv``: sending calls, waiting for answers, detecting lost workers, and replacing them."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_scoreflow.common.env_errors import EnvFailedError
from sb3_scoreflow.common.utils import warn
from sb3_scoreflow.distributed.session import describe_nodes
from sb3_scoreflow.distributed.worker import EnvWorker, Failure

#: Seconds without an answer after which there is a warning
PATIENCE = 60.0
#: Time limit in seconds for closing the environments
GRACE = 10.0
#: Seconds to wait before restarting a worker that was lost before it ran
RETRY = 0.5


class Lost(str):
    """Replaces the answer of a lost or ended worker; the text is the reason."""


@dataclass
class Worker:
    """State of one worker."""

    #: Pickled functions that create its environments
    functions: bytes
    #: Indices of its environments
    indices: range
    #: Attributes set in each environment; they are set again after the worker has been replaced
    attributes: list[dict[str, Any]]
    actor: Any = None
    process: int = 0
    host: str = ""
    #: Number of losses since its last step
    losses: int = 0

    def __str__(self) -> str:
        first, last = self.indices[0], self.indices[-1]
        return f"environment {first}" if first == last else f"environments {first} to {last}"


@dataclass
class Pool:
    """
    All workers of a ``RayVecEnv``.

    :param ray: the module ray
    :param workers: workers, which have not been started
    :param options: options of Ray's actors
    :param start_timeout: time limit in seconds for placing the workers, and again for creating their environments
    :param step_timeout: time limit in seconds for all other answers; None: no limit
    """

    ray: Any
    workers: list[Worker]
    options: Mapping[str, Any]
    start_timeout: float
    step_timeout: float | None
    _actor_class: Any = field(init=False)

    def __post_init__(self) -> None:
        fixed = dict(max_restarts=0, max_task_retries=0, max_concurrency=1)
        self._actor_class = self.ray.remote(EnvWorker).options(**{**self.options, **fixed})

    def start(self, numbers: Iterable[int], again: bool = False) -> dict[int, Any]:
        """
        Start workers, or replace existing ones.

        :param numbers: numbers of workers
        :param again: whether to start workers again, until ``start_timeout`` has passed, if they are lost before they run
        :return: for each worker, the spaces of its environments, a :class:`Failure`, or :class:`Lost`
        :raises EnvFailedError: if Ray cannot place a worker in time
        """
        workers = {number: self.workers[number] for number in numbers}
        placed: dict[int, Any] = {}
        made, left, begin = {}, list(workers), time.monotonic()
        while left:
            for number in left:
                self._kill(workers[number])
                workers[number].actor = self._actor_class.remote()
            places = {number: workers[number].actor.place.remote() for number in left}
            for number in left:
                worker = workers[number]
                made[number] = worker.actor.make.remote(worker.functions, worker.indices[0], worker.attributes)
            remaining = max(self.start_timeout - (time.monotonic() - begin), 0.0)
            found, missing = self._wait(places, remaining, "its start")
            placed.update(found)
            # Ray starts workers on a node that has just died until it notices.
            left = [number for number, place in found.items() if isinstance(place, Lost)] if again else []
            if time.monotonic() - begin > self.start_timeout:
                missing += left
            if missing:
                self.kill(workers)
                worker = workers[missing[0]]
                wanted = {name: value for name, value in self.options.items() if value}
                why = f" ({placed[missing[0]]})" if missing[0] in placed else ""
                raise EnvFailedError(
                    f"Ray found no place for {len(missing)} of {len(workers)} workers (for example, of {worker}) within "
                    f"start_timeout={self.start_timeout:g} seconds{why}. Each needs {wanted}; {describe_nodes(self.ray)}. "
                    "Request less with RayVecEnv's arguments, end other programs there, or pass a larger start_timeout if "
                    "nodes will be added.",
                    worker.indices[0],
                )
            if left:
                time.sleep(RETRY)
        for number, place in placed.items():
            if not isinstance(place, Lost):
                workers[number].process, workers[number].host = place
        return self.gather(made, "its construction", self.start_timeout, "start_timeout")

    def send(self, number: int, method: str, *arguments: Any) -> Any:
        """
        :param number: number of a worker
        :param method: method of :class:`EnvWorker`
        :param arguments: arguments of the method
        :return: reference to the answer; None if the worker was ended
        """
        actor = self.workers[number].actor
        return None if actor is None else getattr(actor, method).remote(*arguments)

    def gather(self, refs: Mapping[int, Any], call: str, timeout: float | None, name: str = "step_timeout") -> dict[int, Any]:
        """
        Wait for the answers to one call. Workers that do not answer in time are ended.

        :param refs: references from :meth:`send`, by number of the worker
        :param call: name of the call, for messages
        :param timeout: time limit in seconds; None: no limit
        :param name: name of the argument that sets the time limit
        :return: answer of each worker, :class:`Lost` for lost workers
        """
        answers, silent = self._wait({number: ref for number, ref in refs.items() if ref is not None}, timeout, call)
        for number in silent:
            self._kill(self.workers[number])
            answers[number] = Lost(f"it did not answer {call} within {name}={timeout:g} seconds, and was ended")
        return {number: answers.get(number, Lost("its process was ended")) for number in refs}

    def _wait(self, refs: Mapping[int, Any], timeout: float | None, call: str) -> tuple[dict[int, Any], list[int]]:
        """:return: answers, and numbers of the workers that did not answer in time"""
        answers: dict[int, Any] = {}
        pending = {ref: number for number, ref in refs.items()}
        begin, warned = time.monotonic(), False
        while pending:
            waited = time.monotonic() - begin
            left = [limit - waited for limit in (timeout, None if warned else PATIENCE) if limit is not None]
            ready, _ = self.ray.wait(list(pending), num_returns=len(pending), timeout=max(min(left), 0.0) if left else None)
            for ref in ready:
                number = pending.pop(ref)
                answers[number] = self._get(ref, self.workers[number], call)
            waited = time.monotonic() - begin
            if timeout is not None and waited >= timeout:
                break
            if pending and waited >= PATIENCE and not warned:
                warned = True
                silent = ", ".join(str(self.workers[number]) for number in pending.values())
                warn(f"Workers did not answer {call} within {PATIENCE:g} seconds; still waiting: {silent}.")
        return answers, list(pending.values())

    def _get(self, ref: Any, worker: Worker, call: str) -> Any:
        errors = self.ray.exceptions
        try:
            return self.ray.get(ref, timeout=PATIENCE)
        except errors.RayTaskError as error:  # not an environment's error, which would be an answer
            raise EnvFailedError(
                f"The worker of {worker} could not answer {call}: {error.cause!r}. It must be able to unpickle the data: "
                "install the required packages there, or pass worker_options=dict(runtime_env=...).",
                worker.indices[0],
            ) from error
        except (
            errors.RayActorError,
            errors.ObjectLostError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.WorkerCrashedError,
            errors.GetTimeoutError,
        ) as error:
            return Lost(" ".join(str(error).split())[:300])

    def raise_failures(self, answers: Mapping[int, Any]) -> None:
        """:raises EnvFailedError: if one of the answers is the exception of an environment"""
        for answer in answers.values():
            if isinstance(answer, Failure):
                raise answer.error()

    def close(self, waiting: bool) -> None:
        """
        Close the environments, and end all workers.

        :param waiting: whether a step was started and its results have not been read
        """
        if not self.ray.is_initialized():  # Ray has ended the workers
            return
        try:
            refs = {
                number: worker.actor.ask.remote("close", "close()", worker.indices, None)
                for number, worker in enumerate(self.workers)
                if worker.actor is not None
            }
            _, silent = self._wait(refs, GRACE, "close()")
            if silent and not waiting:
                names = ", ".join(str(self.workers[number]) for number in silent)
                warn(f"Workers did not close within {GRACE:g} seconds ({names}): data that they were writing may be lost.")
        finally:
            self.kill(range(len(self.workers)))

    def kill(self, numbers: Iterable[int]) -> None:
        """:param numbers: numbers of the workers to end"""
        for number in numbers:
            self._kill(self.workers[number])

    def _kill(self, worker: Worker) -> None:
        if worker.actor is not None:
            self.ray.kill(worker.actor)
            worker.actor = None

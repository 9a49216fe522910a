"""
The processes of a ``SubprocVecEnv``: waiting for their answers, detecting that they have ended, and ending them.

Stable-Baselines3 reads from a process's pipe until there is an answer or the pipe is closed. A forked process inherits its
siblings' ends of pipes, so that the pipe of a dead process is never closed. Therefore, this module waits for the answer or the
end of the process, whichever comes first.
"""

import io
import os
import pickle
import selectors
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import connection
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

from sb3_scoreflow.common.env_answers import CheckedEnv
from sb3_scoreflow.common.env_errors import (
    EnvFailedError,
    WorkerTraceback,
    ended_error,
    hanging_error,
    name_envs,
    raised_error,
)
from sb3_scoreflow.common.utils import warn

#: Seconds without an answer after which there is a warning
PATIENCE = 60.0
#: Seconds between checks of a process whose sentinel does not show its end, because a child process may keep it open
_LOOK = 1.0
#: Seconds for closing the environments: if all work; if one is executing a step; if one has failed
_GRACE = {"well": 60.0, "waiting": 5.0, "failed": 2.0}
#: Number of bytes per read
_CHUNK = 1 << 20

Ready = Callable[[float], list[int]]


# ---------------------------------------------------------------------- in the process of an environment


class WorkerFailure:
    """
    An exception, which a process sends instead of an answer.

    :param error: the exception
    """

    def __init__(self, error: Exception) -> None:
        #: The exception as text
        self.summary = "".join(traceback.format_exception_only(error)).strip()
        self.traceback = "".join(traceback.format_exception(error))
        #: The exception itself; None if it cannot be pickled
        self.pickled: bytes | None
        try:
            self.pickled = pickle.dumps(error)
            pickle.loads(self.pickled)
        except Exception:  # pickling may raise any error
            self.pickled = None

    def error(self) -> Exception:
        """:return: the exception, from the traceback of its process"""
        error: Exception | None = None
        if self.pickled is not None:
            try:
                error = pickle.loads(self.pickled)
            except Exception:  # its module is not available here
                error = None
        if error is None:
            error = RuntimeError(self.summary)
        error.__cause__ = WorkerTraceback(self.traceback)
        return error


class _EnvRaised(Exception):
    """Carries any exception of an environment through Stable-Baselines3's loop, which ends at an EOFError."""


class _EnvInProcess(CheckedEnv):
    __slots__ = ("_closing",)
    _closing: bool

    def close(self) -> None:
        object.__setattr__(self, "_closing", True)
        self._env.close()


class Takeover:
    """
    When Stable-Baselines3's loop in an environment's process unpickles this object, it runs the same loop again, with checks
    of the environment and with exceptions sent to the parent. So the loop remains Stable-Baselines3's.

    :param index: index of the environment
    :param space: space of its observations
    """

    def __init__(self, index: int, space: spaces.Space) -> None:
        self.index, self.space = index, space

    def __reduce__(self) -> Any:
        return _serve, (self.index, self.space)


def _serve(index: int, space: spaces.Space) -> type:
    """
    :param index: index of the environment
    :param space: space of its observations
    :return: a class that wraps no environment, if the process does not run Stable-Baselines3's loop
    :raises EOFError: at the end, which also ends Stable-Baselines3's outer loop
    """
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code is not _worker.__code__:
        frame = frame.f_back
    if frame is None:
        return Takeover
    remote, parent_remote, env = (frame.f_locals[name] for name in ("remote", "parent_remote", "env"))
    checked = _EnvInProcess(env, index, space, True, lambda error, *_: _EnvRaised(error))
    object.__setattr__(checked, "_closing", False)
    make: Any = CloudpickleWrapper(lambda: checked)
    remote.send(True)
    while True:
        try:
            _worker(remote, parent_remote, make)
            break
        except Exception as error:
            if checked._closing:  # nobody waits for an answer
                raise
            remote.send(WorkerFailure(error.args[0] if isinstance(error, _EnvRaised) else error))
    raise EOFError


# ---------------------------------------------------------------------- in the process that trains


class Workers:
    """
    The processes of a vectorized environment.

    :param venv: vectorized environment, whose pipes are replaced by :class:`Remote`
    """

    def __init__(self, venv: SubprocVecEnv) -> None:
        self.connections, self.processes = list(venv.remotes), list(venv.processes)
        #: Time limit for an answer in seconds; None: no limit
        self.step_timeout: float | None = None
        #: The error after which the processes can no longer be used; None if there was no such error
        self.failure: EnvFailedError | None = None
        n = len(self.connections)
        #: The unanswered call of each process
        self.calls: list[str | None] = [None] * n
        self.asked_at = [0.0] * n
        #: Answers that will not be read, because another environment failed first
        self.n_stale = [0] * n
        self._ready = [_ready(c.fileno(), p.sentinel) for c, p in zip(self.connections, self.processes, strict=True)]
        for index, (pipe, process) in enumerate(zip(self.connections, self.processes, strict=True)):
            # On systems with file descriptors, a process may end in the middle of a message. The function does not refer to
            # the pipe, which would otherwise stay open.
            pipe._recv = partial(_receive_bytes, self._ready[index], process, pipe.fileno())
        venv.remotes = tuple(Remote(self, index) for index in range(n))

    def take_over(self, space: spaces.Space) -> None:
        """
        Make the processes check the environments' return values and send exceptions.

        :param space: space of observations
        :raises EnvFailedError: if a process has ended
        """
        for index in range(len(self.connections)):
            self.send(index, ("is_wrapped", Takeover(index, space)))
        for index in range(len(self.connections)):
            self.recv(index)

    def send(self, index: int, message: tuple[str, Any]) -> None:
        """
        :param index: index of an environment
        :param message: a command and its data
        :raises EnvFailedError: if its process has ended
        """
        self._refuse()
        while self.n_stale[index]:
            self._receive(index)
            self.n_stale[index] -= 1
        self.calls[index], self.asked_at[index] = _name_call(message), time.monotonic()
        # A message that fills the pipe would wait for a reader
        if message[0] != "step" and not self.connections[index].closed and not self.processes[index].is_alive():
            raise self._ended(index)
        try:
            self.connections[index].send(message)
        except ConnectionError:
            raise self._ended(index) from None

    def recv(self, index: int) -> Any:
        """
        :param index: index of an environment
        :return: its answer
        :raises EnvFailedError: if it has raised an exception, has ended, or does not answer in time
        """
        self._refuse()
        try:
            answer = self._receive(index)
        except BaseException:  # KeyboardInterrupt, for instance
            self._give_up()
            raise
        call, self.calls[index] = self.calls[index], None
        if not isinstance(answer, WorkerFailure):
            return answer
        self._give_up()
        error = answer.error()
        if isinstance(error, EnvFailedError):
            error.__cause__ = None  # the answer was invalid, and the traceback does not show the environment
            raise error
        raise raised_error(error, index, call or "") from error

    def _receive(self, index: int) -> Any:
        self._await(index)
        try:
            return self.connections[index].recv()
        except (EOFError, ConnectionError):
            raise self._ended(index) from None

    def _await(self, index: int) -> None:
        """Wait until there is something to read."""
        pipe, warned = self.connections[index].fileno(), False
        while True:
            waited = time.monotonic() - self.asked_at[index]
            timeout = self.step_timeout
            ready = self._ready[index](_LOOK if timeout is None else min(max(timeout - waited, 0), _LOOK))
            if pipe in ready:
                return
            if ready or not self.processes[index].is_alive():
                if pipe in self._ready[index](0):  # it answered, and then ended
                    return
                raise self._ended(index)
            waited = time.monotonic() - self.asked_at[index]
            if timeout is not None and waited >= timeout:
                self.failure = hanging_error(self._silent(), self.calls[index] or "", timeout)
                raise self.failure
            if waited >= PATIENCE and not warned:
                warned = True
                warn(
                    f"{name_envs(self._silent())} did not answer {self.calls[index]} within {PATIENCE:g} seconds; still "
                    "waiting. If an environment hangs, guard_env(env, step_timeout=...) raises an error."
                )

    def _silent(self) -> list[int]:
        """:return: the environments that have not answered"""
        n = range(len(self.calls))
        return [i for i in n if self.calls[i] is not None and self.connections[i].fileno() not in self._ready[i](0)]

    def _give_up(self) -> None:
        """Discard the answers of this call."""
        for index, call in enumerate(self.calls):
            if call is not None:
                self.n_stale[index] += 1
                self.calls[index] = None

    def _refuse(self) -> None:
        if self.failure is not None:
            raise EnvFailedError(f"After a failure: {self.failure}", self.failure.index, self.failure.exitcode)

    def _ended(self, index: int) -> EnvFailedError:
        process = self.processes[index]
        process.join(_LOOK)
        self.failure = ended_error(index, self.calls[index] or "a call", process.pid, process.exitcode)
        return self.failure

    def close(self, waiting: bool) -> None:
        """
        Close the environments, and end the processes of those that do not close.

        :param waiting: whether a step was started and its results have not been read
        """
        grace = _GRACE["failed" if self.failure is not None else "waiting" if waiting or any(self.n_stale) else "well"]
        try:
            for pipe, process in zip(self.connections, self.processes, strict=True):
                try:
                    if process.is_alive():
                        pipe.send(("close", None))
                except OSError:
                    pass
            left = self._join(grace)
            if left and self.failure is None:
                warn(f"{name_envs(left)} did not close within {grace:g} seconds: unsaved output may be lost.")
        finally:
            for end in ("terminate", "kill"):
                for process in self.processes:
                    if process.is_alive():
                        getattr(process, end)()
                for process in self.processes:
                    process.join(_LOOK)
            for pipe in self.connections:
                pipe.close()

    def _join(self, grace: float) -> list[int]:
        """
        :param grace: seconds
        :return: the environments whose processes have not ended by then
        """
        deadline = time.monotonic() + grace
        pipes = list(self.connections)
        while True:
            left = [index for index, process in enumerate(self.processes) if process.is_alive()]
            remaining = deadline - time.monotonic()
            if not left or remaining <= 0:
                return left
            sentinels = [self.processes[index].sentinel for index in left]
            readable = connection.wait([*sentinels, *pipes], min(remaining, _LOOK))
            for pipe in [pipe for pipe in pipes if pipe in readable]:
                try:
                    pipe.recv_bytes()  # an unneeded answer, which blocks the process until it is read
                except (EOFError, OSError):
                    pipes.remove(pipe)


class Remote:
    """
    The parent's end of the pipe of an environment's process, as Stable-Baselines3 uses it.

    :param workers: the processes
    :param index: index of the environment
    """

    def __init__(self, workers: Workers, index: int) -> None:
        self._workers, self._index = workers, index

    def send(self, message: tuple[str, Any]) -> None:
        """See :meth:`Workers.send`."""
        self._workers.send(self._index, message)

    def recv(self) -> Any:
        """See :meth:`Workers.recv`."""
        return self._workers.recv(self._index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers.connections[self._index], name)


def _ready(pipe: int, sentinel: int) -> Ready:
    """
    :param pipe: descriptor of a pipe (on Windows, its handle)
    :param sentinel: sentinel of a process
    :return: function that waits for at most the given number of seconds and returns those of the two that are ready
    """
    if not hasattr(selectors, "PollSelector"):
        return lambda seconds: connection.wait([pipe, sentinel], seconds)  # type: ignore[return-value]
    selector = selectors.PollSelector()
    for descriptor in (pipe, sentinel):
        selector.register(descriptor, selectors.EVENT_READ)
    return lambda seconds: [key.fd for key, _ in selector.select(seconds)]


def _receive_bytes(ready: Ready, process: Any, pipe: int, size: int) -> io.BytesIO:
    """
    The same as ``Connection._recv``, except that it detects the end of the process.

    :raises EOFError: if the process ended before it had sent everything
    """
    buffer = io.BytesIO()
    while buffer.tell() < size:
        found = ready(_LOOK)
        if pipe in found or ((found or not process.is_alive()) and pipe in ready(0)):
            chunk = os.read(pipe, min(size - buffer.tell(), _CHUNK))
            if not chunk:
                raise EOFError
            buffer.write(chunk)
        elif found or not process.is_alive():
            raise EOFError
    return buffer


def _name_call(message: tuple[str, Any]) -> str:
    command, data = message
    if command == "env_method":
        return f"{data[0]}()"
    if command in ("get_attr", "has_attr", "set_attr"):
        return f"{command}({data if isinstance(data, str) else data[0]!r})"
    return f"{command}()"

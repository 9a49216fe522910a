"""Errors of environments, which name the environment."""

import signal
from functools import cache
from typing import Any

from sb3_scoreflow.common.utils import DivergenceError

_RESUME = "make the environments again and continue from the last checkpoint"


class EnvFailedError(RuntimeError):
    """
    One of the environments raised an exception, ended, does not respond, or returned values that Gymnasium does not allow.

    ``__cause__`` is the exception that the environment raised, or None. If there is one, the error is also an instance of its
    type, so that existing ``except`` clauses still catch it. If the environment is in a separate process, the exception's own
    ``__cause__`` has the traceback of that process.

    :param message: description of the failure, and remedy
    :param index: index of the environment, from 0
    :param exitcode: exit code of the environment's process, None if it did not end; ``-n`` if signal ``n`` ended it
    """

    def __init__(self, message: str, index: int, exitcode: int | None = None) -> None:
        super().__init__(message, index, exitcode)
        #: Index of the environment, from 0
        self.index = index
        #: Exit code of the environment's process; None if it did not end; ``-n`` if signal ``n`` ended it
        self.exitcode = exitcode

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> Any:
        return _plain(type(self)), self.args

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended the environment's process, such as "SIGKILL"; None if no signal did."""
        return None if self.exitcode is None or self.exitcode >= 0 else _signal_name(-self.exitcode)


class EnvDivergedError(EnvFailedError, DivergenceError):
    """An environment returned NaN or infinite numbers."""


class WorkerTraceback(Exception):
    """
    The traceback of another process, as text.

    :param text: the traceback
    """

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def raised_error(error: Exception, index: int, call: str) -> EnvFailedError:
    """
    :param error: exception that an environment raised
    :param index: index of the environment
    :param call: the call during which it raised the exception, such as "step()"
    :return: an error that is also an instance of the exception's type, to be raised from the exception
    """
    message = f"Environment {index} raised {type(error).__name__} in {call}: {error}{_hint(error)}"
    try:
        cls = _combined(type(error))  # type: ignore[arg-type]  # classes are hashable
        failed = cls.__new__(cls, message, index, None)  # without its __init__, whose arguments are unknown
    except TypeError:  # some types cannot be combined with others, or need other arguments
        return EnvFailedError(message, index)
    failed.__dict__.update(vars(error))
    EnvFailedError.__init__(failed, message, index)
    return failed


def ended_error(index: int, call: str, pid: int | None, exitcode: int | None) -> EnvFailedError:
    """
    :param index: index of an environment whose process has ended
    :param call: the call during which it ended
    :param pid: process id of the process
    :param exitcode: exit code of the process, None if it still runs, but has closed its pipe
    :return: the error
    """
    if exitcode is None:
        how, why = (
            "closed its connection to this process",
            "Look for code of the environment that closes files it did not open",
        )
    elif exitcode >= 0:
        how = f"ended with exit code {exitcode}"
        why = "Look for sys.exit or os._exit in the environment and its simulator, and at its last output"
    else:
        how, why = f"was killed by {_signal_name(-exitcode)}", _why_killed(-exitcode)
    message = f"Environment {index} is gone: its process ({pid}) {how} during {call}. {why}; then {_RESUME}."
    return EnvFailedError(message, index, exitcode)


def hanging_error(indices: list[int], call: str, timeout: float) -> EnvFailedError:
    """
    :param indices: indices of environments that do not answer
    :param call: the call that they do not answer
    :param timeout: time limit in seconds
    :return: the error
    """
    message = (
        f"{name_envs(indices)} did not answer {call} within step_timeout={timeout:g} seconds. If a step or a reset may take "
        f"that long, pass a larger step_timeout to guard_env; else close() the environments, which ends their processes, and "
        f"{_RESUME}."
    )
    return EnvFailedError(message, indices[0])


def name_envs(indices: list[int]) -> str:
    """
    :param indices: indices of environments, at least one
    :return: text that names them, such as "Environment 3" or "Environments 1, 2"
    """
    return f"Environment{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


@cache
def _combined(cls: type[Exception]) -> type[EnvFailedError]:
    if issubclass(cls, EnvFailedError):  # raised by environments inside an environment
        return cls
    if issubclass(EnvFailedError, cls):
        return EnvFailedError
    return type(EnvFailedError.__name__, (EnvFailedError, cls), {"__module__": EnvFailedError.__module__})


def _plain(cls: type[EnvFailedError]) -> type[EnvFailedError]:
    """:return: the class to pickle, because no module contains the combined classes"""
    return EnvDivergedError if issubclass(cls, EnvDivergedError) else EnvFailedError


def _hint(error: Exception) -> str:
    """:return: remedy for an exception, if one is known"""
    # Raised by a wrapper, which hides the returned value
    if isinstance(error, ValueError) and "values to unpack" in str(error):
        return (
            ". If an environment returned this, note that Gymnasium requires five values from step(): observation, reward, "
            "terminated, truncated, info; and two from reset(): observation, info"
        )
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals, for instance
        return f"signal {number}"


def _why_killed(number: int) -> str:
    if _signal_name(number) == "SIGKILL":
        return "If nobody killed it, the system did, for lack of memory: use fewer or smaller environments"
    if _signal_name(number) in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"):
        return "This is a crash of compiled code, such as a simulator: set PYTHONFAULTHANDLER=1 to see where it crashed"
    return "Find out which process sent the signal"

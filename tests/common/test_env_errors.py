"""What errors of environments say, and the loop of an environment's process, run in a thread."""

import threading
from multiprocessing import Pipe
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

from sb3_scoreflow import EnvDivergedError, EnvFailedError
from sb3_scoreflow.common.env_errors import ended_error, raised_error
from sb3_scoreflow.common.env_workers import Takeover, WorkerFailure
from tests.common.faulty_envs import STEP, Crash, FaultyEnv, Unpicklable


def test_errors_of_environments_inside_an_environment() -> None:
    error = raised_error(EnvDivergedError("inner", 5), 2, "step()")
    assert isinstance(error, EnvDivergedError) and error.index == 2


class Particular(RuntimeError):
    def __new__(cls, one: int) -> "Particular":
        return super().__new__(cls, one)


def test_types_that_cannot_be_combined() -> None:
    error = raised_error(Particular(1), 2, "step()")
    assert type(error) is EnvFailedError and str(error) == "Environment 2 raised Particular in step(): 1"


def test_attributes_of_the_exception_are_kept() -> None:
    error: Any = raised_error(Crash("sim", code=7), 2, "reset()")
    assert isinstance(error, Crash)
    attributes = vars(error)
    assert attributes == {"code": 7, "index": 2, "exitcode": None}


def test_ends_of_processes() -> None:
    assert "closed its connection" in str(ended_error(0, "step()", 12, None))
    error = ended_error(0, "step()", 12, -1000)
    assert error.signal == "signal 1000" and "was killed by signal 1000 during step()" in str(error)


def test_exceptions_that_pickle_here_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = WorkerFailure(KeyError("x"))
    assert type(failure.error()) is KeyError
    failure.pickled = b"of a module that is not here"
    assert type(failure.error()) is RuntimeError and "KeyError: 'x'" in str(failure.error())
    assert WorkerFailure(Unpicklable("x")).pickled is None


class Closes(FaultyEnv):
    def close(self) -> None:
        if self.fault == "":
            raise RuntimeError("in close")


@pytest.mark.parametrize("fault", ["raise", ""])
def test_the_loop_of_a_process(fault: str) -> None:
    """Answers are Stable-Baselines3's, exceptions are sent, and it ends as without."""
    ours, theirs = Pipe()
    ends: list[BaseException | None] = []

    def run() -> None:
        try:
            _worker(theirs, Pipe()[0], CloudpickleWrapper(lambda: Closes(1, fault)))
            ends.append(None)
        except RuntimeError as error:
            ends.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def ask(*message: Any) -> Any:
        ours.send(message)
        assert ours.poll(20)
        return ours.recv()

    assert ask("is_wrapped", Takeover(1, FaultyEnv().observation_space)) is True
    ask("reset", (None, None))
    answers = [ask("step", np.zeros(2, np.float32)) for _ in range(STEP)]
    assert isinstance(answers[-1], WorkerFailure) == (fault == "raise")
    assert not any(isinstance(answer, WorkerFailure) for answer in answers[:-1])
    assert isinstance(ask("get_attr", "missing").error(), AttributeError)
    assert ask("get_attr", "length") == 3
    ours.send(("close", None))
    thread.join(20)
    assert not thread.is_alive() and len(ends) == 1
    assert str(ends[0]) == ("None" if fault == "raise" else "in close")

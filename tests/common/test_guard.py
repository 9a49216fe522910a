"""Environments whose processes die, hang or raise: an error in seconds, by name, and nothing is left."""

import copy
import multiprocessing as mp
import os
import pickle
import selectors
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_scoreflow import EnvFailedError, guard_env
from sb3_scoreflow.common import env_workers
from sb3_scoreflow.common.utils import ArgumentError
from tests.common.faulty_envs import INDEX, STEP, Crash, FaultyEnv, interruptible, is_gone, make_faulty, time_limit

METHODS = ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
# Else every process imports torch
mp.set_forkserver_preload(["sb3_scoreflow"])
#: Seconds in which everything here has to be done, on a busy machine
LIMIT = 60.0
#: Seconds for what takes a fraction of one; far below the minute for which healthy environments may be closed
QUICKLY = 30.0
#: Seconds in which healthy environments answer, on a busy machine
TIMEOUT = 5.0
ACTIONS = np.zeros((3, 2), np.float32)


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    before = mp.active_children()  # another test's
    with time_limit(LIMIT):
        yield
    assert set(mp.active_children()) <= set(before)


def slowly(answer: Any) -> Any:
    time.sleep(4.0)
    return answer


def interrupting(answer: Any) -> Any:
    """Interrupts the parent, which has been waiting for a while, and answers later."""
    time.sleep(0.5)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(1.0)
    return answer


def subproc(method: str = "fork", **kwargs: Any) -> SubprocVecEnv:
    env = SubprocVecEnv(make_faulty(**kwargs), start_method=method)
    assert guard_env(env) is env
    return env


def run(env: VecEnv, n_steps: int = STEP) -> None:
    env.reset()
    for _ in range(n_steps):
        env.step(ACTIONS)


def close_quickly(env: SubprocVecEnv) -> None:
    """It returns, and leaves no process."""
    pids = [process.pid for process in env.processes]
    begin = time.monotonic()
    env.close()
    assert time.monotonic() - begin < QUICKLY
    assert env.closed and all(is_gone(pid) for pid in pids)
    env.close()  # again


# ---------------------------------------------------------------------- the end of a process


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fault", "exitcode", "name", "message"),
    [
        ("killed", -signal.SIGKILL, "SIGKILL", r"was killed by SIGKILL during step\(\)\. .*lack of memory: use fewer"),
        ("segfault", -signal.SIGSEGV, "SIGSEGV", "was killed by SIGSEGV .* set PYTHONFAULTHANDLER=1 to see where"),
        ("exit", 3, None, r"ended with exit code 3 during step\(\)\. Look for sys\.exit or os\._exit"),
        ("sys.exit", 4, None, "ended with exit code 4"),
        ("interrupt", 0, None, "ended with exit code 0"),
    ],
)
def test_a_process_that_ends(method: str, fault: str, exitcode: int, name: str | None, message: str) -> None:
    env = subproc(method, fault=fault)
    begin = time.monotonic()
    with pytest.raises(EnvFailedError, match=f"^Environment {INDEX} is gone: its process .*{message}") as caught:
        run(env)
    assert time.monotonic() - begin < QUICKLY
    assert (caught.value.index, caught.value.exitcode, caught.value.signal) == (INDEX, exitcode, name)
    assert "continue from the last checkpoint" in str(caught.value)
    with pytest.raises(EnvFailedError, match=f"After a failure: Environment {INDEX} is gone"):
        env.reset()
    close_quickly(env)


CALLS = {
    "step": lambda env: env.step(ACTIONS),
    "reset": lambda env: env.reset(),
    "get_attr": lambda env: env.get_attr("length"),
    "has_attr": lambda env: env.has_attr("length"),
    "set_attr": lambda env: env.set_attr("length", 4),
    "env_method": lambda env: env.env_method("nothing"),
    "large": lambda env: env.env_method("nothing", np.zeros(10_000_000)),  # more than a pipe holds
    "is_wrapped": lambda env: env.env_is_wrapped(gym.Wrapper),
    "render": lambda env: env.get_images(),
}


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_notices_that_a_process_was_killed(method: str, call: str) -> None:
    env = subproc(method)
    env.render_mode = "rgb_array"
    env.reset()
    os.kill(env.env_method("pid")[2], signal.SIGKILL)
    with pytest.raises(EnvFailedError, match=r"^Environment 2 is gone: .* killed by SIGKILL") as caught:
        CALLS[call](env)
    assert caught.value.index == 2
    close_quickly(env)


def test_seeds_reach_the_environments_and_a_death_in_seeding_is_noticed() -> None:
    env = subproc()
    env.seed(7)
    env.reset()
    assert env.get_attr("seed_seen") == [7, 8, 9]
    env.seed(7)
    os.kill(env.processes[0].pid or 0, signal.SIGKILL)
    with pytest.raises(EnvFailedError, match=r"^Environment 0 is gone"):
        env.reset()
    close_quickly(env)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_process_that_dies_while_it_is_waited_for(method: str) -> None:
    env = subproc(method, fault="hang")
    threading.Timer(0.5, lambda: os.kill(env.processes[INDEX].pid or 0, signal.SIGTERM)).start()
    with pytest.raises(
        EnvFailedError, match=f"^Environment {INDEX} is gone: .* killed by SIGTERM .* Find out which process sent the signal"
    ):
        run(env)
    close_quickly(env)


class Large(FaultyEnv):
    """Sends more than a pipe holds."""

    def nothing(self, value: Any = None) -> Any:
        return np.zeros(value)


def test_a_process_that_dies_in_the_middle_of_an_answer() -> None:
    """Its siblings hold its end of the pipe open, so that there is no end of file."""
    env = SubprocVecEnv([Large] * 3, start_method="fork")
    guard_env(env)
    remote: Any = env.remotes[2]
    remote.send(("env_method", ("nothing", (10_000_000,), {})))
    assert remote.poll(10)
    time.sleep(0.2)
    os.kill(env.processes[2].pid or 0, signal.SIGKILL)
    with pytest.raises(EnvFailedError, match=r"^Environment 2 is gone: .* killed by SIGKILL during nothing"):
        remote.recv()
    close_quickly(env)


def test_an_answer_before_the_end_is_an_answer() -> None:
    env = subproc()
    env.remotes[1].send(("get_attr", "length"))
    time.sleep(0.2)
    os.kill(env.processes[1].pid or 0, signal.SIGKILL)
    env.processes[1].join()
    assert env.remotes[1].recv() == 3
    close_quickly(env)


def test_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.delattr(selectors, "PollSelector")
    env = subproc(fault="killed")
    with pytest.raises(EnvFailedError, match="killed by SIGKILL"):
        run(env)
    close_quickly(env)


def test_dead_before_it_is_guarded() -> None:
    env = SubprocVecEnv(make_faulty(), start_method="fork")
    os.kill(env.processes[1].pid or 0, signal.SIGKILL)
    env.processes[1].join()
    with pytest.raises(EnvFailedError, match=r"^Environment 1 is gone"):
        guard_env(env)
    close_quickly(env)


# ---------------------------------------------------------------------- exceptions


@pytest.mark.parametrize("method", METHODS)
def test_an_exception_in_a_process(method: str) -> None:
    """It is of its own type too, with the traceback of the process, and the process goes on."""
    env = subproc(method, fault="eof")
    with pytest.raises(
        EnvFailedError, match=rf"^Environment {INDEX} raised EOFError in step\(\): the file of meshes"
    ) as caught:
        run(env)
    error = caught.value
    assert isinstance(error, EOFError) and (error.index, error.exitcode, error.signal) == (INDEX, None, None)
    assert type(error.__cause__) is EOFError and error.__cause__.args == ("the file of meshes ends early",)
    traceback = str(error.__cause__.__cause__)
    assert "faulty_envs.py" in traceback and 'raise EOFError("the file of meshes ends early")' in traceback
    observations = env.reset()
    np.testing.assert_array_equal(observations, np.repeat([[0.0], [1.0], [2.0]], 3, 1))
    run(env, 2)
    close_quickly(env)


@pytest.mark.parametrize("cls", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize(
    ("fault", "types"),
    [("raise", (Crash,)), ("unpicklable", ()), ("nested", (ValueError, FloatingPointError)), ("eof", (EOFError,))],
)
def test_exceptions_keep_their_types(cls: Any, fault: str, types: tuple[type[Exception], ...]) -> None:
    kwargs = {} if cls is DummyVecEnv else dict(start_method="fork")
    env = guard_env(cls(make_faulty(fault=fault, call="reset"), **kwargs))
    with pytest.raises(EnvFailedError, match=rf"^Environment {INDEX} raised \w+ in reset\(\): ") as caught:
        env.reset()
    expected = () if fault == "raise" and cls is SubprocVecEnv else types  # Crash cannot be unpickled: it wants `code`
    assert all(isinstance(caught.value, each) for each in expected)
    assert caught.value.__cause__ is not None
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is EnvFailedError and str(again) == str(caught.value) and again.index == INDEX
    env.close()


def test_an_exception_of_a_method_is_of_its_type() -> None:
    env = subproc()
    with pytest.raises(LookupError, match=r"^Environment 0 raised LookupError in raise_in_method\(\): as a method may"):
        env.env_method("raise_in_method")
    with pytest.raises(AttributeError, match=r"^Environment 2 raised AttributeError in get_attr\('missing'\)"):
        env.get_attr("missing", indices=[2])
    with pytest.raises(EnvFailedError, match=r"^Environment 1 is gone: .* exit code 5 during end_in_method\(\)"):
        env.env_method("end_in_method", indices=[1])
    close_quickly(env)


def test_interrupt_in_a_dummy_is_an_interrupt() -> None:
    env = guard_env(DummyVecEnv(make_faulty(fault="interrupt")))
    with pytest.raises(KeyboardInterrupt):
        run(env)
    assert env.get_attr("__class__") == [FaultyEnv] * 3


def test_after_an_interrupt_answers_belong_to_their_questions() -> None:
    env = subproc(fault=interrupting)
    env.reset()
    for _ in range(STEP - 1):
        env.step(ACTIONS)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        env.step(ACTIONS)
    assert env.get_attr("index") == [0, 1, 2]
    assert env.env_method("nothing", 4) == [4] * 3
    close_quickly(env)


# ---------------------------------------------------------------------- hanging


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_an_environment_that_hangs(method: str) -> None:
    env = subproc(method, fault="hang")
    guard_env(env, step_timeout=TIMEOUT)
    guard_env(env)  # changes nothing
    begin = time.monotonic()
    message = rf"^Environment {INDEX} did not answer step\(\) within step_timeout=5 seconds.* pass a larger step_timeout"
    with pytest.raises(EnvFailedError, match=message) as caught:
        run(env)
    assert TIMEOUT <= time.monotonic() - begin < QUICKLY and caught.value.index == INDEX and caught.value.exitcode is None
    close_quickly(env)


def test_a_larger_timeout_is_the_remedy() -> None:
    env = guard_env(SubprocVecEnv(make_faulty(fault=slowly), start_method="fork"), step_timeout=0.3)
    with pytest.raises(EnvFailedError, match=r"step_timeout=0.3"):
        run(env)
    env.close()
    env = guard_env(SubprocVecEnv(make_faulty(fault=slowly), start_method="fork"), step_timeout=30)
    run(env)
    env.close()


def test_a_slow_one_is_named_in_a_warning_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_workers, "PATIENCE", 2.5)
    monkeypatch.setattr(env_workers, "_LOOK", 0.1)
    env = subproc(fault=slowly)
    with pytest.warns(UserWarning, match=rf"^Environment {INDEX} did not answer step\(\) within 2.5 seconds"):
        run(env)
    run(env, 2)
    close_quickly(env)


def test_arguments() -> None:
    env = DummyVecEnv(make_faulty())
    with pytest.raises(ArgumentError, match=r"step_timeout must be a positive number of seconds, got 0: pass 300.0, or None"):
        guard_env(env, step_timeout=0)
    with pytest.raises(ArgumentError, match="got a DummyVecEnv: pass vec_env_cls=SubprocVecEnv to make_vec_env"):
        guard_env(env, step_timeout=10)
    remedy = make_vec_env(FaultyEnv, 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"))
    assert guard_env(remedy, step_timeout=10) is remedy
    remedy.close()


# ---------------------------------------------------------------------- closing


class Lingering(FaultyEnv):
    """Does not close."""

    def close(self) -> None:
        if self.index == INDEX:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)


def test_closing_ends_what_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(env_workers._GRACE, "well", TIMEOUT)
    env = SubprocVecEnv([lambda i=i: Lingering(i) for i in range(3)], start_method="fork")  # type: ignore[misc]
    guard_env(env)
    with pytest.warns(UserWarning, match=f"^Environment {INDEX} did not close within 5 seconds"):
        close_quickly(env)


def test_closing_during_a_step_with_a_large_answer() -> None:
    env = SubprocVecEnv([Large] * 2, start_method="fork")
    guard_env(env)
    for remote in env.remotes:
        remote.send(("env_method", ("nothing", (10_000_000,), {})))
    env.waiting = True
    close_quickly(env)


def test_closing_after_a_kill_that_nobody_noticed() -> None:
    env = subproc()
    os.kill(env.processes[0].pid or 0, signal.SIGKILL)
    close_quickly(env)


class RaisesInClose(FaultyEnv):
    def close(self) -> None:
        raise RuntimeError("in close")


def test_an_exception_in_close_is_printed_by_its_process(capfd: pytest.CaptureFixture[str]) -> None:
    env = SubprocVecEnv([RaisesInClose], start_method="fork")
    guard_env(env)
    close_quickly(env)
    assert "RuntimeError: in close" in capfd.readouterr().err


def test_what_nobody_closes_ends_as_without_a_guard() -> None:
    env = subproc(n_envs=1)
    processes = env.processes
    del env
    for process in processes:
        process.join(10)
        assert process.exitcode == 0


# ---------------------------------------------------------------------- what does not change


class Random(gym.Env):
    """Observations, rewards and ends are random."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = FaultyEnv.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.normal(size=3).astype(np.float32), {"draw": self.np_random.integers(100)}

    def step(self, action: np.ndarray) -> Any:
        observation = self.np_random.normal(size=3)  # float64, as many an environment's
        ends = self.np_random.random(2) < 0.1
        return observation, self.np_random.normal(), bool(ends[0]), ends[1], {"info": observation * 2}


@pytest.mark.parametrize("cls", [DummyVecEnv, SubprocVecEnv])
def test_results_are_those_of_stable_baselines3(cls: Any) -> None:
    plain, guarded = (make_vec_env(Random, 4, seed=3, vec_env_cls=cls) for _ in range(2))
    plain, guarded = (VecFrameStack(VecNormalize(VecMonitor(env)), 2) for env in (plain, guarded))
    assert guard_env(guarded) is guarded
    np.testing.assert_array_equal(plain.reset(), guarded.reset())
    actions = np.zeros((4, 2), np.float32)
    for _ in range(100):
        answers: Any = zip(plain.step(actions), guarded.step(actions), strict=True)
        for a, b in answers:
            if isinstance(a, np.ndarray):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
            else:
                for one, other in zip(a, b, strict=True):
                    assert one.keys() == other.keys()
                    for key in one.keys() - {"episode"}:  # which has the time of day
                        np.testing.assert_array_equal(one[key], other[key])
        assert plain.reset_infos == guarded.reset_infos
    for env in (plain, guarded):
        env.close()


@pytest.mark.parametrize("cls", [DummyVecEnv, SubprocVecEnv])
def test_it_is_what_it_was(cls: Any) -> None:
    class Own(cls):
        """A user's."""

    for kind in (cls, Own):
        env = kind(make_faulty())
        wrapped = VecNormalize(env)
        for _ in range(3):
            assert guard_env(wrapped) is wrapped and wrapped.venv is env
        assert isinstance(env, kind) and len(type(env).__mro__) == len(kind.__mro__) + 3, "guarded once"
        assert (type(env).__name__, type(env).__module__, type(env).__doc__) == (kind.__name__, kind.__module__, kind.__doc__)
        assert env.has_attr("length") and not env.has_attr("missing")
        env.set_attr("length", 9, indices=[1])
        assert env.get_attr("length") == [3, 9, 3]
        assert env.env_is_wrapped(gym.Wrapper) == [False] * 3
        assert env.env_method("nothing", value=4, indices=0) == [4]
        env.close()


def test_wrappers_are_seen_in_processes() -> None:
    env = make_vec_env(FaultyEnv, 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"))
    guard_env(env)
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 2
    assert env.env_is_wrapped(gym.Wrapper) == [True] * 2
    assert [cls.__name__ for cls in env.get_attr("__class__")] == ["Monitor"] * 2
    env.close()
    assert guard_env(env) is env  # closed


def test_copies_are_not_guarded() -> None:
    env = DummyVecEnv(make_faulty())
    run(guard_env(env), 1)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert type(other) is DummyVecEnv and "_guard" not in vars(other)
        np.testing.assert_array_equal(other.reset(), env.reset())
        assert type(env) is not DummyVecEnv
    closed = SubprocVecEnv(make_faulty(), start_method="fork")
    closed.close()
    guard_env(closed)
    assert type(closed) is SubprocVecEnv


def test_exchanged_environments_are_guarded_too() -> None:
    env = DummyVecEnv(make_faulty())
    run(guard_env(env), 1)
    env.envs[1] = FaultyEnv(1, fault=lambda answer: answer[:4])
    with pytest.raises(EnvFailedError, match=r"^Environment 1 returned a tuple of 4"):
        run(env)
    assert all(type(each) is FaultyEnv for each in env.envs)


def test_other_vectorized_environments_are_left_alone() -> None:
    class Other(VecEnv):
        def __init__(self) -> None:
            pass

    Other.__abstractmethods__ = frozenset()
    env = Other()  # type: ignore[abstract]
    assert guard_env(env) is env and type(env) is Other


class OtherLoop(SubprocVecEnv):
    """Its processes run another loop."""

    def __init__(self) -> None:
        self.waiting = self.closed = False
        context: Any = mp.get_context("fork")
        remote, theirs = context.Pipe()
        process = context.Process(target=other_loop, args=(theirs,), daemon=True)
        process.start()
        self.remotes, self.processes = (remote,), [process]
        VecEnv.__init__(self, 1, FaultyEnv().observation_space, FaultyEnv().action_space)


def other_loop(pipe: Any) -> None:
    while True:
        command, _ = pipe.recv()
        if command == "close":
            return
        if command == "step":
            os._exit(6)
        pipe.send(None)


def test_the_end_of_another_loop_is_noticed() -> None:
    env = OtherLoop()
    guard_env(env)
    with pytest.raises(EnvFailedError, match="exit code 6"):
        env.step(np.zeros((1, 2)))
    close_quickly(env)

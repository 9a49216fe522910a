"""Training in environments that die, hang, raise or answer nonsense ends with an error that names the environment."""

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_scoreflow import DivergenceError, EnvFailedError, guard_env
from sb3_scoreflow.callbacks import FlowEvalCallback
from sb3_scoreflow.common import env_workers
from tests.common.faulty_envs import INDEX, interruptible, make_faulty, time_limit
from tests.conformance.algorithm import Algorithm
from tests.conformance.envs import make_toy, toy_env_fns

mp.set_forkserver_preload(["sb3_scoreflow"])


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    before = mp.active_children()  # another test's
    with time_limit(90):
        yield
    assert set(mp.active_children()) <= set(before)


DEATH = ("killed", "is gone: .* killed by SIGKILL")


@pytest.mark.parametrize(
    ("method", "fault", "message"),
    [
        ("fork", *DEATH),
        ("forkserver", *DEATH),
        pytest.param("spawn", *DEATH, marks=pytest.mark.slow),
        ("fork", "exit", "is gone: .* exit code 3"),
        ("fork", "raise", r"raised \w+ in step\(\): .*sim stopped with code 7"),
        ("fork", "hang", "did not answer .* within step_timeout=5 seconds"),
    ],
)
def test_an_environment_in_a_process(algorithm: Algorithm, method: str, fault: str, message: str) -> None:
    env = SubprocVecEnv(make_faulty(2, fault=fault), start_method=method)
    model = algorithm.make("FlowPolicy", env)
    assert model.get_env() is env
    if fault == "hang":
        guard_env(env, step_timeout=5)
    begin = time.monotonic()
    with pytest.raises(EnvFailedError, match=f"^Environment {INDEX} {message}"):
        model.learn(2 * algorithm.iteration(2))
    env.close()
    assert time.monotonic() - begin < 60
    assert model.rollout_buffer.pos == 4, "the failed step is not stored"
    model.set_env(DummyVecEnv(make_faulty(2)))  # the remedy
    model.learn(algorithm.iteration(2))


class Kill(BaseCallback):
    """Kills a process while the model trains."""

    def __init__(self, pid: int | None) -> None:
        super().__init__()
        self.pid = pid or 0

    def _on_step(self) -> bool:
        if self.n_calls == 7:
            os.kill(self.pid, signal.SIGKILL)
        return True


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_kill_in_the_middle_of_learn(algorithm: Algorithm, method: str) -> None:
    env = SubprocVecEnv(toy_env_fns(2), start_method=method)
    model = algorithm.make("FlowPolicy", VecNormalize(env))
    with pytest.raises(EnvFailedError, match=r"^Environment 0 is gone: .* killed by SIGKILL"):
        model.learn(2 * algorithm.iteration(2), callback=Kill(env.processes[0].pid))
    env.close()


@pytest.mark.parametrize(
    "fault",
    [
        lambda a: (a[0] * np.nan, *a[1:]),
        lambda a: (a[0], np.nan, *a[2:]),
        lambda a: (a[0][:1], *a[1:]),
        lambda a: (*a[:2], False, {}),
        lambda a: (*a[:4], None),
        lambda a: (a[0], np.ones(2), *a[2:]),
        "raise",
    ],
    ids=["nan", "nan reward", "shape", "four", "no info", "two rewards", "raise"],
)
def test_nothing_is_learned_from_a_wrong_answer(algorithm: Algorithm, fault: Any) -> None:
    env = VecNormalize(DummyVecEnv(make_faulty(2, fault=fault)))
    model = algorithm.make("FlowPolicy", env)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(EnvFailedError, match=f"^Environment {INDEX} r"):
        model.learn(2 * algorithm.iteration(2))
    assert model.num_timesteps == 8 and model.rollout_buffer.pos == 4
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    statistics: Any = env.obs_rms
    assert statistics.count == pytest.approx(10, abs=0.01), "of a reset and four steps"
    assert np.isfinite(statistics.mean).all() and np.isfinite(env.ret_rms.var)


def test_nan_rewards_of_the_first_rollout_stop_at_their_step(algorithm: Algorithm) -> None:
    model = algorithm.make("FlowPolicy", make_toy(n_envs=2, fault="reward", faulty_from=21))
    with pytest.raises(DivergenceError, match=r"^Environment 0 returned a NaN or infinite reward \(nan\)"):
        model.learn(4 * algorithm.iteration(2))
    assert model.num_timesteps == 40


@pytest.mark.parametrize("kind", [EvalCallback, FlowEvalCallback])
def test_environments_of_evaluations_are_guarded(algorithm: Algorithm, kind: Any) -> None:
    evaluation = kind(DummyVecEnv(make_faulty(2, fault="raise")), eval_freq=3, verbose=0, n_eval_episodes=4, warn=False)
    model = algorithm.make("FlowPolicy", DummyVecEnv(make_faulty(2)))
    with pytest.raises(EnvFailedError, match=rf"^Environment {INDEX} raised Crash in step\(\)"):
        model.learn(algorithm.iteration(2), callback=[evaluation])


def test_two_models_in_one_environment(algorithm: Algorithm) -> None:
    env = make_toy(n_envs=2)
    for _ in range(2):
        model = algorithm.make("FlowPolicy", env).learn(algorithm.iteration(2))
        assert model.get_env() is env
    once = algorithm.make("FlowPolicy", make_toy(n_envs=2)).learn(algorithm.iteration(2))
    for one, other in zip(model.policy.parameters(), once.policy.parameters(), strict=True):
        assert th.equal(one, other)


def interrupt_and_hang(answer: Any) -> Any:
    """Interrupts the parent, which has been waiting for a while."""
    time.sleep(0.5)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(1000)
    return answer


@pytest.mark.first_algorithm
def test_interrupt_of_an_environment_that_hangs(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(env_workers._GRACE, "waiting", 5.0)
    env = SubprocVecEnv(make_faulty(2, fault=interrupt_and_hang), start_method="fork")
    model = algorithm.make("FlowPolicy", env)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        model.learn(2 * algorithm.iteration(2))
    begin = time.monotonic()
    with pytest.warns(UserWarning, match=f"Environment {INDEX} did not close within 5 seconds"):
        env.close()
    assert time.monotonic() - begin < 60

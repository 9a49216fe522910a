"""What environments answer: what Stable-Baselines3 takes passes, all else is refused by name before it is used."""

import warnings
from collections import OrderedDict, UserDict
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecMonitor,
    VecNormalize,
)

from sb3_scoreflow import DivergenceError, EnvDivergedError, EnvFailedError, guard_env
from sb3_scoreflow.common.env_answers import observation_fault, reset_fault, step_fault
from tests.common.faulty_envs import INDEX, STEP, FaultyEnv, make_faulty, time_limit

BOX = spaces.Box(-10, 10, (3,), np.float32)
OBS = np.zeros(3, np.float32)
IMAGE = spaces.Box(0, 255, (2, 2, 1), np.uint8)


def step(env: VecEnv, n_steps: int = STEP) -> Any:
    env.reset()
    for _ in range(n_steps):
        result = env.step(np.zeros((env.num_envs, 2), np.float32))
    return result


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (OBS, 1.0, False, {}),
            r"returned a tuple of 4 \(ndarray, float, bool, dict\): Gymnasium expects .*truncated, info",
        ),
        ((OBS, {}), r"returned a tuple of 2 \(ndarray, dict\): Gymnasium expects \(observation, reward, terminated"),
        (None, "returned None: Gymnasium expects"),
        (np.zeros(5), r"returned an array of shape \(5,\) and dtype float64: Gymnasium expects"),
        (
            (OBS, np.ones(1), False, False, {}),
            r"returned the reward an array of shape \(1,\) .* expects one number, such as",
        ),
        ((OBS, np.ones(2), False, False, {}), r"returned the reward an array of shape \(2,\)"),
        ((OBS, None, False, False, {}), "returned the reward None"),
        ((OBS, "1.0", False, False, {}), "returned the reward '1.0'"),
        ((OBS, 1j, False, False, {}), "returned the reward a complex"),
        (
            (OBS, 1.0, None, False, {}),
            r"returned terminated=None: Gymnasium expects True or False, such as bool\(terminated\)",
        ),
        ((OBS, 1.0, False, "no", {}), "returned truncated='no'"),
        ((OBS, 1.0, 0.5, False, {}), "returned terminated=0.5"),
        ((OBS, 1.0, np.array([True]), False, {}), r"returned terminated=an array of shape \(1,\)"),
        ((OBS, 1.0, False, False, None), "returned the info None: Gymnasium expects a dict, {} if there is nothing to say"),
        ((OBS, 1.0, False, False, [("a", 1)]), r"returned the info a list of 1 \(tuple\)"),
        (
            (None, 1.0, False, False, {}),
            r"returned the observation None: its space expects numbers of shape \(3,\)",
        ),
        ((OBS[:1], 1.0, False, False, {}), r"returned an observation of shape \(1,\): its space expects \(3,\)"),
        ((OBS[:, None], 1.0, False, False, {}), r"returned an observation of shape \(3, 1\): its space expects \(3,\)"),
        (({"a": OBS}, 1.0, False, False, {}), "returned the observation a dict: its space expects numbers"),
        (([[1.0], [1.0, 2.0]], 1.0, False, False, {}), r"returned the observation a list of 2 \(list, list\)"),
    ],
)
@pytest.mark.parametrize("cls", [DummyVecEnv, SubprocVecEnv])
def test_a_wrong_answer_of_step(cls: Any, answer: Any, message: str) -> None:
    kwargs = {} if cls is DummyVecEnv else dict(start_method="fork")
    env = cls(make_faulty(fault=lambda _: answer), **kwargs)
    guard_env(env)
    with (
        time_limit(30),
        pytest.raises(EnvFailedError, match=rf"^Environment {INDEX} {message}.* \(step\(\)\)\. Correct") as caught,
    ):
        step(env)
    assert caught.value.index == INDEX and caught.value.__cause__ is None
    with time_limit(10):
        env.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (OBS, r"returned an array of shape \(3,\) and dtype float32: Gymnasium expects \(observation, info\)"),
        (OBS[:2], r"returned an array of shape \(2,\)"),
        ((OBS, 0.0), "returned the info 0.0: Gymnasium expects"),
        ((OBS, 1.0, {}), "returned a tuple of 3"),
        ({"a": 1, "b": 2}, "returned a dict"),
        ((OBS[:1], {}), r"returned an observation of shape \(1,\)"),
    ],
)
@pytest.mark.parametrize("cls", [DummyVecEnv, SubprocVecEnv])
def test_a_wrong_answer_of_reset(cls: Any, answer: Any, message: str) -> None:
    kwargs = {} if cls is DummyVecEnv else dict(start_method="fork")
    env = guard_env(cls(make_faulty(fault=lambda _: answer, call="reset"), **kwargs))
    with time_limit(30), pytest.raises(EnvFailedError, match=rf"^Environment {INDEX} {message}.* \(reset\(\)\)\. Correct"):
        env.reset()
    with time_limit(10):
        env.close()


@pytest.mark.parametrize("space", [spaces.Dict({"image": IMAGE, "vector": BOX})])
@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"vector": OBS}, r"keys \['vector'\]: its space also expects \['image'\]"),
        (OBS, r"its space expects a dict with \['image', 'vector'\]"),
        (
            {"image": np.zeros((2, 2), np.uint8), "vector": OBS},
            r"an observation\['image'\] of shape \(2, 2\): its",
        ),
        (
            {"image": np.full((2, 2, 1), 0.5), "vector": OBS},
            r"of dtype float64, with 0.5, which uint8 cannot hold: its",
        ),
        ({"image": np.full((2, 2, 1), 256), "vector": OBS}, "with 256, which uint8 cannot hold"),
        ({"image": np.full((2, 2, 1), np.nan), "vector": OBS}, "with nan, which uint8 cannot hold"),
    ],
)
def test_parts_of_observations(space: spaces.Space, observation: Any, message: str) -> None:
    env = guard_env(DummyVecEnv(make_faulty(fault=lambda _: (observation, 0.0, False, False, {}), space=space)))
    env.envs[0]._observation = env.envs[2]._observation = lambda: space.sample()  # type: ignore[attr-defined]
    env.envs[1]._observation = lambda: space.sample()  # type: ignore[attr-defined]
    with pytest.raises(EnvFailedError, match=rf"^Environment {INDEX} returned .*{message}"):
        step(env)


@pytest.mark.parametrize(
    "answer",
    [
        (OBS.astype(np.float64), np.float64(1), np.bool_(True), False, {}),
        (OBS.astype(int), 1, True, 0, {}),
        (OBS.tolist(), True, 1, np.array(False), OrderedDict()),
        (th.zeros(3), th.tensor(1.0), th.tensor(True), False, {}),
        [OBS, np.array(1.0), np.array(True), np.float32(0), {}],
        (OBS[None], np.int64(1), True, False, UserDict()),
    ],
)
def test_what_stable_baselines3_takes_passes(answer: Any) -> None:
    plain, guarded = (DummyVecEnv(make_faulty(fault=lambda _: answer, length=100)) for _ in range(2))
    guard_env(guarded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one, other in zip(step(plain)[:3], step(guarded)[:3], strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


def test_other_spaces() -> None:
    assert observation_fault(3, spaces.Discrete(5)) is None
    assert observation_fault(np.array([3]), spaces.Discrete(5)) is None
    assert observation_fault(3.0, spaces.Discrete(5)) is None
    assert observation_fault(2.5, spaces.Discrete(5)) is not None
    assert observation_fault(np.array([1, 0, 1]), spaces.MultiBinary(3)) is None
    assert observation_fault((1, 2), spaces.Tuple([spaces.Discrete(2)] * 2)) is None
    assert reset_fault((OBS, None), BOX) is None  # Stable-Baselines3 does not look at it
    assert step_fault((OBS[None], 0.0, False, False, {}), BOX) is None
    assert step_fault((OBS[None], 0.0, False, False, {}), BOX, exact=True) is not None  # np.stack does not drop the axis


@pytest.mark.parametrize("cls", [DummyVecEnv, SubprocVecEnv])
def test_a_wrapper_that_cannot_unpack_an_old_answer(cls: Any) -> None:
    """It hides what was returned; the message says what that may have been."""
    fns = [lambda i=i: TimeLimit(FaultyEnv(i, fault=lambda answer: answer[:4]), 9) for i in range(2)]
    env = guard_env(cls(fns))
    message = r"^Environment 1 raised ValueError in step\(\): not enough values to unpack \(expected 5, got 4\)\. .*five"
    with time_limit(60), pytest.raises(EnvFailedError, match=message):
        step(env)
    with time_limit(10):
        env.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda a: (np.array([0, np.nan, 0], np.float32), *a[1:]), r"NaN or infinite observation \(nan in component 1\)"),
        (lambda a: (np.array([0, 0, -np.inf], np.float32), *a[1:]), r"NaN or infinite observation \(-inf in component 2\)"),
        (lambda a: (a[0], np.inf, *a[2:]), r"NaN or infinite reward \(inf\)"),
        (lambda a: (a[0], float("nan"), *a[2:]), r"NaN or infinite reward \(nan\)"),
        (lambda a: (OBS * np.nan, 0.0, True, False, {}), r"NaN or infinite last observation \(nan in component 0\)"),
    ],
)
@pytest.mark.parametrize("cls", [DummyVecEnv, SubprocVecEnv])
def test_numbers_that_are_not_finite(cls: Any, fault: Any, message: str) -> None:
    """Statistics of a VecNormalize are as they were."""
    env = VecNormalize(VecMonitor(cls(make_faulty(fault=fault), **({} if cls is DummyVecEnv else dict(start_method="fork")))))
    guard_env(env)
    step(env, STEP - 1)
    statistics: Any = env.obs_rms
    mean, count = statistics.mean.copy(), statistics.count
    with time_limit(30), pytest.raises(EnvDivergedError, match=f"^Environment {INDEX} returned a {message}") as caught:
        env.step(np.zeros((3, 2), np.float32))
    assert isinstance(caught.value, DivergenceError) and isinstance(caught.value, EnvFailedError)
    assert caught.value.index == INDEX
    np.testing.assert_array_equal(statistics.mean, mean)
    assert statistics.count == count
    env.close()


def test_nan_in_a_part_and_in_a_reset() -> None:
    space = spaces.Dict({"a": BOX, "b": spaces.Box(-1, 1, (2, 2), np.float64)})
    env = DummyVecEnv(make_faulty(n_envs=2, space=space))
    for each in env.envs:
        each._observation = lambda: {"a": OBS, "b": np.array([[0, 0], [np.nan, 0]])}  # type: ignore[attr-defined]
    with pytest.raises(
        EnvDivergedError, match=r"^Environment 0 returned a NaN or infinite observation\['b'\] \(nan in component \(1, 0\)"
    ):
        guard_env(env).reset()
    env = DummyVecEnv(make_faulty(n_envs=2, space=space))
    for each in env.envs:
        each._observation = lambda: {"a": OBS, "b": np.array([[0, 0], [np.nan, 0]])}  # type: ignore[attr-defined]
    wrapped = VecExtractDictObs(env, "a")  # which leaves it out
    np.testing.assert_array_equal(guard_env(wrapped).reset(), [OBS, OBS])


def test_numbers_that_are_large_are_finite() -> None:
    def fault(answer: Any) -> Any:
        return (np.full(3, 3e38, np.float32), 1e38, *answer[2:])

    observations, rewards = step(guard_env(DummyVecEnv(make_faulty(fault=fault))))[:2]
    assert observations[INDEX, 0] == np.float32(3e38) and rewards[INDEX] == np.float32(1e38)


class Repairs(VecEnvWrapper):
    """A user's, for sensors that fail."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return np.nan_to_num(observations), rewards, dones, infos  # type: ignore[arg-type]


def test_a_wrapper_that_repairs_nan_may() -> None:
    env = guard_env(Repairs(DummyVecEnv(make_faulty(fault=lambda a: (a[0] * np.nan, *a[1:])))))
    np.testing.assert_array_equal(step(env)[0][INDEX], OBS)

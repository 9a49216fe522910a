"""A worker in this process, and what is refused before there are any."""

import sys
import threading
from functools import partial
from typing import Any

import cloudpickle
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import EnvFailedError, guard_env
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.distributed import RayVecEnv
from sb3_scoreflow.distributed.session import cores, describe_nodes
from sb3_scoreflow.distributed.worker import EnvWorker, Failure
from tests.distributed.comparing import assert_same
from tests.distributed.envs import Broken, RandomEnds, makers


def make_worker(n_envs: int = 3, first: int = 0, **arguments: Any) -> EnvWorker:
    worker = EnvWorker()
    worker.make(cloudpickle.dumps(makers(n_envs, **arguments)), first, [{} for _ in range(n_envs)])
    return worker


@pytest.mark.parametrize("space", [None, spaces.Dict({"a": spaces.Box(-9, 9, (2,), np.float64)})], ids=["array", "dict"])
def test_steps_and_resets(space: spaces.Space | None) -> None:
    worker, reference = make_worker(space=space), DummyVecEnv(makers(3, space=space))
    options: list[dict[str, Any]] = [{}, {"start": 2.0}, {}]
    reference.seed(4)
    reference.set_options(options)
    expected: Any = reference.reset()
    resets = worker.reset([4, 5, 6], options)
    named = {None: expected} if space is None else expected
    assert_same(dict(resets.observations), dict(named))
    assert_same([cloudpickle.loads(info) for info in resets.infos], reference.reset_infos)
    n_ends = 0
    for action in np.random.default_rng(0).uniform(-1, 1, (60, 3, 2)).astype(np.float32):
        expected = reference.step(action)
        steps = worker.step(action)
        assert_same(dict(steps.observations), {None: expected[0]} if space is None else dict(expected[0]))
        assert_same([steps.rewards, steps.dones], expected[1:3])
        infos = [cloudpickle.loads(pickled) for pickled in steps.infos]
        assert_same([info for info, _ in infos], expected[3])
        assert [reset_info is not None for _, reset_info in infos] == expected[2].tolist()
        n_ends += expected[2].sum()
    assert n_ends > 3


def test_commands() -> None:
    worker = make_worker(first=5)
    pid, host = worker.place()
    assert pid > 0 and host

    def ask(command: str, data: Any, indices: list[int]) -> Any:
        answer = worker.ask(command, "a call", indices, data)
        return answer if isinstance(answer, Failure) else [cloudpickle.loads(each) for each in answer]

    assert ask("get_attr", "index", [7, 5]) == [2, 0]
    assert ask("has_attr", "index", [5]) == [True] and ask("has_attr", "nothing", [5]) == [False]
    assert ask("set_attr", ("gain", 4.0), [6]) == [None] and ask("get_attr", "gain", [5, 6]) == [1.0, 4.0]
    assert ask("env_method", ("double", (1,), {"plus": 3}), [5]) == [5]
    assert ask("is_wrapped", Monitor, [5]) == [False]
    assert ask("render", None, [6])[0].shape == (4, 4, 3)
    worker.reset([1, 2, 3], [{}] * 3)
    (state,) = ask("state", None, [5])
    before = worker.step(np.ones((3, 2), np.float32))
    assert ask("set_state", state, [5]) == [None]
    assert_same(worker.step(np.ones((3, 2), np.float32)).observations[None][0], before.observations[None][0])
    assert ask("close", None, [5, 6, 7]) == [None] * 3
    error = ask("get_attr", "nothing", [5, 6]).error()
    assert isinstance(error, AttributeError) and isinstance(error, EnvFailedError) and error.index == 5


def test_failures_name_the_environment() -> None:
    worker = make_worker(2, first=5)
    worker.reset([1, 2], [{}, {}])
    worker.envs[1].gain = np.zeros(3)  # type: ignore[attr-defined]
    failure = worker.step(np.zeros((2, 2), np.float32))
    assert isinstance(failure, Failure)
    with pytest.raises(EnvFailedError, match="Environment 6 returned the reward"):
        raise failure.error()
    worker.checked[1].np_random = None
    failure = worker.reset([None, None], [{}, {"start": "nowhere"}])
    with pytest.raises(ValueError, match=r"Environment 6 raised ValueError in reset\(\): could not convert") as caught:
        raise failure.error()
    assert "in reset" in str(caught.value.__cause__.__cause__)  # type: ignore[union-attr]


def test_making() -> None:
    worker = EnvWorker()
    made = worker.make(cloudpickle.dumps(makers(2)), 0, [{"gain": 2.0}, {}])
    space = RandomEnds().observation_space, RandomEnds.action_space
    assert [cloudpickle.loads(each) for each in made] == [space, space]
    assert [env.gain for env in worker.envs] == [2.0, 1.0]  # type: ignore[attr-defined]
    failure = EnvWorker().make(cloudpickle.dumps([RandomEnds, partial(Broken, "raise")]), 3, [{}, {}])
    assert isinstance(failure, Failure) and failure.index == 4
    env = RandomEnds()
    failure = EnvWorker().make(cloudpickle.dumps([lambda: env] * 2), 0, [{}, {}])
    with pytest.raises(ValueError, match="returned the same environment as another one"):
        raise failure.error()
    # The remedy
    assert len(EnvWorker().make(cloudpickle.dumps([lambda: RandomEnds()] * 2), 0, [{}, {}])) == 2


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n_envs=3), "`env_fns` has 2 functions, and n_envs=3"),
        (dict(n_envs=0), "n_envs"),
        (dict(envs_per_worker=0), "envs_per_worker"),
        (dict(num_cpus=-1), "num_cpus must be 0 or more, got -1"),
        (dict(num_gpus=float("nan")), "num_gpus must be 0 or more, got nan"),
        (dict(step_timeout=0), "step_timeout must be a positive number of seconds, got 0"),
        (dict(start_timeout=-1), "start_timeout must be a positive"),
        (dict(max_restarts=1.5), "max_restarts must be 0 or a positive integer, got 1.5"),
        (dict(max_restarts=True), "max_restarts"),
        (dict(worker_options=dict(num_cpus=2, max_restarts=1)), r"worker_options has \['max_restarts', 'num_cpus'\]"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        RayVecEnv(makers(2), **arguments)


def test_no_functions() -> None:
    with pytest.raises(ArgumentError, match="`env_fns` has 0 functions"):
        RayVecEnv([])


def test_functions_that_do_not_pickle() -> None:
    lock = threading.Lock()

    def make() -> Any:
        return RandomEnds() if lock else None

    with pytest.raises(ArgumentError, match="The function that makes environment 1 cannot be pickled"):
        RayVecEnv([RandomEnds, make])


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'Ray is missing .*pip install "sb3-scoreflow\[ray\]"'):
        make_vec_env("Pendulum-v1", vec_env_cls=RayVecEnv)  # type: ignore[arg-type]


class FakeRay:
    """Says what nodes there are."""

    def nodes(self) -> list[dict[str, Any]]:
        resources = {"CPU": 4.0, "GPU": 1.0, "memory": 1e9, "node:10.0.0.1": 1.0}
        return [{"Alive": True, "Resources": resources}, {"Alive": False, "Resources": resources}]

    def available_resources(self) -> dict[str, float]:
        return {}


def test_nodes() -> None:
    assert cores(FakeRay()) == 4.0
    assert describe_nodes(FakeRay()) == "nodes {CPU 4, GPU 1}; free nothing"


def test_guard_of_others() -> None:
    """A time limit is for those that can be ended."""
    with pytest.raises(ArgumentError, match="DummyVecEnv"):
        guard_env(DummyVecEnv([RandomEnds]), step_timeout=1.0)

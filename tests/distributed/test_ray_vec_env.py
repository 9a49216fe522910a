"""RayVecEnv against DummyVecEnv, and what becomes of it when workers die, hang and raise."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecExtractDictObs

from sb3_scoreflow import EnvDivergedError, EnvFailedError, ScoReFlowPPO, guard_env
from sb3_scoreflow.distributed import RayVecEnv
from sb3_scoreflow.distributed.pool import Lost, Pool
from sb3_scoreflow.resuming import learn_resumable
from tests.common.faulty_envs import is_gone, time_limit
from tests.distributed.comparing import assert_same, trajectory
from tests.distributed.envs import Broken, RandomEnds, ask_for, makers

pytestmark = [pytest.mark.usefixtures("ray_module"), pytest.mark.filterwarnings("ignore:.*critic_warmup_transitions")]

#: Two pictures go through the object store, one in the message
SPACE = spaces.Dict({"image": spaces.Box(0, 255, (160, 160, 3), np.uint8), "state": spaces.Box(-50, 50, (3,), np.float32)})
N_ENVS = 3
ACTIONS = np.zeros((N_ENVS, 2), np.float32)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def shared(ray_module: None, faults: Path) -> Iterator[RayVecEnv]:
    """One for many tests: workers take seconds to start."""
    env = RayVecEnv(makers(N_ENVS, space=SPACE, faults=faults), envs_per_worker=2, address="local")
    assert [list(worker.indices) for worker in env.pool.workers] == [[0, 1], [2]]
    yield env
    pids = env.env_method("pid")
    env.close()
    env.close()
    with time_limit(30):
        while not all(map(is_gone, pids)):
            time.sleep(0.05)
    with pytest.raises(RuntimeError, match="RayVecEnv is closed"):
        env.reset()


@pytest.fixture
def env(shared: RayVecEnv, faults: Path) -> Iterator[RayVecEnv]:
    shared.seed(3)
    shared.reset()
    with time_limit(240):
        yield shared
    shared.step_timeout, shared.max_restarts = 300.0, 3
    for path in faults.iterdir():
        path.unlink()


def dummy() -> DummyVecEnv:
    return DummyVecEnv(makers(N_ENVS, space=SPACE))


# ---------------------------------------------------------------------- as a DummyVecEnv


def test_same_as_dummy(env: RayVecEnv) -> None:
    reference = trajectory(dummy(), 80, seed=11)
    found = trajectory(env, 80, seed=11)
    assert_same(found, reference)
    # What the comparison is to be about is there
    infos = [info for step in found if isinstance(step, tuple) for info in step[3] if "terminal_observation" in info]
    assert {bool(info["TimeLimit.truncated"]) for info in infos} == {True, False}
    observations = found[0]
    assert all(info["array"].flags.writeable and info["terminal_observation"]["image"].flags.writeable for info in infos)
    assert observations["image"].flags.writeable and observations["state"].flags.writeable


def test_one_worker_as_many(env: RayVecEnv) -> None:
    """Another split, in the same Ray, which is used again."""
    single = RayVecEnv(makers(N_ENVS, space=SPACE), envs_per_worker=3, address="auto")
    assert len(single.pool.workers) == 1
    assert_same(trajectory(single, 30, seed=2), trajectory(env, 30, seed=2))
    del single  # without close()


def test_attributes(env: RayVecEnv) -> None:
    env.set_attr("gain", 2.5, indices=[2, 0])
    assert env.get_attr("gain") == [2.5, 1.0, 2.5]
    env.set_attr("gain", 1.0)
    assert env.get_attr("gain", 2) == [1.0] and env.get_attr("index", [2, 0, 1]) == [2, 0, 1]
    assert env.get_attr("index", -1) == [2]
    assert env.env_method("double", 4, plus=0.5, indices=range(1, 3)) == [9.5, 10.5]
    assert env.has_attr("total") and not env.has_attr("nothing")
    assert env.env_is_wrapped(Monitor) == [False] * 3
    assert env.observation_space == SPACE and env.render_mode == "rgb_array"
    assert [image is not None and image[0, 0, 0] for image in env.get_images()] == [0, 1, 2]
    assert env.render() is not None
    env.render_mode = None
    try:
        with pytest.warns(UserWarning, match="get_images.. wants `rgb_array`"):
            assert env.get_images() == [None] * 3
    finally:
        env.render_mode = "rgb_array"
    with pytest.raises(AttributeError, match=r"Environment 2 raised AttributeError in get_attr\('nothing'\)"):
        env.get_attr("nothing", [2])


def test_steps_while_the_caller_does_other_things(env: RayVecEnv, faults: Path) -> None:
    """Environments of both workers are inside their steps at once, and the caller waits for neither."""
    ask_for(faults, "wait", 0)
    ask_for(faults, "wait", 2)
    env.step_async(ACTIONS)
    while not ((faults / "here_0").exists() and (faults / "here_2").exists()):
        time.sleep(0.01)
    (faults / "go").touch()
    found = env.step_wait()
    other = dummy()
    other.seed(3)
    other.reset()
    assert_same(found, other.step(ACTIONS))


def test_calls_out_of_order(env: RayVecEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match=r"Call step_async\(\) before step_wait\(\)"):
        env.step_wait()
    with pytest.raises(ValueError, match="Got 2 actions for 3 environments"):
        env.step(ACTIONS[:2])
    monkeypatch.setattr(env, "_last_observations", None)
    with pytest.raises(RuntimeError, match=r"Call reset\(\) before step\(\)"):
        env.step(ACTIONS)
    monkeypatch.setattr(env.ray, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match="Ray was shut down"):
        env.reset()


# ---------------------------------------------------------------------- learning


class Watch(BaseCallback):
    """
    Records what ends how, and calls a function at some timesteps.

    :param act: the function, of the number of the step
    """

    def __init__(self, act: Callable[[int], None] = lambda _: None) -> None:
        super().__init__()
        self.act = act
        self.lost: list[tuple[int, int]] = []
        self.rollouts: list[dict[str, np.ndarray]] = []

    def _on_step(self) -> bool:
        self.act(self.n_calls)
        for index, info in enumerate(self.locals["infos"]):
            if info.get("worker_lost"):
                assert self.locals["dones"][index] and info["TimeLimit.truncated"]
                assert info["terminal_observation"].shape == (3,)
                self.lost.append((self.n_calls, index))
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        names = ("observations", "rewards", "episode_starts", "values")
        self.rollouts.append({name: getattr(buffer, name).copy() for name in names})


def make_model(env: VecEnv) -> ScoReFlowPPO:
    arguments: dict[str, Any] = dict(n_steps=16, batch_size=24, n_epochs=1, device="cpu", policy_kwargs=dict(net_arch=[16]))
    return ScoReFlowPPO("FlowPolicy", VecExtractDictObs(env, "state"), seed=5, **arguments)


def parameters(model: ScoReFlowPPO) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.policy.state_dict().items()}


def test_learning_is_the_same(env: RayVecEnv) -> None:
    watches, models = (Watch(), Watch()), []
    for each, watch in zip((env, dummy()), watches, strict=True):
        model = make_model(each)
        models.append(model.learn(96, callback=watch))
    assert len(watches[0].rollouts) == 2
    assert_same(watches[0].rollouts, watches[1].rollouts)
    assert_same(parameters(models[0]), parameters(models[1]))
    assert isinstance(env, RayVecEnv) and type(env).__name__ == "RayVecEnv"  # guarded, but that


class Killed(Exception):
    """Ends a run."""


def test_resuming(env: RayVecEnv, tmp_path: Path) -> None:
    """The interrupted run goes on in the middle of its episodes."""

    def end(n_calls: int) -> None:
        if n_calls == 41:
            raise Killed

    expected = make_model(dummy())
    learn_resumable(expected, 144, tmp_path / "whole", save_freq=48)
    with pytest.raises(Killed):
        learn_resumable(make_model(env), 144, tmp_path / "parts", save_freq=48, callback=Watch(end))
    trajectory(env, 4, seed=99)
    again = make_model(env)
    learn_resumable(again, 144, tmp_path / "parts", save_freq=48)
    assert again.num_timesteps == 144
    assert_same(parameters(again), parameters(expected))


def kill_in_learning(env: RayVecEnv, n_kills: int, seed: int) -> None:
    """Kill processes of workers at random moments, from another thread, until that has been done ``n_kills`` times."""
    rng, done, before = np.random.default_rng(seed), threading.Event(), env.n_restarts
    killed: list[int] = []

    def kill() -> None:
        while len(killed) < n_kills:
            time.sleep(rng.uniform(0, 1))
            pid = int(rng.choice([worker.process for worker in env.pool.workers]))
            if pid not in killed:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.append(pid)
                while env.n_restarts < before + len(killed) and not done.is_set():
                    time.sleep(0.01)

    def stop(_: int) -> None:
        time.sleep(0.01)
        if len(killed) == n_kills and env.n_restarts >= before + n_kills:
            done.set()

    class Enough(Watch):
        def _on_step(self) -> bool:
            return super()._on_step() and not done.is_set()

    watch, model = Enough(stop), make_model(env)
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.warns(UserWarning, match="Worker lost, number"):
        model.learn(1_000_000, callback=watch)
    thread.join(10)
    assert env.n_restarts == before + n_kills
    # Each kill ended the episodes of one worker's environments, those of one step
    ended = {(step, index < 2) for step, index in watch.lost}
    assert 0 < len(ended) <= n_kills
    assert len(watch.lost) == sum(2 if first else 1 for _, first in ended)
    for rollout in watch.rollouts:
        assert all(np.isfinite(values).all() for values in rollout.values())
    # And the environments go on as new ones do
    env.seed(3)
    other = dummy()
    other.seed(3)
    assert_same([env.reset(), env.step(ACTIONS)], [other.reset(), other.step(ACTIONS)])


def test_kills_while_learning(env: RayVecEnv) -> None:
    kill_in_learning(env, 2, seed=0)


@pytest.mark.slow
def test_many_kills_while_learning(shared: RayVecEnv) -> None:
    with time_limit(3600):
        kill_in_learning(shared, 50, seed=1)


# ---------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["kill", "exit", "stop"])
def test_lost_in_a_step(env: RayVecEnv, faults: Path, fault: str) -> None:
    env.set_attr("gain", 3.0, indices=2)
    before: Any = env.step(ACTIONS)[0]
    process = env.pool.workers[1].process
    other = dummy()
    other.seed(3)
    other.reset()
    other.step(ACTIONS)
    n_restarts = env.n_restarts
    if fault == "stop":
        env.step_timeout = 10.0
    ask_for(faults, fault, 2)
    why = "did not answer step.. within step_timeout=10" if fault == "stop" else "[Aa]ctor"
    with pytest.warns(UserWarning, match=f"number {n_restarts + 1} of this RayVecEnv: the worker of environment 2 .*{why}"):
        found: Any = env.step(ACTIONS)
    env.step_timeout = 300.0
    assert env.n_restarts == n_restarts + 1
    expected: Any = other.step(ACTIONS)
    for i in range(2):  # nobody else notices
        assert_same([part[i] for part in found[1:]], [part[i] for part in expected[1:]])
        assert_same({k: v[i] for k, v in found[0].items()}, {k: v[i] for k, v in expected[0].items()})
    assert found[1][2] == 0.0 and found[2][2]
    info = found[3][2]
    assert info.pop("n_env_steps") == 0
    assert_same(
        info,
        {"TimeLimit.truncated": True, "terminal_observation": {k: v[2] for k, v in before.items()}, "worker_lost": True},
    )
    assert not np.array_equal(found[0]["state"][2], before["state"][2])
    with time_limit(30):
        while not is_gone(process):
            time.sleep(0.05)
    # The attribute is set again, and the next step is one of the new episode, which is not one that was there before
    assert env.get_attr("gain") == [1.0, 1.0, 3.0]
    assert env.reset_infos[2]["seed"] not in (None, 5)
    assert "worker_lost" not in env.step(ACTIONS)[3][2]
    env.set_attr("gain", 1.0)


def test_lost_between_steps(env: RayVecEnv) -> None:
    """Found out by a call that is no step, which is answered; the episodes end in the step after it."""
    before: Any = env.step(ACTIONS)[0]
    os.kill(env.pool.workers[1].process, signal.SIGKILL)
    with pytest.warns(UserWarning, match=r"in get_attr\('index'\)"):
        assert env.get_attr("index") == [0, 1, 2]
    observations: Any
    observations, rewards, dones, infos = env.step(ACTIONS)
    assert dones[2] and rewards[2] == 0 and infos[2]["worker_lost"] and "worker_lost" not in infos[0]
    assert_same(infos[2]["terminal_observation"], {key: value[2] for key, value in before.items()})
    # The first observation of its episode was not stepped over
    reference = DummyVecEnv([partial(RandomEnds, space=SPACE, index=2)])
    reference.seed(env.reset_infos[2]["seed"])
    assert_same({key: value[2:] for key, value in observations.items()}, reference.reset())
    after: Any = env.step(ACTIONS)[0]
    assert_same({key: value[2:] for key, value in after.items()}, reference.step(ACTIONS[2:])[0])


def test_lost_in_a_reset(env: RayVecEnv) -> None:
    other = dummy()
    other.seed(8)
    os.kill(env.pool.workers[1].process, signal.SIGKILL)
    env.seed(8)
    with pytest.warns(UserWarning, match=r"in reset\(\)"):
        assert_same(env.reset(), other.reset())
    assert_same(env.step(ACTIONS), other.step(ACTIONS))


def test_lost_too_often(env: RayVecEnv, faults: Path) -> None:
    env.max_restarts = 0
    ask_for(faults, "kill", 2)
    message = "The worker of environment 2 .* was lost 1 times without a step in between, in step.., and max_restarts is 0"
    with pytest.raises(EnvFailedError, match=message) as caught:
        env.step(ACTIONS)
    assert caught.value.index == 2
    with pytest.raises(EnvFailedError, match="was lost 2 times"):
        env.reset()
    env.max_restarts = 3
    with pytest.warns(UserWarning, match="its process was ended|[Aa]ctor"):
        env.reset()
    env.step(ACTIONS)
    assert env.pool.workers[1].losses == 0


def test_lost_again_before_it_runs(env: RayVecEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node whose death Ray has not noticed: one loss, and no more than ``start_timeout`` of it."""
    wait, n_restarts, attempts = Pool._wait, env.n_restarts, []

    def lose(pool: Pool, refs: dict[int, Any], timeout: float | None, call: str) -> tuple[dict[int, Any], list[int]]:
        if call == "its start":
            attempts.append(list(refs))
            if len(attempts) <= n_lost:
                return {number: Lost("its node has died") for number in refs}, []
        return wait(pool, refs, timeout, call)

    monkeypatch.setattr(Pool, "_wait", lose)
    n_lost = 2
    os.kill(env.pool.workers[1].process, signal.SIGKILL)
    with pytest.warns(UserWarning, match=f"Worker lost, number {n_restarts + 1} of"):
        env.step(ACTIONS)
    assert env.n_restarts == n_restarts + 1 and attempts == [[1]] * 3
    n_lost = 100
    monkeypatch.setattr(env.pool, "start_timeout", 1.0)
    os.kill(env.pool.workers[1].process, signal.SIGKILL)
    message = r"no place for 1 of 1 workers .*of environment 2\) within start_timeout=1 seconds \(its node has died\)"
    with pytest.warns(UserWarning), pytest.raises(EnvFailedError, match=message):
        env.step(ACTIONS)
    monkeypatch.undo()
    with pytest.warns(UserWarning):
        env.reset()
    env.step(ACTIONS)


def test_an_exception_of_an_environment_is_raised(env: RayVecEnv, faults: Path) -> None:
    n_restarts = env.n_restarts
    ask_for(faults, "raise", 1)
    with pytest.raises(LookupError, match=r"Environment 1 raised LookupError in step\(\): no such joint") as caught:
        env.step(ACTIONS)
    assert isinstance(caught.value, EnvFailedError) and caught.value.index == 1
    assert type(caught.value.__cause__) is LookupError
    assert "in _fail" in str(caught.value.__cause__.__cause__)  # the traceback of the worker
    env.reset()
    env.step(ACTIONS)
    assert env.n_restarts == n_restarts


def test_wrong_answers_are_refused(env: RayVecEnv) -> None:
    env.set_attr("gain", np.zeros(2), indices=1)
    with pytest.raises(EnvFailedError, match=r"Environment 1 returned the reward an array of shape \(2,\)") as caught:
        env.step(ACTIONS)
    assert caught.value.__cause__ is None
    env.set_attr("gain", 1.0)


def test_guard(env: RayVecEnv) -> None:
    env.__class__ = RayVecEnv  # as it was before others guarded it, in wrappers that may hide NaN
    assert guard_env(env, step_timeout=7.0) is env and env.step_timeout == 7.0
    env.set_attr("gain", np.nan, indices=1)
    with pytest.raises(EnvDivergedError, match="Environment 1 returned a NaN or infinite reward"):
        env.step(ACTIONS)
    env.set_attr("gain", 1.0)
    env.reset()
    assert guard_env(env) is env and env.step_timeout == 7.0


def test_answers_that_do_not_pickle(env: RayVecEnv) -> None:
    with pytest.raises(TypeError, match=r"Environment 1 raised TypeError in get_attr\('lock'\): cannot pickle"):
        env.get_attr("lock", indices=1)


class Elsewhere:
    """Does not unpickle in another process."""

    def __reduce__(self) -> Any:
        return _here, (os.getpid(),)


def _here(pid: int) -> str:
    if pid != os.getpid():
        raise ModuleNotFoundError("no module of that name here")
    return "here"


def test_data_that_do_not_unpickle(env: RayVecEnv) -> None:
    with pytest.raises(EnvFailedError, match=r"environment 2 could not answer set_attr.*no module of that name"):
        env.set_attr("gain", Elsewhere(), indices=2)
    assert env.get_attr("gain") == [1.0] * 3


# ---------------------------------------------------------------------- what cannot be made


def test_constructor_raises(ray_module: None) -> None:
    with pytest.raises(LookupError, match="Environment 1 raised LookupError in its construction: no meshes"):
        RayVecEnv([RandomEnds, partial(Broken, "raise")], envs_per_worker=2, address="local")


def test_constructor_ends(ray_module: None) -> None:
    with pytest.raises(EnvFailedError, match="The worker of environment 0 was lost while it created them"):
        RayVecEnv([partial(Broken, "exit")], address="local")


def test_other_spaces(ray_module: None) -> None:
    makers_of_two: list[Any] = [RandomEnds, partial(RandomEnds, space=spaces.Box(-1, 1, (4,), np.float32))]
    with pytest.raises(ValueError, match=r"Environment 1 has the observation space Box.*4.*, environment 0 has Box.*3"):
        RayVecEnv(makers_of_two, envs_per_worker=2, address="local")


def test_no_node_has_the_resources(shared: RayVecEnv) -> None:
    with time_limit(10), pytest.raises(ValueError, match="room for 0 of 1 workers, each of which needs GPU 1000"):
        RayVecEnv(makers(1), num_gpus=1000)
    with time_limit(10), pytest.raises(ValueError, match=r"room for \d of 99 workers, each of which needs CPU 1"):
        RayVecEnv(makers(99), envs_per_worker=1, num_cpus=1)


def test_no_place(shared: RayVecEnv) -> None:
    options = dict(label_selector={"region": "moon"})
    message = "Ray found no place for 1 of 1 workers .*of environments 0 to 1.* within start_timeout=1 seconds.*moon"
    with time_limit(20), pytest.raises(EnvFailedError, match=message):
        RayVecEnv(makers(2), envs_per_worker=2, worker_options=options, start_timeout=1.0)

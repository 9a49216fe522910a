"""RayVecEnv on several nodes, of which one is taken away."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_scoreflow import EnvFailedError, ScoReFlowPPO
from sb3_scoreflow.common.utils import ArgumentError
from sb3_scoreflow.distributed import RayVecEnv
from tests.common.faulty_envs import time_limit
from tests.distributed.comparing import assert_same
from tests.distributed.envs import makers

pytestmark = [pytest.mark.usefixtures("ray_module"), pytest.mark.filterwarnings("ignore:.*critic_warmup_transitions")]
N_ENVS = 4


@pytest.fixture(scope="module")
def cluster(ray_module: None) -> Iterator[Any]:
    """One node, to which others are added, none of which is anybody else's."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, object_store_memory=80 * 2**20))
    yield found
    import ray

    ray.shutdown()
    found.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, resources={"simulator": 1}, object_store_memory=80 * 2**20)


def make(cluster: Any, **arguments: Any) -> RayVecEnv:
    """:return: environments in two workers, of which each wants a processor; the nodes have room for both"""
    options: dict[str, Any] = dict(worker_options=dict(scheduling_strategy="SPREAD"), address=cluster.address)
    return RayVecEnv(makers(N_ENVS), **{"envs_per_worker": 2, **options, **arguments})


def test_a_node_goes_while_learning(cluster: Any) -> None:
    import ray

    node = add_node(cluster)
    with time_limit(300):
        env = make(cluster)
        assert ray.cluster_resources()["CPU"] == 3.0 and ray.available_resources().get("simulator") == 1.0
        assert len(set(env.env_method("node"))) == 2
        removed = threading.Event()

        def remove() -> None:
            time.sleep(float(np.random.default_rng(0).uniform(0, 1)))
            cluster.remove_node(node, allow_graceful=False)
            removed.set()

        model = ScoReFlowPPO(
            "FlowPolicy", env, n_steps=16, batch_size=32, n_epochs=1, policy_kwargs=dict(net_arch=[16]), seed=0
        )
        thread = threading.Thread(target=remove, daemon=True)

        def go_on(locals_: dict[str, Any], _: dict[str, Any]) -> bool:
            time.sleep(0.02)
            return not (removed.is_set() and env.n_restarts)

        thread.start()
        with pytest.warns(UserWarning, match="Worker lost, number 1"):
            model.learn(1_000_000, callback=go_on)
        thread.join(60)
        assert env.n_restarts == 1
        # All of it is on the node that is left
        assert set(env.env_method("node")) == {ray.get_runtime_context().get_node_id()}
        assert env.get_attr("index") == [0, 1, 2, 3]
        env.close()


@pytest.mark.slow
def test_nodes_come_and_go_while_learning(cluster: Any) -> None:
    """At random moments, ten times. The worker of the lost node waits for another one."""
    n_losses, rng = 10, np.random.default_rng(1)
    with time_limit(1800), ThreadPoolExecutor(1) as thread:
        nodes = [add_node(cluster) for _ in range(2)]
        env = make(cluster, worker_options=dict(resources={"simulator": 1}), num_cpus=0)
        arguments: dict[str, Any] = dict(n_steps=16, batch_size=32, n_epochs=1, policy_kwargs=dict(net_arch=[16]), seed=0)
        model, ended = ScoReFlowPPO("FlowPolicy", env, **arguments), threading.Event()
        losses = [0]  # before each step

        def go_on(locals_: dict[str, Any], _: dict[str, Any]) -> bool:
            time.sleep(0.02)
            losses.append(env.n_restarts)
            return not ended.is_set()

        with pytest.warns(UserWarning, match=f"Worker lost, number {n_losses}"):
            learning = thread.submit(model.learn, 1_000_000, callback=go_on)  # nodes are added by a main thread only
            for count in range(1, n_losses + 1):
                time.sleep(rng.uniform(0, 2))
                cluster.remove_node(nodes.pop(int(rng.integers(2))), allow_graceful=False)
                time.sleep(rng.uniform(0, 2))
                nodes.append(add_node(cluster))
                while losses[-1] < count and not learning.done():
                    time.sleep(0.01)
            ended.set()
            learning.result()
        assert env.n_restarts == n_losses
        # The environments go on as new ones do
        other, actions = DummyVecEnv(makers(N_ENVS)), np.zeros((N_ENVS, 2), np.float32)
        for each in (env, other):
            each.seed(3)
        assert_same([env.reset(), env.step(actions)], [other.reset(), other.step(actions)])
        env.close()
        for node in nodes:
            cluster.remove_node(node)


@pytest.mark.slow
def test_no_room_elsewhere(cluster: Any) -> None:
    """What only the lost node had is waited for, and no longer than was said."""
    node = add_node(cluster)
    with time_limit(300):
        env = make(cluster, worker_options=dict(resources={"simulator": 1}), num_cpus=0, start_timeout=60.0, envs_per_worker=4)
        env.reset()
        env.pool.start_timeout = 5.0
        cluster.remove_node(node, allow_graceful=False)
        with pytest.warns(UserWarning, match="Worker lost"), pytest.raises(EnvFailedError, match=r"found no place.*simulator"):
            while True:  # its processes end a little later than it
                env.step(np.zeros((N_ENVS, 2), np.float32))
                time.sleep(0.05)
        # With such a node it goes on
        other = add_node(cluster)
        env.pool.start_timeout = 60.0
        with pytest.warns(UserWarning, match="Worker lost"):
            env.reset()
        env.step(np.zeros((N_ENVS, 2), np.float32))
        env.close()
        cluster.remove_node(other)


def test_address(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if not ray.is_initialized():
        ray.init(address=cluster.address)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of no meaning once there is a connection
    with pytest.raises(ArgumentError, match=f"this process is connected to Ray at {cluster.address}"):
        RayVecEnv(makers(1), address="127.0.0.1:2")
    with pytest.raises(ArgumentError, match="Ray's client"):
        RayVecEnv(makers(1), address="ray://127.0.0.1:2")
    # As many workers as the processors are enough for
    env = RayVecEnv("Pendulum-v1", n_envs=3, num_cpus=2)
    assert [list(worker.indices) for worker in env.pool.workers] == [[0, 1, 2]]
    assert env.reset().shape == (3, 3)  # type: ignore[union-attr]
    env.close()

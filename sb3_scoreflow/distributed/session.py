"""Connecting to Ray or starting it on this machine, and the resources of its nodes."""

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

import cloudpickle

from sb3_scoreflow.common.utils import ArgumentError, usable_cores

#: Size in bytes of the object store of a Ray instance that is started here; memory is only allocated when it is used
OBJECT_STORE = 256 * 2**20

#: Address of the Ray instance that was started here
_own: list[str] = []


def import_ray() -> Any:
    """
    :return: the library
    :raises ImportError: if it is not installed
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f'Ray is missing ({error}): pip install "sb3-scoreflow[ray]"') from error
    main = sys.modules.get("__mp_main__")
    if main is not None and main.__name__ == "__mp_main__":
        # A process of multiprocessing imports the user's script under this name, which no worker can import.
        for pickler in (cloudpickle, ray.cloudpickle):
            pickler.register_pickle_by_value(main)
    return ray


def connect(address: str | None) -> bool:
    """
    Connect to Ray, unless there is a connection already.

    :param address: see :class:`~sb3_scoreflow.distributed.RayVecEnv`
    :return: whether the Ray instance was started here, on this machine
    :raises ArgumentError: if Ray is connected to another cluster, or the address is for Ray's client
    :raises ConnectionError: if there is no cluster at the address
    """
    ray = import_ray()
    if address is not None and address.startswith("ray://"):
        raise ArgumentError(
            f"address={address!r} is for Ray's client, through which every step would take a detour. Start the program on a "
            "node of the cluster (for example with ray job submit) with address='auto'."
        )
    if not ray.is_initialized():
        # An address of None would connect to any cluster that another user has started on this machine
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        if address != "local":
            _check_address(address)
            ray.init(address=address)
            return False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a library should not enable usage reports
        ray.init(
            address="local",
            num_cpus=usable_cores(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            logging_level="WARNING",
        )
        _own[:] = [ray.get_runtime_context().gcs_address]
    connected = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", "local", connected):
        raise ArgumentError(
            f"address={address!r}, but this process is connected to Ray at {connected}: leave `address` out, or call "
            "ray.shutdown() first."
        )
    return connected in _own


def _check_address(address: str) -> None:
    """Check an address before Ray does, because Ray would try to connect for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ArgumentError(f"address={address!r} must be 'auto', or HOST:PORT of the head node, as in '10.0.0.1:6379'.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"There is no Ray cluster at address={address!r} ({error}): `ray start --head` on its machine prints its address. "
            "Leave `address` out to use Ray on this machine alone."
        ) from error


def cores(ray: Any) -> float:
    """:return: number of processors that all nodes provide for Ray"""
    return sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])


def check_resources(ray: Any, needed: Mapping[str, float], n_workers: int) -> None:
    """
    :param ray: the library
    :param needed: resources of a worker
    :param n_workers: number of workers
    :raises ArgumentError: if the nodes' total resources are insufficient
    """
    fit = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fit += int(min((has.get(name, 0.0) / each + 1e-9 for name, each in needed.items() if each), default=n_workers))
    if fit < n_workers:
        one = ", ".join(f"{name} {each:g}" for name, each in needed.items() if each)
        raise ArgumentError(
            f"Ray's nodes have room for {fit} of {n_workers} workers, each of which needs {one}: {describe_nodes(ray)}. Raise "
            "`envs_per_worker`, request less (`num_cpus` may be 0 or a fraction), or add nodes before creating the "
            "environments."
        )


def describe_nodes(ray: Any) -> str:
    """:return: total and free resources of the nodes"""
    free = ray.available_resources()
    nodes = [
        "{" + ", ".join(f"{name} {amount:g}" for name, amount in sorted(node["Resources"].items()) if _is_named(name)) + "}"
        for node in ray.nodes()
        if node["Alive"]
    ]
    left = ", ".join(f"{name} {amount:g}" for name, amount in sorted(free.items()) if _is_named(name))
    return f"nodes {', '.join(nodes)}; free {left or 'nothing'}"


def _is_named(name: str) -> bool:
    """:return: whether users request a resource by name; memory in bytes and names of nodes do not count"""
    return name not in ("memory", "object_store_memory") and not name.startswith("node:")

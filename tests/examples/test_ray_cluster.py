"""examples/ray_cluster.py as its users start it: on one machine, and in a cluster that is there already."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_cluster.py"
TINY = "--timesteps 400 --batches 5 --n-envs 2 --envs-per-worker 1".split()
CLUSTER = """
import runpy, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, object_store_memory=80 * 2**20))
sys.argv[1:] += ["--address", cluster.address]
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
import ray
assert ray.get_runtime_context().gcs_address == cluster.address
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A Ray of its own."""
    folder = tempfile.mkdtemp(prefix="r")
    own = dict(RAY_TMPDIR=folder, RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_TOKEN=secrets.token_hex(16))
    yield {**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, **own}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow  # RayVecEnv itself is tested in every run
@pytest.mark.parametrize("where", ["here", "cluster"])
def test_example(where: str, environment: dict[str, str]) -> None:
    pytest.importorskip("ray")
    command = [str(EXAMPLE)] if where == "here" else ["-c", CLUSTER, str(EXAMPLE)]
    done = subprocess.run([sys.executable, *command, *TINY], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("\x1b")]
    assert re.fullmatch(r"clone: return \d+ \+- \d+ over 10 episodes", lines[0])
    assert re.fullmatch(r"fine-tuned: return \d+ \+- \d+ over 10 episodes, \d+ environment steps per second", lines[1])
    processes = {re.fullmatch(rf"environment {i}: process (\d+) on \S+", lines[2 + i])[1] for i in range(2)}  # type: ignore[index]
    assert len(processes) == 2
    assert lines[-1] == "workers replaced: 0"

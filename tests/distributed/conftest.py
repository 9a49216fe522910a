"""A Ray of each test process: in a folder of its own, found by no other process, which reports to nobody."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def private_ray() -> Iterator[None]:
    """Settings that Ray reads when it is imported."""
    folder = tempfile.mkdtemp(prefix="r")  # sockets have short paths
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        patch.setenv("RAY_DEDUP_LOGS", "0")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_module() -> Iterator[None]:
    """What the module starts ends with it."""
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    yield
    ray.shutdown()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"

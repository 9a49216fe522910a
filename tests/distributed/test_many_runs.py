"""Runs of benchmarks in Ray: the same numbers as one by one, kills of workers and of the command, and what cannot work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import study
from benchmarks.curves import FIELDS, CurveTable, Run
from benchmarks.provenance import ROOT
from tests.common.faulty_envs import time_limit
from tests.distributed.runs import VARIANTS, options, run

pytestmark = pytest.mark.usefixtures("ray_module")


@pytest.mark.parametrize(
    "address, message",
    [
        ("127.0.0.1:9", r"There is no Ray cluster at address='127.0.0.1:9' \(.*Leave `address` out"),
        ("somewhere", "address='somewhere' must be 'auto', or HOST:PORT"),
        ("127.0.0.1:99999", "There is no Ray cluster at address='127.0.0.1:99999'"),
        ("ray://127.0.0.1:9", "address=.* is for Ray's client"),
    ],
)
def test_no_cluster_there(tmp_path: Path, address: str, message: str) -> None:
    start = time.perf_counter()
    with time_limit(60), pytest.raises(SystemExit, match=f"error: {message}"):
        study.make_runs(options(tmp_path, "--variants", "plain", "--address", address), run, VARIANTS)
    assert time.perf_counter() - start < 30
    assert not list(tmp_path.glob("started*"))


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r'error: Ray is missing .*: pip install "sb3-scoreflow\[ray\]"'):
        study.make_runs(options(tmp_path, "--variants", "plain", "--workers", "2"), run, VARIANTS)


def test_the_same_as_one_by_one_with_a_worker_killed_and_a_run_that_fails(tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    (one / "started_killed_once_0").touch()  # it is not killed there
    variants = ["--variants", "plain", "killed_once"]
    expected = study.make_runs(options(one, *variants), run, VARIANTS)
    with time_limit(300), pytest.raises(SystemExit) as caught:
        study.make_runs(options(many, *variants, "broken", "--workers", "2"), run, VARIANTS)
    (log,) = (many / "runs").glob("*.error.txt")
    assert "error: 1 of 3 runs failed (attempts: 2 each)" in str(caught.value.code)
    assert str(caught.value.code).endswith(f"\n  broken seed 0: OverflowError: broken is too large ({log})")
    assert "in run\n" in log.read_text() and "OverflowError: broken is too large" in log.read_text()
    found = study.make_runs(options(many, *variants), run, VARIANTS)  # both have been made
    assert set(found.facts) == set(expected.facts) == {("plain", 0), ("killed_once", 0)}
    processes = {facts.pop("process") for facts in found.facts.values()}
    assert len(processes) == 2 and os.getpid() not in processes
    for key, facts in expected.facts.items():
        assert facts.pop("process") == os.getpid()
        assert found.facts[key] == facts and facts["threads"] == 1 and len(facts["weights"]) > 1000
    curves, known = CurveTable(many).read(), CurveTable(one).read()
    assert set(curves) == set(known) == {Run(variant, "toy", 0) for variant in ("plain", "killed_once")}
    for of_run in known:
        for name in FIELDS[:4]:
            np.testing.assert_array_equal(curves[of_run][name], known[of_run][name])
    assert found.origins["plain"]["commit"] == expected.origins["plain"]["commit"]


@pytest.mark.slow
def test_a_run_that_kills_its_worker_each_time(tmp_path: Path) -> None:
    given = ["--variants", "killed", "plain", "--workers", "1", "--address", "local", "--retries", "2"]
    with (
        time_limit(300),
        pytest.raises(SystemExit, match=r"1 of 2 runs failed \(attempts: 3 each\).*\n  killed seed 0: .*Crash"),
    ):
        study.make_runs(options(tmp_path, *given), run, VARIANTS)
    assert len(list((tmp_path / "runs").glob("plain_seed_0_*.json"))) == 1


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.distributed.runs", str(folder), "--variants", "slow", "--seeds", "0", "1", "2"]
    return subprocess.Popen([*command, "--workers", "2"], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
def test_the_command_is_killed_and_started_again(tmp_path: Path) -> None:
    with time_limit(500):
        command = start(tmp_path)
        while not (list((tmp_path / "runs").glob("slow_seed_0_*.json")) and (tmp_path / "started_slow_2").exists()):
            assert command.poll() is None
            time.sleep(0.1)
        os.kill(command.pid, signal.SIGKILL)
        command.communicate()
        left = [int((tmp_path / f"started_slow_{seed}").read_text()) for seed in (1, 2)]
        while any(is_alive(process) for process in left):  # their runs end with it
            time.sleep(0.1)
        (first,) = (tmp_path / "runs").glob("*.json")
        written = first.stat().st_mtime_ns
        (tmp_path / "go").touch()
        again = start(tmp_path)
        printed = again.communicate()[0]
        assert again.returncode == 0 and printed.count("resumed:") == 1 and f"slow seed 0 has a result, {first}" in printed
    assert first.stat().st_mtime_ns == written
    files = sorted((tmp_path / "runs").glob("*.json"))
    assert [json.loads(path.read_text())["settings"]["seed"] for path in files] == [0, 1, 2]
    assert {key.seed for key in CurveTable(tmp_path).read()} == {0, 1, 2}

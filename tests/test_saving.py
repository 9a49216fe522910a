"""Tests of everything that writes files, with all kinds of paths, full disks, and kills at any moment."""

import errno
import gc
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import minari
import pytest

from sb3_scoreflow import ScoReFlowPPO, cli
from sb3_scoreflow.common.files import remove_folder
from sb3_scoreflow.demonstrations import load_demonstrations, write_minari
from sb3_scoreflow.plotting import read_monitor, read_progress
from tests.common.test_files import Pathlike
from tests.demonstrations.minari_datasets import assert_same_data
from tests.writers import EXTRAS, SMALL, WRITERS, Writer, demonstrations, model

FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Writer:
    if request.param in EXTRAS:
        pytest.importorskip(EXTRAS[request.param])
    model()  # not while the disk is full
    return WRITERS[request.param]


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if "sb3_scoreflow-" in path.name]


# ---------------------------------------------------------------------- paths


def pathlike_bytes(path: str) -> Pathlike:
    return Pathlike(path.encode())


KINDS = (str, str.encode, Pathlike, pathlike_bytes, Path)
#: They take longer: the plainest and the strangest kind alone
EXPENSIVE = {"evaluations", "hub", "lerobot", "onnx", "program"}
PATHS = [(name, kind) for name in WRITERS for kind in KINDS if name not in EXPENSIVE or kind in (str, pathlike_bytes)]


@pytest.mark.parametrize(("writer", "kind"), PATHS, indirect=["writer"])
def test_paths_of_every_kind(writer: Writer, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users write them: with the tilde, in str, bytes and whatever has a path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep").mkdir()
    path = kind(f"~/deep/x{writer.suffix}")
    writer.write(path)
    for file in writer.files or ("",):
        assert (tmp_path / f"deep/x{writer.suffix}" / file).is_file()
    writer.read(path)
    assert [each.name for each in (tmp_path / "deep").iterdir()] == [f"x{writer.suffix}"] and not hidden(tmp_path)


@pytest.mark.parametrize("kind", [str, str.encode, Pathlike, Path])
def test_suffixes_are_those_of_stable_baselines3(kind: Any, tmp_path: Path) -> None:
    model().save(kind(str(tmp_path / "a")))
    model().save(kind(str(tmp_path / "b.other")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.other"]
    for name in ("a", "a.zip", "b.other"):
        WRITERS["model"].read(kind(str(tmp_path / name)))


@pytest.mark.parametrize("kind", [str, str.encode, Pathlike, Path])
def test_curves(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "progress.csv").write_text("time/total_timesteps,rollout/ep_rew_mean\n8,-3\n")
    (tmp_path / "monitor.csv").write_text('#{"t_start": 0.0, "env_id": "x"}\nr,l,t\n-3.0,8,1.0\n')
    assert read_progress(kind("~/progress.csv")).y.tolist() == read_monitor(kind("~")).y.tolist() == [-3]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the shell does not expand it, as in quotes or behind ``=``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    demonstrations().save(tmp_path / "d.hdf5")
    assert cli.main(["inspect", "~/d.hdf5"]) == 0
    arguments = ["clone", "~/d.hdf5", "--env", "Pendulum-v1", "--batches", "1", "--output", "~/clone.zip"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    assert cli.main(["evaluate", "~/clone", "--env=Pendulum-v1", "--episodes", "1"]) == 0
    ScoReFlowPPO("FlowPolicy", "Pendulum-v1", denoising_steps=1, **SMALL).save("~/small.zip")
    assert cli.main(["export", "~/small.zip", "~/policy.pt2"]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clone.zip", "d.hdf5", "policy.pt2", "small.zip"]


# ---------------------------------------------------------------------- full disks


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """As on a disk with so much room, for each file: writing more fails in the system, whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def open_files(folder: Path) -> list[str]:
    descriptors = Path("/proc/self/fd")
    links = [os.readlink(path) for path in descriptors.iterdir() if path.is_symlink()] if descriptors.exists() else []
    return [link for link in links if str(folder) in link]


def test_full_disk(writer: Writer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"x{writer.suffix}"
    capfd.readouterr()
    with room_for(1000), pytest.raises(OSError, match=rf"{path}.* was not saved: .*File too large.*Pass a path on") as raised:
        writer.write(path)
    assert raised.value.errno == errno.EFBIG
    del raised
    gc.collect()  # PyTorch's writers, freed before they could finish, would end the process here
    assert capfd.readouterr().err == "" and not open_files(tmp_path)
    assert not hidden(tmp_path)
    writer.write(path)  # there is room again
    writer.read(path)


@pytest.mark.parametrize("n_bytes", [1000, 20_000, 100_000])
def test_hdf5_on_a_full_disk(n_bytes: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """HDF5 finds out at other moments, and the file of before stays."""
    path = tmp_path / "x.hdf5"
    demonstrations(50).save(path)
    with room_for(n_bytes), pytest.raises(OSError, match=rf"{path} was not saved: it is larger"):
        demonstrations(20_000).save(path)
    assert capfd.readouterr().err == "" and not open_files(tmp_path)
    assert len(load_demonstrations(path)) == 50 and os.listdir(tmp_path) == ["x.hdf5"]


@pytest.mark.parametrize("n_bytes", [1000, 2**16, 200_000])
def test_minari_on_a_full_disk(
    n_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = demonstrations(20_000, 1000)
    with room_for(n_bytes), pytest.raises(OSError, match=rf"{tmp_path}/lab/x-v0 was not saved: it is larger"):
        write_minari(data, "lab/x-v0")
    assert capfd.readouterr().err == "" and not open_files(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} <= {"lab", "namespace_metadata.json"}
    write_minari(data, "lab/x-v0")
    assert_same_data(load_demonstrations("minari:lab/x-v0"), data)
    assert minari.list_local_datasets().keys() == {"lab/x-v0"}


# ---------------------------------------------------------------------- kills


def write_again_and_again(writer: Writer, path: Path, begun: Event) -> None:
    while True:
        if writer.files:
            remove_folder(path)
        writer.write(path)
        begun.set()


def check_kills(writer: Writer, folder: Path, n_kills: int) -> None:
    """Killed while writing, by one signal or the other; the target is whole, and the next call removes what is left."""
    path, moments, n_left = folder / f"x{writer.suffix}", random.Random(0), 0
    for kill in range(n_kills):
        number = (signal.SIGKILL, signal.SIGTERM)[kill % 2]
        begun = FORK.Event()
        process = FORK.Process(target=write_again_and_again, args=(writer, path, begun))
        process.start()
        assert begun.wait(60) and process.pid is not None
        time.sleep(moments.uniform(0, 0.1))
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == -number
        left = hidden(folder)
        n_left += bool(left)
        if number == signal.SIGTERM:
            assert not left
        # A run that was killed before its first checkpoint has nothing but its lock
        if not writer.files or (path.exists() and any(not each.name.startswith(".") for each in path.iterdir())):
            writer.read(path)
        if writer.files:
            remove_folder(path)
        writer.write(path)
        writer.read(path)
        assert [each.name for each in folder.iterdir()] == [path.name] and not hidden(folder)
    assert n_left > n_kills / 8  # of the half that were killed by SIGKILL: they hit the writing


#: Cloning, most of which is no writing, is killed in tests/bc/test_checkpoint.py
KILLED = ["model", "policy", "demonstrations", "lerobot", "checkpoints"]


@pytest.mark.parametrize("name", ["model", "demonstrations", "lerobot"])
def test_killed_while_writing(name: str, tmp_path: Path) -> None:
    model()
    check_kills(WRITERS[name], tmp_path, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_while_writing_forty_times(name: str, tmp_path: Path) -> None:
    model()
    check_kills(WRITERS[name], tmp_path, 40)

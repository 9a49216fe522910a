"""Several writers of Minari datasets at once, and writers that do not finish."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest

from sb3_scoreflow.demonstrations import Demonstrations, load_demonstrations, write_minari
from tests.demonstrations.minari_datasets import assert_same_data, small


def numbered(number: int) -> Demonstrations:
    ends = np.arange(6) % 3 == 2
    return Demonstrations(np.full((6, 3), number), np.full((6, 1), number), None, ends, metadata={"number": number})


def write(number: int, dataset_id: str, barrier: Any, results: dict[int, str]) -> None:
    barrier.wait(60)
    try:
        write_minari(numbered(number), dataset_id)
        results[number] = "written"
    except FileExistsError as error:
        results[number] = str(error)


def check(dataset_id: str, results: dict[int, str], root: Path) -> None:
    """One of the writers has written all of its dataset, the others say that there is one, and nothing else is there."""
    (winner,) = [number for number, result in results.items() if result == "written"]
    others = [result for result in results.values() if result != "written"]
    assert len(others) == len(results) - 1 and all(f"{dataset_id!r} exists already" in result for result in others)
    loaded = load_demonstrations(f"minari:{dataset_id}")
    assert_same_data(loaded, numbered(winner))
    assert loaded.metadata["number"] == winner
    assert minari.list_local_datasets().keys() == {dataset_id}
    assert minari.list_local_datasets()[dataset_id]["dataset_id"] == dataset_id
    assert [path.name for path in (root / "lab").iterdir() if path.is_dir()] == [dataset_id.removeprefix("lab/")]


def test_threads(root: Path) -> None:
    for attempt in range(10):
        results: dict[int, str] = {}
        barrier = threading.Barrier(3)
        dataset_id = f"lab/contended-v{attempt}"
        threads = [threading.Thread(target=write, args=(i, dataset_id, barrier, results)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(dataset_id, results, root)
        minari.delete_dataset(dataset_id)


def write_repeatedly(number: int, barrier: Barrier, results: Any) -> None:
    """Ten datasets, each of them when the other process is at the same one."""
    for attempt in range(10):
        mine: dict[int, str] = {}
        write(number, f"lab/contended-v{attempt}", barrier, mine)
        results.put((attempt, number, mine[number]))


def test_processes(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=write_repeatedly, args=(number, barrier, queue)) for number in range(2)]
    for process in processes:
        process.start()
    answers = [queue.get() for _ in range(20)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for attempt in range(10):
        results = {number: result for where, number, result in answers if where == attempt}
        assert sorted(result == "written" for result in results.values()) == [False, True]
        (winner,) = [number for number, result in results.items() if result == "written"]
        assert_same_data(load_demonstrations(f"minari:lab/contended-v{attempt}"), numbered(winner))
    assert minari.list_local_datasets().keys() == {f"lab/contended-v{attempt}" for attempt in range(10)}
    assert sorted(path.name for path in root.iterdir()) == ["lab"]


def test_two_ids_in_a_new_namespace(root: Path) -> None:
    results: dict[int, str] = {}
    barrier = threading.Barrier(4)
    threads = [
        threading.Thread(target=write, args=(number, f"deep/new/lab/x-v{number}", barrier, results)) for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), "written")
    assert set(minari.namespace.list_local_namespaces()) == {"deep", "deep/new", "deep/new/lab"}
    for number in range(4):
        assert load_demonstrations(f"minari:deep/new/lab/x-v{number}").metadata["number"] == number


def die(moment: str) -> None:
    """Start to write, and be killed as the function of this name is called."""

    def kill(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moment, kill)
        write_minari(small(), "lab/killed-v0")


def left_over(root: Path) -> list[Path]:
    return [path for path in (*root.iterdir(), *(root / "lab").iterdir()) if path.is_dir() and path != root / "lab"]


BEFORE_IT_IS_HIDDEN = "minari.dataset.minari_storage.MinariStorage.new"
COMPLETE = "sb3_scoreflow.common.files.fsync"


@pytest.mark.parametrize("moment", [BEFORE_IT_IS_HIDDEN, "h5py.Group.create_dataset", COMPLETE])
def test_a_killed_writer_leaves_nothing_in_the_way(root: Path, moment: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=die, args=(moment,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    left = left_over(root)
    assert len(left) == (3 if moment == BEFORE_IT_IS_HIDDEN else 1)
    with pytest.raises(FileNotFoundError, match="no Minari dataset 'lab/killed-v0'"):
        load_demonstrations("minari:lab/killed-v0", download=False)
    write_minari(numbered(7), "lab/killed-v0")
    assert_same_data(load_demonstrations("minari:lab/killed-v0"), numbered(7))
    assert left_over(root) == [root / "lab/killed-v0"]
    assert minari.list_local_datasets().keys() == {"lab/killed-v0"}
    write_minari(numbered(8), "lab/next-v0")
    assert minari.list_local_datasets().keys() == {"lab/killed-v0", "lab/next-v0"}


def test_only_what_was_left_is_removed(root: Path) -> None:
    """Other people's folders stay, however old they are and whatever they are called."""
    kept = [root / "writing-about-v0", root / "lab/.cache.tmp", root / "lab/.x-v0.0123.tmp", root / "lab/old-v0"]
    for folder in kept:
        (folder / "data").mkdir(parents=True)
        for path in (folder / "data", folder):
            os.utime(path, (0, 0))
    write_minari(small(), "lab/small-v0")
    assert all((folder / "data").exists() for folder in kept)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("moment", [BEFORE_IT_IS_HIDDEN, "h5py.Group.create_dataset", "shutil.move", "os.rename"])
def test_a_failed_write_removes_what_it_made(
    root: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    write_minari(small(), "lab/before-v0")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(moment, fail)
        with pytest.raises(type(error)):
            write_minari(small(), "lab/failed-v0")
    assert left_over(root) == [root / "lab/before-v0"]
    write_minari(small(), "lab/failed-v0")


def occupy_with_file(path: Path) -> None:
    path.write_text("somebody's")


def occupy_with_folder(path: Path) -> None:
    (path / "data").mkdir(parents=True)


@pytest.mark.parametrize("occupy", [occupy_with_file, occupy_with_folder])
def test_what_appears_in_the_meantime_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch, occupy: Callable[[Path], None]
) -> None:
    rename = os.rename

    def late(source: Any, target: Any) -> None:
        if Path(target) == root / "lab/late-v0":
            occupy(root / "lab/late-v0")
        rename(source, target)

    monkeypatch.setattr("sb3_scoreflow.common.files.os.rename", late)
    with pytest.raises(FileExistsError, match="'lab/late-v0' exists already"):
        write_minari(small(), "lab/late-v0")
    monkeypatch.undo()
    assert left_over(root) == ([root / "lab/late-v0"] if occupy is occupy_with_folder else [])
    assert (root / "lab/late-v0").exists()


def test_other_formats() -> None:
    with pytest.raises(ValueError, match=r"`data_format` is 'arrow'; only 'hdf5' can be read back. Leave it out"):
        write_minari(small(), "lab/small-v0", data_format="arrow")
    write_minari(small(), "lab/small-v0", data_format="hdf5")
    assert len(load_demonstrations("minari:lab/small-v0")) == 2

"""What is there completely or not at all: kills, signals, other writers, and disks that refuse."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest

from sb3_scoreflow.common import files
from sb3_scoreflow.common.files import as_path, atomic_folder, atomic_path, remove_folder, remove_leftovers, temporary_folder

FORK = multiprocessing.get_context("fork")


def save(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and_wait(path: Path, is_folder: bool, writing: Event, go_on: Event) -> None:
    """What is to be killed in the middle."""
    with (atomic_folder if is_folder else atomic_path)(path) as temporary:
        (temporary / "part" if is_folder else temporary).write_text("new")
        writing.set()
        go_on.wait(60)


def interrupted(path: Path, is_folder: bool, number: int) -> None:
    """Another process begins to write, and gets a signal."""
    writing, go_on = FORK.Event(), FORK.Event()
    process = FORK.Process(target=write_and_wait, args=(path, is_folder, writing, go_on))
    process.start()
    assert writing.wait(60) and process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == -number


# ---------------------------------------------------------------------- paths


class Pathlike:
    def __init__(self, path: str | bytes) -> None:
        self.path = path

    def __fspath__(self) -> str | bytes:
        return self.path


def test_paths_of_every_kind_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for path in ("~/a/ö", Path("~/a/ö"), "~/a/ö".encode(), Pathlike("~/a/ö"), Pathlike("~/a/ö".encode())):
        assert as_path(path) == Path("/home/somebody/a/ö")  # type: ignore[arg-type]
    assert as_path("a/~") == Path("a/~") and as_path("~nobody_of_this_name/x") == Path("~nobody_of_this_name/x")
    with pytest.raises(TypeError, match=r"expected str, bytes or os.PathLike"):
        as_path(3)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- files and folders


def test_a_file_appears_with_the_usual_permissions(tmp_path: Path) -> None:
    save(tmp_path / "new/deep/file.txt", "first")
    save(tmp_path / "new/deep/file.txt", "second")
    assert (tmp_path / "new/deep/file.txt").read_text() == "second"
    assert names(tmp_path / "new/deep") == ["file.txt"]
    usual = tmp_path / "usual"
    usual.write_text("")
    assert (tmp_path / "new/deep/file.txt").stat().st_mode == usual.stat().st_mode


def test_paths_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_path("file.txt") as temporary:
        temporary.write_text("relative")
        os.chdir("/")  # as an environment may do
    assert (tmp_path / "file.txt").read_text() == "relative"


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit()])
def test_exceptions_leave_what_was_there(tmp_path: Path, error: BaseException) -> None:
    save(tmp_path / "file", "old")
    with pytest.raises(type(error)) as raised, atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("new")
        raise error
    assert raised.value is error
    with pytest.raises(type(error)), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("new")
        raise error
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_a_folder_appears_and_replaces_only_where_it_is_told_to(tmp_path: Path) -> None:
    def write(text: str, replace: bool) -> None:
        with atomic_folder(tmp_path / "folder", replace) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep/file").write_text(text)

    write("first", replace=True)
    write("second", replace=True)
    with pytest.raises(FileExistsError, match=r"folder exists already\. Choose another folder, or remove it first"):
        write("third", replace=False)
    assert (tmp_path / "folder/deep/file").read_text() == "second"
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["deep"]
    remove_folder(tmp_path / "folder")
    remove_folder(tmp_path / "folder")
    assert names(tmp_path) == []
    (tmp_path / "folder").mkdir()  # with nothing in it
    write("fourth", replace=False)
    assert (tmp_path / "folder/deep/file").read_text() == "fourth"


def test_a_rename_that_fails_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match=r"^\[Errno 5\] Input/output error$"), atomic_folder(tmp_path / "folder"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_folder", [False, True])
def test_content_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool) -> None:
    """And the rename is, before it is told that all is done."""
    done: list[tuple[str, str]] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def recorded(handle: int) -> None:
        done.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))))
        fsync(handle)

    def renamed(how: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Path, target: Path) -> None:
            done.append(("rename", target.name))
            how(source, target)

        return rename

    if not Path("/proc/self/fd").exists():
        pytest.skip("names of open files are known on Linux only")
    for name, function in (("fsync", recorded), ("rename", renamed(rename)), ("replace", renamed(replace))):
        monkeypatch.setattr(os, name, function)
    with (atomic_folder if is_folder else atomic_path)(tmp_path / "new") as temporary:
        (temporary / "part" if is_folder else temporary).write_text("new")
    before = [("fsync", "new"), ("fsync", "part")] if is_folder else [("fsync", "new")]
    assert done == [*before, ("rename", "new"), ("fsync", tmp_path.name)]


def test_folders_that_cannot_be_synchronized_are_excused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, fsync = errno.EINVAL, os.fsync

    def refuse(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    save(tmp_path / "file", "new")
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path / "file", "newer")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid argument")))
    with pytest.raises(OSError, match="Invalid argument"):  # a file has to be
        save(tmp_path / "other", "new")
    assert names(tmp_path) == ["file"]


# ---------------------------------------------------------------------- kills


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_next_save_removes_what_a_kill_has_left(tmp_path: Path, is_folder: bool) -> None:
    save(tmp_path / "file", "old")
    interrupted(tmp_path / ("folder" if is_folder else "file"), is_folder, signal.SIGKILL)
    assert len(names(tmp_path)) == 2 and (tmp_path / "file").read_text() == "old"
    save(tmp_path / "another", "new")
    assert names(tmp_path) == ["another", "file"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_sigterm_leaves_nothing(tmp_path: Path, is_folder: bool) -> None:
    interrupted(tmp_path / "new", is_folder, signal.SIGTERM)
    assert names(tmp_path) == []


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    writing, go_on = FORK.Event(), FORK.Event()
    process = FORK.Process(target=write_and_wait, args=(tmp_path / "theirs", True, writing, go_on))
    process.start()
    assert writing.wait(60)
    save(tmp_path / "mine", "new")
    (theirs,) = [name for name in names(tmp_path) if name != "mine"]
    assert (tmp_path / theirs / "theirs/part").read_text() == "new"
    go_on.set()
    process.join(60)
    assert process.exitcode == 0 and names(tmp_path) == ["mine", "theirs"]


def test_what_another_thread_writes_stays(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "first") as temporary:
        thread = threading.Thread(target=save, args=(tmp_path / "second", "new"))
        thread.start()
        thread.join()
        temporary.write_text("new")
    assert names(tmp_path) == ["first", "second"]


def test_two_threads_save_to_one_folder_again_and_again(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(50):
                save(tmp_path / "same", str(number))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and names(tmp_path) == ["same"]


def test_the_users_files_stay(tmp_path: Path) -> None:
    kept = [f".sb3_scoreflow-{'0' * 8}-mine-tmp", ".sb3_scoreflow-tmp", f"x.sb3_scoreflow-{files._host()}-{'0' * 32}-tmp"]
    for name in kept:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    save(tmp_path / "file", "new")
    assert names(tmp_path) == sorted([*kept, "file"])


def test_a_handler_of_the_users_is_left_alone(tmp_path: Path) -> None:
    def mine(*_: Any) -> None:
        raise SystemExit(3)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(SystemExit), atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("new")
            assert signal.getsignal(signal.SIGTERM) is mine
            os.kill(os.getpid(), signal.SIGTERM)
        assert names(tmp_path) == [] and signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_as_they_were_afterwards(tmp_path: Path) -> None:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with atomic_path(tmp_path / "file") as temporary, atomic_path(tmp_path / "inner") as inner:
        temporary.write_text("new")
        inner.write_text("new")
        assert signal.getsignal(signal.SIGTERM) == files._on_sigterm
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def mine(*_: Any) -> None: ...

    try:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("new")
            signal.signal(signal.SIGTERM, mine)
        assert signal.getsignal(signal.SIGTERM) is mine  # set in the meantime: it stays
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def begin_and_sleep(begun: Event) -> None:
    begun.set()
    time.sleep(60)


def test_a_forked_process_removes_nothing_of_its_parents(tmp_path: Path) -> None:
    """A worker of an environment that is ended by SIGTERM, as ``Process.terminate`` does, while its parent writes."""
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("new")
        begun = FORK.Event()
        child = FORK.Process(target=begin_and_sleep, args=(begun,))
        child.start()
        assert begun.wait(60)
        child.terminate()
        child.join(60)
        assert child.exitcode == -signal.SIGTERM and temporary.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_what_the_handler_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, in one process, which survives it."""
    sent: list[tuple[int, int]] = []
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("new")
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        monkeypatch.setitem(files._active, theirs, os.getpid() + 1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", lambda *process: sent.append(process))
            signal.raise_signal(signal.SIGTERM)
        assert names(tmp_path) == ["theirs"] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert sent == [(os.getpid(), signal.SIGTERM)]


def left_by_a_kill(folder: Path, monkeypatch: pytest.MonkeyPatch, host: str | None = None) -> Path:
    with monkeypatch.context() as patched:
        if host is not None:
            patched.setattr("platform.node", lambda: host)
        interrupted(folder / "killed", False, signal.SIGKILL)
    (left,) = folder.iterdir()
    return left


def make_old(folder: Path) -> None:
    long_ago = time.time() - files._STALE_SECONDS - 1
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (long_ago, long_ago))


def test_what_other_machines_have_left_goes_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their locks may not be seen here."""
    left = left_by_a_kill(tmp_path, monkeypatch, "elsewhere")
    remove_leftovers(tmp_path)
    assert left.exists()
    make_old(left)
    remove_leftovers(tmp_path)
    assert not left.exists()


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    left = left_by_a_kill(tmp_path, monkeypatch)
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    save(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new" and left.exists()
    make_old(left)
    save(tmp_path / "file", "newer")
    assert names(tmp_path) == ["file"]


def remove_as_a_stranger(folder: Path) -> None:
    files._active.clear()
    remove_leftovers(folder)


def remove_leftovers_in_another_process(folder: Path) -> None:
    process = FORK.Process(target=remove_as_a_stranger, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("moment", ["before the lock", "before the lock, and at it", "after the lock"])
def test_a_new_folder_may_be_taken_for_a_leftover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """For a moment it has no lock yet: whoever loses it makes another one."""
    acquire = filelock.FileLock.acquire
    lost: list[Path] = []

    def late(lock: filelock.FileLock, *args: Any, **kwargs: Any) -> Any:
        folder = Path(lock.lock_file).parent
        if not lost:
            lost.append(folder)
            if moment == "before the lock":
                shutil.rmtree(folder)
            elif moment == "before the lock, and at it":
                raise filelock.Timeout(lock.lock_file)
            else:
                got = acquire(lock, *args, **kwargs)
                shutil.rmtree(folder)
                return got
        return acquire(lock, *args, **kwargs)

    monkeypatch.setattr(filelock.FileLock, "acquire", late)
    with temporary_folder(tmp_path) as folder:
        assert lost and names(tmp_path) == [folder.name]
        (folder / "file").write_text("new")
        remove_leftovers_in_another_process(tmp_path)
        assert (folder / "file").read_text() == "new"
    assert names(tmp_path) == []


def test_a_leftover_that_goes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = left_by_a_kill(tmp_path, monkeypatch, "elsewhere")
    make_old(left)
    rglob = Path.rglob

    def vanishing(path: Path, pattern: str) -> Any:
        shutil.rmtree(left, ignore_errors=True)
        return [*rglob(path, pattern), path / "gone"]

    monkeypatch.setattr(Path, "rglob", vanishing)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_space_is_free_although_a_file_stays_open(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("the user's")
    with pytest.raises(ValueError), atomic_path(tmp_path / "file") as temporary:
        os.link(kept, temporary.with_name("link"))  # another name of the user's file
        file = temporary.open("wb")
        file.write(bytes(2**20))
        file.flush()
        assert os.fstat(file.fileno()).st_size == 2**20
        raise ValueError
    assert os.fstat(file.fileno()).st_size == 0
    file.close()
    assert kept.read_text() == "the user's"


# ---------------------------------------------------------------------- what disks say


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (
            errno.ENOSPC,
            r"the disk is full \(.*\)\. It needs more than the [\d.,]+ \w+ that are free there\. Delete",
        ),
        (errno.EDQUOT, r"your quota is used up \(.*\)\. Delete files that you do not need"),
        (errno.EFBIG, r"it is larger than .* allows \(.*\)\. Pass a path on another disk, or raise the limit"),
    ],
)
@pytest.mark.parametrize("hidden_in", [None, RuntimeError, ValueError])
def test_full_disks(tmp_path: Path, number: int, text: str, hidden_in: type[Exception] | None) -> None:
    """Also where a library hides it: PyTorch raises a RuntimeError."""
    save(tmp_path / "file", "old")
    for context in (atomic_path, atomic_folder):
        with pytest.raises(OSError, match=rf"{tmp_path}/file was not saved: {text}.* The previous content is") as raised:
            with context(tmp_path / "file"):
                try:
                    raise OSError(number, os.strerror(number))
                except OSError as error:
                    if hidden_in is None:
                        raise
                    raise hidden_in("unexpected pos 704 vs 598") from error
        assert raised.value.errno == number and os.strerror(number) in str(raised.value)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("deep", [False, True])
def test_folders_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, deep: bool) -> None:
    path = tmp_path / "a/b/file" if deep else tmp_path / "file"

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        refused = tmp_path / "a" if deep else self
        raise OSError(number, os.strerror(number), str(refused))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        with pytest.raises(OSError, match=rf"{path} was not saved: the .*{os.strerror(number)}.*Pass a path in") as raised:
            save(path, "new")
    assert raised.value.errno == number and names(tmp_path) == []
    save(path, "new")


def test_other_errors_are_not_the_disks(tmp_path: Path) -> None:
    """Such as those of an environment that is recorded meanwhile."""
    for error in (PermissionError(errno.EACCES, "refused", "/dev/video0"), PermissionError(errno.EACCES, "a socket's")):
        with pytest.raises(PermissionError) as raised, atomic_path(tmp_path / "file"):
            raise error
        assert raised.value is error
    other = OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x")
    with pytest.raises(OSError) as full, atomic_path(tmp_path / "file"):
        raise other
    assert full.value is other


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1_500, "1.5 kB"), (2_097_152, "2.1 MB"), (3.2e12, "3,200.0 GB")]
)
def test_free_space_is_told_in_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: float, text: str) -> None:
    asked = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=size)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=re.escape(f"the {text} that are free")), atomic_path(tmp_path / "file"):
        raise full
    assert asked == [tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match=re.escape(f"the {text} that are free")):
            save(tmp_path / "not/there/file", "new")
    assert asked == [tmp_path, tmp_path]

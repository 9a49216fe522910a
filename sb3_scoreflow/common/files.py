"""
Atomic writing of files and folders: they exist completely or not at all.

Files are written to a hidden folder beside their destination and renamed when they are on the disk. A lock in that folder,
which the system releases when a process ends for any reason, shows the next writer whether another process is still writing.
"""

import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import signal
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeGuard

from filelock import FileLock, Timeout

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_LOCK = "lock"
#: Locks of other machines are not always visible in a shared folder: files older than this many seconds count as left behind
_STALE_SECONDS = 24 * 3600
_REFUSED = "Pass a path in a folder that you may write to."
#: Error number of the disk -> reason and remedy
_REASONS = {
    errno.ENOSPC: ("the disk is full", "Delete files that are not needed there, or pass a path on another disk."),
    errno.EDQUOT: ("your quota is used up", "Delete files that you do not need there, or pass a path on another disk."),
    errno.EFBIG: (
        "it is larger than the file system, or the limit of this process, allows",
        "Pass a path on another disk, or raise the limit (ulimit -f unlimited).",
    ),
    errno.EROFS: ("the disk is read-only", _REFUSED),
    errno.EACCES: ("the folder is not yours to write to", _REFUSED),
    errno.EPERM: ("the folder is not yours to write to", _REFUSED),
}
#: Error numbers that only writing can cause
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Temporary folders of this process, and of processes that it was forked from -> the process that removes them
_active: dict[Path, int] = {}


def as_path(path: AnyPath) -> Path:
    """
    :param path: path passed by the user
    :return: the path with ``~`` expanded
    :raises TypeError: if it is not a path
    """
    return Path(os.path.expanduser(os.fsdecode(path)))


def is_path(value: Any) -> TypeGuard[AnyPath]:
    """:return: whether a value is a path, not a file object or something else"""
    return isinstance(value, (str, bytes, os.PathLike))


@contextmanager
def atomic_path(path: AnyPath) -> Iterator[Path]:
    """
    Write to a temporary file. If the block ends without an exception, wait until the file is on the disk, and move it to
    ``path``.

    If the process is killed, crashes or fills the disk, the previous file stays unchanged. The next call for the same folder
    removes a temporary file that a killed process has left; after SIGTERM or an exception, nothing is left.

    :param path: final path; missing parent folders are created
    :return: context manager with the temporary path (same name, in another folder)
    :raises OSError: if it cannot be written, with path, reason, free space and remedy
    """
    path = as_path(path).absolute()
    with _explained(path), temporary_folder(path.parent) as folder:
        yield folder / path.name
        move(folder / path.name, path)


@contextmanager
def atomic_folder(path: AnyPath, replace: bool = False) -> Iterator[Path]:
    """
    The same as :func:`atomic_path`, for a folder.

    :param path: final path; missing parent folders are created
    :param replace: whether to replace an existing folder
    :return: context manager with the temporary folder, which is empty
    :raises FileExistsError: if ``path`` exists, is not an empty folder, and ``replace`` is False
    :raises OSError: if it cannot be written, with path, reason, free space and remedy
    """
    path = as_path(path).absolute()
    with _explained(path), temporary_folder(path.parent) as folder:
        new = folder / path.name
        new.mkdir()
        yield new
        for directory, _, names in os.walk(new):
            for each in (directory, *(os.path.join(directory, name) for name in names)):
                fsync(each)
        if replace and path.exists():
            os.rename(path, folder / "old")
        try:
            # Replaces nothing: it fails if there is a file, or a folder that is not empty
            os.rename(new, path)
        except OSError as error:
            if not path.exists():
                raise
            text = f"{path} exists already. Choose another folder, or remove it first."
            raise FileExistsError(errno.EEXIST, text) from error
        fsync(path.parent)


def remove_folder(path: Path) -> None:
    """
    Remove a folder in one step, so that a killed process does not leave half of it.

    :param path: path of the folder; it may be missing
    """
    if path.exists():
        with temporary_folder(path.parent) as folder:
            os.rename(path, folder / path.name)


def move(source: Path, target: Path) -> None:
    """
    Wait until a file is on the disk, then move it to its place, because power may fail shortly after the renaming.

    :param source: the file
    :param target: path in the same file system; an existing file is replaced
    """
    fsync(source)
    os.replace(source, target)
    fsync(target.parent)


def fsync(path: str | Path) -> None:
    """
    Wait until the content of a file or folder is on the disk.

    :param path: path of the file or folder
    :raises OSError: if the disk fails, except for file systems that cannot do this for folders (on Windows, some networks)
    """
    is_folder = os.path.isdir(path)
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows flushes only files that are open for writing
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.EACCES, errno.EPERM, errno.EBADF, errno.ENOTSUP):
            raise


# ------------------------------------------------------------------ temporary folders


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """
    A hidden folder that is removed at the end of the block with its content. If the process is killed, the next call for the
    same parent removes it.

    :param parent: parent folder; it is created if it does not exist
    :return: context manager with the folder
    """
    parent.mkdir(parents=True, exist_ok=True)
    with _removed_on_sigterm():
        remove_leftovers(parent)
        lock: FileLock | None = None
        while lock is None:
            folder = parent / f".sb3_scoreflow-{_host()}-{uuid.uuid4().hex}-tmp"
            try:
                with removed(folder):
                    folder.mkdir()
                    lock = _locked(folder)
                    if lock is not None:
                        yield folder
            finally:
                if lock is not None:
                    lock.release()


@contextmanager
def removed(folder: Path) -> Iterator[None]:
    """
    :param folder: folder that is removed after the block, which may create it; within :func:`temporary_folder`, SIGTERM also
        removes it
    """
    _active[folder] = os.getpid()
    try:
        yield
    finally:
        try:
            _remove(folder)
        finally:
            del _active[folder]


def remove_leftovers(parent: Path) -> None:
    """
    Remove temporary files that killed processes have left in a folder, but not those that other processes are writing.

    :param parent: the folder
    """
    for folder in parent.glob(".sb3_scoreflow-*-tmp"):
        found = re.fullmatch(r"\.sb3_scoreflow-([0-9a-f]{8})-[0-9a-f]{32}-tmp", folder.name)
        if found is None or folder in _active or not (found[1] == _host() or _is_stale(folder)):
            continue
        lock = FileLock(folder / _LOCK, timeout=0)
        try:
            with lock:
                _remove(folder)
        except Timeout:  # another process is writing it
            pass
        except OSError:  # the file system has no locks, another process removes it, or another user owns it
            if _is_stale(folder):
                _remove(folder)


def _locked(folder: Path) -> FileLock | None:
    """:return: the lock of a new folder; None if another process removes it as a leftover, because it was not locked yet"""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    except OSError:  # the file system has no locks or no room: the next write raises the error
        return lock if folder.exists() else None
    if (folder / _LOCK).exists():
        return lock
    lock.release()
    return None


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _is_stale(folder: Path) -> bool:
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) < time.time() - _STALE_SECONDS
    except OSError:  # it is changing: another process uses it
        return False


def _remove(folder: Path) -> None:
    """Remove a temporary folder, even if files in it are open: HDF5 keeps a file open that it could not write."""
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(directory, name))
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size:
                    os.truncate(os.path.join(directory, name), 0)  # otherwise, its space stays in use until it is closed
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _removed_on_sigterm() -> Iterator[None]:
    """
    SIGTERM ends Python at once, without executing ``finally`` blocks. This context manager therefore handles it while files
    are written: in the main thread, because other threads cannot set handlers, and only if the user has no handler (a user's
    handler that raises an exception leaves nothing behind). The process still ends as it would without the handler.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) == _on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_sigterm(number: int, _: FrameType | None) -> None:
    for folder, owner in list(_active.items()):
        if owner == os.getpid():  # a forked process also knows its parent's folders
            _remove(folder)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


# ------------------------------------------------------------------ errors of disks


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """:raises OSError: of the same kind, with path, reason, free space and remedy, if the disk failed"""
    try:
        yield
    except Exception as error:
        cause = _disk_error(error, path.parent)
        if cause is None:
            raise
        reason, remedy = _REASONS[cause]
        free = f" It needs more than the {_free(path.parent)} that are free there." if cause == errno.ENOSPC else ""
        text = f"{path} was not saved: {reason} ({os.strerror(cause)}).{free} {remedy} The previous content is unchanged."
        raise OSError(cause, text) from error


def _disk_error(error: BaseException | None, folder: Path) -> int | None:
    """
    :param error: the exception; a library's exception may say less than its cause
    :param folder: folder to which files were written
    :return: number of the disk's error; None if it is not a disk's error, or concerns another folder
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REASONS:
            name = error.filename
            if name is None and error.errno in _FULL:
                return error.errno
            if is_path(name):
                place = Path(os.fsdecode(name)).absolute()
                if place.is_relative_to(folder) or folder.is_relative_to(place):
                    return error.errno
        error = error.__cause__ or error.__context__
    return None


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    size = float(shutil.disk_usage(folder).free)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"

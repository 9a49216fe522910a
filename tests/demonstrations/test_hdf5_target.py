"""The file that HDF5 writes to: after the disk has failed it reads back what was written, and says what the disk said."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from sb3_scoreflow.demonstrations.hdf5_target import HDF5Target, hdf5_target


def full_after(n_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which files cannot be longer than this."""
    write, truncate = os.write, os.ftruncate

    def limited_write(handle: int, content: Any) -> int:
        room = n_bytes - os.lseek(handle, 0, os.SEEK_CUR)
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, memoryview(content)[:room])

    def limited_truncate(handle: int, size: int) -> None:
        if size > n_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        truncate(handle, size)

    monkeypatch.setattr(os, "write", limited_write)
    monkeypatch.setattr(os, "ftruncate", limited_truncate)


def test_it_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with hdf5_target(path) as target:
        assert target.readable() and target.writable() and target.seekable()
        assert target.write(b"hello world") == 11 and target.seek(-5, os.SEEK_END) == 6 and target.read(5) == b"world"
        assert target.seek(-4, os.SEEK_CUR) == 7 and target.truncate() == 7 and target.truncate(20) == 20
        target.seek(0)
        assert target.read() == b"hello w" + bytes(13)
    assert path.read_bytes() == b"hello w" + bytes(13)
    target.close()  # again


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_after(4, monkeypatch)
    with pytest.raises(OSError, match="No space left"), hdf5_target(tmp_path / "x") as target:
        target.write(b"abc")
        target.check()
        assert target.write(b"defg") == 4 and target.error is not None
        target.seek(5)
        target.write(b"XYZ")  # over what is kept already, and behind it
        for start, expected in ((0, b"abcdeXYZ"), (2, b"cdeXYZ"), (6, b"YZ"), (9, b"")):
            target.seek(start)
            assert target.read() == expected
        raise RuntimeError("HDF5 does not know")
    assert (tmp_path / "x").read_bytes() == b"abcd"


def test_a_disk_on_which_there_is_no_room_to_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_after(4, monkeypatch)
    target = HDF5Target(tmp_path / "x")
    assert target.truncate(10) == 10
    with pytest.raises(OSError, match="No space left"):
        target.check()
    assert target.read() == bytes(10)
    target.close()


def test_another_error_is_that(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="another"), hdf5_target(tmp_path / "x"):
        raise RuntimeError("another")

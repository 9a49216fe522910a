"""
A file object that HDF5 writes to; it hides a full disk from HDF5.

HDF5 cannot close a file that it cannot write: the descriptor stays open and its space in use, HDF5 prints dozens of lines, and
some versions crash the process. Therefore, this object does not report disk errors to HDF5.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class HDF5Target(io.RawIOBase):
    """
    A file for HDF5. After a disk error, further data are kept in memory, so that HDF5 can close the file. Call
    :meth:`check` often while writing, so that these data stay small.

    :param path: Path of an existing or new file
    """

    def __init__(self, path: Path) -> None:
        #: The disk error; None if there was no error
        self.error: OSError | None = None
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        self._kept: list[tuple[int, bytes]] = []
        self._size = os.fstat(self._handle).st_size
        self._position = 0

    def check(self) -> None:
        """:raises OSError: if there was a disk error"""
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def write(self, content: Any) -> int:
        rest = memoryview(content).cast("B")
        length = len(rest)
        try:
            self.check()
            while rest:
                os.lseek(self._handle, self._position, os.SEEK_SET)
                n_written = os.write(self._handle, rest)
                self._position, rest = self._position + n_written, rest[n_written:]
        except OSError as error:
            self.error = error
            self._kept.append((self._position, bytes(rest)))
            self._position += len(rest)
        self._size = max(self._size, self._position)
        return length

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start, length = self._position, min(len(view), max(self._size - self._position, 0))
        os.lseek(self._handle, start, os.SEEK_SET)
        content = bytearray(os.read(self._handle, length).ljust(length, b"\0"))
        for position, kept in self._kept:
            first, last = max(position, start), min(position + len(kept), start + length)
            if first < last:
                content[first - start : last - start] = kept[first - position : last - position]
        view[:length] = content
        self._position += length
        return length

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        try:
            self.check()
            os.ftruncate(self._handle, self._size)
        except OSError as error:
            self.error = error
        return self._size

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._handle)
            self._handle = -1  # the number may be reused for another file before HDF5 has closed this one


@contextmanager
def hdf5_target(path: Path) -> Iterator[HDF5Target]:
    """
    :param path: Path of a file, which is created if it does not exist
    :return: Context manager with the target; inside the block, ``h5py.File`` writes to the target and closes it
    :raises OSError: if there was a disk error
    """
    with HDF5Target(path) as target:
        try:
            yield target
        except Exception:
            target.check()
            raise
        target.check()

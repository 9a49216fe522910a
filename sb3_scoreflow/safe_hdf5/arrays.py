"""
Arrays in untrusted HDF5 files: only data inside the file are read, and only if their size is in proportion to the file.

A file of a few kilobytes can declare arrays that exceed any memory: rows that were never written, data that compress a
thousandfold, or chunks that decompress to more than their declared size. h5py would allocate this memory.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

MIN_LIMIT = 2**28
MAX_RATIO = 64
"""By default at most ``max(MIN_LIMIT, MAX_RATIO * size of the file)`` bytes are read into memory."""

_NUMERIC = "fiub"
_ROW_BYTES = 16
"""Smallest memory of a transition in bytes, independent of its arrays: flags, rewards and indices."""
_MAX_NAMES_BYTES = 2**24
_DEFLATE, _SHUFFLE, _FLETCHER32, _NBIT, _SCALEOFFSET = 1, 2, 3, 5, 6
_MAX_DEFLATION = 1032
_SAFE_BYTES = 2**26
"""Stored chunks that cannot decompress to more than this number of bytes are not checked."""


class UnusableFileError(ValueError):
    """A file has unsupported or invalid content. The message does not contain the file name, which readers add."""


@contextmanager
def reading(name: str) -> Iterator[None]:
    """
    Context manager for calls of h5py, which raises many kinds of errors for damaged files.

    :param name: Name of the object that is read
    :raises OSError: if the block raises an error
    """
    try:
        yield
    except UnusableFileError:
        raise
    except Exception as error:
        raise OSError(f"`{name}`: {error}") from error


def resolve_limit(max_bytes: int | None, file_bytes: int) -> int:
    """
    :param max_bytes: The value passed by the user
    :param file_bytes: Size of the file
    :return: Largest number of bytes to read into memory
    :raises ValueError: if ``max_bytes`` is not an integer of at least 1
    """
    if max_bytes is None:
        return max(MIN_LIMIT, MAX_RATIO * file_bytes)
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, (int, np.integer)) or max_bytes < 1:
        raise ValueError(
            f"`max_bytes` must be an integer of at least 1, got {max_bytes!r}: the largest memory for the arrays of a "
            "file. Pass for instance 2**33, or leave it out."
        )
    return int(max_bytes)


class Sized(Protocol):
    """An array whose size is known before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def memory(self) -> int: ...
    @property
    def chunk_bytes(self) -> int: ...


def check_size(arrays: Iterable[Sized], max_bytes: int | None, file_bytes: int) -> None:
    """
    Compare the size of the data to read with the limit, before anything is read.

    :param arrays: Arrays to read
    :param max_bytes: The value passed by the user; by default in proportion to the file
    :param file_bytes: Size of the file
    :raises UnusableFileError: if the arrays exceed the limit
    """
    limit = resolve_limit(max_bytes, file_bytes)
    arrays = list(arrays)
    # One complete chunk is decompressed at a time, and a chunk may be larger than its array
    needed = max([sum(array.memory for array in arrays), *(array.chunk_bytes for array in arrays)])
    if needed > limit:
        largest = max(arrays, key=lambda array: max(array.memory, array.chunk_bytes))
        raise UnusableFileError(
            f"reading its arrays takes {needed} bytes of memory (the largest is `{largest.name}`, of shape {largest.shape} "
            f"and type {largest.dtype}); the file has {file_bytes} bytes, and the limit is {limit}. Unwritten or "
            "strongly compressed data can have any size. If you trust the file and have the memory, pass "
            f"`max_bytes={needed}`."
        )


class Array:
    """
    Description of a dataset in an open HDF5 file. The dataset is not kept open, which would need much memory for many
    datasets.

    :param dataset: ``h5py.Dataset``
    :param name: Path inside the file
    :param reopen: Function that opens the dataset again
    :raises UnusableFileError: if its data are outside the file, or have a type that numpy does not support
    :raises OSError: if it is damaged
    """

    def __init__(self, dataset: Any, name: str, reopen: Callable[[], Any]) -> None:
        import h5py

        self._reopen = reopen
        self.name = name
        with reading(name):
            settings = dataset.id.get_create_plist()
            layout = settings.get_layout()
            if layout == h5py.h5d.VIRTUAL or settings.get_external_count():
                kind = "virtual" if layout == h5py.h5d.VIRTUAL else "external"
                raise UnusableFileError(
                    f"`{name}` takes its data from elsewhere (it is {kind}), which is not read. If you trust it, put the data "
                    "in its place with h5py: "
                    f"`data = file[{name!r}][()]; del file[{name!r}]; file[{name!r}] = data`."
                )
            shape: tuple[int, ...] | None = dataset.shape
            # An object without a dataspace has no shape
            self.shape: tuple[int, ...] = shape if shape is not None else ()
            self._is_null = shape is None
            self.chunks: tuple[int, ...] | None = settings.get_chunk() if layout == h5py.h5d.CHUNKED else None
            self._filters = [settings.get_filter(i)[::2] for i in range(settings.get_nfilters())]
            self.offset: int | None = dataset.id.get_offset()
            """Position of the data in the file if they are contiguous; else None."""
            self._stored_bytes = dataset.id.get_storage_size() if self._filters else 0
            try:
                self.dtype: np.dtype = dataset.dtype
            except TypeError as error:
                raise UnusableFileError(f"`{name}` has a type that numpy does not support ({error}). Leave it out.") from error
        self._check_filters()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise UnusableFileError(f"`{self.name}` is a single value, not an array with one entry per transition.")
        return self.shape[0]

    @property
    def memory(self) -> int:
        """Memory in bytes after reading; a slight overestimate if rows are small."""
        item = max(self.dtype.itemsize, 4) if self.dtype.kind == "f" else self.dtype.itemsize
        return max(math.prod(self.shape) * item, (self.shape[0] if self.shape else 1) * _ROW_BYTES)

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk in bytes; 0 without chunks."""
        return 0 if self.chunks is None else math.prod(self.chunks) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """
        :return: Its content; floating-point numbers are converted to float32 while reading, without a float64 copy
        :raises UnusableFileError: if it does not contain numbers, or chunks decompress to more than their declared size
        :raises OSError: if it is damaged
        """
        if self.dtype.kind not in _NUMERIC or self._is_null:
            what = "no data" if self._is_null else f"dtype {self.dtype}"
            raise UnusableFileError(
                f"`{self.name}` has {what}; demonstrations contain only numbers. Convert it to numbers first."
            )
        if self.has_doubtful_chunks:
            self.check_chunks()
        with reading(self.name):
            dataset = self._reopen()
            is_float = self.dtype.kind == "f" and self.shape
            return np.asarray(dataset.astype(np.float32)[()] if is_float else dataset[()])

    def read_names(self) -> set[str]:
        """
        :return: The names in a list of strings
        :raises UnusableFileError: if it is not a list of strings, or is implausibly long
        """
        import h5py

        if self.ndim != 1 or h5py.check_string_dtype(self.dtype) is None:
            raise UnusableFileError(f"`{self.name}` has shape {self.shape} and type {self.dtype}; it must be a list of names.")
        if len(self) * max(self.dtype.itemsize, _ROW_BYTES) > _MAX_NAMES_BYTES:
            raise UnusableFileError(
                f"`{self.name}` lists {len(self)} names of {self.dtype.itemsize} bytes: too many. Write a shorter list."
            )
        with reading(self.name):
            dataset = self._reopen()
            # One by one, because all of them may refer to the same megabyte
            rows = (dataset[i] for i in range(len(self)))
            return {row.decode("utf-8", "backslashreplace") if isinstance(row, bytes) else str(row) for row in rows}

    @property
    def holds_bytes(self) -> bool:
        """Whether its rows are byte strings, of equal or different lengths."""
        import h5py

        is_fixed = self.ndim == 2 and self.dtype == np.uint8
        return is_fixed or (self.ndim == 1 and h5py.check_vlen_dtype(self.dtype) == np.uint8)

    def read_bytes(self) -> Iterator[bytes]:
        """:return: Its rows, one at a time, see :attr:`holds_bytes`"""
        with reading(self.name):
            dataset = self._reopen()
            for row in range(len(self)):
                yield dataset[row].tobytes()

    def _check_filters(self) -> None:
        """:raises UnusableFileError: if decompression could need more memory than the declared size of a chunk"""
        compressors = [code for code, _ in self._filters if code not in (_SHUFFLE, _FLETCHER32, _NBIT, _SCALEOFFSET)]
        # These two filters allocate as many elements as their settings declare
        lies = [
            values
            for code, values in self._filters
            if code in (_NBIT, _SCALEOFFSET) and values[2:3] != (math.prod(self.chunks or ()),)
        ]
        if len(compressors) > 1 or lies:
            raise UnusableFileError(
                f"`{self.name}` is compressed several times, or by settings that contradict its chunks. Write it again, with "
                "one compression or none."
            )

    @property
    def has_doubtful_chunks(self) -> bool:
        """Whether a chunk could decompress to far more than its declared size, so that it must be checked before reading."""
        if self._stored_bytes * _MAX_DEFLATION <= _SAFE_BYTES:
            return False
        with reading(self.name):
            return any(size * _MAX_DEFLATION > _SAFE_BYTES for _, size, _ in _stored_chunks(self._reopen()))

    def check_chunks(self, start: int = 0, stop: int | None = None) -> None:
        """
        Check the decompressed size of chunks: zlib can expand data a thousandfold, and HDF5 does not compare the result with
        the size of the chunk.

        :param start: First row
        :param stop: Row after the last one; None: all chunks are checked
        :raises UnusableFileError: if a chunk decompresses to more than its declared size
        """
        position = next((i for i, (code, _) in enumerate(self._filters) if code == _DEFLATE), None)
        with reading(self.name):
            dataset = self._reopen()
            chunks = _stored_chunks(dataset) if stop is None else self._stored_chunks_of(dataset, start, min(stop, len(self)))
            for offset, size, omitted in chunks:
                excess = size > self.chunk_bytes + self.chunk_bytes // 8 + 4096
                is_deflated = position is not None and not omitted >> position & 1
                if not excess and is_deflated and size * _MAX_DEFLATION > _SAFE_BYTES:
                    _, stored = dataset.id.read_direct_chunk(offset)
                    excess = len(zlib.decompressobj().decompress(stored, self.chunk_bytes + 1)) > self.chunk_bytes
                if excess:
                    raise UnusableFileError(
                        f"`{self.name}` has a chunk that decompresses to more than its {self.chunk_bytes} bytes, as in files "
                        "that are made to fill the memory. Fetch it again, from someone you trust."
                    )

    def _stored_chunks_of(self, dataset: Any, start: int, stop: int) -> list[tuple[tuple[int, ...], int, int]]:
        """
        :param dataset: ``h5py.Dataset``
        :param start: First row
        :param stop: Row after the last one
        :return: Result of :func:`_stored_chunks` for the chunks with these rows
        """
        sizes = self.chunks or ()
        rows = range(start // sizes[0] * sizes[0], stop, sizes[0])
        columns = [range(0, length, size) for length, size in zip(self.shape[1:], sizes[1:], strict=True)]
        chunks = [(offset, dataset.id.get_chunk_info_by_coord(offset)) for offset in itertools.product(rows, *columns)]
        return [(offset, chunk.size, chunk.filter_mask) for offset, chunk in chunks if chunk.byte_offset is not None]


def _stored_chunks(dataset: Any) -> list[tuple[tuple[int, ...], int, int]]:
    """:return: Offset, stored bytes and mask of omitted filters of each chunk of a dataset that was written"""
    found: list[tuple[tuple[int, ...], int, int]] = []
    dataset.id.chunk_iter(lambda chunk: found.append((chunk.chunk_offset, chunk.size, chunk.filter_mask)))
    return found

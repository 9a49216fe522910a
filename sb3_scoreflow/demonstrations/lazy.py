"""Images that stay in their files and are read when they are indexed."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np

from sb3_scoreflow.safe_hdf5.arrays import Array, UnusableFileError
from sb3_scoreflow.safe_hdf5.groups import Group

_MIN_BLOCK_BYTES = 2**24
"""Blocks up to this size are read even if the cache is smaller, because images must be decompressed."""

READ_ERRORS = (OSError, KeyError, RuntimeError)
"""Errors that h5py raises for damaged files."""


class BlockCache:
    """
    Cache of the most recently used decompressed blocks. A copy in another process starts empty.

    :param max_bytes: Largest size of the cache in bytes; 0: nothing is cached
    :raises ImportError: if cachetools is not installed
    :raises ValueError: if the limit is not an integer of at least 0
    """

    def __init__(self, max_bytes: int) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, (int, np.integer)) or max_bytes < 0:
            raise ValueError(
                f"`cache_bytes` must be an integer of at least 0, got {max_bytes!r}: the size of the cache for decompressed "
                "images. Pass 2**30, for example."
            )
        try:
            from cachetools import LRUCache
        except ImportError as error:
            raise ImportError(
                'Images in files need cachetools, which is not installed: pip install "sb3-scoreflow[demonstrations]"'
            ) from error
        self.max_bytes = int(max_bytes)
        #: (name of the dataset, number of the block) -> block
        self.blocks: Any = LRUCache(self.max_bytes, getsizeof=lambda block: block.nbytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockCache, (self.max_bytes,)

    def put(self, key: tuple[str, int], block: np.ndarray) -> None:
        """
        :param key: Name of the dataset and number of the block
        :param block: Block to store; it replaces the least recently used blocks, and is not stored if it exceeds the cache
        """
        if block.nbytes <= self.max_bytes:
            self.blocks[key] = block


class HDF5Images:
    """
    The images of several HDF5 datasets in one file, one dataset after the other, read by their row numbers.

    Contiguous datasets are read directly from the file, image by image: for minibatches in random order, this is faster than
    HDF5, and the system caches the file. Chunked (hence compressed) datasets are read in blocks with as many images as a
    chunk, which are cached. The file is closed between reads, so that processes can be forked and objects pickled; every read
    checks that the file has not changed.

    :param file: The root of the open file
    :param names: Names of at least one dataset of type uint8; all have shapes ``(n, *image_shape)`` with n at least 1
    :param cache: Cache for decompressed blocks, which several objects of the same file may share
    :raises ValueError: if a block, which is decompressed as a whole, is larger than 16 MiB and the cache
    """

    def __init__(self, file: Group, names: Sequence[str], cache: BlockCache) -> None:
        datasets: list[Array] = [file[name] for name in names]
        self.path = os.path.abspath(file.filename)
        self.image_shape: tuple[int, ...] = datasets[0].shape[1:]
        self.cache = cache
        self._state = file_state(self.path)
        self._names = list(names)
        self._starts = np.cumsum([0, *map(len, datasets)])
        offsets = [dataset.offset for dataset in datasets]
        self._offsets = None if None in offsets else np.array(offsets, np.int64)
        if self._offsets is None:
            self._block_rows = np.array([_block_rows(dataset, cache.max_bytes) for dataset in datasets])
            self._is_doubtful = [dataset.has_doubtful_chunks for dataset in datasets]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def nbytes(self) -> int:
        return len(self) * math.prod(self.image_shape)

    @property
    def is_cached(self) -> bool:
        """Whether the images are cached."""
        return self._offsets is None

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """
        :param rows: ``(B,)`` integers in [0, len(self))
        :return: uint8 ``(B, *image_shape)``
        :raises OSError: if the file has changed or is damaged
        """
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        datasets = np.searchsorted(self._starts, rows, side="right") - 1
        local_rows = rows - self._starts[datasets]
        with readable(self.path, self._state):
            if self._offsets is not None:
                self._read_directly((self._offsets[datasets] + local_rows * math.prod(self.image_shape)).tolist(), images)
            else:
                self._read_blocks(datasets, local_rows, images)
        return images

    def _read_directly(self, offsets: list[int], images: np.ndarray) -> None:
        """
        :param offsets: Position of each image in the file
        :param images: Array to fill
        """
        with open(self.path, "rb", buffering=0) as file:
            for offset, image in zip(offsets, images, strict=True):
                file.seek(offset)
                if file.readinto(image) != image.nbytes:
                    raise OSError(f"it ends before byte {offset + image.nbytes}")

    def _read_blocks(self, datasets: np.ndarray, rows: np.ndarray, images: np.ndarray) -> None:
        """
        :param datasets: ``(B,)``, number of each image's dataset
        :param rows: ``(B,)``, row of each image in its dataset
        :param images: Array to fill
        """
        import h5py

        block_rows = self._block_rows[datasets]
        order = np.lexsort((rows, datasets))  # every block is read once
        blocks = np.stack([datasets, rows // block_rows], axis=1)[order]
        firsts = np.flatnonzero((np.diff(blocks, axis=0) != 0).any(axis=1)) + 1
        missing: list[tuple[tuple[str, int], np.ndarray, int, bool]] = []
        for members in np.split(order, firsts):
            dataset, n_rows = datasets[members[0]], int(block_rows[members[0]])
            key = (self._names[dataset], int(rows[members[0]] // n_rows))
            block = self.cache.blocks.get(key)
            if block is None:
                missing.append((key, members, n_rows, self._is_doubtful[dataset]))
            else:
                images[members] = block[rows[members] % n_rows]
        if missing:
            with h5py.File(self.path, "r") as file:
                for key, members, n_rows, is_doubtful in missing:
                    start = key[1] * n_rows
                    dataset = file[key[0]]
                    if is_doubtful:
                        Array(dataset, key[0], partial(file.__getitem__, key[0])).check_chunks(start, start + n_rows)
                    block = dataset[start : start + n_rows]
                    self.cache.put(key, block)
                    images[members] = block[rows[members] % n_rows]


class ImageStore(Protocol):
    """A source of images."""

    image_shape: tuple[int, ...]

    def __len__(self) -> int: ...
    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


class LazyImages:
    """
    An array of images, ``(N, *image_shape)`` of type uint8, whose rows are read when they are indexed.

    Indexing returns numpy arrays; :meth:`select` and :meth:`concatenate` return other lazy arrays without reading. Memory
    contains only a pair of integers per image and the cache of the file. ``np.asarray`` reads everything.

    :param stores: Sources of the images: at least one, all with images of the same shape
    :param picked: ``(N, 2)``, the number of each image's source and its row there; None: all images
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, stores: Sequence[ImageStore | np.ndarray], picked: np.ndarray | None = None) -> None:
        if picked is None:
            picked = np.concatenate(
                [np.stack([np.full(len(store), i), np.arange(len(store))], axis=1) for i, store in enumerate(stores)]
            )
        self._stores = list(stores)
        self._picked = picked
        first = stores[0]
        self.shape: tuple[int, ...] = (len(picked), *(first.shape[1:] if isinstance(first, np.ndarray) else first.image_shape))

    def __len__(self) -> int:
        return len(self._picked)

    def __repr__(self) -> str:
        return f"LazyImages(shape={self.shape})"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        """
        :param key: int, slice, or vector of integers or bools
        :return: One image for an int, else the images; a new array
        :raises IndexError: if the key has another type or is out of range
        :raises OSError: if the file has changed or is damaged
        """
        picked = self._picked[key] if not isinstance(key, tuple) else None
        if picked is None or not 1 <= picked.ndim <= 2:
            raise IndexError(
                f"Images in a file are indexed by an int, a slice or a vector, got {key!r}. Index the result further."
            )
        pairs = np.atleast_2d(picked)
        used = np.unique(pairs[:, 0])
        if len(used) == 1:  # the usual case, without a second copy
            images = self._stores[used[0]][pairs[:, 1]]
        else:
            images = np.empty((len(pairs), *self.shape[1:]), np.uint8)
            for i in used:
                members = pairs[:, 0] == i
                images[members] = self._stores[i][pairs[members, 1]]
        return images if picked.ndim == 2 else images[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def select(self, rows: slice | np.ndarray) -> "LazyImages":
        """
        :param rows: Slice or vector of integers
        :return: These rows, which are not read
        """
        return LazyImages(self._stores, self._picked[rows])

    @staticmethod
    def concatenate(arrays: "Sequence[LazyImages | np.ndarray]") -> "LazyImages":
        """
        :param arrays: At least one; uint8 images of the same shape, in files or in memory
        :return: All images, which are not read
        """
        parts = [array if isinstance(array, LazyImages) else LazyImages([array]) for array in arrays]
        # Parts are often selections from the same store
        stores = {id(store): store for part in parts for store in part._stores}
        numbers = {key: number for number, key in enumerate(stores)}
        picked = []
        for part in parts:
            number = np.array([numbers[id(store)] for store in part._stores])
            picked.append(np.stack([number[part._picked[:, 0]], part._picked[:, 1]], axis=1))
        return LazyImages(list(stores.values()), np.concatenate(picked))


def file_state(path: str) -> tuple[int, ...]:
    """:return: Numbers that differ after a file has been changed or replaced"""
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@contextmanager
def readable(path: str, state: tuple[int, ...]) -> Iterator[None]:
    """
    Context manager for code that reads images.

    :param path: Path of the file
    :param state: State of the file when the demonstrations were loaded, see :func:`file_state`
    :raises OSError: if the block raises an error, with the file's name and a remedy, or if the file has changed
    """
    try:
        if file_state(path) != state:
            raise OSError("it has changed since the demonstrations were loaded from it")
        yield
    except Exception as error:  # libraries raise many kinds of errors for damaged files
        raise OSError(
            f"Images cannot be read from the demonstration file {path}: {error}. It must stay in place and unchanged "
            "while the demonstrations are used. Load them again; if that does not help, fetch the file again."
        ) from error


def _block_rows(dataset: Array, cache_bytes: int) -> int:
    """
    :param dataset: Images that are not stored contiguously
    :param cache_bytes: Size of the cache in bytes
    :return: Number of images per read: as many as in a chunk
    :raises UnusableFileError: if that needs too much memory
    """
    image_bytes = max(1, math.prod(dataset.shape[1:]))
    if dataset.chunks is None:  # never written
        n_rows = max(1, min(len(dataset), _MIN_BLOCK_BYTES // image_bytes))
    else:
        n_rows = dataset.chunks[0]
    block_bytes = max(n_rows * image_bytes, dataset.chunk_bytes)
    if block_bytes > max(cache_bytes, _MIN_BLOCK_BYTES):
        raise UnusableFileError(
            f"`{dataset.name}` has shape {dataset.shape} and chunks of {dataset.chunks}: to read one image, {block_bytes} "
            f"bytes are decompressed, more than `cache_bytes`={cache_bytes}. Pass `cache_bytes={block_bytes}`, or make a copy "
            "without chunks: h5repack -l CONTI -f NONE OLD NEW."
        )
    return n_rows

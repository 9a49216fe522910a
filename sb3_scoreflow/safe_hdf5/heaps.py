"""
The global heaps of HDF5 files, which contain strings of variable length.

HDF5 2.0 walks through a heap from object to object by their sizes, and does not detect missing progress: after a damaged byte,
reading an attribute never returns and cannot be interrupted. Therefore, this module walks through all heaps first.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

_FILE_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SIGNATURE = b"GCOL\x01\x00\x00\x00"
_HEADER_BYTES = 16
_MAX_FILE_BYTES = 2**28
"""Largest size in bytes of files that are checked; in larger files, finding the heaps would take too long."""
_BLOCK_BYTES = 2**20


def check_heaps(path: Path) -> None:
    """
    :param path: An HDF5 file
    :raises OSError: if HDF5 would never reach the end of a heap
    """
    n_bytes = path.stat().st_size
    with open(path, "rb") as file:
        if n_bytes > _MAX_FILE_BYTES or not _has_long_sizes(file, n_bytes):
            return
        file.seek(0)
        for start in list(_find_heaps(file)):
            _walk(file, start, n_bytes)


def _has_long_sizes(file: IO[bytes], n_bytes: int) -> bool:
    """:return: Whether sizes have 8 bytes, as in all files except those that were deliberately created otherwise"""
    # After a block of another program, if there is one
    for start in (0, *(512 << i for i in range(n_bytes.bit_length()))):
        file.seek(start)
        head = file.read(_HEADER_BYTES)
        if head.startswith(_FILE_SIGNATURE) and len(head) == _HEADER_BYTES:
            return head[14 if head[8] < 2 else 10] == 8
    return False


def _find_heaps(file: IO[bytes]) -> Iterator[int]:
    """:return: Positions of the signature of a heap"""
    start, block = 0, b""
    while new := file.read(_BLOCK_BYTES):
        kept = block[-len(_SIGNATURE) + 1 :]
        start += len(block) - len(kept)
        block = kept + new
        found = block.find(_SIGNATURE)
        while found >= 0:
            yield start + found
            found = block.find(_SIGNATURE, found + 1)


def _walk(file: IO[bytes], start: int, n_bytes: int) -> None:
    """
    :param file: The file
    :param start: Position of the heap
    :param n_bytes: Size of the file in bytes
    :raises OSError: if the size of an object would prevent progress
    """
    file.seek(start)
    header = file.read(_HEADER_BYTES)
    stop = min(start + int.from_bytes(header[8:], "little"), n_bytes)
    position = start + _HEADER_BYTES
    while position + _HEADER_BYTES <= stop:
        file.seek(position)
        entry = file.read(_HEADER_BYTES)
        size = int.from_bytes(entry[8:], "little")
        # Object 0 is the free space, including its header; others are padded to multiples of 8 bytes
        step = size if entry[:2] == b"\0\0" else _HEADER_BYTES + (size + 7) // 8 * 8
        if step < _HEADER_BYTES or position + step > stop:
            raise OSError(f"the heap at byte {start} has an object of {size} bytes at byte {position}")
        position += step

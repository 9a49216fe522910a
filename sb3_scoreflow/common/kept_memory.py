"""Keeps freed memory in the process from one gradient step to the next."""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Names of glibc's parameters in ``malloc.h``
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: No limit: free memory at the end of the heap is kept
_NEVER = -1
#: Larger blocks than this remain mapped one by one, so that they go back to the system as soon as they are free
_LARGEST = 2**30
#: Largest values of glibc's own thresholds, which rise with the sizes of freed blocks
_USUAL_MMAP_THRESHOLD, _USUAL_TRIM_THRESHOLD = 2**25, 2**26

_lock, _depth = threading.Lock(), 0


def _is_left_to_the_user() -> bool:
    """Whether the user has set glibc's thresholds with its environment variables or tunables."""
    names = ("mmap_threshold", "trim_threshold", "mmap_max")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables for name in names)


@contextmanager
def kept_memory() -> Iterator[None]:
    """
    Make glibc keep freed memory of this process, and return it to the system at the end of the block (ours).

    By default, glibc maps new memory for each block of more than 32 MB, such as a layer's output for a minibatch of thousands
    of chains, and the system has to clear its pages one by one. The setting affects the whole process; calls may be nested
    and may come from several threads. It does nothing without glibc, or if ``os.environ`` has one of glibc's variables
    (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_MAX_``, or the tunables with these names).
    """
    if platform.libc_ver()[0] != "glibc" or _is_left_to_the_user():
        yield
        return
    libc = ctypes.CDLL(None)
    _enter(libc)
    try:
        yield
    finally:
        _leave(libc)


def _enter(libc: ctypes.CDLL) -> None:
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
            libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def _leave(libc: ctypes.CDLL) -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth == 0:
            libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)
            libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
            libc.malloc_trim(0)

"""Large buffers that stay in the process from one gradient step to the next."""

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Names of glibc's parameters in ``malloc.h``
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Without end: what is free at the end of the heap stays there
_NEVER = -1
#: Larger blocks than this remain mapped one by one, so that they go back to the system as soon as they are free
_LARGEST = 2**30
#: What glibc's own thresholds end at, which rise with the sizes of freed blocks
_USUAL_MMAP_THRESHOLD, _USUAL_TRIM_THRESHOLD = 2**25, 2**26

_lock, _depth = threading.Lock(), 0


def _is_left_to_the_user() -> bool:
    """Whether glibc's thresholds have been chosen, by its variables or its tunables."""
    names = ("mmap_threshold", "trim_threshold", "mmap_max")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}=" in tunables for name in names)


@contextmanager
def kept_memory() -> Iterator[None]:
    """
    Let glibc keep freed memory of this process, and give it back at the end (ours).

    By default glibc maps a block of more than 32 MB, such as a layer's output for a minibatch of thousands of chains, anew
    every time, and the system has to clear its pages one by one. The setting is the process's; calls may be nested, and made
    in several threads. Without glibc, and where one of its variables (``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_MAX_``, or the tunables of these names) is in ``os.environ``, nothing is done.
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

"""Small helpers shared by the rooms: argument checks and atomic writing."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def check_choice(argument: str, value: Any, choices: Sequence[str]) -> None:
    """
    :param argument: name of the argument, for the message
    :param value: its value
    :param choices: what it may be
    :raises ValueError: if it is none of them
    """
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(repr(c) for c in choices)}, got {value!r}.")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """
    Write to a temporary file beside ``path`` and move it there when the block ends without an exception.

    A crash or a full disk then leaves the previous file as it was.

    :param path: final path; missing parent folders are created
    :return: context manager giving the temporary path (same suffix)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp creates files readable by their owner alone; a saved model should have the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

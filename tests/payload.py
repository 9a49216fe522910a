"""A harmless payload: an object whose unpickling leaves a file, to see what is unpickled."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Payload:
    """
    :param marker: file that is written where this is unpickled
    """

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _leave, (self.marker,)


def _leave(marker: str) -> str:
    Path(marker).write_text("was here")
    return marker


def rewritten(file: io.BytesIO, changes: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    """
    :param file: a zip file
    :param changes: entry -> new content, None to leave it out
    :param compression: compression of the new entries
    :return: the file with these changes
    """
    result = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(result, "w", compression) as target:
        contents = {**{name: source.read(name) for name in source.namelist()}, **changes}
        for name, content in contents.items():
            if content is not None:
                target.writestr(name, content)
    result.seek(0)
    return result


def with_data(file: io.BytesIO, change: Callable[[dict[str, Any]], Any]) -> io.BytesIO:
    """
    :param file: a saved model
    :param change: changes its ``data``, in place
    :return: the changed file
    """
    with zipfile.ZipFile(file) as archive:
        data = json.loads(archive.read("data"))
    change(data)
    return rewritten(file, {"data": json.dumps(data).encode()})

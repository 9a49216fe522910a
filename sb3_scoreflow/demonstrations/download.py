"""
Resumable, checked downloads with the standard library. A file appears at its path only when it is complete.

During the download of ``NAME``, there are ``NAME.part`` (the received bytes), ``NAME.part.json`` (the file on the server that
they belong to) and ``NAME.lock`` (the lock for which other processes wait).
"""

import contextlib
import http.client
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sb3_scoreflow.common.files import move
from sb3_scoreflow.common.progress import progress

_ATTEMPTS = 3
_PAUSE = 1.0
"""Seconds between attempts."""
_TIMEOUT = 30.0
"""Seconds without any data after which an attempt has failed."""
_BLOCK = 1 << 18
"""Bytes per read."""


class _BrokenTransferError(Exception):
    """The transfer ended early; another attempt may get the rest."""


class _RefusedTransferError(Exception):
    """The server's response is not acceptable; another attempt would get the same response."""


@dataclass
class _Origin:
    """The file on the server that a partial download belongs to."""

    url: str
    size: int | None
    """Size in bytes; None if the server did not report it, and the download then cannot be resumed."""
    validator: str | None
    """Value for ``If-Range``: the server sends the rest only if its file has not changed."""

    def content_range(self, n_bytes: int) -> str:
        """:return: The expected header of a response that continues after this many bytes"""
        return f"bytes {n_bytes}-{(self.size or 0) - 1}/{self.size}"


class _Partial:
    """
    The received part of a download, on disk.

    :param path: Path of the complete file
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._origin_path = path.with_name(f"{path.name}.part.json")

    def resumable(self, url: str) -> tuple[int, _Origin | None]:
        """
        :param url: URL of the file
        :return: The number of received bytes and their origin; 0 and None if there is no partial download of this URL to
            resume
        """
        try:
            origin = _Origin(**json.loads(self._origin_path.read_text(encoding="utf-8")))
            n_bytes = self.path.stat().st_size
        except (OSError, ValueError, TypeError):  # there is no partial download, or another program wrote it
            return 0, None
        if origin.url != url or origin.size is None or not 0 < n_bytes <= origin.size:
            return 0, None
        return n_bytes, origin

    def restart(self, origin: _Origin) -> None:
        """
        Discard the received part and start again.

        :param origin: Origin of the new download
        """
        # In this order, so that received bytes are never stored beside the origin of another file
        self.discard()
        self.path.touch()
        self._origin_path.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def discard(self) -> None:
        """Delete the partial download."""
        self._origin_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def move_to(self, path: Path) -> None:
        """
        Move the file to its path in one step.

        :param path: Final path, in the same folder
        """
        move(self.path, path)
        self._origin_path.unlink(missing_ok=True)


def download(
    url: str,
    path: Path,
    *,
    check: Callable[[Path], object],
    advice: str,
    max_bytes: int,
    progress_bar: bool = True,
    noun: str = "file",
) -> None:
    """
    Download a file that does not exist yet. The received part is kept until it is complete: the next call after a failure
    resumes the download, if the server supports this and its file has not changed. If several processes need the file, one
    downloads it and the others wait.

    :param url: ``http`` or ``https`` URL. Redirections are only followed to such URLs, and from ``https`` only to ``https``
    :param path: Path of the file; missing folders are created
    :param check: Function that gets the path of the complete download and raises OSError or ValueError if it is invalid
    :param advice: Last sentences of error messages, with a remedy
    :param max_bytes: Largest accepted size of the file
    :param progress_bar: Whether to show a progress bar; without tqdm, one line of text
    :param noun: Name of the file in error messages
    :raises ConnectionError: if the file cannot be downloaded completely, is too large, or is redirected to another kind of URL
    :raises OSError: if the folder cannot be written, or the check failed; then there is no file at ``path``
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(path))
        except OSError as error:
            raise OSError(f"The folder {path.parent}, for {url}, cannot be written: {error}. {advice}") from error
        if path.exists():  # another process has downloaded it
            return
        partial = _Partial(path)
        try:
            _fetch(url, partial, path.name, max_bytes, progress_bar)
        except (_BrokenTransferError, _RefusedTransferError, urllib.error.URLError) as error:
            n_bytes, origin = partial.resumable(url)
            kept = f"{n_bytes:,} bytes are kept in {partial.path}: the next call fetches the rest. " if origin else ""
            raise ConnectionError(f"{url} could not be downloaded to {path}: {_reason(error)}. {kept}{advice}") from error
        except OSError as error:
            raise OSError(f"{url} was not stored at {path}: {partial.path} cannot be written: {error}. {advice}") from error
        try:
            check(partial.path)
        except (OSError, ValueError) as error:
            partial.discard()
            raise OSError(f"{url} did not send a valid {noun}, so nothing was stored at {path}: {error} {advice}") from error
        partial.move_to(path)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """
    Let one process create a file while others wait.

    :param path: path of the file; missing folders are created
    :raises OSError: if the folder cannot be written
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            # Removed before it is released, so that waiting processes notice this and create a new one
            with contextlib.suppress(OSError):  # Windows cannot delete open files
                lock.unlink()


def _fetch(url: str, partial: _Partial, name: str, max_bytes: int, progress_bar: bool) -> None:
    """
    Try several times; each attempt resumes where the last one ended.

    :raises _BrokenTransferError: if no attempt completes the file
    :raises _RefusedTransferError: if the response is not acceptable
    :raises urllib.error.URLError: if the server cannot be reached or refuses, which further attempts would not change
    """
    attempt = 1
    while True:
        try:
            _transfer(url, partial, name, max_bytes, progress_bar)
            return
        except _BrokenTransferError:
            if attempt == _ATTEMPTS:
                raise
        attempt += 1
        time.sleep(_PAUSE)


def _transfer(url: str, partial: _Partial, name: str, max_bytes: int, progress_bar: bool) -> None:
    """
    Request the missing part.

    :raises _BrokenTransferError: if the response is incomplete
    :raises _RefusedTransferError: if the file is too large, or redirected to another kind of URL
    :raises urllib.error.URLError: if the server cannot be reached or refuses
    """
    n_bytes, known = partial.resumable(url)
    if known is not None and n_bytes == known.size:  # interrupted between the last byte and the check
        return
    headers = {"User-Agent": "sb3-scoreflow", "Accept-Encoding": "identity"}
    if known is not None:
        headers["Range"] = f"bytes={n_bytes}-"
        if known.validator is not None:
            headers["If-Range"] = known.validator
    with _open(urllib.request.Request(url, headers=headers), partial) as response:
        if response.status == http.client.PARTIAL_CONTENT:
            origin = known
            # The server ignores If-Range or sends another range: its bytes do not continue the received part
            if origin is None or response.headers.get("Content-Range") != origin.content_range(n_bytes):
                partial.discard()
                raise _BrokenTransferError("the file on the server has changed")
        else:
            # The whole file: a first request, no support for Range, or the server's file has changed
            n_bytes, origin = 0, _origin(url, response.headers)
            if origin.size is not None and origin.size > max_bytes:
                raise _RefusedTransferError(f"the file has {origin.size:,} bytes, but at most {max_bytes:,} are allowed")
            partial.restart(origin)
        with open(partial.path, "ab") as file:
            for block in _with_progress(_blocks(response), name, n_bytes, origin.size, progress_bar):
                n_bytes += len(block)
                if n_bytes > max_bytes:  # the server has not reported the size
                    partial.discard()
                    raise _RefusedTransferError(f"the file has more than the {max_bytes:,} bytes that are allowed")
                file.write(block)
    # http.client does not raise an error if the connection is closed early
    if origin.size is not None and n_bytes != origin.size:
        raise _BrokenTransferError(f"the connection ended after {n_bytes:,} of {origin.size:,} bytes")


def _origin(url: str, headers: http.client.HTTPMessage) -> _Origin:
    """:return: Origin of a file, from the headers of a response with the whole file"""
    length, etag = headers.get("Content-Length", ""), headers.get("ETag")
    # A weak tag does not guarantee equal bytes
    validator = etag if etag is not None and not etag.startswith("W/") else headers.get("Last-Modified")
    return _Origin(url, int(length) if length.isdecimal() else None, validator)


def _open(request: urllib.request.Request, partial: _Partial) -> Any:
    """
    :return: The response
    :raises _BrokenTransferError: if there was no response, or the range was refused
    :raises urllib.error.URLError: if the server cannot be reached or refuses
    """
    try:
        return _opener().open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.discard()
            raise _BrokenTransferError("the file on the server has become shorter") from error
        raise
    except urllib.error.URLError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(f"the server did not answer properly ({type(error).__name__}: {error})") from error


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows redirections as the standard library does, except redirections to ftp, and from https to http."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        target = urllib.parse.urljoin(req.full_url, headers.get("Location") or "")
        scheme = urllib.parse.urlsplit(target).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            fp.close()
            raise _RefusedTransferError(
                f"the server redirects from {req.type} to {target!r:.200}, and this redirection is not followed"
            )
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """:return: Opener for http and https; the standard library's default also opens ftp, files and data"""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _Redirections,
    ):
        opener.add_handler(handler())
    return opener


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """
    :return: Blocks of the body
    :raises _BrokenTransferError: if the connection fails
    """
    try:
        while block := response.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(f"the connection failed ({type(error).__name__}: {error})") from error


def _reason(error: Exception) -> str:
    """:return: Description of the error"""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"there is no connection to the server ({error.reason})"
    return str(error)


def _with_progress(blocks: Iterable[bytes], name: str, initial: int, total: int | None, show: bool) -> Iterable[bytes]:
    """
    :param blocks: Received blocks
    :param name: Name of the file
    :param initial: Number of bytes received before
    :param total: Total number of bytes; None if unknown
    :param show: Whether to show progress
    :return: The blocks; without tqdm, a line is shown instead of a bar, because the bar is optional
    """
    try:
        return progress(blocks, total, show, size=len, desc=name, initial=initial, unit="B", unit_scale=True)
    except ImportError:
        size = "" if total is None else f" ({total / 1e6:.1f} MB)"
        print(f"Downloading {name}{size}", file=sys.stderr)
        return blocks

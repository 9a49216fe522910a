"""
Download a file with the standard library: resumable, checked, and in its place only when it is complete.

Beside ``NAME``, while it is on its way: ``NAME.part`` (what has arrived), ``NAME.part.json`` (which file on the server that
belongs to) and ``NAME.lock`` (keeps other processes waiting).
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
    """The transfer ended early; another attempt may bring the rest."""


class _RefusedTransferError(Exception):
    """The server sends what is not wanted; another attempt would bring the same."""


@dataclass
class _Origin:
    """Which file on the server a partial download belongs to."""

    url: str
    size: int | None
    """Bytes; None if the server did not say: it is not resumable then."""
    validator: str | None
    """For ``If-Range``: the server sends the rest only if its file is still this one."""

    def content_range(self, n_bytes: int) -> str:
        """:return: The header of the response that continues after so many bytes"""
        return f"bytes {n_bytes}-{(self.size or 0) - 1}/{self.size}"


class _Partial:
    """
    What has arrived of a download, on disk.

    :param path: Where the file goes when it is complete
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._origin_path = path.with_name(f"{path.name}.part.json")

    def resumable(self, url: str) -> tuple[int, _Origin | None]:
        """
        :param url: Where the rest would come from
        :return: The number of bytes that have arrived and their origin; 0 and None if what is there (if anything) cannot be
            continued from this URL
        """
        try:
            origin = _Origin(**json.loads(self._origin_path.read_text(encoding="utf-8")))
            n_bytes = self.path.stat().st_size
        except (OSError, ValueError, TypeError):  # there is none, or it is not ours
            return 0, None
        if origin.url != url or origin.size is None or not 0 < n_bytes <= origin.size:
            return 0, None
        return n_bytes, origin

    def restart(self, origin: _Origin) -> None:
        """
        Forget what has arrived.

        :param origin: What will arrive
        """
        # In this order: at no time does what has arrived stand beside the origin of something else
        self.discard()
        self.path.touch()
        self._origin_path.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def discard(self) -> None:
        """Delete all of it."""
        self._origin_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def move_to(self, path: Path) -> None:
        """
        :param path: Where to, in the same folder; in one step
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
    Fetch a file that is not there yet. What arrives is kept until it is complete: a call after a failed one resumes it, if the
    server supports that and has the same file still. Of several processes, one downloads and the others wait for it.

    :param url: ``http`` or ``https``. Redirections are followed to such, from ``https`` to ``https`` only
    :param path: Where to; missing folders are made
    :param check: Gets the path of the complete download before that takes its place; raises OSError or ValueError if it is bad
    :param advice: Last sentences of the error messages: what to do instead
    :param max_bytes: No more than so many are stored
    :param progress_bar: Show a progress bar if tqdm is installed, else one line
    :param noun: What error messages call the file
    :raises ConnectionError: if the file cannot be fetched, or not completely, is too large, or is said to be elsewhere than on
        the web
    :raises OSError: if the folder cannot be written, or the check failed; nothing is at ``path`` then
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(path))
        except OSError as error:
            raise OSError(f"The folder {path.parent}, for {url}, cannot be written: {error}. {advice}") from error
        if path.exists():  # downloaded by the process that this one has waited for
            return
        partial = _Partial(path)
        try:
            _fetch(url, partial, path.name, max_bytes, progress_bar)
        except (_BrokenTransferError, _RefusedTransferError, urllib.error.URLError) as error:
            n_bytes, origin = partial.resumable(url)
            kept = f"{n_bytes:,} bytes are kept in {partial.path}: the next call fetches the rest. " if origin else ""
            raise ConnectionError(f"{url} could not be downloaded to {path}: {_reason(error)}. {kept}{advice}") from error
        except OSError as error:
            raise OSError(f"{url} was not stored at {path}, as {partial.path} cannot be written: {error}. {advice}") from error
        try:
            check(partial.path)
        except (OSError, ValueError) as error:
            partial.discard()
            raise OSError(f"What {url} sent is no valid {noun}, so nothing was stored at {path}: {error} {advice}") from error
        partial.move_to(path)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """
    Of several processes, let one make a file while the others wait.

    :param path: path of the file; missing folders are made
    :raises OSError: if the folder cannot be written
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            # Before it is released: whoever waits for it notices that it is gone, and makes a new one
            with contextlib.suppress(OSError):  # Windows deletes no open files
                lock.unlink()


def _fetch(url: str, partial: _Partial, name: str, max_bytes: int, progress_bar: bool) -> None:
    """
    Several attempts, each of which resumes where the last one ended.

    :raises _BrokenTransferError: if none completes the file
    :raises _RefusedTransferError: if what the server sends is refused
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
    One request for what is missing.

    :raises _BrokenTransferError: if it is incomplete
    :raises _RefusedTransferError: if it is too large, or elsewhere than on the web
    :raises urllib.error.URLError: if the server cannot be reached or refuses
    """
    n_bytes, known = partial.resumable(url)
    if known is not None and n_bytes == known.size:  # ended between the last byte and the check
        return
    headers = {"User-Agent": "sb3-scoreflow", "Accept-Encoding": "identity"}
    if known is not None:
        headers["Range"] = f"bytes={n_bytes}-"
        if known.validator is not None:
            headers["If-Range"] = known.validator
    with _open(urllib.request.Request(url, headers=headers), partial) as response:
        if response.status == http.client.PARTIAL_CONTENT:
            origin = known
            # A server that ignores If-Range, or counts differently: its bytes do not belong behind ours
            if origin is None or response.headers.get("Content-Range") != origin.content_range(n_bytes):
                partial.discard()
                raise _BrokenTransferError("the file on the server has changed")
        else:
            # The whole file: a first request, no support for Range, or the server's file is another one now
            n_bytes, origin = 0, _origin(url, response.headers)
            if origin.size is not None and origin.size > max_bytes:
                raise _RefusedTransferError(f"the file has {origin.size:,} bytes, but may have {max_bytes:,} at most")
            partial.restart(origin)
        with open(partial.path, "ab") as file:
            for block in _with_progress(_blocks(response), name, n_bytes, origin.size, progress_bar):
                n_bytes += len(block)
                if n_bytes > max_bytes:  # a server that does not say how many there are
                    partial.discard()
                    raise _RefusedTransferError(f"the file has more than the {max_bytes:,} bytes that it may have at most")
                file.write(block)
    # http.client does not complain when the connection is closed early
    if origin.size is not None and n_bytes != origin.size:
        raise _BrokenTransferError(f"the connection ended after {n_bytes:,} of {origin.size:,} bytes")


def _origin(url: str, headers: http.client.HTTPMessage) -> _Origin:
    """:return: What the headers of a response with the whole file say of it"""
    length, etag = headers.get("Content-Length", ""), headers.get("ETag")
    # A weak tag promises equal meaning, not equal bytes
    validator = etag if etag is not None and not etag.startswith("W/") else headers.get("Last-Modified")
    return _Origin(url, int(length) if length.isdecimal() else None, validator)


def _open(request: urllib.request.Request, partial: _Partial) -> Any:
    """
    :return: The response
    :raises _BrokenTransferError: if it did not come, or the range was refused
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
    """Those of the standard library, which would follow to ftp, and from an encrypted connection to one that is not."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        target = urllib.parse.urljoin(req.full_url, headers.get("Location") or "")
        scheme = urllib.parse.urlsplit(target).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            fp.close()
            raise _RefusedTransferError(
                f"the server says that the file is at {target!r:.200}, which is not followed from {req.type}"
            )
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """:return: What opens addresses of the web, and no others: the standard library's also opens ftp, files and data"""
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
    :return: The body, in blocks
    :raises _BrokenTransferError: if the connection fails on the way
    """
    try:
        while block := response.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(f"the connection failed ({type(error).__name__}: {error})") from error


def _reason(error: Exception) -> str:
    """:return: What went wrong, in words"""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"there is no connection to the server ({error.reason})"
    return str(error)


def _with_progress(blocks: Iterable[bytes], name: str, initial: int, total: int | None, show: bool) -> Iterable[bytes]:
    """
    :param blocks: What arrives
    :param name: name of the file
    :param initial: Bytes that are there already
    :param total: Bytes in the end, None if unknown
    :param show: Whether to show anything
    :return: The blocks; a line is shown where tqdm is not installed, as nobody asked for a bar
    """
    try:
        return progress(blocks, total, show, size=len, desc=name, initial=initial, unit="B", unit_scale=True)
    except ImportError:
        size = "" if total is None else f" ({total / 1e6:.1f} MB)"
        print(f"Downloading {name}{size}", file=sys.stderr)
        return blocks

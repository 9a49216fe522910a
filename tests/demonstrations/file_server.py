"""A small HTTP server for tests of downloads, with the faults that real ones have."""

import http.server
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType


@dataclass
class Request:
    """What a client has asked for."""

    path: str
    range: str | None
    if_range: str | None


@dataclass
class FileServer:
    """Serves ``files`` on 127.0.0.1; everything may be changed while it runs."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path, which begins with a slash."""
    ranges: bool = True
    """Whether it understands Range."""
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    """Sent with every file; an ETag is compared with If-Range."""
    cut: list[int | None] = field(default_factory=list)
    """Per response, in order: after how many bytes of the body the connection is closed; None for the whole body."""
    content_length: bool = True
    content_range: Callable[[str], str] = str
    """Makes the Content-Range that is sent from the right one."""
    redirections: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and address by path."""
    hang_up: int = 0
    """This many requests get no answer at all."""
    requests: list[Request] = field(default_factory=list)
    """What was asked for."""

    def __enter__(self) -> "FileServer":
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.respond(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def respond(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        range_, if_range = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.requests.append(Request(handler.path, range_, if_range))
        if self.hang_up > 0:
            self.hang_up -= 1
            handler.close_connection = True
            return
        if handler.path in self.redirections:
            status, address = self.redirections[handler.path]
            handler.send_response(status)
            handler.send_header("Location", address)
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        body = self.files.get(handler.path)
        if body is None:
            return handler.send_error(404)
        # Before anything is sent: a client that hangs up at the headers may be back while this thread is still here
        n_bytes = self.cut.pop(0) if self.cut else None
        match = re.fullmatch(r"bytes=(\d+)-", range_ or "")
        current = if_range is None or if_range in self.headers.values()
        if self.ranges and match and current:
            start, size = int(match[1]), len(body)
            if start >= size:
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{size}")
                handler.end_headers()
                return None
            handler.send_response(206)
            handler.send_header("Content-Range", self.content_range(f"bytes {start}-{size - 1}/{size}"))
            body = body[start:]
        else:
            handler.send_response(200)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        if self.content_length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:n_bytes])
        handler.close_connection = True
        return None

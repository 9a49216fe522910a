import builtins
import errno
import io
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sb3_scoreflow.demonstrations import download as module
from sb3_scoreflow.demonstrations.download import download
from tests.demonstrations.file_server import FileServer

CONTENT = os.urandom(1_000_000)
OPTIONS: dict[str, Any] = {"progress_bar": False, "max_bytes": 10_000_000}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"/a/file.bin": CONTENT}) as running:
        yield running


def fetch(server: FileServer, path: Path, check: Any = lambda partial: None, **kwargs: Any) -> None:
    download(f"{server.url}/a/file.bin", path, check=check, advice="Do this.", **{**OPTIONS, **kwargs})


def assert_done(path: Path) -> None:
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == [path.name]


def test_download(server: FileServer, tmp_path: Path) -> None:
    path, seen = tmp_path / "new" / "folder" / "file.bin", []

    def check(partial: Path) -> None:
        seen.append(partial.read_bytes())
        assert not path.exists()

    fetch(server, path, check)
    assert_done(path)
    assert seen == [CONTENT]
    assert [(r.path, r.range, r.if_range) for r in server.requests] == [("/a/file.bin", None, None)]


def test_broken_transfers_are_resumed_within_a_call(server: FileServer, tmp_path: Path) -> None:
    server.cut = [300_000, 500_000]
    fetch(server, tmp_path / "file.bin")
    assert_done(tmp_path / "file.bin")
    assert [(r.range, r.if_range) for r in server.requests] == [
        (None, None),
        ("bytes=300000-", '"1"'),
        ("bytes=800000-", '"1"'),
    ]


def test_the_next_call_resumes(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    server.cut = [100_000, 100_000, 100_000]
    message = (
        rf"{server.url}/a/file\.bin could not be downloaded to {path}: the connection ended after 300,000 of 1,000,000 bytes"
        rf"\. 300,000 bytes are kept in {path}\.part: the next call fetches the rest\. Do this\."
    )
    with pytest.raises(ConnectionError, match=message):
        fetch(server, path)
    assert sorted(os.listdir(tmp_path)) == ["file.bin.part", "file.bin.part.json"]
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:300_000]
    server.requests.clear()
    fetch(server, path)
    assert_done(path)
    assert [r.range for r in server.requests] == ["bytes=300000-"]


def test_ends_between_the_last_byte_and_the_check(server: FileServer, tmp_path: Path) -> None:
    def interrupt(partial: Path) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file.bin"
    with pytest.raises(KeyboardInterrupt):
        fetch(server, path, interrupt)
    assert sorted(os.listdir(tmp_path)) == ["file.bin.part", "file.bin.part.json"]
    fetch(server, path)
    assert_done(path)
    assert len(server.requests) == 1


def test_server_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cut = [300_000]
    fetch(server, tmp_path / "file.bin")
    assert_done(tmp_path / "file.bin")
    assert [r.range for r in server.requests] == [None, "bytes=300000-"]


def leave_partial(path: Path, content: bytes, **origin: Any) -> None:
    path.with_name(path.name + ".part").write_bytes(content)
    path.with_name(path.name + ".part.json").write_text(json.dumps(origin))


def test_the_file_on_the_server_has_changed(server: FileServer, tmp_path: Path) -> None:
    path, url = tmp_path / "file.bin", f"{server.url}/a/file.bin"
    old = b"x" * 1000
    # If-Range tells it
    leave_partial(path, old, url=url, size=len(CONTENT), validator='"0"')
    fetch(server, path)
    assert_done(path)
    assert [(r.range, r.if_range) for r in server.requests] == [("bytes=1000-", '"0"')]
    # The size tells it, where the server gave nothing to compare
    path.unlink()
    leave_partial(path, old, url=url, size=5000, validator=None)
    fetch(server, path)
    assert_done(path)
    assert [(r.range, r.if_range) for r in server.requests[1:]] == [("bytes=1000-", None), (None, None)]
    # It has become shorter than what has arrived
    path.unlink()
    leave_partial(path, b"x" * 1_500_000, url=url, size=2_000_000, validator=None)
    fetch(server, path)
    assert_done(path)
    assert [r.range for r in server.requests[3:]] == ["bytes=1500000-", None]


def test_another_range_than_asked_for(server: FileServer, tmp_path: Path) -> None:
    server.cut = [300_000, 1000]
    server.content_range = lambda right: right.replace("300000", "300001")
    fetch(server, tmp_path / "file.bin")
    assert_done(tmp_path / "file.bin")
    assert [r.range for r in server.requests] == [None, "bytes=300000-", None]


def test_a_range_that_was_not_asked_for(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(handler: Any) -> None:
        handler.send_response(206)
        handler.end_headers()

    monkeypatch.setattr(server, "respond", respond)
    with pytest.raises(ConnectionError, match=r"the file on the server has changed\. Do this"):
        fetch(server, tmp_path / "file.bin")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "origin"),
    [
        (b"x" * 1000, "not json"),
        (b"x" * 1000, '["a list"]'),
        (b"x" * 1000, '{"url": "URL", "color": "red"}'),
        (b"x" * 1000, '{"url": "http://elsewhere/file", "size": 1000000, "validator": null}'),
        (b"x" * 1000, '{"url": "URL", "size": null, "validator": null}'),
        (b"x" * 1000, '{"url": "URL", "size": 999, "validator": null}'),
        (b"", '{"url": "URL", "size": 1000000, "validator": null}'),
        (None, '{"url": "URL", "size": 1000000, "validator": null}'),
        (b"x" * 1000, None),
    ],
)
def test_leftovers_of_something_else_are_not_continued(
    server: FileServer, tmp_path: Path, content: bytes | None, origin: str | None
) -> None:
    if content is not None:
        (tmp_path / "file.bin.part").write_bytes(content)
    if origin is not None:
        (tmp_path / "file.bin.part.json").write_text(origin.replace("URL", f"{server.url}/a/file.bin"))
    fetch(server, tmp_path / "file.bin")
    assert_done(tmp_path / "file.bin")
    assert [r.range for r in server.requests] == [None]


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": '"2"', "Last-Modified": "Wed, 01 Apr 2020 10:00:00 GMT"}, '"2"'),
        ({"ETag": 'W/"2"', "Last-Modified": "Wed, 01 Apr 2020 10:00:00 GMT"}, "Wed, 01 Apr 2020 10:00:00 GMT"),
        ({"Last-Modified": "Wed, 01 Apr 2020 10:00:00 GMT"}, "Wed, 01 Apr 2020 10:00:00 GMT"),
        ({"ETag": 'W/"2"'}, None),
        ({}, None),
    ],
)
def test_validators(server: FileServer, tmp_path: Path, headers: dict[str, str], validator: str | None) -> None:
    server.headers = headers
    server.cut = [300_000]
    fetch(server, tmp_path / "file.bin")
    assert_done(tmp_path / "file.bin")
    assert [(r.range, r.if_range) for r in server.requests] == [(None, None), ("bytes=300000-", validator)]


def test_server_that_does_not_tell_the_size(server: FileServer, tmp_path: Path) -> None:
    server.content_length = False
    fetch(server, tmp_path / "file.bin")
    assert_done(tmp_path / "file.bin")


def test_empty_file(server: FileServer, tmp_path: Path) -> None:
    server.files["/a/file.bin"] = b""
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == b""


def test_server_that_hangs_up(server: FileServer, tmp_path: Path) -> None:
    server.hang_up = 2
    fetch(server, tmp_path / "file.bin")
    assert_done(tmp_path / "file.bin")
    (tmp_path / "file.bin").unlink()
    server.hang_up = 3
    with pytest.raises(ConnectionError, match=r"the server did not answer properly \(RemoteDisconnected: .*\)\. Do this\."):
        fetch(server, tmp_path / "file.bin")
    assert os.listdir(tmp_path) == []


def test_server_that_stalls(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"x")
        over.wait(10)

    over = threading.Event()
    monkeypatch.setattr(module, "_TIMEOUT", 0.5)
    monkeypatch.setattr(module, "_ATTEMPTS", 1)
    monkeypatch.setattr(server, "respond", respond)
    with pytest.raises(ConnectionError, match=r"the connection failed \(TimeoutError: timed out\)\. .*Do this\."):
        fetch(server, tmp_path / "file.bin")
    over.set()


def test_no_such_file_on_the_server(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with pytest.raises(
        ConnectionError, match=rf"{server.url}/b could not be downloaded to {path}: the server answered 404 Not F"
    ):
        download(f"{server.url}/b", path, check=print, advice="Do this.", **OPTIONS)
    assert os.listdir(tmp_path) == []
    assert len(server.requests) == 1


def test_no_server(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        with pytest.raises(
            ConnectionError, match=rf"{url} could not .* to {tmp_path}/f: there is no connection .*\. Do this\.$"
        ):
            download(url, tmp_path / "f", check=print, advice="Do this.", **OPTIONS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", [OSError, ValueError])
def test_a_bad_file_is_not_kept(server: FileServer, tmp_path: Path, kind: type[Exception]) -> None:
    def check(partial: Path) -> None:
        raise kind("It is upside down.")

    path = tmp_path / "file.bin"
    with pytest.raises(
        OSError, match=rf"{server.url}/a/file\.bin did not send a valid map, so .* at {path}: It is upside down\. Do"
    ):
        fetch(server, path, check, noun="map")
    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=rf"The folder {tmp_path}/file, for {server.url}/a/file\.bin, cannot be written: .*Do this\."
    ):
        fetch(server, tmp_path / "file" / "file.bin")
    (tmp_path / "file.bin.lock").mkdir()
    with pytest.raises(OSError, match=rf"The folder {tmp_path}, for .* cannot be written: .*Is a directory.*Do this\."):
        fetch(server, tmp_path / "file.bin")
    assert server.requests == []


def test_full_disk(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith(".part"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, *args, **kwargs)

    original = builtins.open
    monkeypatch.setattr(builtins, "open", fail)
    with pytest.raises(
        OSError, match=rf"was not stored at {tmp_path}/file\.bin: .*\.part cannot be written: .*No space.*Do this\."
    ):
        fetch(server, tmp_path / "file.bin")


def wait_for_lock(path: Path) -> None:
    """Runs in a process of its own: holds the lock for a while, then has the file."""
    with FileLock(path.with_name(path.name + ".lock")):
        path.with_name("ready").touch()
        time.sleep(0.5)
        path.write_bytes(CONTENT[:10])


def test_processes_wait_for_the_one_that_downloads(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    process = multiprocessing.get_context("fork").Process(target=wait_for_lock, args=(path,))
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    fetch(server, path)
    process.join()
    assert path.stat().st_size == 10  # what the other one has downloaded
    assert server.requests == []
    assert sorted(os.listdir(tmp_path)) == ["file.bin", "ready"]


def test_the_lock_of_a_dead_process_is_none(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.bin.lock").touch()
    fetch(server, tmp_path / "file.bin")
    assert_done(tmp_path / "file.bin")


def test_progress_bar(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(server, tmp_path / "one", progress_bar=False)
    assert capsys.readouterr() == ("", "")
    fetch(server, tmp_path / "two", progress_bar=True)
    out, err = capsys.readouterr()
    assert out == "" and "two: 100%" in err and "1.00M/1.00M" in err


def test_progress_without_tqdm(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    fetch(server, tmp_path / "one", progress_bar=True)
    assert capsys.readouterr() == ("", "Downloading one (1.0 MB)\n")
    server.content_length = False
    fetch(server, tmp_path / "two", progress_bar=True)
    assert capsys.readouterr() == ("", "Downloading two\n")


@pytest.mark.parametrize("content_length", [True, False])
def test_files_that_are_too_large(server: FileServer, tmp_path: Path, content_length: bool) -> None:
    server.content_length = content_length
    said = "1,000,000 bytes, but at most 999,999" if content_length else "more than the 999,999 bytes that"
    with pytest.raises(ConnectionError, match=rf"file\.bin could not be .*: the file has {said} are allowed\. Do this\.$"):
        fetch(server, tmp_path / "file.bin", max_bytes=999_999)
    assert os.listdir(tmp_path) == []
    assert len(server.requests) == 1
    fetch(server, tmp_path / "file.bin", max_bytes=1_000_000)
    assert_done(tmp_path / "file.bin")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirections(server: FileServer, tmp_path: Path, status: int) -> None:
    for address in (f"{server.url}/a/file.bin", "/a/file.bin"):
        server.redirections["/old"] = status, address
        download(f"{server.url}/old", tmp_path / "file.bin", check=print, advice="Do this.", **OPTIONS)
        assert_done(tmp_path / "file.bin")
        (tmp_path / "file.bin").unlink()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["ftp", "file", "data"])
def test_redirections_to_elsewhere(server: FileServer, tmp_path: Path, status: int, scheme: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    address = {"ftp": "ftp://127.0.0.1/file", "file": secret.as_uri(), "data": "data:,x"}[scheme]
    server.redirections["/a/file.bin"] = status, address
    with pytest.raises(
        ConnectionError, match=rf"redirects from http to '{address}', and this redirection is not followed\. Do"
    ):
        fetch(server, tmp_path / "file.bin")
    assert os.listdir(tmp_path) == ["secret"]
    assert len(server.requests) == 1


def test_a_redirection_in_circles(server: FileServer, tmp_path: Path) -> None:
    server.redirections["/a/file.bin"] = 302, "/a/file.bin"
    with pytest.raises(ConnectionError, match=r"the server answered 302 .*infinite loop"):
        fetch(server, tmp_path / "file.bin")


def test_a_redirection_from_an_encrypted_connection() -> None:
    request = urllib.request.Request("https://example.org/file")
    for address in ("http://example.org/file", "ftp://example.org/file"):
        headers = Message()
        headers["Location"] = address
        with pytest.raises(
            module._RefusedTransferError, match=rf"from https to '{address}', and this redirection is not followed"
        ):
            module._Redirections().http_error_302(request, io.BytesIO(), 302, "Found", headers)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/file", "data:,x"])
def test_addresses_that_are_not_of_the_web(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConnectionError, match=rf"could not be downloaded .*unknown url type: {url.partition(':')[0]}"):
        download(url, tmp_path / "file", check=print, advice="Do this.", **OPTIONS)
    assert os.listdir(tmp_path) == []

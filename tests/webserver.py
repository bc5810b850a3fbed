"""A real web server on this machine that serves files in many ways, good and bad, and counts what it sends."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = Callable[["Request"], None]


@dataclass
class Web:
    """A server.

    Attributes:
        folder: what it serves.
        answers: other ways to answer, by path.
        sent: bytes of bodies.
        asked: the paths and ranges that were asked for.
        done: that nobody waits for an answer any more.
        outlasted: whether somebody waited longer for one than the server did.
    """

    folder: Path
    address: str = ""
    answers: dict[str, Answer] = field(default_factory=dict)
    sent: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    outlasted: bool = False

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


class Request(BaseHTTPRequestHandler):
    """One request; the answers below are its ways to go."""

    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.web.asked.append((path, self.headers.get("Range", "")))
        with suppress(ConnectionError):
            self.web.answers.get(path, in_parts)(self)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    @property
    def content(self) -> bytes | None:
        path = self.web.folder / self.path.partition("?")[0].lstrip("/")
        return path.read_bytes() if path.is_file() else None

    def wanted(self, size: int) -> tuple[int, int]:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found
        return int(found[1]), min(int(found[2]) + 1, size)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.send(body)

    def send(self, body: bytes) -> None:
        self.web.sent += len(body)
        self.wfile.write(body)
        self.wfile.flush()


def in_parts(request: Request, *, etag: str = '"one"', **headers: str) -> None:
    """Send the range that is asked for."""
    content = request.content
    if content is None:
        request.answer(404, b"no such file")
        return
    start, end = request.wanted(len(content))
    if start >= len(content):
        request.answer(416, b"", Content_Range=f"bytes */{len(content)}")
        return
    told = {"Content_Range": f"bytes {start}-{end - 1}/{len(content)}", "ETag": etag}
    request.answer(206, content[start:end], **{**told, **headers})


def whole(request: Request) -> None:
    """Know nothing of ranges."""
    request.answer(200, request.content or b"")


def without_length(request: Request) -> None:
    """Send everything, and tell its end by closing."""
    request.close_connection = True
    request.answer(200, request.content or b"", Content_Length="", Connection="close")


def stalls(request: Request) -> None:
    """Take the question and never answer."""
    request.web.outlasted |= not request.web.done.wait(60)


def stalls_within(request: Request) -> None:
    """Begin to answer."""
    request.send_response(206)
    request.send_header("Content-Length", "65536")
    request.send_header("Content-Range", "bytes 0-65535/100000")
    request.end_headers()
    request.send(b"x" * 100)
    request.web.outlasted |= not request.web.done.wait(60)


def drips(request: Request) -> None:
    """Send a byte of a header now and then, so that no single wait is long."""
    request.wfile.write(b"HTTP/1.1 206 OK\r\n")
    while not request.web.done.is_set():
        request.wfile.write(b"X: y\r\n")
        request.wfile.flush()
        time.sleep(0.05)


def closes_early(request: Request) -> None:
    """Promise more than is sent."""
    content = request.content or b""
    start, end = request.wanted(len(content))
    request.close_connection = True
    request.send_response(206)
    request.send_header("Content-Length", str(end - start))
    request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
    request.end_headers()
    request.send(content[start : (start + end) // 2])


def leads_to(location: str) -> Answer:
    """Lead somewhere else."""
    return lambda request: request.answer(302, b"", Location=location)


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients leave in the middle, as they should."""


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """Serve a folder until the block ends."""
    web = Web(folder)
    handler = type("Handler", (Request,), {"web": web})
    server = _Quiet(("127.0.0.1", 0), handler)
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.done.set()
        server.shutdown()
        server.server_close()
        thread.join()

"""A web server taken over: mutated heads of answers, on connections that reach nothing but this process.

The input is the heads of a conversation, in order. Each is sent as it is, with the body that it stands for: the bytes
from where its ``Content-Range`` starts, of the state of the file that its ``ETag`` names, as many as its ``X-Sent``
says. So whoever takes an answer for another gets other numbers, and :func:`right_numbers` tells.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import socket
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPException, parse_headers
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import seeds
from numpy.typing import NDArray

from convsv.checkpoints import Checkpoint, _http, open_checkpoint
from convsv.checkpoints._remote import BLOCK
from convsv.errors import ConvsvError

END = b"\r\n\r\n"
KERNELS = tuple(np.arange(n, n + 16 * 139 * 9, dtype=np.float32).reshape(16, 139, 3, 3) for n in (0, 1 << 20))
"""Whole numbers that no two places share, more than a block of them each, exact in float32 with a version added."""


@functools.cache
def file(name: str) -> bytes:
    """The file as the seeds know it."""
    tensors = {f"layer.{n}.weight": kernel for n, kernel in enumerate(KERNELS)}
    if name.endswith(".safetensors"):
        from safetensors.numpy import save

        return bytes(save(tensors))
    import torch

    out = io.BytesIO()
    torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, out)
    return seeds.unchecked(out.getvalue())


def state(version: str) -> float:
    """What the state with that name adds to every weight."""
    return float(1 << 21) + zlib.crc32(version.encode("utf-8", "surrogatepass")) % (1 << 20)


@functools.lru_cache(maxsize=64)
def content(name: str, version: str) -> bytes:
    """The file in one of its states."""
    data = file(name)
    for kernel in KERNELS:
        assert data.count(kernel.tobytes()) == 1
        data = data.replace(kernel.tobytes(), (kernel + np.float32(state(version))).tobytes())
    return data


# -------------------------------------------------------------------------------------------------------------- server


class Server:
    """What answers: one head after the other, whatever is asked for."""

    def __init__(self, name: str, heads: bytes) -> None:
        self._name = name
        self._heads = iter(split(heads))
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []

    def connect(self, *_: object, **__: object) -> socket.socket:
        """Return the client's end of a connection, in place of urllib3's ``create_connection``."""
        here, there = socket.socketpair()
        with self._lock:
            self._open.append(there)
        threading.Thread(target=self._serve, args=(there,), daemon=True).start()
        return here

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while self._asked(connection):
                with self._lock:
                    head = next(self._heads, None)
                if head is None:
                    return
                body, stays = answer(self._name, head)
                connection.sendall(head + body)
                if not stays:
                    return

    def _asked(self, connection: socket.socket) -> bool:
        asked = b""
        while not asked.endswith(END):
            part = connection.recv(1 << 16)
            asked += part
            if not part or not asked.startswith(b"G"):  # gone, or it wants to be encrypted
                return False
        return True


def split(conversation: bytes) -> list[bytes]:
    """Return the heads: each ends with an empty line, as a client looks for one, so that what follows is the body."""
    heads, head = [], b""
    for line in io.BytesIO(conversation):
        head += line
        if head != line in (b"\r\n", b"\n"):
            heads.append(head)
            head = b""
    return [*heads, head + (b"\r\n" if head.endswith(b"\n") else END)] if head else heads


def answer(name: str, head: bytes) -> tuple[bytes, bool]:
    """Return the body that a head stands for, and whether more may follow: a client that waits is tested elsewhere."""
    from urllib3 import HTTPHeaderDict

    try:
        headers = HTTPHeaderDict(parse_headers(io.BytesIO(head.partition(b"\n")[2])).items())
    except HTTPException:
        headers = HTTPHeaderDict()
    whole = content(name, headers.get("ETag") or headers.get("Last-Modified") or "")
    start = _number(r"bytes (\d+)-", headers.get("Content-Range", ""))
    sent, length = _number(r"(\d+)$", headers.get("X-Sent", "")), headers.get("Content-Length", "")
    body = whole[start:][:sent]
    body += b"x" * min(sent - len(body), BLOCK)
    return body, "Transfer-Encoding" not in headers and length.isdecimal() and int(length) <= len(body)


def _number(pattern: str, said: str) -> int:
    found = re.match(pattern, said, re.ASCII)
    return int(found[1]) if found and len(found[1]) < 20 else 0


# -------------------------------------------------------------------------------------------------------------- attack


@contextlib.contextmanager
def connected(connect: Callable[..., socket.socket]) -> Iterator[None]:
    """Let every connection be one to this process, and nobody wait long."""
    from urllib3 import Retry
    from urllib3.util import connection

    with (
        mock.patch.object(connection, "create_connection", connect),
        mock.patch.object(Retry, "sleep", return_value=None),
        mock.patch.object(_http, "getproxies", dict),
        mock.patch.dict("os.environ", CONVSV_REMOTE_TIMEOUT="1"),
    ):
        _http._manager.cache_clear()
        try:
            yield
        finally:
            _http._manager(os.getpid(), None).clear()
            _http._manager.cache_clear()


def right_numbers(checkpoint: Checkpoint) -> int:
    """Check that all tensors that can be read are those of one state of the file; return how many can be."""
    read: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for tensor in checkpoint.tensors:
        with contextlib.suppress(ConvsvError):
            read.append((tensor.read(), KERNELS[int(tensor.key.split(".")[1])]))
    added = {float(number) for values, kernel in read for number in np.unique(values - kernel)}
    assert len(added) <= 1, sorted(added)[:4]
    return len(read)


def attack(name: str, heads: bytes, judge: Callable[[Checkpoint], None]) -> int:
    """Open the file over a server that sends those heads, judge it, and return how many tensors could be read.

    Raises:
        ConvsvError: it cannot be opened.
    """
    server = Server(name, heads)
    with connected(server.connect):
        try:
            checkpoint = open_checkpoint(f"http://host/{name}")
            count = right_numbers(checkpoint)
            judge(checkpoint)
        finally:
            server.close()
    return count


# --------------------------------------------------------------------------------------------------------------- seeds


@functools.cache
def conversation(name: str, way: str = "in_parts") -> bytes:
    """The heads that the web server of the tests sends to somebody who opens and reads the file."""
    import webserver

    heads: list[bytes] = []

    def record(request: webserver.Request) -> None:
        plain = request.wfile
        sent: list[bytes] = []
        request.wfile = mock.Mock(write=lambda data: sent.append(bytes(data)) or plain.write(data), flush=plain.flush)
        try:
            getattr(webserver, way)(request)
        finally:
            request.wfile = plain
        head, _, body = b"".join(sent).partition(END)
        lines = [line for line in head.split(b"\r\n") if not line.startswith((b"Server:", b"Date:"))]
        heads.append(b"\r\n".join([*lines, b"X-Sent: %d" % len(body)]) + END)

    def redirected(request: webserver.Request) -> None:
        webserver.leads_to(f"/real/{name}")(request)
        heads.append(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /real/%s" % name.encode() + END)

    with tempfile.TemporaryDirectory() as folder, webserver.serving(Path(folder)) as web:
        (Path(folder) / "real").mkdir()
        (Path(folder) / "real" / name).write_bytes(content(name, '"one"'))
        web.answers = {name: redirected, f"real/{name}": record}
        with mock.patch.object(_http, "proxy_bypass", return_value=True):
            right_numbers(open_checkpoint(web.url(name)))
    return b"".join(heads)

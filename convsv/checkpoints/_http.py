"""Files on the web, by ranges of bytes.

urllib3 rather than fsspec's own reader of the web: that one takes an answer of any length into memory, and looks
neither at the range it was sent nor at whether the file is still the same.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from convsv.checkpoints._address import WEB, scheme_of
from convsv.checkpoints._content import printable
from convsv.checkpoints._patience import patience, within
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, UsageError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

__all__ = ["HttpSource"]

_FIRST = 1 << 16
_PIECE = 1 << 20
_MOST_REDIRECTS = 5
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)
_EMPTY = re.compile(r"bytes \*/0", re.ASCII)
_AGAIN = (429, 500, 502, 503, 504)


class HttpSource:
    """A file on the web.

    Attributes:
        size: its size, None where the server does not tell it.
        ranges: whether the server sends parts of it.
        version: what the server calls the state that is read, ``""`` where it says nothing.

    Args:
        address: an address that was checked.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the server does not answer, or not as it must.
    """

    def __init__(self, address: str) -> None:
        _require_urllib3()
        self._address = address
        response = within(_FIRST, lambda: _get(address, (0, _FIRST)))
        self.ranges = response.status != 200
        self._version = _version(response)
        self.version = printable(self._version)
        self._first = b""
        if self.ranges:
            self.size: int | None = 0 if response.status == 416 else self._total(response, 0, _FIRST)
            self._first = self._body(response, min(_FIRST, self.size or 0))
        else:
            self.size = _length(response)
            self._response = response

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes at ``start``, within the size.

        Raises:
            CorruptCheckpointError: the server sends something else, or the file is another one now.
            CheckpointError: it does not answer.
        """
        if start + count <= len(self._first):
            return self._first[start : start + count]
        response = within(0, lambda: _get(self._address, (start, start + count)))
        if response.status != 206 or self._total(response, start, count) != self.size:
            raise CorruptCheckpointError("changed while it was read", found=_said(response))
        if _version(response) != self._version:
            found = f"version {printable(_version(response))}, not {self.version}"
            raise CorruptCheckpointError("changed while it was read", found=found)
        return self._body(response, count)

    def stream(self) -> Iterator[bytes]:
        """Yield the whole file piece by piece, once, where the server sends no parts.

        Raises:
            CorruptCheckpointError: the answer ends early, or goes on beyond its length.
            CheckpointError: the server stalls.
        """
        received = 0
        while True:
            piece = within(_PIECE, lambda: _read(self._response, _PIECE))
            received += len(piece)
            if self.size is not None and (received > self.size or (not piece and received < self.size)):
                _broken(self._response, f"{received} bytes, where {self.size} were announced")
            if not piece:
                return
            yield piece

    def _total(self, response: BaseHTTPResponse, start: int, count: int) -> int:
        """Return the size that a part of the file tells, after looking at which part it is."""
        said = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not said:
            _broken(response, f"status {response.status}, {_said(response)}")
        first, last, total = map(int, said.groups())
        if first != start or last + 1 != min(start + count, total):
            _broken(response, f"{_said(response)}, where {count} bytes at {start} were asked for")
        return total

    def _body(self, response: BaseHTTPResponse, count: int) -> bytes:
        def receive() -> bytes:
            parts, left = [], count + 1  # one more than there should be
            while left and (part := _read(response, min(left, _PIECE))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)

        body = within(count, receive)
        if len(body) != count:
            _broken(
                response,
                f"{'more than ' * (len(body) > count)}{min(len(body), count)} bytes, where {count} were announced",
            )
        response.release_conn()
        return body


def _require_urllib3() -> None:
    """Say what to install where it is missing.

    Raises:
        CheckpointError: urllib3 is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("urllib3") is None:
        raise CheckpointError("is on the web, and urllib3 is not installed", advice="pip install 'convsv[remote]'")


@functools.lru_cache(maxsize=8)
def _manager(process: int, proxy: str | None) -> PoolManager:
    """Return the connections of a process, which are kept open; a forked one must not use those of its parent."""
    import urllib3

    return urllib3.ProxyManager(proxy) if proxy else urllib3.PoolManager(maxsize=4)


def _get(address: str, part: tuple[int, int]) -> BaseHTTPResponse:
    """Ask for a part of a file, and follow where the server leads; the body is not read.

    Raises:
        UsageError: there is no such file.
        UnsafeCheckpointError: the server leads somewhere it must not.
        CheckpointError: it cannot be reached, or does not answer as it must.
    """
    url = address
    for _ in range(_MOST_REDIRECTS + 1):
        response = _ask(url, part)
        if response.status not in (301, 302, 303, 307, 308):
            return _answered(response)
        response.drain_conn() if _length(response) in (0, None) else response.close()
        url = _next(url, response.headers.get("Location", ""))
    raise UnsafeCheckpointError("leads from one address to the next", found=f"more than {_MOST_REDIRECTS}")


def _next(url: str, location: str) -> str:
    """Return where a redirect leads.

    Raises:
        UnsafeCheckpointError: to something that is not on the web, or from a protected connection to an open one.
    """
    try:
        target = urljoin(url, location)
        host, _ = urlsplit(target).hostname, urlsplit(target).port
    except ValueError:  # a bracket or a port where none can be
        target = host = ""
    downgraded = scheme_of(url) == "https" and scheme_of(target) != "https"
    if not location or not location.isprintable() or scheme_of(target) not in WEB or downgraded or not host:
        raise UnsafeCheckpointError("the server leads to an address that is not followed", found=printable(location))
    return target


def _ask(url: str, part: tuple[int, int]) -> BaseHTTPResponse:
    import urllib3
    from urllib3 import exceptions

    host = urlsplit(url).hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get(scheme_of(url))
    retry = urllib3.Retry(
        total=2, connect=1, read=1, redirect=0, other=0, status=2, status_forcelist=_AGAIN, backoff_factor=0.2
    )
    retry.raise_on_status = retry.respect_retry_after_header = False
    headers = {"Range": f"bytes={part[0]}-{part[1] - 1}", "Accept-Encoding": "identity", "User-Agent": "convsv"}
    try:
        return _manager(os.getpid(), proxy).request(
            "GET",
            url,
            headers=headers,
            redirect=False,
            preload_content=False,
            decode_content=False,
            retries=retry,
            timeout=urllib3.Timeout(connect=patience(), read=patience()),
        )
    except exceptions.LocationValueError as error:
        raise UsageError("is not an address", found=_short(error)) from None
    except exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        what = "the certificate of the server is not accepted" if isinstance(reason, exceptions.SSLError) else None
        raise CheckpointError(what or "the server cannot be reached", found=_short(reason)) from None


def _read(response: BaseHTTPResponse, count: int) -> bytes:
    from urllib3 import exceptions

    try:
        return response.read(count, decode_content=False)
    except exceptions.HTTPError as error:
        response.close()
        raise CorruptCheckpointError(
            "the connection ended before the data", found=_short(error), advice="try again"
        ) from None


def _answered(response: BaseHTTPResponse) -> BaseHTTPResponse:
    """Return an answer that holds the file or a part of it.

    Raises:
        UsageError: there is no such file.
        CorruptCheckpointError: it is shorter than it was.
        CheckpointError: the server refuses.
    """
    status = response.status
    empty = status == 416 and _EMPTY.fullmatch(response.headers.get("Content-Range", ""))
    if (status in (200, 206) or empty) and response.headers.get("Content-Encoding", "identity") == "identity":
        return response
    response.close()
    if status in (404, 410):
        raise UsageError("no such file", found=f"HTTP status {status}")
    if status in (401, 403, 407):
        raise CheckpointError("the server refuses access", found=f"HTTP status {status}")
    if status == 416:
        raise CorruptCheckpointError("changed while it was read", found=f"HTTP status {status}")
    raise CheckpointError("the server does not send it", found=f"HTTP status {status}{_encoded(response)}")


def _encoded(response: BaseHTTPResponse) -> str:
    encoding = response.headers.get("Content-Encoding")
    return f", Content-Encoding {printable(encoding)}" if encoding else ""


def _length(response: BaseHTTPResponse) -> int | None:
    said = response.headers.get("Content-Length", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 20 else None


def _version(response: BaseHTTPResponse) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _said(response: BaseHTTPResponse) -> str:
    return f"Content-Range {printable(response.headers.get('Content-Range', 'missing'))}"


def _broken(response: BaseHTTPResponse, found: str) -> NoReturn:
    response.close()
    raise CorruptCheckpointError("the server contradicts itself", found=found, advice="try again")


def _short(error: object) -> str:
    return printable(f"{type(error).__name__}: {error}".replace("\n", " "))

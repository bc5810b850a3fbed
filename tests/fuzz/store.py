"""A store taken over: mutated answers of what fsspec knows, without fsspec and without a store.

The input is a line of JSON an answer, in order: what the store says about the file, or, where a part of it was asked
for, how many bytes it sends. The file may be another one at any time: bytes are of the state that the store named last,
or names next if they are ``late``.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import remote

from convsv.checkpoints import Checkpoint, _fsspec, open_checkpoint
from convsv.errors import ConvsvError

_LARGEST = 1 << 22
"""Bytes that are sent at most: more than are ever asked for here."""


class Store:
    """What answers: one line after the other, whatever is asked for."""

    def __init__(self, name: str, lines: bytes) -> None:
        self._name, self._lines, self._asked, self._lock = name, lines.split(b"\n"), 0, threading.Lock()

    def invalidate_cache(self, _: str) -> None:
        """There is none."""

    def info(self, _: str) -> Any:
        """Say something about the file."""
        return self._said(self._next())

    def cat_file(self, _: str, start: int, end: int) -> bytes:
        """Send as many bytes as the line says: from where they are is not told, and so cannot be a lie that shows."""
        number = self._next()
        part = self._said(number)
        state = self._said(number + 1 if part.get("late") else number - 1)
        count = int(part["sent"])
        whole = remote.content(self._name, _fsspec._version(state))
        return whole[start : start + min(max(count, 0), _LARGEST)]

    def _next(self) -> int:
        with self._lock:
            self._asked += 1
            return self._asked - 1

    def _said(self, number: int) -> Any:
        return json.loads(self._lines[number])


class Recorder:
    """The same of a store that is right, and what it said."""

    def __init__(self, name: str, state: str) -> None:
        self._name, self._state, self.lines = name, state, list[bytes]()

    def invalidate_cache(self, _: str) -> None:
        """There is none."""

    def info(self, path: str) -> dict[str, object]:
        """Say what s3fs does."""
        size = len(remote.content(self._name, self._state))
        said = {"name": path, "type": "file", "size": size, "ETag": self._state, "LastModified": "2026-01-01"}
        self.lines.append(json.dumps(said).encode())
        return said

    def cat_file(self, _: str, start: int, end: int) -> bytes:
        """Send what was asked for."""
        data = remote.content(self._name, self._state)[start:end]
        self.lines.append(json.dumps({"sent": len(data), "late": False}).encode())
        return data


def _opened(name: str, system: object) -> Checkpoint:
    with mock.patch.object(_fsspec, "_system", return_value=(system, f"bucket/{name}")):
        return open_checkpoint(f"s3://bucket/{name}")


def attack(name: str, lines: bytes, judge: Callable[[Checkpoint], None]) -> int:
    """Open the file over a store that answers so, judge it, and return how many tensors could be read.

    Raises:
        ConvsvError: it cannot be opened.
    """
    checkpoint = _opened(name, Store(name, lines))
    count = remote.right_numbers(checkpoint)
    judge(checkpoint)
    return count


@functools.cache
def conversation(name: str) -> bytes:
    """The answers of a store that is right to somebody who opens, reads and judges the file."""
    system = Recorder(name, '"one"')
    checkpoint = _opened(name, system)
    for _ in range(2):
        if remote.right_numbers(checkpoint) != len(remote.KERNELS):
            raise ConvsvError("the seed is wrong")
    return b"\n".join(system.lines)

"""A library that crashes, loops or eats memory on damaged files, run in a child process that can be killed.

The child is a program of its own beside this module: it limits its memory and processor time, and opens nothing but
the descriptors it inherits. Requests are lines of JSON, answers frames of bytes; nothing it says is trusted. One that
fails takes only the request in hand with it: the next one starts another, until the time of the file is used up.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from convsv.checkpoints._content import printable
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError

__all__ = ["Child", "folders_of"]

PATIENCE = 2.0
"""How many seconds of the clock a second of processor time may last, on a machine that is busy with other things."""
FAILURE = 1.0
"""What a failure costs beside its time, in seconds: a file whose parts kill one child each gets only so many."""
MAX_INDEX = 1 << 29
_FRAME = struct.Struct(">cQ")
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "TMPDIR")


class Child(ABC):
    """A child: started when asked, killed when late, and replaced after it failed.

    Attributes:
        library: the library it runs, as messages call it.
        module: the Python module that it needs for that.
        purpose: what it does with the file.
        writes: whether it is given a file to write to, which may fail.
        environment: what the library wants to be told.

    Args:
        seconds: processor time for all requests together.
        seconds_a_request: processor time for one that is answered in JSON.
    """

    library: str
    module: str
    purpose = "read"
    writes = False
    environment: Mapping[str, str] = {}

    def __init__(self, seconds: float, seconds_a_request: float) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._seconds_left, self._seconds_a_request = seconds, seconds_a_request
        self._lock = threading.Lock()

    @abstractmethod
    def command(self) -> tuple[list[str], tuple[int, ...]]:
        """Return the program with its arguments, and the descriptors it inherits."""

    def ask_json(self, request: Mapping[str, object]) -> Any:
        """Return the answer to a request that is answered in JSON."""
        with self._lock:
            kind, payload = self._ask(request, MAX_INDEX, self._seconds_a_request)
            try:
                return json.loads(payload if kind == b"J" else b"")
            except (ValueError, RecursionError):
                return self._fail("answered something else than an index")

    def ask_bytes(self, request: Mapping[str, object], count: int, seconds: float = math.inf) -> bytearray:
        """Return the ``count`` bytes that a request is answered with, within so much processor time."""
        with self._lock:
            kind, payload = self._ask(request, count, seconds)
            if kind != b"E" or len(payload) != count:
                self._fail("answered other values than it announced")
            return payload

    def ask_message(self, request: Mapping[str, object], limit: int) -> bytearray:
        """Return the bytes, at most ``limit``, that a request is answered with."""
        with self._lock:
            kind, payload = self._ask(request, limit, math.inf)
            if kind != b"E":
                self._fail("answered something else than was asked")
            return payload

    def close(self) -> None:
        """End the child, if there is one; the next request starts another."""
        if self._finalizer is not None:
            self._finalizer()
        self._process = None

    def _ask(self, request: Mapping[str, object], limit: int, seconds: float) -> tuple[bytes, bytearray]:
        # Returns the kind of the last frame and the payload of all; raises what the child says went wrong.
        if self._seconds_left <= 0:
            raise CorruptCheckpointError(f"{self.library} cannot {self.purpose} it: the time for this file is used up")
        seconds = min(seconds, self._seconds_left)
        started = time.monotonic()
        try:
            deadline = started + PATIENCE * seconds
            kind, payload = self._exchange({**request, "seconds": seconds}, limit, deadline)
        except BrokenPipeError:
            self._fail(self._last_words())
        except BaseException:
            # Also on Ctrl-C: what is left of the answer must not be taken for the next one.
            self.close()
            raise
        finally:
            self._seconds_left -= (time.monotonic() - started) / PATIENCE
        if kind == b"X":
            self._raise(payload)
        return kind, payload

    def _exchange(self, request: Mapping[str, object], limit: int, deadline: float) -> tuple[bytes, bytearray]:
        process = self._process or self._spawn()
        line = json.dumps(request).encode() + b"\n"
        os.write(_pipe(process.stdin), line)
        payload, kind = bytearray(), b"D"
        while kind == b"D":
            kind, size = _FRAME.unpack(self._receive(_FRAME.size, deadline))
            if len(payload) + size > max(limit, 1 << 16):
                self._fail("answered more than was asked")
            payload += self._receive(size, deadline)
        return kind, payload

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        environment |= self.environment
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command, descriptors = self.command()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                env=environment,
                pass_fds=descriptors,
            )
        except OSError as error:
            what = f"the process in which {self.library} runs cannot be started"
            raise CheckpointError(what, found=error.strerror or str(error)) from None
        self._process = process
        self._finalizer = weakref.finalize(self, _end, process)
        return process

    def _receive(self, count: int, deadline: float) -> bytearray:
        assert self._process is not None
        source = _pipe(self._process.stdout)
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            while len(received) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self._fail("does not end")
                part = os.read(source, min(count - len(received), 1 << 20))
                if not part:
                    self._fail(self._last_words())
                received += part
        return received

    def _last_words(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        return f"ended by signal {-code}" if code < 0 else "ended"

    def _fail(self, how: str) -> NoReturn:
        self.close()
        self._seconds_left -= FAILURE
        raise CorruptCheckpointError(f"{self.library} cannot {self.purpose} it: it {how} in a process of its own")

    def _raise(self, payload: bytearray) -> NoReturn:
        try:
            said = json.loads(payload)
            kind, what = str(said["kind"]), printable(str(said["what"]), 200)
            where, found = printable(str(said.get("where", ""))), printable(str(said.get("found", "")), 200)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CorruptCheckpointError(f"{self.library} cannot {self.purpose} it") from None
        if kind == "missing":
            raise CheckpointError(f"{self.module} cannot be imported", found=what, advice=f"install {self.module}")
        if kind == "output" and self.writes:
            raise OSError(what)
        if kind == "refused":
            raise CheckpointError(what, tensor=where or None, found=found or None)
        if kind == "failed":  # the library itself, of which the child's program knows not even the name
            what = f"{self.library} cannot {self.purpose} it"
        error = UnsafeCheckpointError if kind == "unsafe" else CorruptCheckpointError
        raise error(what, tensor=where or None, found=found or None)


def _pipe(stream: Any) -> int:
    return int(stream.fileno())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def folders_of(*modules: str) -> list[str]:
    """Return where modules lie: ``-I`` ignores PYTHONPATH, and a child is told nothing else of the path."""
    specs = [importlib.util.find_spec(name) for name in modules]
    return list(dict.fromkeys(str(Path(spec.origin).parent.parent) for spec in specs if spec and spec.origin))

"""Limits of one case: processor time and memory, on top of what the process has already."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SECONDS = 5.0
MEMORY = 1 << 30


class TooSlowError(BaseException):
    """A case took longer than it may; nothing that catches exceptions catches this."""


def _late(number: int, frame: FrameType | None) -> None:
    raise TooSlowError(f"more than {SECONDS} s of processor time")


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Run something with at most so much processor time and so much more memory.

    Memory is address space, where the system tells how much there is: running out of it is a ``MemoryError``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, _late)
    status = Path("/proc/self/statm")
    try:
        if status.exists():
            used = int(status.read_text().split()[0]) * resource.getpagesize()
            wanted = used + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

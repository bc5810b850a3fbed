"""Waiting for others, but not for ever: whatever a server does, a request ends within a known time."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from convsv.errors import CheckpointError, UsageError

__all__ = ["SLOWEST", "patience", "within"]

_T = TypeVar("_T")

SLOWEST = 1 << 18
"""Bytes a second that a server must send on the average, after the time it has to answer."""
_VARIABLE = "CONVSV_REMOTE_TIMEOUT"
_SECONDS = 30.0


def patience() -> float:
    """Return the seconds that a server has to answer.

    Raises:
        UsageError: the environment says something else than a positive number.
    """
    said = os.environ.get(_VARIABLE, "")
    try:
        seconds = float(said) if said else _SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{_VARIABLE} is no time", found=repr(said), advice="give a positive number of seconds")
    return seconds


def within(byte_count: int, work: Callable[[], _T]) -> _T:
    """Do something that waits for a server, and give it up when it takes too long.

    It runs in a thread of its own, which is left behind when it is given up: no time limit of a library bounds a server
    that sends a byte now and then.

    Args:
        byte_count: how much is to be sent.
        work: what to do.

    Raises:
        CheckpointError: it took too long.
        BaseException: whatever ``work`` raises.
    """
    seconds = patience() + byte_count / SLOWEST
    box: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            box.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits for it
            box.put((None, error))

    threading.Thread(target=run, name="convsv-remote", daemon=True).start()
    try:
        value, error = box.get(timeout=seconds)
    except queue.Empty:
        found = f"{byte_count} bytes wanted, not there after {seconds:.3g} s"
        advice = f"try again, or allow more seconds with {_VARIABLE}"
        raise CheckpointError("the server does not answer in time", found=found, advice=advice) from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # None only where work returns None

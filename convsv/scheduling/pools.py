"""Where batches run: what the dispatcher needs of a set of workers, and worker processes on this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from convsv.scheduling.batch import Batch, Outcome, carry_out

__all__ = ["Pool", "ProcessPool"]

_IDLE = 300
"""Seconds after which a worker without work ends."""


class Pool(Protocol):
    """A set of workers."""

    @property
    def slots(self) -> int:
        """Batches that are worth handing out at one time."""

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        """Hand out a batch.

        Where its worker dies, the future raises ``BrokenExecutor``; so may those of other batches.
        """

    def restart(self) -> bool:
        """Replace workers that died, where nobody else does; tell whether all batches in work are lost."""

    def close(self) -> None:
        """End all workers, whatever they do."""


class ProcessPool:
    """Worker processes on this machine, started when the first batch comes (loky, the backend of joblib).

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._executor: Any = None

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        """Hand out a batch: see :class:`Pool`."""
        if self._executor is None:
            self._executor = _executor(self.slots)
        submitted: Future[list[Outcome]] = self._executor.submit(carry_out, batch)
        return submitted

    def restart(self) -> bool:
        """Replace workers that died: with one of them the executor broke."""
        self.close()
        return True

    def close(self) -> None:
        """End all workers."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
        self._executor = None


def _executor(workers: int) -> Any:
    from joblib.externals.loky import ProcessPoolExecutor

    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
    start: Callable[[], None] = _ignore_interrupts
    return ProcessPoolExecutor(workers, timeout=_IDLE, env=one, initializer=start)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the one that has the report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Batches on a dask cluster: any scheduler that can be reached, or a small one on this machine (``convsv[dask]``).

The scheduler gives the work of a lost worker to another one by itself, and gives up a batch that has taken several
workers with it; what it does not survive is its own end.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from importlib import import_module
from typing import Any

from convsv.errors import AbandonedError, UsageError
from convsv.scheduling.batch import Batch, Outcome, carry_out

__all__ = ["ClusterPool"]

_LOST = "the connection to the scheduler is lost"
_LOCAL = "local:"
_GPU = "GPU"
"""The resource that workers with a GPU are started with."""
_PATIENCE = 10
"""Seconds to wait for a scheduler's answer."""


class ClusterPool:
    """Workers of a dask cluster.

    Args:
        address: ``tcp://host:8786``, or ``local:2`` for two processes on this machine.
        device: where a worker computes; for ``cuda`` a batch asks for the worker resource ``GPU=1``.

    Raises:
        UsageError: dask is not installed, the address is none, or nobody answers there.
    """

    def __init__(self, address: str, device: str) -> None:
        self._cluster: Any = None
        self._client = self._connected(address)
        self._on_gpu = device.startswith("cuda")
        self._executor = self._client.get_executor(pure=False, resources={_GPU: 1} if self._on_gpu else None)

    @property
    def slots(self) -> int:
        """Batches that all workers that are there now take at a time; at least one, for those that are still to come.

        A worker takes one a thread, and where they are for a GPU, no more than it says it has.
        """
        with suppress(Exception):  # a scheduler that is gone is noticed where its answers are missing
            return max(1, sum(map(self._slots_of, self._client.scheduler_info(n_workers=-1)["workers"].values())))
        return 1

    def _slots_of(self, worker: Any) -> int:
        threads = int(worker["nthreads"])
        return min(threads, int(worker["resources"].get(_GPU, 0))) if self._on_gpu else threads

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        """Hand out a batch: see :class:`convsv.scheduling.pools.Pool`.

        Raises:
            AbandonedError: the connection to the scheduler is lost.
        """
        found: Future[list[Outcome]] = Future()
        try:
            inner = self._executor.submit(carry_out, batch)
        except Exception as error:
            raise AbandonedError(_LOST) from error
        inner.add_done_callback(lambda done: _pass_on(done, found))
        return found

    def restart(self) -> bool:
        """Leave the rest to the scheduler: one batch that killed its workers says nothing about the others."""
        return False

    def close(self) -> None:
        """Cancel what is in work, and leave; a cluster that was started here ends."""
        with suppress(Exception):
            self._executor.shutdown(wait=False)
        with suppress(Exception):
            self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def _connected(self, address: str) -> Any:
        try:
            dask, distributed = import_module("dask"), import_module("distributed")
        except ImportError:
            raise UsageError("--dask needs dask", advice="pip install 'convsv[dask]'") from None
        dask.config.set({"distributed.comm.timeouts.connect": f"{_PATIENCE}s"})
        try:
            if address.startswith(_LOCAL):
                workers = int(address.removeprefix(_LOCAL))
                self._cluster = distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    memory_limit=None,
                    # Any free port: at the usual one another cluster of this machine may listen.
                    dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard": False},
                    silence_logs=50,
                )
                return distributed.Client(self._cluster, set_as_default=False)
            return distributed.Client(address, set_as_default=False, timeout=_PATIENCE)
        except (OSError, ValueError) as error:
            found = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"--dask {address}: no scheduler answers", found=found[:200]) from None


def _pass_on(done: Future[list[Outcome]], found: Future[list[Outcome]]) -> None:
    """Say what came of a batch in the words of the dispatcher."""
    if done.cancelled():
        found.set_exception(AbandonedError(_LOST))
        return
    error = done.exception()
    name = type(error).__name__
    if error is None:
        found.set_result(done.result())
    elif name == "KilledWorker":
        found.set_exception(BrokenExecutor(str(error)))
    elif name in ("FutureCancelledError", "CancelledError", "CommClosedError", "FuturesCancelledError"):
        found.set_exception(AbandonedError(_LOST))
    else:
        found.set_exception(error)

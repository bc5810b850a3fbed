"""Layers spread over workers: longest first, reports in the order of the layers, lost workers made good.

A :class:`Dispatcher` is called with the layers of a checkpoint and hands them out at once, as far as there are workers;
reports are asked for later, so that several checkpoints can be in work. It runs in one thread, that of whoever asks.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from convsv.describe import describe
from convsv.errors import AbandonedError
from convsv.layer import ConvLayer
from convsv.results import LayerReport
from convsv.scheduling.batch import Batch, Outcome, can_travel
from convsv.scheduling.pools import Pool, ProcessPool

if TYPE_CHECKING:
    from convsv.analysis import AnalysisOptions

__all__ = ["Dispatcher", "Pool", "ProcessPool", "can_travel"]

_BATCH_SECONDS = 0.1
"""Estimated work that is worth a message to a worker and back."""
_LOST = "the process that computed it died twice, perhaps for lack of memory; give a smaller --memory or fewer --jobs"


@dataclass
class _Slot:
    """A layer and its report, once there is one."""

    layer: ConvLayer
    outcome: Outcome | None = None
    dropped: bool = False


@dataclass(order=True)
class _Entry:
    """Some slots to be computed together; sorted by what is to be begun first."""

    rank: tuple[float, ...]
    slots: list[_Slot] = field(compare=False)


class Dispatcher:
    """Turns layers into their reports, in the same order, on a pool of workers.

    Args:
        pool: the workers.
        options: what to compute; the execution is that of one worker.
        seconds: estimates the work on a layer.
        device: where a worker computes.
    """

    def __init__(
        self, pool: Pool, options: AnalysisOptions, seconds: Callable[[ConvLayer], float], device: str = "cpu"
    ) -> None:
        self._pool, self._options, self._seconds, self._device = pool, options, seconds, device
        self._waiting: list[_Entry] = []
        self._suspects: list[_Entry] = []
        self._running: dict[Future[list[Outcome]], _Entry] = {}
        self._alone: Future[list[Outcome]] | None = None
        self._halted = False
        self._calls = itertools.count()

    def __call__(self, layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        """Hand out layers, and return their reports as they are asked for.

        Args:
            layers: layers of one checkpoint, each with a recipe.

        Returns:
            Reports in the order of the layers. Where a layer raised, so does its turn, and the rest is not computed.
        """
        slots = [_Slot(layer) for layer in layers]
        for entry in self._entries(slots):
            heapq.heappush(self._waiting, entry)
        self._feed()
        return self._reports(slots)

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Let workers finish what they have, and give them nothing more until the block is done."""
        self._halted = True
        try:
            while self._running:
                self._advance()
            yield
        finally:
            self._halted = False
            self._feed()

    def _entries(self, slots: Sequence[_Slot]) -> Iterator[_Entry]:
        """Return the work in parts of which each is worth a message.

        Checkpoints keep their order, and the longest layer of one begins first; but whole spectra, which may take much
        memory, are computed in the order in which they are handed out.
        """
        call, whole = next(self._calls), self._options.values
        costs = [self._seconds(slot.layer) for slot in slots]
        order = range(len(slots)) if whole else sorted(range(len(slots)), key=lambda i: -costs[i])
        together: list[_Slot] = []
        first, spent = 0.0, 0.0
        for number, i in enumerate(order):
            first = first if together else float(number)
            together.append(slots[i])
            spent += costs[i]
            if spent >= _BATCH_SECONDS:
                yield _Entry((call, first), together)
                together, spent = [], 0.0
        if together:
            yield _Entry((call, first), together)

    def _reports(self, slots: Sequence[_Slot]) -> Iterator[LayerReport]:
        try:
            for slot in slots:
                while slot.outcome is None:
                    self._advance()
                outcome, slot.outcome = slot.outcome, None
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        finally:
            for slot in slots:
                slot.dropped, slot.outcome = True, None

    # --------------------------------------------------------------------------------------------------------- workers

    def _feed(self) -> None:
        """Hand out work while workers are free. A suspect has all of them to itself: if one dies, it is to blame."""
        if self._halted:
            return
        while self._suspects and not self._running:
            entry = self._suspects.pop()
            if not all(slot.dropped for slot in entry.slots):
                self._alone = self._submit(entry)
        if self._suspects or self._alone:
            return
        # One batch more than there are workers waits where a worker will look for it.
        while self._waiting and len(self._running) <= self._pool.slots:
            entry = heapq.heappop(self._waiting)
            if not all(slot.dropped for slot in entry.slots):
                self._submit(entry)

    def _submit(self, entry: _Entry) -> Future[list[Outcome]]:
        layers = [slot.layer for slot in entry.slots]
        future = self._pool.submit(Batch.of(layers, self._options, self._device))
        self._running[future] = entry
        return future

    def _advance(self) -> None:
        """Wait until a batch is done, take its reports, and hand out more."""
        self._feed()
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        broken = False
        for future in done:
            entry = self._running.pop(future)
            error = CancelledError() if future.cancelled() else future.exception()
            if error is None:
                _settle(entry, future.result())
            elif isinstance(error, BrokenExecutor):
                broken = True
                self._lost(future, entry)
            elif isinstance(error, Exception) and not isinstance(error, (AbandonedError, CancelledError)):
                _settle(entry, [error] * len(entry.slots))
            else:
                raise error
            self._alone = None if future is self._alone else self._alone
        if broken:
            self._recover()
        self._feed()

    def _recover(self) -> None:
        """Go on after a worker died; where all workers died with it, what else was in work may be what killed it."""
        if not self._pool.restart():
            return
        for future, entry in list(self._running.items()):
            if future.done() and not future.cancelled() and future.exception() is None:
                _settle(entry, future.result())
            else:
                self._lost(future, entry)
        self._running.clear()

    def _lost(self, future: Future[list[Outcome]], entry: _Entry) -> None:
        """Put layers whose worker died aside for another try, each alone; after that they have failed."""
        if future is self._alone:
            _settle(entry, [self._failed(slot.layer) for slot in entry.slots])
        else:
            self._suspects += [_Entry(entry.rank, [slot]) for slot in entry.slots]

    def _failed(self, layer: ConvLayer) -> LayerReport:
        names = (*(["norm"] if self._options.norm else []), *self._options.methods)
        return replace(describe(layer), unavailable=dict.fromkeys(names, _LOST), failures=names)


def _settle(entry: _Entry, outcomes: Sequence[Outcome]) -> None:
    for slot, outcome in zip(entry.slots, outcomes, strict=True):
        if not slot.dropped:
            slot.outcome = outcome

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
from typing import TYPE_CHECKING, Any

from convsv.describe import describe
from convsv.errors import AbandonedError
from convsv.layer import ConvLayer
from convsv.results import LayerReport
from convsv.scheduling.batch import Batch, Outcome, Piece, can_travel
from convsv.scheduling.cutting import LEAST, Cutter
from convsv.scheduling.pools import Pool, ProcessPool

if TYPE_CHECKING:
    from convsv.analysis import AnalysisOptions

__all__ = ["Dispatcher", "Pool", "ProcessPool", "can_travel"]

_BATCH_SECONDS = 0.1
"""Estimated work that is worth a message to a worker and back."""
_LOST = "the process that computed it died twice, perhaps for lack of memory; give a smaller --memory or fewer --jobs"


@dataclass
class _Slot:
    """A layer, and the tasks that make its report: one, or the rest of the work and then pieces of it."""

    layer: ConvLayer
    tasks: list[_Task] = field(default_factory=list)
    dropped: bool = False


@dataclass
class _Task:
    """Work on a layer, and what came of it, once it is done.

    Attributes:
        slot: the layer.
        options: what to compute.
        seconds: estimated.
        piece: what of it to compute; None for everything.
    """

    slot: _Slot
    options: AnalysisOptions
    seconds: float
    piece: Piece | None = None
    outcome: Outcome | None = None


@dataclass(order=True)
class _Entry:
    """Some tasks to be done together; sorted by what is to be begun first."""

    rank: tuple[float, ...]
    tasks: list[_Task] = field(compare=False)

    @property
    def seconds(self) -> float:
        return sum(task.seconds for task in self.tasks)

    @property
    def dropped(self) -> bool:
        return all(task.slot.dropped for task in self.tasks)


class Dispatcher:
    """Turns layers into their reports, in the same order, on a pool of workers.

    Args:
        pool: the workers.
        options: what to compute; the execution is that of one worker.
        seconds: estimates the work on a layer.
        device: where a worker computes.
        cutter: cuts layers that take too long for one worker; None for never.
    """

    def __init__(
        self,
        pool: Pool,
        options: AnalysisOptions,
        seconds: Callable[[ConvLayer], float],
        device: str = "cpu",
        cutter: Cutter | None = None,
    ) -> None:
        self._pool, self._options, self._seconds, self._device = pool, options, seconds, device
        self._cutter = cutter
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

        Checkpoints keep their order, and the longest task of one begins first; but whole spectra, which may take much
        memory, are computed in the order in which they are handed out.
        """
        call, whole = next(self._calls), self._options.values
        tasks = [_Task(slot, self._options, self._seconds(slot.layer)) for slot in slots]
        for task in tasks:
            task.slot.tasks = [task]
        ordered = tasks if whole else sorted(tasks, key=lambda task: -task.seconds)
        together: list[_Task] = []
        rank: tuple[float, ...] = ()
        spent = 0.0
        for number, task in enumerate(ordered):
            rank = rank if together else (call, 0.0 if whole else -task.seconds, number)
            together.append(task)
            spent += task.seconds
            if spent >= _BATCH_SECONDS:
                yield _Entry(rank, together)
                together, spent = [], 0.0
        if together:
            yield _Entry(rank, together)

    def _reports(self, slots: Sequence[_Slot]) -> Iterator[LayerReport]:
        try:
            for slot in slots:
                while any(task.outcome is None for task in slot.tasks):
                    self._advance()
                outcomes = [task.outcome for task in slot.tasks]
                report = self._joined(slot, outcomes)
                outcomes, slot.tasks = [], []
                yield report
        finally:
            for slot in slots:
                slot.dropped, slot.tasks = True, []

    def _joined(self, slot: _Slot, outcomes: Sequence[Outcome | None]) -> LayerReport:
        """Return the report of a layer whose tasks are done.

        Raises:
            Exception: what the first task raised that did.
        """
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        rest, *others = outcomes
        assert isinstance(rest, LayerReport)
        parts: dict[str, list[Any]] = {}
        for task, other in zip(slot.tasks[1:], others, strict=True):
            assert task.piece is not None
            parts.setdefault(task.piece.method, []).append(other)
        if not parts:
            return rest
        from convsv.parts import joined_report  # without processes this room stays closed

        return joined_report(slot.layer, self._options, rest, parts)

    # ---------------------------------------------------------------------------------------------------------- cutting

    def _next(self) -> _Entry | None:
        """Return what is to be begun next, cut where it is long; None where nothing waits."""
        while self._waiting:
            entry = heapq.heappop(self._waiting)
            if entry.dropped:
                continue
            tasks = self._cut(entry)
            if not tasks:
                return entry
            call, _, number = entry.rank
            for k, task in enumerate(tasks):
                rank = (call, 0.0, number, k) if self._options.values else (call, -task.seconds, number, k)
                heapq.heappush(self._waiting, _Entry(rank, [task]))
        return None

    def _cut(self, entry: _Entry) -> Sequence[_Task]:
        """Return the tasks of a layer that is cut; none where it is not."""
        task = entry.tasks[0]
        if self._cutter is None or len(entry.tasks) > 1 or len(task.slot.tasks) > 1 or task.seconds <= LEAST:
            return ()
        left = sum(one.seconds for one in (entry, *self._waiting, *self._running.values()))
        cut = self._cutter(task.slot.layer, left, self._pool.slots)
        if cut is None:
            return ()
        divided = {piece.method for piece, _ in cut.pieces}
        options = replace(self._options, methods=tuple(m for m in self._options.methods if m not in divided))
        pieces = [_Task(task.slot, self._options, seconds, piece) for piece, seconds in cut.pieces]
        task.slot.tasks = [_Task(task.slot, options, cut.rest), *pieces]
        return task.slot.tasks

    # --------------------------------------------------------------------------------------------------------- workers

    def _feed(self) -> None:
        """Hand out work while workers are free. A suspect has all of them to itself: if one dies, it is to blame."""
        if self._halted:
            return
        while self._suspects and not self._running:
            entry = self._suspects.pop()
            if not entry.dropped:
                self._alone = self._submit(entry)
        if self._suspects or self._alone:
            return
        # One batch more than there are workers waits where a worker will look for it.
        while len(self._running) <= self._pool.slots and (found := self._next()):
            self._submit(found)

    def _submit(self, entry: _Entry) -> Future[list[Outcome]]:
        first = entry.tasks[0]
        layers = [task.slot.layer for task in entry.tasks]
        future = self._pool.submit(Batch.of(layers, first.options, self._device, first.piece))
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
                _settle(entry, [error] * len(entry.tasks))
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
        """Put tasks whose worker died aside for another try, each alone; after that they have failed."""
        if future is self._alone:
            _settle(entry, [_failed(task) for task in entry.tasks])
        else:
            self._suspects += [_Entry(entry.rank, [task]) for task in entry.tasks]


def _failed(task: _Task) -> LayerReport:
    options, piece = task.options, task.piece
    names = (piece.method,) if piece else (*(["norm"] if options.norm else []), *options.methods)
    return replace(describe(task.slot.layer), unavailable=dict.fromkeys(names, _LOST), failures=names)


def _settle(entry: _Entry, outcomes: Sequence[Outcome]) -> None:
    for task, outcome in zip(entry.tasks, outcomes, strict=True):
        if not task.slot.dropped:
            task.outcome = outcome

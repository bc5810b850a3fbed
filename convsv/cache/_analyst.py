"""In front of what computes: only layers without a known result get through, and results are kept as they arrive."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from numpy.typing import NDArray

from convsv.cache._codec import decoded, encoded
from convsv.cache._store import Memory
from convsv.checkpoints.alike import changed
from convsv.describe import describe
from convsv.layer import ConvLayer
from convsv.results import LayerReport

__all__ = ["Cached", "KeyOf"]

Analyst: TypeAlias = Callable[[Iterable[ConvLayer]], Iterator[LayerReport]]
KeyOf: TypeAlias = Callable[[ConvLayer], "str | None"]

_ROOM = 16 << 20
"""Bytes of kernels that stay in memory from their names to their computation: to read a large one again costs little
beside what is computed of it."""
_WEIGHT = 8
"""Bytes of a weight at most."""
_TOGETHER = 64
"""Most layers that are looked up together, which costs less than one by one between computations."""
_OWN = ("name", "weight", "kind", "shape", "dtype", "geometry", "notes", "folded")
"""What says which layer a report is of: it comes from the layer, and is not kept."""


@dataclass(eq=False)
class _Entry:
    """A layer whose turn has not come yet."""

    layer: ConvLayer
    key: str | None
    held: _Held
    report: LayerReport | None = None
    same: _Entry | None = None


class Cached:
    """An analyst that hands on only what it does not know.

    It calls ``inner`` when it is called itself, so that work may begin before the first report is asked for, and asks
    the layers for the next one whenever ``inner`` does, from whatever thread. A layer that is the same as one in work
    waits for that one's result.

    Args:
        inner: computes; yields a report a layer, in the order of the layers.
        store: what is known.
        key_of: layer -> name of its results; None where they are not kept.
        keeps: whether a result is worth keeping, beside having no failures.
    """

    def __init__(
        self, inner: Analyst, store: Memory, key_of: KeyOf, keeps: Callable[[LayerReport], bool] = lambda report: True
    ) -> None:
        self._inner, self._store, self._key_of, self._keeps = inner, store, key_of, keeps
        self._in_work: dict[str, _Entry] = {}
        self._lock = threading.RLock()
        self._room = _ROOM
        self.found = self.computed = 0

    def __call__(self, layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        """Return a report a layer, in order."""
        queue = _Queue(layers, self._entry, self._lock)
        return self._reports(queue, self._inner(queue.unknown()))

    def _reports(self, queue: _Queue, computed: Iterator[LayerReport]) -> Iterator[LayerReport]:
        try:
            while (entry := queue.first()) is not None:
                report = entry.report
                if report is None and entry.same is not None:
                    # The layer it waited for was given up, with its checkpoint.
                    report = _told_of(entry.layer, entry.same.report) or next(self._inner([entry.layer]), None)
                elif report is None:
                    report = next(computed, None)
                if report is None:
                    return
                self._count(entry, report)
                entry.report = report
                self._let_go(entry)
                queue.pop()
                yield report
        finally:
            for entry in queue.entries:
                self._let_go(entry)

    def _count(self, entry: _Entry, report: LayerReport) -> None:
        """Keep a result that was computed just now."""
        if entry.report is not None or entry.same is not None:
            self.found += 1
            return
        self.computed += 1
        if entry.key is None or report.failures or report.unread or not self._keeps(report):
            return
        try:
            body = encoded(report, without=_OWN)
        except (TypeError, ValueError):
            return  # it holds what is not kept
        with self._lock:
            self._store.put(entry.key, body)

    def _entry(self, layer: ConvLayer) -> _Entry:
        held = _Held(layer.read, self._room)
        layer = changed(layer, read=held)
        key = self._key_of(layer)
        self._room -= held.settle()
        entry = _Entry(layer, key, held)
        if key is None:
            return entry
        entry.same = self._in_work.get(key)
        if entry.same is None:
            entry.report = self._known(layer, key)
        if entry.same is None and entry.report is None:
            self._in_work[key] = entry
        else:
            self._let_go(entry)
        return entry

    def _let_go(self, entry: _Entry) -> None:
        """Forget the kernel of a layer, if it is at hand, and that it is in work."""
        with self._lock:
            self._room += entry.held.let_go()
            if entry.key is not None and self._in_work.get(entry.key) is entry:
                del self._in_work[entry.key]

    def _known(self, layer: ConvLayer, key: str) -> LayerReport | None:
        body = self._store.get(key)
        if body is None:
            return None
        try:
            return decoded(describe(layer), body, own=_OWN)
        except ValueError:
            self._store.drop(key)
            return None


class _Held:
    """What reads a kernel: the first time, for its name, from the file, and then what was read, if there is room."""

    def __init__(self, read: Callable[[], NDArray[Any]], room: int) -> None:
        self._read, self._room = read, room
        self._kernel: NDArray[Any] | None = None

    def __call__(self) -> NDArray[Any]:
        kernel = self._kernel
        if kernel is None:
            kernel = self._read()
            self._kernel = kernel if kernel.nbytes <= self._room else None
        return kernel

    def settle(self) -> int:
        """Hold nothing more than now; return how many bytes that is."""
        self._room = -1
        return 0 if self._kernel is None else self._kernel.nbytes

    def let_go(self) -> int:
        """Hold nothing; return how many bytes that were."""
        kernel, self._kernel = self._kernel, None
        return 0 if kernel is None else kernel.nbytes


class _Queue:
    """Layers in order, looked up as they are asked for: by whoever computes, or by whoever waits for the next."""

    def __init__(
        self, layers: Iterable[ConvLayer], enter: Callable[[ConvLayer], _Entry], lock: threading.RLock
    ) -> None:
        self._layers, self._enter, self._lock = iter(layers), enter, lock
        self.entries: deque[_Entry] = deque()
        self._unknown: deque[ConvLayer] = deque()

    def first(self) -> _Entry | None:
        """Return the layer whose turn it is."""
        with self._lock:
            return self.entries[0] if self.entries or self._advance() else None

    def pop(self) -> None:
        """Let the next one have its turn."""
        with self._lock:
            self.entries.popleft()

    def unknown(self) -> Iterator[ConvLayer]:
        """Yield the layers that are to be computed."""
        while True:
            with self._lock:
                while not self._unknown and self._advance():
                    pass
                if not self._unknown:
                    return
                layer = self._unknown.popleft()
            yield layer

    def _advance(self) -> bool:
        """Look up the next layers, one or as many small ones as there is room for; return whether there is one."""
        number = size = 0
        for number, layer in enumerate(self._layers, 1):
            entry = self._enter(layer)
            self.entries.append(entry)
            if entry.report is None and entry.same is None:
                self._unknown.append(entry.layer)
            size += _WEIGHT * math.prod(layer.shape)
            if number == _TOGETHER or size > _ROOM:
                break
        return number > 0


def _told_of(layer: ConvLayer, report: LayerReport | None) -> LayerReport | None:
    """Return results as those of a layer."""
    if report is None:
        return None
    own = vars(describe(layer))
    return replace(report, **{name: own[name] for name in _OWN})

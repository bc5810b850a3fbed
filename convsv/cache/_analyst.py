"""In front of what computes: only layers without a known result get through, and results are kept as they arrive."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

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

_SMALL = 16 << 20
"""Bytes of a kernel that stays in memory from its name to its computation: to read a larger one again costs little
beside what is computed of it."""


@dataclass(eq=False)
class _Entry:
    """A layer whose turn has not come yet."""

    layer: ConvLayer
    key: str | None
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
        self._in_work: WeakValueDictionary[str, _Entry] = WeakValueDictionary()
        self._lock = threading.RLock()
        self._at_hand = _AtHand()
        self.found = self.computed = 0

    def __call__(self, layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        """Return a report a layer, in order."""
        queue = _Queue(layers, self._entry, self._lock)
        return self._reports(queue, self._inner(queue.unknown()))

    def _reports(self, queue: _Queue, computed: Iterator[LayerReport]) -> Iterator[LayerReport]:
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
            queue.pop()
            yield report

    def _count(self, entry: _Entry, report: LayerReport) -> None:
        """Keep a result that was computed just now."""
        if entry.report is not None or entry.same is not None:
            self.found += 1
            return
        self.computed += 1
        if entry.key is None or report.failures or report.unread or not self._keeps(report):
            return
        try:
            body = encoded(report)
        except (TypeError, ValueError):
            return  # it holds what is not kept
        with self._lock:
            self._store.put(entry.key, body)

    def _entry(self, layer: ConvLayer) -> _Entry:
        layer = self._at_hand.layer(layer)
        key = self._key_of(layer)
        if key is None:
            return _Entry(layer, None)
        same = self._in_work.get(key)
        if same is not None and same.report is None:
            return _Entry(layer, key, same=same)
        entry = _Entry(layer, key, self._known(layer, key))
        self._in_work[key] = entry
        return entry

    def _known(self, layer: ConvLayer, key: str) -> LayerReport | None:
        body = self._store.get(key)
        if body is None:
            return None
        try:
            return _told_of(layer, decoded(LayerReport, body))
        except ValueError:
            self._store.drop(key)
            return None


class _AtHand:
    """The kernel that was read last: what computes a layer as soon as it has its name reads nothing again."""

    def __init__(self) -> None:
        self._last: tuple[object, NDArray[Any] | None] = None, None

    def layer(self, layer: ConvLayer) -> ConvLayer:
        """Return a layer that reads its kernel from the file unless it was the last to do so."""

        def read() -> NDArray[Any]:
            whose, kernel = self._last
            if whose is not mine or kernel is None:
                kernel = layer.read()
                self._last = (mine, kernel) if kernel.nbytes <= _SMALL else (None, None)
            return kernel

        mine = object()
        return changed(layer, read=read)


class _Queue:
    """Layers in order, looked up as they are asked for: by whoever computes, or by whoever waits for the next."""

    def __init__(
        self, layers: Iterable[ConvLayer], enter: Callable[[ConvLayer], _Entry], lock: threading.RLock
    ) -> None:
        self._layers, self._enter, self._lock = iter(layers), enter, lock
        self._entries: deque[_Entry] = deque()
        self._unknown: deque[ConvLayer] = deque()

    def first(self) -> _Entry | None:
        """Return the layer whose turn it is."""
        with self._lock:
            return self._entries[0] if self._entries or self._advance() else None

    def pop(self) -> None:
        """Let the next one have its turn."""
        with self._lock:
            self._entries.popleft()

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
        layer = next(self._layers, None)
        if layer is None:
            return False
        entry = self._enter(layer)
        self._entries.append(entry)
        if entry.report is None and entry.same is None:
            self._unknown.append(entry.layer)
        return True


def _told_of(layer: ConvLayer, report: LayerReport | None) -> LayerReport | None:
    """Return results as those of a layer: what says which one it is comes from the layer, never from what was kept."""
    if report is None:
        return None
    own = describe(layer)
    return replace(
        report,
        name=own.name,
        weight=own.weight,
        kind=own.kind,
        shape=own.shape,
        dtype=own.dtype,
        geometry=own.geometry,
        notes=own.notes,
        folded=own.folded,
    )

"""Threads within a layer, or processes with a layer each: whichever is estimated to be done sooner.

A process takes some seconds to start (it imports torch), so a few small layers are done here. Small layers leave
threads idle, so many of them go to processes. A layer too large for a process's share of the memory is done here, by
threads, when no process is at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from convsv.costs import Cost, Speed, Wanted, cost_of
from convsv.layer import ConvLayer
from convsv.results import LayerReport
from convsv.scheduling import Dispatcher, Pool, ProcessPool, can_travel
from convsv.scheduling.cutting import cutter_of, longest_task

if TYPE_CHECKING:
    from convsv.analysis import AnalysisOptions

__all__ = ["Spreader", "wanted_of"]

Analyse: TypeAlias = "Callable[[Iterable[ConvLayer], AnalysisOptions], Iterator[LayerReport]]"

_STARTING = 4.0
"""Seconds until the first process has imported what it needs."""
_WORTH = 0.8
"""Part of the time of threads that processes must save to be started."""
_GRAIN = 0.5
"""Seconds of work on one layer of which threads share half."""
_AHEAD = 4
"""Checkpoints that are begun early, a worker."""


def wanted_of(options: AnalysisOptions) -> Wanted:
    """Return what is to be computed, as the cost model takes it."""
    return Wanted(options.methods, options.norm, options.tol, options.spectra.full, options.values)


class Spreader:
    """Turns layers into reports, in the same order, with threads or with processes.

    Args:
        analyze: computes in this process, when reports are asked for.
        options: what to compute, and with how many threads or processes.
        checkpoints: how many times it will be called; None where that is not known.
        speed: of this machine, where that is known.
    """

    def __init__(
        self, analyze: Analyse, options: AnalysisOptions, checkpoints: int | None, speed: Speed | None = None
    ) -> None:
        self._analyze = analyze
        self._options, self._checkpoints, self._speed = options, checkpoints, speed
        self._calls = 0
        self._by_pool = False
        self._wanted = wanted_of(options)
        self._cutter = cutter_of(self._wanted, speed)
        self._jobs = options.execution.threads
        self._pool: Pool | None = None
        self._dispatcher: Dispatcher | None = None

    def consider(self, layers: Sequence[ConvLayer]) -> None:
        """Decide where the layers of the next checkpoint are computed; nothing is read.

        Args:
            layers: all layers that the next call may be about.
        """
        self._calls += 1
        self._by_pool = False
        if self._jobs == 1 or not all(map(_is_at_hand, layers)):
            return
        costs = [self._cost(layer) for layer in layers]
        fits = max((cost.memory for cost in costs), default=0) <= self._share
        self._by_pool = fits and (self._dispatcher is not None or self._pays(layers, costs))

    def __call__(self, layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        """Return reports in the order of the layers; processes begin at once, threads when they are asked for."""
        if self._by_pool:
            # What is known is looked up here, before a process is started for it.
            chosen = list(layers)
            return self._dispatched(chosen) if chosen else iter(())
        return self._here(self._dispatcher, layers) if self._dispatcher else self._analyze(layers, self._options)

    def ahead(self) -> int:
        """Return how many checkpoints are worth beginning before the one in hand is finished."""
        return _AHEAD * self._jobs if self._dispatcher else 0

    def close(self) -> None:
        """End all processes."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._dispatcher = None

    @property
    def _share(self) -> int:
        """Memory of one process."""
        return self._options.execution.memory // self._jobs

    def _cost(self, layer: ConvLayer) -> Cost:
        return cost_of(layer, self._wanted, self._speed)

    def _pays(self, layers: Sequence[ConvLayer], costs: Sequence[Cost]) -> bool:
        """Tell whether processes are estimated to be done clearly sooner, if all checkpoints are like this one."""
        seconds = [cost.seconds for cost in costs]
        # Of a list without an end in sight as many are expected as came already.
        times = max(1, self._calls if self._checkpoints is None else self._checkpoints - self._calls)
        left, jobs = times * sum(seconds), self._jobs
        tasks = (longest_task(self._cutter, *one, left, jobs) for one in zip(layers, seconds, strict=True))
        by_processes = _STARTING + max(left / jobs, max(tasks, default=0.0))
        by_threads = times * sum(s / (1 + (self._jobs - 1) * s / (s + _GRAIN)) for s in seconds)
        return by_processes < _WORTH * by_threads

    def _dispatched(self, layers: Sequence[ConvLayer]) -> Iterator[LayerReport]:
        self._dispatcher = self._dispatcher or self._started()
        return self._dispatcher(layers)

    def _started(self) -> Dispatcher:
        execution = replace(self._options.execution, jobs=1, sharers=self._jobs, device="cpu")
        self._pool = ProcessPool(self._jobs)
        options = replace(self._options, execution=execution)
        return Dispatcher(self._pool, options, lambda layer: self._cost(layer).seconds, cutter=self._cutter)

    def _here(self, dispatcher: Dispatcher, layers: Iterable[ConvLayer]) -> Iterator[LayerReport]:
        """Compute in this process, while no other is at work."""
        with dispatcher.halted():
            yield from self._analyze(layers, self._options)


def _is_at_hand(layer: ConvLayer) -> bool:
    """Tell whether another process finds a layer again, without fetching its weights a second time."""
    return can_travel(layer) and "://" not in layer.recipe.path

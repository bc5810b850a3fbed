"""Pools of workers for tests of the scheduling: they work in this process, and die when they are told to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future
from typing import TypeAlias

from convsv.scheduling.batch import Batch, Outcome, carry_out

__all__ = ["Obedient"]

Deadly: TypeAlias = "str | tuple[str, int]"


class Obedient:
    """A pool that works in this process, and whose workers die of some layers, or of one share of a layer.

    Args:
        deadly: names of layers; or of a layer, and the number of a share.
        times: how many workers die.

    Attributes:
        begun: what was handed out, in order, by the same names.
        batches: the same in full.
    """

    def __init__(self, deadly: Sequence[Deadly] = (), times: int = 1_000_000, slots: int = 2) -> None:
        self.slots = slots
        self.deadly, self.times, self.restarts = deadly, times, 0
        self.begun: list[Deadly] = []
        self.batches: list[Batch] = []

    def submit(self, batch: Batch) -> Future[list[Outcome]]:
        future: Future[list[Outcome]] = Future()
        names = [(layer.name, batch.piece.share[0]) if batch.piece else layer.name for layer in batch.layers]
        self.begun += names
        self.batches.append(batch)
        dies = self.times > 0 and any(name in self.deadly for name in names)
        self.times -= dies
        if dies:
            future.set_exception(BrokenExecutor("died"))
        else:
            future.set_result(carry_out(batch))
        return future

    def restart(self) -> bool:
        self.restarts += 1
        return True

    def close(self) -> None:
        pass

"""When a layer is cut into several tasks, and into how many: the one place that decides it.

The last task to end decides when a run is done. So no task is to take more than a part of what is left for each of w
workers; nor so little that what every task does anew (a, opening the file and forming what all frequencies have in
common) outweighs what is gained. With n tasks that share b seconds, the last one ends at most one task after what
is left, evenly spread, would: n a / w + a + b / n later than without the cut's work, least for n = sqrt(b w / a).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from convsv.costs import Speed, Wanted, costs_of
from convsv.layer import ConvLayer
from convsv.scheduling.batch import Piece

__all__ = ["LEAST", "Cut", "Cutter", "cutter_of", "longest_task"]

LEAST = 5.0
"""Seconds that a task takes at least, to be worth cutting off."""
_PART = 0.25
"""Of what is left for each worker, how much a task may take."""


@dataclass(frozen=True)
class Cut:
    """A layer's work, in tasks.

    Attributes:
        rest: seconds of all that is not divided, which is one task.
        pieces: the others, and the seconds of each.
    """

    rest: float
    pieces: tuple[tuple[Piece, float], ...]


Cutter = Callable[[ConvLayer, float, int], "Cut | None"]
"""Cuts a layer, given the seconds of all that is left, and how many workers there are; None where that is no gain."""


def cutter_of(wanted: Wanted, speed: Speed | None = None) -> Cutter:
    """Return what cuts layers by the cost model.

    Args:
        wanted: what is to be computed of each layer.
        speed: of the workers, where that is known.
    """

    def cut(layer: ConvLayer, left: float, workers: int) -> Cut | None:
        costs = costs_of(layer, wanted, speed)
        most = max(LEAST, _PART * left / workers)
        if costs.whole.seconds <= most:
            return None
        pieces: list[tuple[Piece, float]] = []
        rest = costs.whole.seconds
        for name, work in costs.divisible.items():
            count = min(math.ceil(work.once / most), round(math.sqrt(work.once * workers / work.again)))
            if count > 1 or work.once > LEAST < rest - work.once:
                pieces += [(Piece(name, (k, count)), work.again + work.once / count) for k in range(count)]
                rest -= costs.each[name].seconds
        return Cut(rest, tuple(pieces)) if pieces else None

    return cut


def longest_task(cutter: Cutter, layer: ConvLayer, seconds: float, left: float, workers: int) -> float:
    """Return the seconds of the longest task that a layer becomes, on its own.

    Args:
        cutter: cuts it.
        layer: the layer.
        seconds: of all its work.
        left: seconds of all that is left.
        workers: how many share it.
    """
    cut = cutter(layer, left, workers)
    return max([cut.rest, *(each for _, each in cut.pieces)]) if cut else seconds

"""What a spectrum's values come down to: one place for every method, in one pass over values that come in parts."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsv.errors import ContradictionError
from convsv.results import Histogram

__all__ = ["QUANTILES", "Collector", "Statistics", "statistics"]

QUANTILES: tuple[str, ...] = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")
"""Probabilities, as the keys of ``Spectrum.quantiles``."""

_FINE, _COARSE = 1 << 18, 64
"""Bins while values come in, for quantiles; and bins of the histogram that is reported."""
_BUFFER = 1 << 18
"""Values that wait until it is worth a pass over the fine bins."""


@dataclass(frozen=True)
class Statistics:
    """The fields of a ``Spectrum`` that follow from its values; see there."""

    count: int
    max: float
    min: float
    frobenius: float
    stable_rank: float | None
    effective_rank: float | None
    condition: float | None
    quantiles: Mapping[str, float]
    histogram: Histogram
    quantile_error: float


def statistics(values: NDArray[np.float64], error: float = 0.0) -> Statistics:
    """Summarise singular values.

    Args:
        values: at least one, in descending order, finite, multiplicities counted.
        error: absolute bound on their error: a smallest value within it of 0 gives no condition number.

    Raises:
        ContradictionError: the values are not what is said above, which is a fault of the method.
    """
    collector = Collector(len(values))
    collector.add(values, 1)
    return collector.statistics(error)


class Collector:
    """Values in parts, summarised as they come; held as well where there is room.

    Sums are taken part by part, and those of all parts are added without rounding: the order of the parts changes
    nothing, nor does it whether one collector took them all or several did that are joined.

    Args:
        expected: most values that will be added, not counting how often each counts.
        hold: whether to hold them, in 8 bytes each; without that, quantiles are read off a fine histogram.
    """

    def __init__(self, expected: int, *, hold: bool = True) -> None:
        self._expected, self._hold = expected, hold
        self._held: dict[int, _Growing] = {}
        self._waiting: list[tuple[NDArray[np.float64], int]] = []
        self._count, self._size = 0, 0
        self._max, self._min = 0.0, math.inf
        self._sums: list[_Sums] = []
        self._bins = _Bins()

    @property
    def largest(self) -> float:
        """The largest value so far; 0 before the first."""
        return self._max

    def add(self, values: NDArray[np.float64], weight: int) -> None:
        """Take values of any shape and order, each of which counts ``weight`` times.

        Raises:
            ContradictionError: a value is negative or not finite, which is a fault of the method.
        """
        if not values.size:
            return
        flat = values.reshape(-1)
        least, most = float(flat.min()), float(flat.max())
        if not 0 <= least <= most < math.inf:
            raise ContradictionError("a spectrum must be finite, nonnegative values", found=f"{least!r} to {most!r}")
        self._max, self._min = max(self._max, most), min(self._min, least)
        self._count += weight * len(flat)
        if self._hold:
            self._held.setdefault(weight, _Growing(self._expected)).append(flat)
        self._sums.append(_Sums.of(flat, weight))
        self._waiting.append((flat, weight))
        self._size += len(flat)
        if self._size >= _BUFFER:
            self.settle()

    def settle(self) -> None:
        """Count what waits to be counted: it need not be kept, nor travel with the rest, any longer."""
        for flat, weight in _together(self._waiting):
            self._bins.add(flat, weight)
        self._waiting, self._size = [], 0

    @classmethod
    def joined(cls, collectors: Sequence[Collector]) -> Collector:
        """Return a collector of what several have taken; with a single one that is itself.

        Args:
            collectors: at least one; each is used up.
        """
        if len(collectors) == 1:
            return collectors[0]
        whole = cls(0, hold=all(one._hold for one in collectors))
        for one in collectors:
            one.settle()
            whole._max, whole._min = max(whole._max, one._max), min(whole._min, one._min)
            whole._count += one._count
            whole._sums += one._sums
            whole._bins.join(one._bins)
        for weight in sorted({weight for one in collectors for weight in one._held}) if whole._hold else ():
            whole._held[weight] = _Growing.joined([one._held.pop(weight) for one in collectors if weight in one._held])
        return whole

    def statistics(self, error: float = 0.0, exponent: int = 0) -> Statistics:
        """Return the summary of everything taken so far, times ``2^exponent``.

        Args:
            error: absolute bound on the error of the values, the exponent applied.
            exponent: of the unit that the values were given in.

        Raises:
            ContradictionError: no value was given.
        """
        if not self._count:
            raise ContradictionError("a spectrum must have values")
        self.settle()
        largest, smallest = _scaled(self._max, exponent), _scaled(self._min, exponent)
        relative, unit = math.frexp(self._max)
        scaled = [sums.in_unit(unit) for sums in self._sums]
        total, squares, logarithms = (math.fsum(column) for column in zip(*scaled, strict=True))
        quantiles, resolution = self._quantiles()
        return Statistics(
            count=self._count,
            max=largest,
            min=smallest,
            frobenius=_scaled(math.sqrt(squares), unit + exponent),
            stable_rank=squares / relative**2 if relative > 0 else None,
            # exp(-sum p log p) with p = value / total (Roy, Vetterli 2007), in a form that needs one pass.
            effective_rank=math.exp(math.log(total) - logarithms / total) if relative > 0 else None,
            condition=largest / smallest if smallest > error else None,
            quantiles={p: _scaled(value, exponent) for p, value in quantiles.items()},
            histogram=self._bins.histogram(exponent),
            quantile_error=_scaled(resolution, exponent),
        )

    def values(self) -> NDArray[np.float64]:
        """Return all values in descending order, each as often as it counts.

        Raises:
            ContradictionError: they were not held.
        """
        if not self._hold:
            raise ContradictionError("values were not held")
        everything = np.empty(self._count)
        position = 0
        for weight, held in self._held.items():
            for _ in range(weight):
                everything[position : position + held.size] = held.sorted()
                position += held.size
        everything.sort()
        return everything[::-1]

    def _quantiles(self) -> tuple[dict[str, float], float]:
        """Return the quantiles, by linear interpolation between the two nearest values, and their resolution."""
        if self._hold:
            parts = [(weight, held.sorted()) for weight, held in self._held.items()]
            return _interpolated(self._count, lambda rank: _order_statistic(parts, rank)), 0.0
        found = _interpolated(self._count, self._bins.order_statistic)
        return {p: min(max(v, self._min), self._max) for p, v in found.items()}, self._bins.width / 2


@dataclass(frozen=True)
class _Sums:
    """Sums over values divided by ``2^unit``, the size of the largest, so that squares neither overflow nor vanish."""

    unit: int
    total: float
    squares: float
    logarithms: float

    @staticmethod
    def of(values: NDArray[np.float64], weight: int) -> _Sums:
        """Return the sums of v, v^2 and v log v, each value counted ``weight`` times."""
        unit = math.frexp(float(values.max()))[1]
        relative = np.ldexp(values, -unit)
        positive = relative[relative > 0]
        sums = relative.sum(), relative @ relative, positive @ np.log(positive)
        return _Sums(unit, *(weight * float(number) for number in sums))

    def in_unit(self, unit: int) -> tuple[float, float, float]:
        """Return the three sums over values divided by ``2^unit``, which is not smaller than the own one."""
        shift = self.unit - unit
        logarithms = self.logarithms + shift * math.log(2) * self.total
        return math.ldexp(self.total, shift), math.ldexp(self.squares, 2 * shift), math.ldexp(logarithms, shift)


def _scaled(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _together(parts: Sequence[tuple[NDArray[np.float64], int]]) -> list[tuple[NDArray[np.float64], int]]:
    """Return one array a weight."""
    weights = sorted({weight for _, weight in parts})
    return [(np.concatenate([part for part, w in parts if w == weight]), weight) for weight in weights]


def _interpolated(count: int, value_at: Callable[[int], float]) -> dict[str, float]:
    quantiles = {}
    for probability in QUANTILES:
        # Counted from the largest value, as spectra descend.
        position = (1 - float(probability)) * (count - 1)
        before = min(int(position), count - 1)
        after = min(before + 1, count - 1)
        high, low = value_at(count - 1 - before), value_at(count - 1 - after)
        quantiles[probability] = high + (position - before) * (low - high)
    return quantiles


def _order_statistic(parts: Sequence[tuple[int, NDArray[np.float64]]], rank: int) -> float:
    """Return the value at a position, from 0, of all values in ascending order.

    Args:
        parts: how often values count, and the values in ascending order.
        rank: the position.
    """

    def at_most(value: float) -> int:
        return sum(weight * int(np.searchsorted(values, value, side="right")) for weight, values in parts)

    candidates = []
    for _, values in parts:
        first = bisect.bisect_right(range(len(values)), rank, key=lambda i, held=values: at_most(held[i]))  # type: ignore[misc]
        if first < len(values):
            candidates.append(float(values[first]))
    return min(candidates)


class _Growing:
    """Numbers added one array after the other, without a second copy when they are needed together."""

    def __init__(self, capacity: int) -> None:
        # Pages that nothing is written to take no memory.
        self._room = np.empty(capacity)
        self._sorted = True
        self.size = 0

    @staticmethod
    def joined(several: Sequence[_Growing]) -> _Growing:
        """Return all numbers of several."""
        whole = _Growing(sum(one.size for one in several))
        for one in several:
            whole.append(one._room[: one.size])
        return whole

    def __getstate__(self) -> dict[str, Any]:
        """Return what travels to another process: without the room that is still empty."""
        return {**self.__dict__, "_room": self._room[: self.size]}

    def append(self, values: NDArray[np.float64]) -> None:
        self._room[self.size : self.size + len(values)] = values
        self.size += len(values)
        self._sorted = False

    def sorted(self) -> NDArray[np.float64]:
        """Return all numbers in ascending order; a view."""
        held = self._room[: self.size]
        if not self._sorted:
            held.sort()
            self._sorted = True
        return held


@dataclass
class _Bins:
    """Counts in equal bins from 0 to a power of two that grows with the values: they do not depend on the order."""

    exponent: int | None = None
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_FINE, dtype=np.int64))

    @property
    def width(self) -> float:
        """Width of one bin."""
        return math.ldexp(1.0 / _FINE, self.exponent) if self.exponent is not None else 0.0

    def add(self, values: NDArray[np.float64], weight: int) -> None:
        """Count values, each ``weight`` times."""
        largest = float(values.max())
        if largest > 0:
            self._cover(math.frexp(largest)[1])
        # Below the top strictly, so no value falls behind the last bin.
        places = (np.ldexp(values, -(self.exponent or 0)) * _FINE).astype(np.int64)
        self.counts += weight * np.bincount(places, minlength=_FINE)

    def join(self, other: _Bins) -> None:
        """Count what another has counted; its bins are no longer its own."""
        if self.exponent is not None and other.exponent is not None:
            other._cover(self.exponent)
        if other.exponent is not None:
            self._cover(other.exponent)
        self.counts += other.counts

    def order_statistic(self, rank: int) -> float:
        """Return the middle of the bin that holds the value at a position, from 0, in ascending order."""
        place = int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))
        return (place + 0.5) * self.width

    def histogram(self, exponent: int) -> Histogram:
        """Return coarser bins, times ``2^exponent``."""
        coarse = self.counts.reshape(_COARSE, -1).sum(1)
        return Histogram(_scaled(1.0, (self.exponent or 0) + exponent), tuple(coarse.tolist()))

    def _cover(self, exponent: int) -> None:
        """Let the top be at least ``2^exponent``."""
        before, self.exponent = self.exponent, exponent if self.exponent is None else max(self.exponent, exponent)
        if before is None or before == self.exponent:
            return
        merged = min(self.exponent - before, _FINE.bit_length() - 1)
        narrow = self.counts.reshape(-1, 1 << merged).sum(1)
        self.counts = np.zeros(_FINE, dtype=np.int64)
        self.counts[: len(narrow)] = narrow

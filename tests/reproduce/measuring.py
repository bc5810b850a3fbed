"""Time and numbers in words."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

__all__ = ["cpu_seconds", "geometric_mean", "in_seconds", "rank_correlation", "slope", "spread"]

T = TypeVar("T")


def cpu_seconds(work: Callable[[], T], least: float = 0.0) -> tuple[T, float]:
    """Return what a function returns, and the processor time of one call; repeated until ``least`` seconds are spent.

    Processor time and not the clock, so that other work on the machine counts little. The least of all calls is taken.
    """
    result, best, spent = None, math.inf, 0.0
    while spent < least or best is math.inf:
        started = time.process_time()
        result = work()
        took = time.process_time() - started
        best, spent = min(best, took), spent + max(took, 1e-6)
    assert result is not None
    return result, best


def in_seconds(seconds: float) -> str:
    """Return a time with two significant digits."""
    return (
        f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s" if seconds < 99.5 else f"{seconds:.0f} s"
    )


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return float(np.exp(np.mean(np.log(np.fromiter(values, np.float64)))))


def spread(values: Sequence[float]) -> str:
    """Return the smallest and the largest of some numbers, and their geometric mean."""
    return f"{min(values):.3f} to {max(values):.3f}, geometric mean {geometric_mean(values):.3f}"


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent p of the power law y ~ x^p that fits best in logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Return Spearman's rank correlation; there are no ties in what is measured here."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])

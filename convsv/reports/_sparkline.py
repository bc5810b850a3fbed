"""A spectrum in a few characters: how its values are distributed between zero and the largest."""

from __future__ import annotations

import math

from convsv.results import Spectrum

__all__ = ["EMPTY", "SPARKLINE", "WIDTH", "sparkline"]

SPARKLINE = "0 … max"
"""Heading of a column of them."""

WIDTH = 8
"""Characters of a sparkline: so many equal parts of the range from 0 to the largest value."""
EMPTY = "·"
"""A part of the range that holds no value at all."""
_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(spectrum: Spectrum) -> str:
    """Return the histogram of a spectrum as blocks, from values near zero at the left to the largest at the right.

    The highest block is the fullest part of the range; a part that holds any value has at least the lowest block. A
    bin of the histogram that two parts share is divided between them.

    Args:
        spectrum: any spectrum; one without a histogram, or of the zero operator, gives an empty text.
    """
    histogram = spectrum.histogram
    if histogram is None or not 0 < spectrum.max < math.inf:
        return ""
    width = histogram.top / len(histogram.counts)
    parts = [0.0] * WIDTH
    for number, count in enumerate(histogram.counts):
        if count:
            # The last bin ends where the values do.
            low, high = number * width, min((number + 1) * width, max(spectrum.max, (number + 0.5) * width))
            _spread(parts, count, low / spectrum.max * WIDTH, high / spectrum.max * WIDTH)
    fullest = max(parts)
    if not fullest:
        return ""
    return "".join(_BLOCKS[min(7, int(8 * part / fullest))] if part else EMPTY for part in parts)


def _spread(parts: list[float], count: int, low: float, high: float) -> None:
    """Add ``count`` values that lie evenly between two positions."""
    for place in range(max(0, math.floor(low)), min(WIDTH, math.ceil(high))):
        overlap = min(high, place + 1) - max(low, place)
        parts[place] += count * max(0.0, overlap) / (high - low)

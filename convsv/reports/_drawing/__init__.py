"""The kinds of figures: each draws on a canvas that it is given, and knows no drawing library but that canvas.

A drawer raises UnavailableError where the data hold nothing of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from convsv.reports._drawing.canvas import Canvas, Palette
from convsv.reports._drawing.curves import PictureData, Surface
from convsv.reports._drawing.heatmap import draw_heatmap
from convsv.reports._drawing.intervals import draw_intervals
from convsv.reports._drawing.lines import draw_histogram, draw_spectrum
from convsv.reports._drawing.torus import draw_torus

__all__ = ["DRAWERS", "Canvas", "Palette", "PictureData", "Surface"]

DRAWERS: Mapping[str, Callable[[Canvas, PictureData], None]] = {
    "spectrum": draw_spectrum,
    "histogram": draw_histogram,
    "intervals": draw_intervals,
    "torus": draw_torus,
    "heatmap": draw_heatmap,
}
"""All kinds by name; the first paragraph of each docstring says what it shows."""

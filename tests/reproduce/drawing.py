"""Figures of the page, in the style of those that convsv draws of checkpoints."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from convsv.reports._drawing.canvas import log_numbers
from convsv.reports.figures import _METADATA, _PALETTES, _rc

__all__ = ["INK", "MUTED", "SERIES", "draw", "log_numbers", "shade"]

INK, MUTED, SERIES = _PALETTES["light"].ink, _PALETTES["light"].muted, _PALETTES["light"].series


def draw(paint: Callable[[Any], None], width: float = 7.2, height: float = 2.9) -> bytes:
    """Return what ``paint`` draws on an empty matplotlib figure as an SVG file; the same data give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        # Text as text keeps the files small; the page is read in a browser, which has a font.
        mpl.rcParams.update({**_rc(_PALETTES["light"]), "svg.fonttype": "none", "font.family": "sans-serif"})
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata=_METADATA["svg"])
    return b"\n".join(line.rstrip() for line in out.getvalue().splitlines()) + b"\n"


def shade(position: float) -> Any:
    """Return the colour of a layer by its depth, from 0 to 1."""
    import matplotlib as mpl

    return mpl.colormaps["cividis"](0.9 * position)

"""Spectra as lines, one a layer: over their index, and as histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from convsv.errors import UnavailableError
from convsv.reports._drawing.canvas import (
    Canvas,
    brief,
    captions,
    few_decades,
    file_name,
    guessed,
    log_numbers,
    name_rows,
)
from convsv.reports._drawing.curves import Curve, Panel, PictureData, guarantees, operators

__all__ = ["draw_histogram", "draw_spectrum"]

_LEGEND_LAYERS = 7
"""So many lines are told apart by colour and dashes; more take their colour from their depth."""
_MOST_STAIRS = 12
"""So many histograms can lie over each other; more are drawn as rows of an area."""
_MOST_PANELS = 24
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def _grid_of(canvas: Canvas, count: int, width: float, height: float) -> list[Any]:
    """Return axes for some panels, at most three beside each other.

    Raises:
        UnavailableError: too many to be read.
    """
    if count > _MOST_PANELS:
        raise UnavailableError(
            "too many panels for one figure", found=str(count), advice=f"draw at most {_MOST_PANELS}"
        )
    across = min(count, 3 if count not in (2, 4) else 2)
    down = math.ceil(count / across)
    scale = 1.0 if across == 1 else 0.78 if across == 2 else 0.66
    canvas.figure.set_size_inches(
        max(width, width * across * scale), 0.55 + down * height * (1 if across == 1 else 0.9)
    )
    made = canvas.figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel().tolist()
    for spare in made[count:]:
        spare.set_visible(False)
    return list(made[:count])


def _drawn_panels(data: PictureData, *, shares: bool) -> list[Panel]:
    """Return the panels that have something to draw.

    Raises:
        UnavailableError: none has.
    """
    for panel in data.panels.values():
        if shares:
            panel.curves = [curve for curve in panel.curves if curve.exact]
    panels = [panel for panel in data.panels.values() if panel.curves]
    if not panels:
        reasons = list(dict.fromkeys(why for panel in data.panels.values() for why in panel.left_out))
        raise UnavailableError("no spectrum to draw", found="; ".join(reasons[:2]) or None)
    return panels


def _lines(canvas: Canvas, axes: Any, panel: Panel, draw: Callable[[Any, Curve, dict[str, Any]], None]) -> None:
    """Draw the curves of a panel, with a legend for a few and a scale of depth for many."""
    curves = panel.curves
    many = len(curves) > _LEGEND_LAYERS
    for number, curve in enumerate(curves):
        shade = canvas.depth(number / max(1, len(curves) - 1)) if many else canvas.palette.series[number]
        width = max(0.5, 1.3 - len(curves) / 120) if many else 1.5
        look = {"color": shade, "linewidth": width, "alpha": 0.9 if many else 1.0}
        draw(axes, curve, look if many else look | {"linestyle": _DASHES[number], "label": brief(curve.name)})
    if many:
        _depth_scale(canvas, axes, [curve.name for curve in curves])
    else:
        axes.legend(loc="best", handlelength=2.6, borderaxespad=0.8)
    _caption(canvas, axes, panel)


def _depth_scale(canvas: Canvas, axes: Any, names: Sequence[str]) -> None:
    """Draw a scale that says which colour is which layer, with as many names as can be read."""
    shades = canvas.depth(np.linspace(0, 1, 256))[:, None]
    scale = axes.inset_axes((1.03, 0.0, 0.03, 1.0))
    scale.imshow(shades, aspect="auto", extent=(0, 1, len(names) - 0.5, -0.5), origin="upper")
    named = range(0, len(names), math.ceil(len(names) / 20))
    scale.set_xticks([])
    scale.yaxis.tick_right()
    scale.set_yticks(named, [brief(names[number], 28) for number in named])
    scale.tick_params(labelsize=6.5, length=2)
    scale.grid(False)
    for spine in scale.spines.values():
        spine.set_visible(False)


def _caption(canvas: Canvas, axes: Any, panel: Panel) -> None:
    what = f"{panel.method} · {operators(panel.operators)} · {guarantees(panel.guarantees)}"
    asides = [guessed(panel.assumed)]
    asides += [f"{number} not drawn: {brief(why, 46)}" for why, number in panel.left_out.items()]
    captions(canvas, axes, file_name(panel.path), [what, "; ".join(filter(None, asides))], reserve=2)


def draw_spectrum(canvas: Canvas, data: PictureData) -> None:
    """Singular values of each layer over their index, both normalised (the figure of Sedghi et al. 2019)."""
    panels = _drawn_panels(data, shares=False)

    def draw(axes: Any, curve: Curve, look: dict[str, Any]) -> None:
        axes.plot(curve.index, curve.values / curve.maximum, **look)

    # The last few values fall steeply: an axis that reached them would press all else together.
    lowest = min(
        float(np.interp(0.997, curve.index, curve.values)) / curve.maximum for panel in panels for curve in panel.curves
    )
    axes_of = _grid_of(canvas, len(panels), 6.4, 4.0)
    for axes, panel in zip(axes_of, panels, strict=True):
        _lines(canvas, axes, panel, draw)
        few_decades(axes, "y", min(0.5, max(lowest, 1e-6)) / 1.3, 1.25)
        axes.set_xlim(0, 1)
        axes.set_xlabel("normalised index: 0 the largest, 1 the smallest")
        axes.set_ylabel("σ / largest σ")
        axes.label_outer()
    canvas.title("Normalised singular values of each layer", partial=data.partial)


def draw_histogram(canvas: Canvas, data: PictureData) -> None:
    """Distribution of the singular values of each layer, both axes logarithmic; of many layers as an area."""
    panels = _drawn_panels(data, shares=True)
    shares = np.concatenate([curve.shares for panel in panels for curve in panel.curves])
    floor = max(5 * float(shares[shares > 0].min()), 1e-5)

    def draw(axes: Any, curve: Curve, look: dict[str, Any]) -> None:
        heights = curve.shares / np.diff(np.log10(curve.edges))
        axes.stairs(np.maximum(heights, floor / 10), curve.edges, baseline=floor / 10, **look)

    low = min(float(curve.edges[0]) for panel in panels for curve in panel.curves)
    top = max(float(curve.edges[-1]) for panel in panels for curve in panel.curves)
    ends = max(low, top * 1e-6) / 1.15, top * 1.15
    crowded = max(len(panel.curves) for panel in panels) > _MOST_STAIRS
    axes_of = _grid_of(canvas, len(panels), 6.4, 4.0)
    for axes, panel in zip(axes_of, panels, strict=True):
        if crowded:
            _rows(canvas, axes, panel, floor)
        else:
            _lines(canvas, axes, panel, draw)
            axes.set_yscale("log")
            axes.set_ylim(bottom=floor)
            log_numbers(axes.yaxis)
            axes.set_ylabel("share of values a decade")
        few_decades(axes, "x", *ends)
        axes.set_xlabel("singular value σ")
        axes.label_outer()
    canvas.title("Distribution of the singular values of each layer", partial=data.partial)


def _rows(canvas: Canvas, axes: Any, panel: Panel, floor: float) -> None:
    """Draw histograms as rows of an area, a layer each; their bins all come from one lattice."""
    edges = np.unique(np.round(np.concatenate([np.log10(curve.edges) for curve in panel.curves]), 6))
    whole = np.arange(edges[0], edges[-1] + 0.05, np.diff(edges).min())
    shares = np.full((len(panel.curves), len(whole) - 1), np.nan)
    for row, curve in enumerate(panel.curves):
        first = int(np.argmin(np.abs(whole - np.log10(curve.edges[0]))))
        heights = curve.shares / np.diff(np.log10(curve.edges))
        shares[row, first : first + len(heights)] = np.where(heights > 0, heights, np.nan)
    rows = np.arange(len(panel.curves) + 1) - 0.5
    image = axes.pcolormesh(10.0**whole, rows, np.ma.masked_invalid(shares), cmap=canvas.depth, norm="log")
    image.set_clim(floor, float(np.nanmax(shares)))
    image.set_rasterized(True)
    axes.grid(False)
    name_rows(canvas, axes, [brief(curve.name, 28) for curve in panel.curves], most=24)
    bar = canvas.figure.colorbar(image, ax=axes, label="share of values a decade", pad=0.02)
    few_decades(bar.ax, "y", floor, float(np.nanmax(shares)))
    bar.outline.set_visible(False)
    _caption(canvas, axes, panel)

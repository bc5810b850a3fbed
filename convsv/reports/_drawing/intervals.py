"""Certified intervals of norms, with spectra and published bounds beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convsv.errors import UnavailableError
from convsv.reports._drawing.canvas import Canvas, brief, few_decades, name_rows, reason
from convsv.reports._drawing.curves import PictureData, guarantees, operators
from convsv.reports._summary import bounds_of
from convsv.results import LayerReport, Spectrum

__all__ = ["draw_intervals"]


@dataclass(frozen=True)
class _Mark:
    """How points of one sort are drawn: in which colour of the series, and with which marker."""

    label: str
    colour: int
    marker: str
    hollow: bool = False


_UPPER = _Mark("certified upper bound", 0, "<")
_LOWER = _Mark("certified lower bound", 2, ">")
_ESTIMATE = _Mark("estimate: may be on the wrong side", 3, "o", hollow=True)
_SIZED = _Mark("bound of one size only", 5, "d", hollow=True)
_BESIDE = 0.3
"""Rows between the norm of any size and what is drawn with it."""
_SPECTRA = (_Mark("", 3, "o"), _Mark("", 2, "s"), _Mark("", 5, "D"), _Mark("", 1, "^"))


def draw_intervals(canvas: Canvas, data: PictureData) -> None:
    """Certified interval of each layer's norm with spectra and published bounds, absolute and relative to the norm.

    Raises:
        UnavailableError: no layer has a norm.
    """
    layers = [layer for layer in data.layers if layer.norm and layer.norm.upper > 0]
    if not layers:
        raise UnavailableError("no certified norm to draw", found=reason(data, "norm"))
    bounded = any(bounds_of(layer) for layer in layers)
    height = min(12.0, 1.9 + 0.2 * len(layers))
    canvas.figure.set_size_inches(9.6 if bounded else 6.4, max(2.6, height))
    found = canvas.figure.subplots(
        1, 2 if bounded else 1, sharey=True, squeeze=False, width_ratios=[1, 1.25][: 1 + bounded]
    )
    left = found[0][0]
    handles = _norm_rows(canvas, left, layers, data.methods)
    if bounded:
        handles |= _bound_rows(canvas, found[0][1], layers)
    name_rows(canvas, left, [brief(layer.name) for layer in layers])
    canvas.figure.legend(
        handles.values(), handles.keys(), loc="outside lower left", ncols=3 if bounded else 2, handletextpad=0.4
    )
    norms = [layer.norm for layer in layers if layer.norm]
    sure = guarantees(norm.guarantee for norm in norms)
    canvas.title(f"Operator norm of each layer: {operators(n.of for n in norms)}, {sure}", partial=data.partial)


def _norm_rows(canvas: Canvas, axes: Any, layers: Sequence[LayerReport], methods: Sequence[str]) -> dict[str, Any]:
    rows = np.arange(len(layers))
    ink = canvas.palette.ink
    size = 5.5 if len(layers) <= 60 else 3.0
    handles: dict[str, Any] = {}
    lower = np.array([layer.norm.lower for layer in layers if layer.norm])
    upper = np.array([layer.norm.upper for layer in layers if layer.norm])
    axes.hlines(rows, lower, upper, color=ink, linewidth=0.7 * size, zorder=3)
    for ends in (lower, upper):
        (handles["certified interval"],) = axes.plot(
            ends, rows, "|", color=ink, markersize=size + 3.5, markeredgewidth=1.4
        )
    extent = [upper, lower[lower > 0]]
    sized = [(row, layer.norm_at_size) for row, layer in enumerate(layers) if layer.norm_at_size]
    if sized:
        blue = canvas.palette.series[0]
        at = np.array([row for row, _ in sized]) + _BESIDE
        ends = np.array([(found.lower, found.upper) for _, found in sized])
        axes.hlines(at, *ends.T, color=blue, linewidth=size * 0.5, zorder=3)
        (handles["certified interval at its own size"],) = axes.plot(
            ends.mean(1), at, "|", color=blue, markersize=size, markeredgewidth=1.4
        )
        extent.append(ends.ravel())
    for method, mark in zip(methods, _SPECTRA, strict=False):
        spectra = [(row, layer.results.get(method)) for row, layer in enumerate(layers)]
        known = [(row, found) for row, found in spectra if isinstance(found, Spectrum) and found.max > 0]
        if known:
            at = np.array([row + _beside(layers[row], found) for row, found in known])
            values = np.array([found.max for _, found in known])
            about = operators(found.of for _, found in known)
            label = f"largest σ, {method}: {about}"
            (handles[label],) = axes.plot(
                values,
                at,
                mark.marker,
                color=canvas.palette.series[mark.colour],
                markersize=0.75 * size,
                markerfacecolor="none",
                markeredgewidth=0.9,
                zorder=4,
            )
            extent.append(values)
    every = np.concatenate(extent)
    few_decades(axes, "x", float(every.min()) / 1.15, float(every.max()) * 1.15)
    axes.set_xlabel("operator norm")
    axes.grid(axis="y", alpha=0.5)
    return handles


def _beside(layer: LayerReport, found: Spectrum) -> float:
    """Return how far below its layer's row a value is drawn: what is of the layer as it runs goes with that norm."""
    own = layer.norm_at_size.of if layer.norm_at_size else ""
    return _BESIDE if found.of == own or not found.of.startswith("circular") else -_BESIDE


def _mark_of(bound: Any) -> _Mark:
    if bound.guarantee != "certified":
        return _ESTIMATE
    if bound.of != "any size":
        return _SIZED
    return _UPPER if bound.side == "upper" else _LOWER


def _bound_rows(canvas: Canvas, axes: Any, layers: Sequence[LayerReport]) -> dict[str, Any]:
    points: dict[_Mark, list[tuple[float, int]]] = {}
    for row, layer in enumerate(layers):
        for bound in bounds_of(layer).values():
            if layer.norm and bound.value > 0 and math.isfinite(bound.value):
                end = layer.norm.upper if bound.side == "upper" else layer.norm.lower
                points.setdefault(_mark_of(bound), []).append((bound.value / (end or layer.norm.upper), row))
    size = 4.2 if len(layers) <= 60 else 2.6
    axes.axvline(1, color=canvas.palette.ink, linewidth=1.0, zorder=2)
    handles: dict[str, Any] = {}
    for mark in (_UPPER, _LOWER, _SIZED, _ESTIMATE):
        if mark in points:
            ratios, rows = np.array(points[mark]).T
            colour = canvas.palette.series[mark.colour]
            fill = {"markerfacecolor": "none", "markeredgewidth": 0.8} if mark.hollow else {"markeredgewidth": 0}
            (handles[mark.label],) = axes.plot(
                ratios, rows, mark.marker, color=colour, markersize=size, alpha=0.85, linestyle="none", **fill
            )
    every = np.array([ratio for found in points.values() for ratio, _ in found])
    few_decades(axes, "x", min(0.8, float(every.min()) / 1.15), max(1.3, float(every.max()) * 1.15))
    axes.set_xlabel("published bound / certified norm")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", alpha=0.5)
    return handles

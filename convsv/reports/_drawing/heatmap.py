"""Norms by layer and checkpoint."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convsv.errors import UnavailableError
from convsv.reports._drawing.canvas import Canvas, brief, few_decades, file_name, name_rows, reason
from convsv.reports._drawing.curves import PictureData, guarantees, operators
from convsv.reports._numbers import UP, short

__all__ = ["draw_heatmap"]


def draw_heatmap(canvas: Canvas, data: PictureData) -> None:
    """Certified norms, a row a layer and a column a checkpoint.

    Raises:
        UnavailableError: no layer has a norm.
    """
    names = list(dict.fromkeys(layer.name for layer in data.layers))
    paths = list(data.checkpoints)
    norms = np.full((len(names), len(paths)), np.nan)
    for column, path in enumerate(paths):
        for layer in data.checkpoints[path]:
            if layer.norm and layer.norm.upper > 0:
                norms[names.index(layer.name), column] = layer.norm.upper
    if not np.isfinite(norms).any():
        raise UnavailableError("no certified norm to draw", found=reason(data, "norm"))
    canvas.figure.set_size_inches(min(14.0, 3.6 + 0.62 * len(paths)), min(12.0, max(2.8, 1.8 + 0.2 * len(names))))
    axes = canvas.figure.subplots()
    axes.set_facecolor(canvas.palette.page)
    axes.patch.set(hatch="////", edgecolor=canvas.palette.faint)
    image = axes.imshow(
        np.ma.masked_invalid(norms), cmap=canvas.heat, norm="log", aspect="auto", interpolation="nearest"
    )
    name_rows(canvas, axes, [brief(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    step = math.ceil(len(paths) / 40)
    axes.set_xticks(range(0, len(paths), step), [file_name(path, 26) for path in paths[::step]])
    axes.tick_params(axis="x", rotation=40 if len(paths) > 1 else 0, labelsize=7, length=0)
    for label in axes.get_xticklabels():
        label.set(ha="right" if len(paths) > 1 else "center", rotation_mode="anchor")
    axes.grid(False)
    _numbers(axes, norms)
    bar = canvas.figure.colorbar(image, ax=axes, label="upper end of the certified norm", pad=0.02)
    few_decades(bar.ax, "y", *_range(norms))
    bar.outline.set_visible(False)
    found = [layer.norm for layer in data.layers if layer.norm]
    about = f"{operators(norm.of for norm in found)}, {guarantees(norm.guarantee for norm in found)}"
    canvas.title(f"Operator norms: {about}", partial=data.partial)
    if not np.isfinite(norms).all():
        axes.set_xlabel("hatched: no such layer, or no norm", color=canvas.palette.muted, fontsize=7)


def _range(norms: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of the scale of colours: never equal."""
    low, high = float(np.nanmin(norms)), float(np.nanmax(norms))
    return (low, high) if low < high else (low / 1.1, high * 1.1)


def _numbers(axes: Any, norms: NDArray[np.float64]) -> None:
    """Write the numbers into the cells, where they are few enough to be read."""
    rows, columns = norms.shape
    if columns > 12 or rows > 50:
        return
    logs = np.log(norms)
    middle = (np.nanmin(logs) + np.nanmax(logs)) / 2
    for row, column in zip(*np.nonzero(np.isfinite(norms)), strict=True):
        shade = "#101010" if logs[row, column] > middle else "#f4f4f4"
        axes.text(column, row, short(norms[row, column], UP, 3), ha="center", va="center", fontsize=6.5, color=shade)

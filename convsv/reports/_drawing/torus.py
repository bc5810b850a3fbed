"""The largest singular value of one layer over the frequency torus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convsv.errors import UnavailableError
from convsv.reports._drawing.canvas import Canvas, brief, captions, file_name, guessed, reason
from convsv.reports._drawing.curves import PictureData, Surface
from convsv.reports._numbers import DOWN, UP, short
from convsv.results import Interval

__all__ = ["draw_torus"]


def draw_torus(canvas: Canvas, data: PictureData) -> None:
    """Largest singular value of the symbol over all frequencies, for one layer.

    Raises:
        UnavailableError: there is none, or more than one.
    """
    if len(data.surfaces) != 1:
        found = f"{len(data.surfaces)} layers"
        raise UnavailableError("the torus is drawn for one layer", found=reason(data, "norm") or found)
    (path, _), surface = next(iter(data.surfaces.items()))
    layer = data.layers[0]
    canvas.figure.set_size_inches(5.6, 5.7 if surface.values.ndim == 2 else 3.8)
    axes = canvas.figure.subplots()
    (_torus_line if surface.values.ndim == 1 else _torus_area)(canvas, axes, surface)
    shape = "×".join(map(str, layer.shape))
    about = f"{file_name(path, 30)} · {layer.kind} {shape}, stride {_short_of(layer.geometry.stride)}"
    points = "×".join([str(len(surface.values))] * surface.values.ndim)
    lines = [about, f"{_norm_phrase(layer.norm)}; computed at {points} frequencies"]
    assumed = [name for name in ("stride", "dilation", "groups") if layer.geometry.origin.get(name) == "assumed"]
    lines.append("; ".join(filter(None, [_third_axis(surface), guessed(assumed)])))
    captions(canvas, axes, brief(layer.name, 50), lines)
    canvas.title("Largest singular value over the frequencies", partial=data.partial)


def _third_axis(surface: Surface) -> str:
    return "largest over the third frequency" if surface.axes > 2 else ""


def _short_of(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else "×".join(map(str, numbers))


def _norm_phrase(norm: Interval | None) -> str:
    if norm is None:
        return "norm not certified"
    return f"norm in [{short(norm.lower, DOWN)}, {short(norm.upper, UP)}], {norm.of}, {norm.guarantee}"


_TURNS = {-1.0: "−π", -0.5: "−π/2", 0.0: "0", 0.5: "π/2", 1.0: "π"}


def _torus_line(canvas: Canvas, axes: Any, surface: Surface) -> None:
    turns = np.linspace(-1, 1, len(surface.values))
    axes.plot(turns, surface.values, color=canvas.palette.series[0], linewidth=1.6)
    best = int(surface.values.argmax())
    axes.plot(turns[best], surface.values[best], "o", color=canvas.palette.series[3], markersize=5, clip_on=False)
    axes.set_xticks(list(_TURNS), _TURNS.values())
    axes.set_xlim(-1, 1)
    axes.set_ylim(0, float(surface.values.max()) * 1.06 or 1)
    axes.set_xlabel("frequency ω")
    axes.set_ylabel("σ₁(ω)")


def _torus_area(canvas: Canvas, axes: Any, surface: Surface) -> None:
    turns = np.linspace(-1, 1, len(surface.values))
    image = axes.imshow(
        surface.values,
        origin="lower",
        extent=(-1, 1, -1, 1),
        cmap=canvas.heat,
        interpolation="bilinear",
        aspect="equal",
    )
    spread = float(np.ptp(surface.values))
    if spread > 1e-9 * float(surface.values.max()):
        axes.contour(turns, turns, surface.values, 8, colors=canvas.palette.page, linewidths=0.5, alpha=0.6)
        row, column = np.unravel_index(int(surface.values.argmax()), surface.values.shape)
        for at in ((turns[column], turns[row]), (-turns[column], -turns[row])):
            axes.plot(
                *at,
                "o",
                markersize=6,
                color="none",
                markeredgecolor=canvas.palette.series[3],
                markeredgewidth=1.6,
                clip_on=False,
            )
    axes.set_xticks(list(_TURNS), _TURNS.values())
    axes.set_yticks(list(_TURNS), _TURNS.values())
    axes.set_xlabel("horizontal frequency ω₂ (last axis)")
    axes.set_ylabel("vertical frequency ω₁")
    axes.grid(False)
    bar = canvas.figure.colorbar(image, ax=axes, shrink=0.9, label="σ₁(ω); circles mark its maximum")
    bar.outline.set_visible(False)

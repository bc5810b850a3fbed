"""What every kind of figure draws on and writes with. Nothing here imports a drawing library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from convsv.reports._drawing.curves import PictureData
from convsv.reports._text import visible

__all__ = [
    "Canvas",
    "Palette",
    "brief",
    "captions",
    "few_decades",
    "file_name",
    "guessed",
    "log_numbers",
    "name_rows",
    "reason",
]

_NAME_LENGTH = 30
_NAMED_ROWS = 76


@dataclass(frozen=True)
class Palette:
    """The colours of a theme.

    Attributes:
        ink: words and what matters.
        muted: what explains.
        faint: grid lines.
        page: the background.
        series: lines that are told apart.
        shades: which part of the sequential colours stands out from the page.
    """

    ink: str
    muted: str
    faint: str
    page: str
    series: tuple[str, ...]
    shades: tuple[float, float]


@dataclass(frozen=True)
class Canvas:
    """What a kind draws on.

    Attributes:
        figure: a matplotlib figure with nothing on it.
        palette: its colours.
        depth: colours for layers by their depth, callable with numbers from 0 to 1.
        heat: colours for areas.
    """

    figure: Any
    palette: Palette
    depth: Any
    heat: Any

    def title(self, text: str, *, partial: bool) -> None:
        """Write the headline."""
        said = f"{text} (interrupted: not all layers)" if partial else text
        self.figure.suptitle(said, x=0.012, ha="left", fontsize=11, fontweight="bold")


# ------------------------------------------------------------------------------------------------------------- words


def brief(name: str, length: int = _NAME_LENGTH) -> str:
    """Return a name from a file, harmless and cut in the middle."""
    shown = visible(name) or '""'
    if len(shown) <= length:
        return shown
    head = (length - 1) // 3
    return f"{shown[:head]}…{shown[head + 1 - length :]}"


def file_name(path: str, length: int = 44) -> str:
    return brief(PurePath(path).name or path, length)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(value: float, _: object = None) -> str:
    """Return a tick's number: plain where that is short, else as a power of ten."""
    if value <= 0 or not math.isfinite(value):
        return ""
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10.0**exponent
    if -3 < exponent < 4:
        return f"{value:.6g}"
    times = "" if abs(mantissa - 1) < 1e-6 else f"{mantissa:.3g}·"
    return f"{times}10{str(exponent).translate(_SUPERSCRIPTS)}"


def guessed(names: Sequence[str]) -> str:
    listed = ", ".join(name.replace("_", " ") for name in names)
    return f"assumed: {listed}" if listed else ""


def log_numbers(axis: Any) -> None:
    axis.set_major_formatter(_power)
    axis.set_minor_formatter(lambda value, position: "")


def few_decades(axes: Any, axis: str, low: float, high: float) -> None:
    """Scale an axis by its logarithm, with numbers at 1, 2 and 5 where it spans little."""
    getattr(axes, f"set_{axis}scale")("log")
    getattr(axes, f"set_{axis}lim")(low, high)
    scale = getattr(axes, f"{axis}axis")
    if high / low < 1e4:
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        steps: tuple[float, ...] = (1, 2, 5) if high / low < 120 else (1,)
        if high / low < 5:
            steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
        scale.set_ticks([step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high])
    log_numbers(scale)
    scale.set_ticks([], minor=True)


def captions(canvas: Canvas, axes: Any, head: str, lines: Sequence[str], reserve: int = 0) -> None:
    """Write a heading above axes and smaller lines below it, with room for at least ``reserve`` lines."""
    shown = [line for line in lines if line]
    shown += [""] * (reserve - len(shown))
    step = 10.5
    for number, line in enumerate(reversed(shown)):
        axes.annotate(
            line,
            (0, 1),
            (0, 5 + number * step),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7,
            color=canvas.palette.muted,
            annotation_clip=False,
        )
    axes.set_title(head, loc="left", pad=7 + len(shown) * step)


def reason(data: PictureData, key: str) -> str | None:
    return next((layer.unavailable[key] for layer in data.layers if key in layer.unavailable), None)


def name_rows(canvas: Canvas, axes: Any, names: Sequence[str], most: int = _NAMED_ROWS) -> None:
    """Name rows from the top, thinned where there are more than ``most`` of them."""
    step = math.ceil(len(names) / most)
    axes.set_yticks(range(0, len(names), step), names[::step])
    axes.tick_params(axis="y", labelsize=7 if len(names) <= 50 else 6, length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    if step > 1:
        axes.set_ylabel(f"one layer in {step} is named", color=canvas.palette.muted, fontsize=7)

"""Hand-made reports, and names as strangers might write them."""

from __future__ import annotations

import numpy as np

from convsv.geometry import Geometry, GeometryFacts, resolve
from convsv.results import Bound, CheckpointReport, Clipping, Interval, LayerReport, Report, Spectrum

HOSTILE_NAMES = {
    "line ends": "layer\r\n1.conv\n2",
    "tab": "a\tb",
    "ansi": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "c1 control": "a\x9b31mb\x85c",
    "nul and del": "a\0b\x7fc",
    "right to left": "abc\u202egpj.exe\u2066x\u2069",
    "line separator": "a\u2028b\u2029c",
    "zero width": "a\u200bb\ufeffc",
    "markup": "[bold]x[/bold] [/x] :smile:",
    "markdown": "a|b`c``d *e* <script>alert(1)</script> [x](y)",
    "formula": '=HYPERLINK("http://x","y")',
    "plus": "+1+1",
    "minus": "-2+3",
    "at": "@SUM(1)",
    "tab formula": "\t=1",
    "return formula": "\r=1",
    "line formula": "\n=1",
    "apostrophe": "'quoted",
    "apostrophe and quote": "'\"x",
    "quotes and commas": 'a "b", c;d',
    "backslashes": "a\\nb\\\\c\\x41\\",
    "unicode": "слой.卷积.🧠.é",
    "lone surrogate": "conv\udcff.\ud800x",
    "spaces": "  a  b ",
    "empty": "",
}


def spectrum(values: list[float], of: str = "circular 32x32", **changes: object) -> Spectrum:
    """Return a circulant spectrum of the given values, its statistics by their definitions."""
    array = np.sort(np.array(values))[::-1]
    shares = array / array.sum()
    facts: dict[str, object] = {
        "method": "circulant",
        "of": of,
        "guarantee": "certified",
        "count": len(values),
        "max": float(array[0]),
        "min": float(array[-1]),
        "frobenius": float(np.linalg.norm(array)),
        "stable_rank": float((np.linalg.norm(array) / array[0]) ** 2),
        "effective_rank": float(np.exp(-np.sum(shares * np.log(shares)))),
        "condition": float(array[0] / array[-1]),
        "quantiles": {p: float(np.quantile(array, float(p))) for p in ("0.01", "0.5", "0.99")},
        "error": 1e-12,
        "assumes": ("size",),
        "values": array,
    }
    return Spectrum(**{**facts, **changes})  # type: ignore[arg-type]


def geometry(size: int = 32, stride: int | None = None, **facts: object) -> Geometry:
    """Return a 2-d geometry of a 3x3 kernel, whose stride is assumed when not given."""
    said = GeometryFacts(size=size, stride=stride, **facts)  # type: ignore[arg-type]
    return resolve((3, 3), [("stored", said)])


def layer(name: str = "conv1", **changes: object) -> LayerReport:
    """Return the report of one 3x3 layer with a norm between 2.0188123 and 2.0194987."""
    facts: dict[str, object] = {
        "name": name,
        "weight": f"{name}.weight",
        "kind": "conv2d",
        "shape": (64, 32, 3, 3),
        "dtype": "float32",
        "geometry": geometry(),
        "norm": Interval(2.0188123, 2.0194987, assumes={"lower": ("stride",), "upper": ()}, evaluations=120),
    }
    return LayerReport(**{**facts, **changes})  # type: ignore[arg-type]


def clipping(**changes: object) -> Clipping:
    """Return what clipping to a norm of 1 did to a layer."""
    facts: dict[str, object] = {
        "radius": 1.0,
        "method": "nearest",
        "norm_before": Interval(2.0188123, 2.0194987),
        "norm_after": Interval(0.99912345, 0.99998765),
        "distance": 0.31234,
        "iterations": 12,
    }
    return Clipping(**{**facts, **changes})  # type: ignore[arg-type]


def bounds() -> dict[str, Bound]:
    """Return four bounds of a norm near 2.019: two certified upper ones, a lower one and an estimate."""
    return {
        "singla2021": Bound("singla2021", 3.123456789, "upper", "any size", "certified", 1.5466, 0.0123),
        "araujo2021": Bound("araujo2021", 2.523456789, "upper", "any size", "certified", 1.2495, 0.4),
        "miyato2018": Bound("miyato2018", 1.512345678, "lower", "any size", "certified", 0.7491, 0.001),
        "grishina2024": Bound("grishina2024", 2.223456789, "upper", "any size", "estimate", 1.1010, 2.5),
    }


def report(*layers: LayerReport, command: str = "analyze", **settings: object) -> Report:
    """Return a report of one checkpoint with these layers."""
    checkpoint = CheckpointReport("model.pt", "pytorch", "ab" * 32, ("conv9: quantised",), layers)
    return Report(command, {"methods": (), "norm": command in ("analyze", "bounds"), **settings}, (checkpoint,))

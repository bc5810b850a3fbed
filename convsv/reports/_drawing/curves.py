"""What figures show of a report: a few hundred points a layer, so that whole spectra need not be kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from convsv.results import CheckpointReport, LayerReport, Spectrum

__all__ = ["Curve", "Panel", "PictureData", "Surface", "curve_of", "guarantees", "operators"]

Array = NDArray[np.float64]

_POINTS = 300
_END_POINTS = 60
_BINS_A_DECADE = 10
_SMALLEST = 1e-8
"""Relative to the largest value: nothing below is drawn on a log axis, where it would press all else together."""


@dataclass(frozen=True)
class Curve:
    """A spectrum in a few hundred points.

    Attributes:
        name: the layer.
        index: ``(P,)``, ascending from 0, the largest value, to 1, the smallest.
        values: ``(P,)``, descending; those that cannot be told from zero are left out.
        maximum: the largest value.
        edges: ``(B + 1,)``, ascending: bins on a log axis.
        shares: ``(B,)``: share of all values in each bin.
        exact: whether it was drawn from the values themselves and not from a few quantiles of them.
    """

    name: str
    index: Array
    values: Array
    maximum: float
    edges: Array
    shares: Array
    exact: bool = True


@dataclass(frozen=True)
class Surface:
    """The largest singular value of one layer's symbol over the frequency torus.

    Attributes:
        values: ``(N,)`` or ``(N, N)``: at frequencies from -pi to pi, both ends included.
        axes: number of the layer's spatial axes; over a third one the largest value was taken.
    """

    values: Array
    axes: int


@dataclass
class Panel:
    """The spectra of one checkpoint by one method.

    Attributes:
        path: the checkpoint.
        method: the method.
        curves: what can be drawn.
        operators: the operators they are about.
        guarantees: what stands behind them.
        assumed: names of the geometry they lean on that is a guess.
        left_out: why the other layers are not drawn, with their number.
    """

    path: str
    method: str
    curves: list[Curve] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    guarantees: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def add(self, layer: LayerReport) -> None:
        """Take the spectrum of one layer."""
        spectrum = layer.results.get(self.method)
        if not isinstance(spectrum, Spectrum):
            self._leave_out(layer.unavailable.get(self.method, "not computed"))
            return
        curve = curve_of(layer.name, spectrum)
        if curve is None:
            self._leave_out("only some values known" if spectrum.kind == "leading" else "all values are zero")
            return
        self.curves.append(curve)
        self.operators.append(spectrum.of)
        self.guarantees.append(spectrum.guarantee)
        self.assumed += [name for name in spectrum.assumes if name not in self.assumed]

    def _leave_out(self, why: str) -> None:
        self.left_out[why] = self.left_out.get(why, 0) + 1


@dataclass
class PictureData:
    """All that a figure of any kind needs, collected layer by layer.

    Attributes:
        methods: the spectra asked for, in order.
        checkpoints: layers without their values, by checkpoint in order.
        panels: spectra by checkpoint and method.
        surfaces: surfaces by checkpoint and weight.
        partial: whether the run was interrupted.
    """

    methods: Sequence[str] = ()
    checkpoints: dict[str, list[LayerReport]] = field(default_factory=dict)
    panels: dict[tuple[str, str], Panel] = field(default_factory=dict)
    surfaces: dict[tuple[str, str], Surface] = field(default_factory=dict)
    partial: bool = False

    def add(self, checkpoint: CheckpointReport, layer: LayerReport) -> None:
        """Take one layer; its values are not kept."""
        for method in self.methods:
            key = (checkpoint.path, method)
            self.panels.setdefault(key, Panel(*key)).add(layer)
        self.checkpoints.setdefault(checkpoint.path, []).append(_without_values(layer))

    @property
    def layers(self) -> list[LayerReport]:
        """All layers of all checkpoints."""
        return [layer for layers in self.checkpoints.values() for layer in layers]


def _without_values(layer: LayerReport) -> LayerReport:
    results = {
        method: result.without_whole_values() if isinstance(result, Spectrum) else result
        for method, result in layer.results.items()
    }
    return replace(layer, results=results)


def curve_of(name: str, spectrum: Spectrum) -> Curve | None:
    """Return a spectrum as a curve; None where there is nothing to draw: some values only, or all of them zero."""
    if spectrum.kind == "leading" or not spectrum.max > 0:
        return None
    if spectrum.values is None:
        index, values = _from_quantiles(spectrum)
        edges, shares = np.zeros(0), np.zeros(0)
    else:
        ranks = _ranks(len(spectrum.values))
        index, values = ranks / max(1, len(spectrum.values) - 1), spectrum.values[ranks]
        edges, shares = _shares(spectrum.values, spectrum.error or 0.0)
    seen = values > max(_SMALLEST * spectrum.max, spectrum.error or 0.0)
    if not seen.any():
        return None
    return Curve(name, index[seen], values[seen], spectrum.max, edges, shares, exact=spectrum.values is not None)


def _ranks(count: int) -> NDArray[np.int64]:
    """Return the ranks to draw: evenly over all, and more of them at both ends, where a log axis is steep."""
    even = np.linspace(0, count - 1, min(count, _POINTS))
    ends = np.geomspace(1, count, min(count, _END_POINTS)) - 1
    return np.unique(np.round(np.concatenate([even, ends, count - 1 - ends]))).astype(np.int64)


def _from_quantiles(spectrum: Spectrum) -> tuple[Array, Array]:
    known = {1 - float(p): value for p, value in spectrum.quantiles.items()}
    known |= {0.0: spectrum.max, 1.0: spectrum.min}
    index = np.array(sorted(known))
    return index, np.array([known[p] for p in sorted(known)])


def _shares(values: Array, error: float) -> tuple[Array, Array]:
    """Return bins whose edges are the same for every spectrum, and the share of all values in each."""
    top = float(values[0])
    lowest = max(float(values[-1]), _SMALLEST * top, error)
    first = math.floor(math.log10(lowest if lowest < top else top) * _BINS_A_DECADE)
    last = max(first, math.floor(math.log10(top) * _BINS_A_DECADE)) + 1
    edges = 10.0 ** (np.arange(first, last + 1) / _BINS_A_DECADE)
    counts, _ = np.histogram(values, edges)
    return edges, counts / len(values)


# --------------------------------------------------------------------------------------------------------- in words


def operators(found: Iterable[str]) -> str:
    """Return what operators numbers are about, without naming every size."""
    names = list(dict.fromkeys(found))
    kinds = list(dict.fromkeys(name.partition(" ")[0] for name in names))
    if len(names) == 1:
        return names[0]
    return f"{kinds[0]}, each layer at its size" if len(kinds) == 1 else ", ".join(kinds)


def guarantees(found: Iterable[str]) -> str:
    """Return the guarantees of some numbers, the strongest first."""
    return " / ".join(sorted(set(found), key=("certified", "probabilistic", "estimate").index))

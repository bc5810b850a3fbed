"""A spectrum computed by several tasks, each of which takes a share of the frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from convsv.execution import Execution
from convsv.layer import ConvLayer
from convsv.results import Spectrum
from convsv.spectra._shared import Shared
from convsv.spectra._statistics import Collector

if TYPE_CHECKING:
    from convsv.spectra import SpectrumOptions

__all__ = ["Division", "SpectrumPart"]


@dataclass(frozen=True)
class SpectrumPart:
    """What a share of the frequencies makes of a spectrum; it can travel to another process.

    Attributes:
        collector: took the values, in units of ``2^exponent``.
        error: absolute bound on the error of each of them, the exponent applied.
        exponent: of the unit.
    """

    collector: Collector
    error: float
    exponent: int


class ComputePart(Protocol):
    """Computes a share of a spectrum."""

    def __call__(
        self, layer: ConvLayer, execution: Execution, options: SpectrumOptions, shared: Shared, share: tuple[int, int]
    ) -> SpectrumPart:
        """Return the k-th of n shares, from 0, for the share ``(k, n)``; a share may be empty."""


class Combine(Protocol):
    """Puts a spectrum together."""

    def __call__(self, layer: ConvLayer, options: SpectrumOptions, parts: Sequence[SpectrumPart]) -> Spectrum:
        """Return the spectrum of a layer, of which all n shares are given, in order; they are used up."""


@dataclass(frozen=True)
class Division:
    """How a method's work on one layer is divided.

    What the parts come to does not depend on how many there are: it equals what the method returns by itself, where
    the execution is the same, to the last bit.

    Attributes:
        part: computes a share.
        whole: puts all of them together, without reading the layer.
    """

    part: ComputePart
    whole: Combine

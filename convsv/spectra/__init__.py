"""Spectra of layers: the door. A method is one file in this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from convsv.errors import UsageError
from convsv.execution import Execution
from convsv.layer import ConvLayer
from convsv.registry import Registry
from convsv.results import Guarantee, Spectrum
from convsv.spectra._division import Division, SpectrumPart
from convsv.spectra._shared import Shared

__all__ = [
    "DEFAULT",
    "SPECTRA",
    "Compute",
    "Division",
    "Method",
    "Shared",
    "SpectrumOptions",
    "SpectrumPart",
    "method",
]


@dataclass(frozen=True)
class SpectrumOptions:
    """What is wanted of a spectrum; each method looks at what concerns it.

    Attributes:
        values: whether to keep the values; a method that need not hold them all summarises them as they come.
        accuracy: wanted bound on the error of each value, relative to the largest; None for 1e-9 in float64 and 1e-6
            in float32. A method may be more accurate, and states the error that it has.
        top: exact: so many leading values instead of all; None for all where that is cheap, else a few.
        trailing: exact: so many of the smallest values beside the leading ones.
        full: exact: all values, whatever the cost, within the memory budget.
        density: exact: also how all values are distributed, by stochastic Lanczos quadrature where they are too many.
    """

    values: bool = True
    accuracy: float | None = None
    top: int | None = None
    trailing: int = 0
    full: bool = False
    density: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be counted.

        Raises:
            UsageError: fewer than one leading, or fewer than no trailing value, or some and all values at once; an
                accuracy that is not positive.
        """
        if self.accuracy is not None and not self.accuracy > 0:
            raise UsageError("accuracy must be positive", found=str(self.accuracy))
        if (self.top is not None and self.top < 1) or self.trailing < 0:
            raise UsageError("a number of values must be positive", found=f"top {self.top}, trailing {self.trailing}")
        if self.full and (self.top is not None or self.trailing):
            raise UsageError("all values and some of them cannot be asked for at once", advice="drop full, or the rest")


DEFAULT = SpectrumOptions()
"""Whole spectra, to the accuracy of the dtype."""


class Compute(Protocol):
    """Computes a spectrum."""

    __doc__: str | None

    def __call__(
        self, layer: ConvLayer, execution: Execution, options: SpectrumOptions = ..., shared: Shared | None = ...
    ) -> Spectrum:
        """Return the spectrum of a layer.

        Args:
            layer: any layer.
            execution: where to compute.
            options: what is wanted.
            shared: what is known already, of this layer and this execution; it changes the time, never the result.

        Raises:
            UnavailableError: this layer has none, with the reason as its text.
        """


@dataclass(frozen=True)
class Method:
    """A way to compute a spectrum.

    Attributes:
        name: what users call it; also the key of its results.
        guarantee: the best guarantee that its values carry.
        reference: the paper it follows.
        compute: does it.
        division: how the work on one layer is divided; None where it is not.
    """

    name: str
    guarantee: Guarantee
    reference: str
    compute: Compute
    division: Division | None = None


SPECTRA: Registry[Method] = Registry("method", "convsv.spectra")
"""All methods by name."""


def method(
    name: str, *, guarantee: Guarantee, reference: str, division: Division | None = None
) -> Callable[[Compute], Compute]:
    """Return a decorator that registers a function as the spectral method ``name``.

    Args:
        name: what users call it.
        guarantee: the best guarantee that its values carry.
        reference: the paper it follows.
        division: how the work on one layer is divided; None where it is not.
    """

    def register(compute: Compute) -> Compute:
        SPECTRA.add(name, Method(name, guarantee, reference, compute, division))
        return compute

    return register

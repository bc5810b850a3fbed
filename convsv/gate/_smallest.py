"""The smallest singular value of a layer as it runs, and its condition, as far as they can be certified."""

from __future__ import annotations

import math
from collections.abc import Callable

from convsv.certificate import Budget, certify_smallest
from convsv.errors import UnavailableError
from convsv.gate._norm import STATE, GateOptions
from convsv.layer import ConvLayer
from convsv.results import Finding, Interval, Spectrum, Verdict
from convsv.rounding import above, below
from convsv.spectra import SPECTRA, Shared, SpectrumOptions

__all__ = ["Smallest", "judged", "smallest"]

_RUNNING = ("size", "stride", "padding", "padding_mode", "dilation", "groups", "transposed")
"""What the singular values of a layer as it runs depend on."""
_EVERY_SIZE = "circular, every size"
_WIDTH = 1e-4


class Smallest:
    """What is known of the smallest singular value.

    Attributes:
        value: holds the smallest singular value.
        condition: holds the largest one over it.
        exact: the spectrum it comes from, if it does.
        symbol_min: the infimum over all frequencies it comes from, if it does.
    """

    def __init__(
        self,
        value: Interval,
        largest: Interval,
        exact: Spectrum | None = None,
        symbol_min: Interval | None = None,
    ) -> None:
        self.value, self.exact, self.symbol_min = value, exact, symbol_min
        low = below(largest.lower / value.upper, 2) if value.upper > 0 else math.inf
        high = above(largest.upper / value.lower, 2) if value.lower > 0 else math.inf
        self.condition = Interval(max(low, 1.0), high, value.of)


def smallest(layer: ConvLayer, options: GateOptions, norm: Callable[[], Interval]) -> Smallest:
    """Return what is known of the smallest of the ``min(rows, columns)`` singular values of a layer as it runs.

    With complete geometry it comes from the exact spectrum: of all values where they are affordable, else from a
    trailing one, which is certified from above only. A layer that is a whole circular convolution of unknown size has
    the infimum of the symbol's smallest value over all frequencies as its lower end.

    Args:
        layer: the layer.
        options: how to decide.
        norm: gives the certified size-free norm.

    Raises:
        UnavailableError: nothing is known of it, with the reason.
        CheckpointError: its tensor could not be read.
    """
    guessed = layer.geometry.guessed(*_RUNNING)
    if layer.folded is not None and not layer.folded.known:
        raise UnavailableError("the epsilon of the folded batch normalisation is a guess")
    if not guessed:
        return _at_size(layer, options)
    if guessed == ("size",) and _is_full_circle(layer):
        return _at_every_size(layer, options, norm())
    names = ", ".join(name.replace("_", " ") for name in guessed)
    raise UnavailableError(f"singular values depend on the {names}, which nothing tells; {STATE}")


def _at_size(layer: ConvLayer, options: GateOptions) -> Smallest:
    exact = SPECTRA["exact"].compute
    spectrum = exact(layer, options.execution, SpectrumOptions(values=False))
    if spectrum.kind != "full":
        spectrum = exact(layer, options.execution, SpectrumOptions(values=False, top=1, trailing=1))
    if spectrum.kind == "full" and spectrum.error is not None:
        error = spectrum.error
        value = Interval(below(spectrum.min - error), above(spectrum.min + error), spectrum.of)
        largest = Interval(below(spectrum.max - error), above(spectrum.max + error))
    else:  # what iterations find is certified from one side
        value = Interval(0.0, spectrum.min if spectrum.trailing else math.inf, spectrum.of)
        largest = Interval(spectrum.max, math.inf if spectrum.upper is None else spectrum.upper)
    return Smallest(value, largest, exact=spectrum)


def _at_every_size(layer: ConvLayer, options: GateOptions, norm: Interval) -> Smallest:
    shared = Shared(layer, options.execution)
    shared.require_entries()
    budget = Budget(seconds=options.seconds)
    found = shared.in_its_units(certify_smallest(shared.form, _WIDTH, execution=options.execution, budget=budget))
    return Smallest(Interval(found.lower, math.inf, _EVERY_SIZE), Interval(0.0, norm.upper), symbol_min=found)


def _is_full_circle(layer: ConvLayer) -> bool:
    """Tell whether the layer is a whole circular convolution at every size: stride 1, and padded by its reach."""
    geometry = layer.geometry
    axes = zip(geometry.padding, layer.kernel_size, geometry.dilation, strict=True)
    full = all(before + after == d * (k - 1) for (before, after), k, d in axes)
    return geometry.padding_mode == "circular" and max(geometry.stride) == 1 and full


def judged(criterion: str, limit: float, found: Smallest) -> Finding:
    """Return the verdict on ``min_norm`` or ``max_condition``."""
    if criterion == "min_norm":
        interval = found.value
        passes, fails = interval.lower >= limit, interval.upper < limit
    else:
        interval = found.condition
        passes, fails = interval.upper <= limit, interval.lower > limit
    verdict: Verdict = "PASS" if passes else "FAIL" if fails else "UNDECIDED"
    return Finding(criterion, limit, verdict, interval, _why_open(found) if verdict == "UNDECIDED" else "")


def _why_open(found: Smallest) -> str:
    if found.value.of == _EVERY_SIZE:
        return "no statement about every size decides, and the size is unknown; state it with --size"
    if found.exact is not None and found.exact.kind != "full":
        return "the layer is too large for all of its singular values, and its extreme ones do not decide"
    return "the limit is within rounding of the value"

"""What changed between two versions of a layer: its norm, its kernel, its spectrum; and which changes were named.

Nothing is computed from weights here but the distance of two kernels: norms and spectra come with the reports, whether
these were made just now or read from a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convsv.errors import UsageError
from convsv.results import (
    Histogram,
    Interval,
    LayerChange,
    LayerReport,
    Spectrum,
    SpectrumChange,
    Status,
    Step,
    Trend,
)

__all__ = [
    "EVENTS",
    "Condition",
    "Version",
    "compare_layers",
    "happened",
    "in_order",
    "parse_conditions",
    "wasserstein",
]

_FACTS = ("stride", "padding", "padding_mode", "dilation", "groups", "transposed", "size")
EVENTS = ("added", "removed", "reshaped", "changed", "norm-increase", "norm-decrease")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Version:
    """A layer in one checkpoint.

    Attributes:
        report: what is known of it.
        kernel: ``(c_out, c_in a group, *K)`` float64, of the forward convolution; None where it is not at hand.
        why_not: why it is not.
        content: hash of the whole checkpoint, where known.
        form: format of the checkpoint: of two equal ones the order of the axes is the same.
    """

    report: LayerReport
    kernel: Array | None = None
    why_not: str = "a report holds no kernels"
    content: str | None = None
    form: str = ""


def compare_layers(name: str, old: Version | None, new: Version | None, method: str | None) -> LayerChange:
    """Return what changed from one version of a layer to another.

    Args:
        name: the layer's name.
        old: the version before; None where the layer is added.
        new: the version after; None where it is removed.
        method: the spectrum to compare; None for none.
    """
    if old is None or new is None:
        status: Status = "added" if old is None else "removed"
        return LayerChange(name, status, old.report if old else None, new.report if new else None)
    if _is_reshaped(old, new):
        return LayerChange(name, "reshaped", old.report, new.report, geometry=_facts(old.report, new.report))
    unavailable: dict[str, str] = {}
    unlike = old.report.read_unlike(new.report)
    trend, ratio = (None, None) if unlike else _norm_change(old.report.norm, new.report.norm)
    if unlike:
        names = " and ".join(name.replace("_", " ") for name in unlike)
        unavailable["norm"] = f"the two are read with another {names}, which one of them only guesses"
    elif ratio is None:
        unavailable["norm"] = _why(old, new, "norm")
    distance: float | None = None
    if old.kernel is not None and new.kernel is not None:
        distance = _distance(old.kernel, new.kernel)
    else:
        unavailable["kernel_distance"] = old.why_not if old.kernel is None else new.why_not
    spectrum = None
    if method is not None:
        spectrum = _spectrum_change(method, old, new)
        if spectrum is None:
            unavailable[method] = _why(old, new, method)
    return LayerChange(
        name=name,
        status=_status(old, new, trend),
        old=old.report,
        new=new.report,
        trend=trend,
        ratio=ratio,
        kernel_distance=distance,
        spectrum=spectrum,
        geometry=_facts(old.report, new.report),
        unavailable=unavailable,
    )


def _is_reshaped(old: Version, new: Version) -> bool:
    """Tell whether the kernels have different shapes; of stored ones only the order of the axes may differ."""
    if old.kernel is not None and new.kernel is not None:
        return old.kernel.shape != new.kernel.shape
    if old.form == new.form:
        return old.report.shape != new.report.shape
    return sorted(old.report.shape) != sorted(new.report.shape)


def _status(old: Version, new: Version, trend: Trend | None) -> Status:
    if old.kernel is not None and new.kernel is not None:
        return "same" if np.array_equal(old.kernel, new.kernel) else "changed"
    if old.content is not None and old.content == new.content:
        return "same"
    return "changed" if trend else "unknown"


def _norm_change(old: Interval | None, new: Interval | None) -> tuple[Trend | None, Interval | None]:
    """Return the certified trend, and what holds the ratio of the norms; both lean on what the intervals lean on."""
    if old is None or new is None:
        return None, None
    trend: Trend | None = "increase" if new.lower > old.upper else "decrease" if new.upper < old.lower else None
    low = math.nextafter(new.lower / old.upper, 0.0) if old.upper > 0 else 1.0 if new.upper == 0 else math.inf
    high = math.nextafter(new.upper / old.lower, math.inf) if old.lower > 0 else 1.0 if new.upper == 0 else math.inf
    names = tuple(dict.fromkeys(n for i in (old, new) for end in ("lower", "upper") for n in i.assumes.get(end, ())))
    return trend, Interval(low, high, "new norm / old norm", assumes={"lower": names, "upper": names})


def _distance(old: Array, new: Array) -> float | None:
    """Return ``||new - old|| / ||old||``; None where the old kernel is zero and the new one is not."""
    largest = max(np.abs(old).max(initial=0.0), np.abs(new).max(initial=0.0))
    if largest == 0:
        return 0.0
    whole = float(np.linalg.norm((old / largest).ravel()))
    moved = float(np.linalg.norm((new / largest - old / largest).ravel()))
    return moved / whole if whole else None


def _facts(old: LayerReport, new: LayerReport) -> tuple[str, ...]:
    """Return the facts that neither version guesses and that differ."""
    known = [name for name in _FACTS if not (old.geometry.guessed(name) or new.geometry.guessed(name))]
    return tuple(name for name in known if getattr(old.geometry, name) != getattr(new.geometry, name))


def _why(old: Version, new: Version, what: str) -> str:
    for version in (old, new):
        if what in version.report.unavailable:
            return version.report.unavailable[what]
    return "a report without it" if what == "norm" else f"a report without values; write it with --method {what}"


# ------------------------------------------------------------------------------------------------------------- spectra


def _spectrum_change(method: str, old: Version, new: Version) -> SpectrumChange | None:
    before, after = old.report.results.get(method), new.report.results.get(method)
    if not isinstance(before, Spectrum) or not isinstance(after, Spectrum):
        return None
    found = wasserstein(before, after)
    if found is None:
        return None
    return SpectrumChange(method, before.of, after.of, *found)


def wasserstein(old: Spectrum, new: Spectrum) -> tuple[float, float, float] | None:
    """Return the Wasserstein-1 and -2 distances of two spectra over the largest old value, and a bound on their error.

    Each value has the same weight within its spectrum, so that spectra of different sizes can be compared. Between the
    quantile functions, steps both, the integrals are sums. Where only a histogram is at hand its bins take the place
    of the values, and their width adds to the error.

    Args:
        old: the spectrum before.
        new: the spectrum after.

    Returns:
        None where one of them is not of all values, or the old one is zero and the new one is not.
    """
    before, after = _quantile_steps(old), _quantile_steps(new)
    if before is None or after is None:
        return None
    (p, x, error), (q, y, other) = before, after
    ends = np.union1d(p, q)
    weights = np.diff(ends, prepend=0.0)
    gaps = np.abs(x[np.searchsorted(p, ends).clip(max=len(x) - 1)] - y[np.searchsorted(q, ends).clip(max=len(y) - 1)])
    scale = old.max
    if scale == 0:
        return (0.0, 0.0, 0.0) if not gaps.any() else None
    first = float(np.dot(weights, gaps / scale))
    second = float(math.sqrt(np.dot(weights, (gaps / scale) ** 2)))
    return first, second, (error + other) / scale


def _quantile_steps(spectrum: Spectrum) -> tuple[Array, Array, float] | None:
    """Return a quantile function of steps: their ends in (0, 1], their values, and a bound on the error of a value."""
    if spectrum.kind == "leading" or not math.isfinite(spectrum.max):
        return None
    error = spectrum.error or 0.0
    if spectrum.values is not None:
        values = np.sort(spectrum.values)
        return np.arange(1, len(values) + 1) / len(values), values, error
    return None if spectrum.histogram is None else _binned(spectrum, spectrum.histogram, error)


def _binned(spectrum: Spectrum, histogram: Histogram, error: float) -> tuple[Array, Array, float] | None:
    counts = np.array(histogram.counts, dtype=np.float64)
    if not counts.sum() or not math.isfinite(histogram.top):
        return None
    width = histogram.top / len(counts)
    middles = ((np.arange(len(counts)) + 0.5) * width).clip(spectrum.min, spectrum.max)
    filled = counts > 0
    return np.cumsum(counts[filled]) / counts.sum(), middles[filled], error + width


# ---------------------------------------------------------------------------------------------------------- conditions


@dataclass(frozen=True)
class Condition:
    """A change that is to be noticed.

    Attributes:
        event: added, removed, reshaped, changed, norm-increase or norm-decrease.
        by: of the last two, by more than what part of the old norm.
        text: as it was written.
    """

    event: str
    by: float
    text: str

    def holds(self, change: LayerChange) -> bool:
        """Tell whether it is certain that this happened to a layer."""
        if self.event == "changed":
            return change.status in ("changed", "reshaped")
        if not self.event.startswith("norm-"):
            return change.status == self.event
        if change.trend is None or change.ratio is None or not self.event.endswith(change.trend):
            return False
        if not self.by:
            return True
        return change.ratio.lower > 1 + self.by if change.trend == "increase" else change.ratio.upper < 1 - self.by


def parse_conditions(texts: Iterable[str]) -> tuple[Condition, ...]:
    """Return conditions as a user writes them: ``added,norm-increase=5%``.

    Raises:
        UsageError: one is not known, or its number is none.
    """
    found = []
    for text in (part.strip() for given in texts for part in given.split(",")):
        event, equals, number = text.partition("=")
        if event not in EVENTS:
            raise UsageError("--fail-on: no such change", found=repr(text), advice=f"use one of {', '.join(EVENTS)}")
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?(?:e-?[0-9]+)?)\s*(%?)", number)
        if equals and (not match or not event.startswith("norm-")):
            raise UsageError("--fail-on: cannot be understood", found=repr(text), advice="write norm-increase=5%")
        by = float(match[1]) / (100 if match[2] else 1) if match else 0.0
        found.append(Condition(event, by, text))
    return tuple(found)


def happened(steps: Sequence[Step], conditions: Sequence[Condition]) -> tuple[tuple[int, str, str], ...]:
    """Return (step, layer, condition) of every named change that certainly happened."""
    return tuple(
        (index, change.name, condition.text)
        for index, step in enumerate(steps)
        for change in step.layers
        for condition in conditions
        if condition.holds(change)
    )


def in_order(sides: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """Return the names of all layers: those of the first checkpoint, then what each later one adds."""
    return tuple(dict.fromkeys(name for side in sides for name in side))

"""What the cells of tables for people say: from a layer's report to a few characters, rounded outwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from convsv.reports._numbers import DOWN, UP, percent, short
from convsv.reports._sparkline import sparkline
from convsv.reports._summary import bounds_of, competes
from convsv.results import Bound, Check, Finding, Interval, LayerReport, Reached, Spectrum

__all__ = [
    "Cells",
    "Footnotes",
    "alike",
    "best_bound_cells",
    "bound_cells",
    "clip_cells",
    "guess",
    "interval_text",
    "missing",
    "norm_at_size_cells",
    "norm_cells",
    "outward",
    "padding",
    "reached_cells",
    "sparkline_of",
    "spectrum_cells",
    "symbol_min_cells",
    "time_text",
    "times",
    "verdict",
]


class Footnotes:
    """Numbers reasons in the order in which they appear; equal ones share a number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """Return the mark of a reason."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


Cells: TypeAlias = Callable[[LayerReport, Footnotes], tuple[str, ...]]


def times(numbers: Sequence[int]) -> str:
    return "x".join(str(number) for number in numbers)


def alike(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else times(numbers)


def guess(layer: LayerReport, name: str, text: str) -> str:
    return f"{text}?" if layer.geometry.origin.get(name) == "assumed" else text


def padding(layer: LayerReport) -> str:
    geometry = layer.geometry
    axes = [str(a) if a == b else f"{a}:{b}" for a, b in geometry.padding]
    amount = axes[0] if len(set(axes)) == 1 else "x".join(axes)
    amount = guess(layer, "padding", amount)
    if geometry.padding_mode == "zeros":
        return amount
    return f"{amount} {guess(layer, 'padding_mode', geometry.padding_mode)}"


def missing(layer: LayerReport, key: str, notes: Footnotes) -> str:
    reason = layer.unavailable.get(key)
    return f"— {notes.mark(reason)}" if reason else "—"


def interval_text(interval: Interval | None) -> str | None:
    """Return an interval that holds all it held, each end that leans on a guess with a question mark."""
    if interval is None:
        return None
    lower = short(interval.lower, DOWN) + ("?" if interval.assumes.get("lower") else "")
    upper = short(interval.upper, UP) + ("?" if interval.assumes.get("upper") else "")
    return f"[{lower}, {upper}]"


def norm_cells(layer: LayerReport, notes: Footnotes) -> tuple[str, ...]:
    if layer.norm is None:
        return missing(layer, "norm", notes), ""
    return interval_text(layer.norm) or "", percent(layer.norm.width)


def norm_at_size_cells(layer: LayerReport, notes: Footnotes) -> tuple[str, ...]:
    return (interval_text(layer.norm_at_size) or missing(layer, "norm_at_size", notes),)


def symbol_min_cells(layer: LayerReport, notes: Footnotes) -> tuple[str, ...]:
    return (interval_text(layer.symbol_min) or missing(layer, "symbol_min", notes),)


def spectrum_cells(method: str, *, whole: bool) -> Cells:
    def cells(layer: LayerReport, notes: Footnotes) -> tuple[str, ...]:
        spectrum = layer.results.get(method)
        if not isinstance(spectrum, Spectrum):
            return (missing(layer, method, notes), *[""] * (5 if whole else 1))
        largest = f"≤ {short(spectrum.max, UP)}" if spectrum.kind == "upper" else short(spectrum.max)
        largest = f"≥ {short(spectrum.max, DOWN)}" if _is_below(spectrum) else largest
        ends = (largest, _smallest(spectrum))
        if not whole:
            return ends
        some = spectrum.kind == "leading"
        condition = "inf" if spectrum.condition is None and not some else short(spectrum.condition, digits=4)
        ranks = (short(spectrum.stable_rank, digits=4), short(spectrum.effective_rank, digits=4))
        return (*ends, condition, *ranks, _how_many(spectrum))

    return cells


def _how_many(spectrum: Spectrum) -> str:
    if spectrum.kind != "leading":
        return str(spectrum.count)
    leading = f"{spectrum.count - spectrum.trailing} leading"
    return f"{leading}, {spectrum.trailing} trailing" if spectrum.trailing else leading


def _is_below(spectrum: Spectrum) -> bool:
    """Tell whether the largest value is one that an iteration has found: at most the true one."""
    return spectrum.kind == "leading" and spectrum.error is None


def _smallest(spectrum: Spectrum) -> str:
    """Return the smallest value, or where it cannot be told from zero what it is at most.

    Where only leading values are known, the smallest of them is not the layer's.
    """
    if spectrum.kind == "leading" and not spectrum.trailing:
        return f"— ({spectrum.count} leading)"
    if _is_below(spectrum):
        return f"≤ {short(spectrum.min, UP)}"
    if spectrum.kind == "upper":
        return f"≤ {short(spectrum.min, UP)}"
    if spectrum.error is None or spectrum.min > spectrum.error:
        return short(spectrum.min)
    return f"≤ {short(spectrum.min + spectrum.error, UP, 2)}"


def best_bound_cells(layer: LayerReport, notes: Footnotes) -> tuple[str, ...]:
    # Only those about the operator of the norm beside it: at one size a smaller value would be no contradiction.
    comparable = [b for b in bounds_of(layer).values() if b.side == "upper" and competes(b)]
    if not comparable:
        return missing(layer, "bounds", notes), ""
    best = min(comparable, key=lambda bound: bound.value)
    return short(best.value, UP), best.name


def clip_cells(layer: LayerReport, notes: Footnotes) -> tuple[str, ...]:
    clip = layer.clip
    if clip is None:
        return (missing(layer, "clip", notes), *[""] * 4)
    radius = "—" if clip.radius is None else short(clip.radius)
    above = "" if clip.inside else f" {notes.mark('above the radius: this method promises nothing')}"
    moved = percent(clip.distance) if clip.touched else "0 %"
    return (
        interval_text(clip.norm_before) or "",
        radius,
        f"{interval_text(clip.norm_after) or ''}{above}",
        moved,
        clip.method if clip.touched else "as it was" if clip.radius is None or clip.reached else "inside already",
    )


def reached_cells(layer: LayerReport, _: Footnotes) -> tuple[str, ...]:
    reached = layer.clip.reached if layer.clip else None
    if reached is None:
        return "", ""
    mark = "?" if reached.assumes else ""
    between = f"{short(reached.smallest)}{mark} to {short(reached.largest)}{mark}"
    return _wanted(reached), between if reached.beyond is None else f"{percent(reached.beyond)}{mark} beyond"


def _wanted(reached: Reached) -> str:
    if reached.edit == "rank":
        return f"rank {reached.wanted:.0f}"
    return f"{'≥' if reached.edit == 'min_norm' else '='} {short(reached.wanted)}"


def sparkline_of(layer: LayerReport, method: str) -> str:
    spectrum = layer.results.get(method)
    return sparkline(spectrum) if isinstance(spectrum, Spectrum) else ""


def verdict(check: Check, found: Finding, notes: Footnotes) -> str:
    if found.verdict == "PASS":
        return found.verdict
    what = ", accepted" if found.accepted else ", warning" if check.severity == "warn" else ""
    mark = f" {notes.mark(found.reason)}" if found.reason else ""
    return f"{found.verdict}{what}{mark}"


def outward(side: str) -> str:
    return UP if side == "upper" else DOWN


def bound_cells(bound: Bound) -> tuple[str, ...]:
    sign = "≤" if bound.side == "upper" else "≥"
    value = f"{sign} {short(bound.value, outward(bound.side))}{'?' if bound.assumes else ''}"
    return (
        value,
        short(bound.ratio, outward(bound.side), 4),
        bound.guarantee,
        bound.of,
        time_text(bound.seconds),
    )


def time_text(seconds: float | None) -> str:
    if seconds is None:
        return "—"
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"

"""The bounds of many layers in a few rows: how loose each one is, and how often it is the best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from convsv.results import Bound, LayerReport, Report, Spectrum

__all__ = ["BoundSummary", "assumed", "bounds_of", "competes", "summarise"]


@dataclass(frozen=True)
class BoundSummary:
    """One bound over all layers.

    Attributes:
        bound: registered name.
        side: which side of the norm it is on.
        of: the operator it is about; where only the size differs, ``"circular, each at its size"``.
        guarantee: what is true of its values; the guarantees joined by ``/`` where layers differ.
        layers: how many layers have it.
        median_ratio: median of its ratio to the certified norm.
        worst_ratio: the ratio farthest from 1 on its own side: the largest of an upper bound, the smallest of a lower.
        tightest: for how many layers it is the best certified one of its side at any size (equal ones all count);
            None for a bound that is never certified, whose value may be on the wrong side, and for one of another
            operator.
        seconds: time it took in total.
    """

    bound: str
    side: str
    of: str
    guarantee: str
    layers: int
    median_ratio: float | None
    worst_ratio: float | None
    tightest: int | None
    seconds: float | None


def bounds_of(layer: LayerReport) -> Mapping[str, Bound]:
    """Return the bounds of a layer; empty when it has none."""
    result = layer.results.get("bounds", {})
    return {} if isinstance(result, Spectrum) else result


def assumed(layer: LayerReport) -> tuple[str, ...]:
    """Return the names of the geometry that is assumed and matters: all but the extra output of a forward layer."""
    geometry = layer.geometry
    ignored = None if geometry.transposed else "output_padding"
    return tuple([name for name, origin in geometry.origin.items() if origin == "assumed" and name != ignored])


def summarise(report: Report) -> tuple[BoundSummary, ...]:
    """Return one summary a bound: upper ones first, each side from the tightest median."""
    found: dict[str, list[Bound]] = defaultdict(list)
    best: dict[str, int] = defaultdict(int)
    for checkpoint in report.checkpoints:
        for layer in checkpoint.layers:
            bounds = bounds_of(layer)
            for name, bound in bounds.items():
                found[name].append(bound)
                best[name] += _is_tightest(bound, bounds)
    rows = (_summary(name, bounds, best[name]) for name, bounds in found.items())
    return tuple(sorted(rows, key=_looseness))


def _looseness(row: BoundSummary) -> tuple[bool, float]:
    ratio = row.median_ratio
    if ratio is None:
        return row.side == "lower", float("inf")
    return row.side == "lower", ratio if row.side == "upper" else -ratio


def _is_tightest(bound: Bound, others: Mapping[str, Bound]) -> bool:
    if not competes(bound):
        return False
    rivals = [other.value for other in others.values() if competes(other) and other.side == bound.side]
    return bound.value == (min(rivals) if bound.side == "upper" else max(rivals))


def competes(bound: Bound) -> bool:
    """Tell whether a bound may be called the best: certified, and about the norm at any size."""
    return bound.guarantee == "certified" and bound.of == "any size"


def _operator(bounds: Sequence[Bound]) -> str:
    operators = list(dict.fromkeys(bound.of for bound in bounds))
    kinds = list(dict.fromkeys(of.partition(" ")[0] for of in operators))
    if len(operators) == 1:
        return operators[0]
    return f"{kinds[0]}, each at its size" if len(kinds) == 1 else "/".join(operators)


def _summary(name: str, bounds: Sequence[Bound], best: int) -> BoundSummary:
    ratios = [bound.ratio for bound in bounds if bound.ratio is not None]
    times = [bound.seconds for bound in bounds if bound.seconds is not None]
    guarantees = list(dict.fromkeys(bound.guarantee for bound in bounds))
    worst = max if bounds[0].side == "upper" else min
    return BoundSummary(
        bound=name,
        side=bounds[0].side,
        of=_operator(bounds),
        guarantee="/".join(guarantees),
        layers=len(bounds),
        median_ratio=median(ratios) if ratios else None,
        worst_ratio=worst(ratios) if ratios else None,
        tightest=best if any(map(competes, bounds)) else None,
        seconds=sum(times) if times else None,
    )

"""The product of the norms of a checkpoint's layers before a limit: a bound of what a chain of them can do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from convsv.gate._norm import SAME, STATE, GateOptions, LayerNorm, leaning, why_stopped
from convsv.layer import ConvLayer
from convsv.policy import Policy
from convsv.results import Check, Finding, Interval, LayerReport
from convsv.rounding import above, below

__all__ = ["check_product"]

_OF = "product of all norms"


def check_product(
    layers: Sequence[ConvLayer], reports: Sequence[LayerReport], policy: Policy, options: GateOptions
) -> Check | None:
    """Return the verdict on the product of the norms of all layers that are not switched off.

    Args:
        layers: the layers of one checkpoint.
        reports: what :func:`convsv.gate.check_layers` said of each.
        policy: what is demanded of them.
        options: how to decide; ``known`` is asked for the empty name.

    Returns:
        The verdict; None where there is no limit, or no layer.

    Raises:
        CheckpointError: a tensor could not be read.
        ContradictionError: two certified statements exclude each other.
    """
    pairs = zip(layers, reports, strict=True)
    chosen = [(layer, report) for layer, report in pairs if not report.check or report.check.severity != "off"]
    limit = policy.max_product
    if limit is None or not chosen:
        return None
    severity = policy.defaults.severity
    unknown = [report.name for _, report in chosen if report.norm is None]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        reason = f"there is no norm of {unknown[0]}{more}"
        return Check(severity, (Finding("max_product", limit, "UNDECIDED", None, reason),))
    deadline = time.monotonic() + options.seconds
    found = _decided([LayerNorm(layer, options, report.norm, deadline) for layer, report in chosen], limit)
    known = options.known("").get("max_product")
    if found.verdict != "PASS" and known and found.interval and found.interval.upper <= known.upper * (1 + SAME):
        found = replace(found, accepted=True)
    return Check(severity, (found,))


def _decided(norms: Sequence[LayerNorm], limit: float) -> Finding:
    while True:
        upper, lower = _product((norm.upper for norm in norms), up=True), _product(norm.lower for norm in norms)
        interval = Interval(lower, upper, _OF, assumes=_assumed(norms))
        if upper <= limit:
            return Finding("max_product", limit, "PASS", interval, leaning(interval, "upper"))
        sure = _product(norm.sure for norm in norms)
        if sure > limit:
            interval = replace(interval, lower=sure, assumes={**interval.assumes, "lower": ()})
            return Finding("max_product", limit, "FAIL", interval)
        if _product(norm.least for norm in norms) > limit:
            guess = leaning(interval, "lower")
            reason = f"above the limit {guess}; {STATE}" if guess else "padding copies pixels in some layer"
            return Finding("max_product", limit, "UNDECIDED", interval, reason)
        widest = sorted(norms, key=lambda norm: -norm.interval.width)
        if not any(norm.tighten() for norm in widest):
            return Finding("max_product", limit, "UNDECIDED", interval, why_stopped(norms))


def _product(ends: Iterable[float], *, up: bool = False) -> float:
    result = 1.0
    for end in ends:
        result = above(result * end) if up else below(result * end)
    return result


def _assumed(norms: Sequence[LayerNorm]) -> Mapping[str, tuple[str, ...]]:
    return {
        end: tuple(dict.fromkeys(name for norm in norms for name in norm.interval.assumes.get(end, ())))
        for end in ("lower", "upper")
    }

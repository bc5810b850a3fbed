"""One layer's report from several tasks: shares of a method's work, and all the rest of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from convsv.analysis import BOUNDS_METHOD, AnalysisOptions, LayerWork, check_agreement
from convsv.errors import error_context
from convsv.layer import ConvLayer
from convsv.results import LayerReport
from convsv.spectra import SpectrumPart

__all__ = ["analyze_part", "joined_report"]


def analyze_part(
    layer: ConvLayer, options: AnalysisOptions, name: str, share: tuple[int, int]
) -> SpectrumPart | LayerReport:
    """Return a share of a layer's spectrum by a method that divides its work.

    Args:
        layer: the layer.
        options: what to compute of the whole layer.
        name: the method.
        share: k and n for the k-th of n shares, from 0.

    Returns:
        The share; or a report with nothing but the reason why there is none.
    """
    work = LayerWork(layer, options)
    with error_context(tensor=layer.name):
        return work.part(name, share) or work.report()


def joined_report(
    layer: ConvLayer,
    options: AnalysisOptions,
    rest: LayerReport,
    parts: Mapping[str, Sequence[SpectrumPart | LayerReport]],
) -> LayerReport:
    """Return the report that :func:`analyze_layer` gives, from the results of several tasks.

    Args:
        layer: the layer; its tensor is not read.
        options: what was to be computed.
        rest: a report of everything but the methods whose work was divided.
        parts: all shares of each of these methods, in order, as :func:`analyze_part` returns them.

    Raises:
        ContradictionError: two certified statements exclude each other.
    """
    work, reports = LayerWork(layer, options), [rest]
    for name, shares in parts.items():
        good = [share for share in shares if isinstance(share, SpectrumPart)]
        if rest.unread is not None:
            reports.append(replace(rest, results={}, unavailable={name: rest.unread}, failures=()))
        elif len(good) < len(shares):
            # Of what went wrong a task alone would have met the first.
            reports.append(next(share for share in shares if isinstance(share, LayerReport)))
        else:
            work.join(name, good)
    with error_context(tensor=layer.name):
        report = _in_order(options.methods, [*reports, work.report()])
        check_agreement(report)
    return report


def _in_order(methods: Sequence[str], reports: Sequence[LayerReport]) -> LayerReport:
    """Return reports about one layer as one, in the order in which one task finds what is in them."""
    order = ["norm", "norm_at_size", *methods]

    def place(name: str) -> int:
        return order.index(name if name in order else BOUNDS_METHOD)

    results = {name: result for report in reports for name, result in report.results.items()}
    missing = {name: reason for report in reports for name, reason in report.unavailable.items()}
    return replace(
        reports[0],
        results={name: results[name] for name in sorted(results, key=place)},
        unavailable={name: missing[name] for name in sorted(missing, key=place)},
        failures=tuple(sorted((name for report in reports for name in report.failures), key=place)),
        unread=next((report.unread for report in reports if report.unread is not None), None),
    )

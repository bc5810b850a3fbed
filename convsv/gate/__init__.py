"""The gate: does a layer keep to its limits? PASS, FAIL or UNDECIDED, each with its reason.

PASS needs the upper end of a certified interval at or below the limit. FAIL needs a lower end above it that leans on
no guess: that of the certificate where all it needs is known, else the norm of the tap matrix, which every stride,
dilation and padding mode has (:mod:`convsv.bounds.miyato2018`). Between the two the certificate is made narrower, for
this layer only, until one of them holds, or it is certain that neither will, or the time is up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from convsv.describe import describe
from convsv.errors import (
    CheckpointError,
    ComputationError,
    ContradictionError,
    GeometryError,
    UnavailableError,
    error_context,
)
from convsv.gate._baseline import known_of
from convsv.gate._norm import SAME, GateOptions, Known, LayerNorm, decided, has_not_grown
from convsv.gate._product import check_product
from convsv.gate._smallest import Smallest, judged, smallest
from convsv.layer import ConvLayer
from convsv.policy import Policy
from convsv.results import Bound, Check, Finding, LayerReport, Spectrum

__all__ = ["GateOptions", "Known", "check_layers", "check_product", "known_of"]

T = TypeVar("T")


def check_layers(layers: Iterable[ConvLayer], policy: Policy, options: GateOptions) -> Iterator[LayerReport]:
    """Yield a report a layer with the gate's verdicts, in order, as soon as they are found.

    Args:
        layers: the layers.
        policy: what is demanded of them.
        options: how to decide.

    Raises:
        ContradictionError: two certified statements exclude each other.
    """
    for layer in layers:
        with error_context(tensor=layer.name):
            yield _Gate(layer, policy, options).report()


class _Gate:
    """One layer before its limits."""

    def __init__(self, layer: ConvLayer, policy: Policy, options: GateOptions) -> None:
        self._layer, self._options = layer, options
        self._limits = policy.limits(layer.name)
        self._needs_norm = policy.max_product is not None
        self._known = options.known(layer.name)
        self._failures: list[str] = []
        self._unread: str | None = None
        self._unavailable: dict[str, str] = {}

    def report(self) -> LayerReport:
        """Return the layer's report, with the verdicts."""
        limits, blank = self._limits, describe(self._layer)
        if limits.severity == "off":
            return replace(blank, check=Check("off"))
        findings = tuple(self._finding(criterion, limit) for criterion, limit in limits.wanted.items())
        norm = self._norm if self._needs_norm or findings else None
        least = self._smallest if {"min_norm", "max_condition"} & limits.wanted.keys() else None
        results: Mapping[str, Spectrum | Mapping[str, Bound]] = {}
        if least and least.exact:
            results = {"exact": least.exact}
        return replace(
            blank,
            norm=norm.interval if norm else None,
            symbol_min=least.symbol_min if least else None,
            results=results,
            unavailable={**blank.unavailable, **self._unavailable},
            failures=tuple(self._failures),
            unread=self._unread,
            check=Check(limits.severity, findings),
        )

    @cached_property
    def _norm(self) -> LayerNorm | None:
        return self._attempted("norm", lambda: LayerNorm(self._layer, self._options))

    @cached_property
    def _smallest(self) -> Smallest | None:
        def compute() -> Smallest:
            if self._norm is None:
                raise UnavailableError(self._unavailable["norm"])
            norm = self._norm
            return smallest(self._layer, self._options, lambda: norm.interval)

        return self._attempted("smallest", compute)

    def _finding(self, criterion: str, limit: float) -> Finding:
        found = self._attempted(criterion, lambda: self._verdict(criterion, limit))
        return found or Finding(criterion, limit, "UNDECIDED", None, self._unavailable[criterion])

    def _verdict(self, criterion: str, limit: float) -> Finding:
        if criterion == "max_norm":
            return self._max_norm(limit)
        found = self._smallest
        if found is None:
            return Finding(criterion, limit, "UNDECIDED", None, self._unavailable["smallest"])
        finding, known = judged(criterion, limit, found), self._known.get(criterion)
        if finding.verdict == "PASS" or known is None:
            return finding
        if criterion == "min_norm":
            return replace(finding, accepted=found.value.lower >= known.lower * (1 - SAME))
        return replace(finding, accepted=found.condition.upper <= known.upper * (1 + SAME))

    def _max_norm(self, limit: float) -> Finding:
        norm = self._norm
        if norm is None:
            return Finding("max_norm", limit, "UNDECIDED", None, self._unavailable["norm"])
        finding, known = decided(norm, limit), self._known.get("max_norm")
        accepted = finding.verdict != "PASS" and known is not None and has_not_grown(norm, known.upper)
        return replace(finding, accepted=accepted)

    def _attempted(self, name: str, compute: Callable[[], T]) -> T | None:
        """Compute; turn what this layer does not have, or what failed, into a reason.

        Raises:
            ContradictionError: two certified statements exclude each other.
        """
        if self._unread is not None:  # what failed once is not read again: it may have taken all of its time
            self._unavailable[name] = self._unread
            return None
        try:
            return compute()
        except (UnavailableError, GeometryError) as error:
            self._unavailable[name] = error.reason
        except CheckpointError as error:
            self._unavailable[name] = self._unread = error.reason
        except ContradictionError:
            raise
        except (ArithmeticError, MemoryError, RuntimeError, ComputationError) as error:
            self._unavailable[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._failures.append(name)
        return None

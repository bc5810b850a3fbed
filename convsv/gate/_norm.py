"""The certified norm of one layer before a limit: made narrower until it decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from convsv.analysis import AnalysisOptions, certified_norm
from convsv.at_size import any_size_copies
from convsv.bounds import bounds_of
from convsv.certificate import Budget
from convsv.execution import Execution
from convsv.layer import ConvLayer, loosest
from convsv.results import Bound, Finding, Interval, Verdict
from convsv.rounding import below

__all__ = ["SAME", "STATE", "GateOptions", "Known", "LayerNorm", "decided", "has_not_grown", "leaning", "why_stopped"]

_STEPS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
"""Relative widths of the certificate, one after the other."""
_LEAST_SECONDS = 0.05
"""What a step gets even when the time is nearly up: the first one always ends."""
SAME = 1e-9
"""By how much, relatively, a norm may exceed what an earlier report knew of it: another machine rounds otherwise."""
STATE = "state that with --geometry FILE.toml or --model"

Known = Callable[[str], Mapping[str, Interval]]
"""Layer name -> what an earlier report knows of each criterion that the layer did not pass then."""


@dataclass(frozen=True)
class GateOptions:
    """How to decide.

    Attributes:
        execution: where to compute.
        tol: relative width of the certificate to begin with.
        seconds: most time to spend on one layer, or on the product of all.
        known: what an earlier report accepts.
    """

    execution: Execution = field(default_factory=Execution)
    tol: float = _STEPS[0]
    seconds: float = 60.0
    known: Known = lambda name: {}


class LayerNorm:
    """The certified norm of one layer, made narrower step by step.

    Args:
        layer: the layer.
        options: how.
        start: what is known already.
        deadline: when to stop, by the monotonic clock.

    Raises:
        UnavailableError: the layer has no norm, with the reason.
        CheckpointError: its tensor could not be read.
    """

    def __init__(
        self, layer: ConvLayer, options: GateOptions, start: Interval | None = None, deadline: float | None = None
    ) -> None:
        self._layer, self._options = layer, options
        self.seconds = options.seconds
        self._deadline = time.monotonic() + options.seconds if deadline is None else deadline
        self._steps = [options.tol, *(step for step in _STEPS if step < options.tol)]
        self._taps: float | None = None
        self._least: float | None = None
        self.is_late = False
        self.interval = start or self._certified(layer, self._steps.pop(0))
        if start:
            self._steps = [step for step in self._steps if step < start.width]

    @property
    def lower(self) -> float:
        """The certified lower end, which may lean on guesses."""
        return self.interval.lower

    @property
    def upper(self) -> float:
        """The certified upper end."""
        return self.interval.upper

    @property
    def sure(self) -> float:
        """A certified lower end that leans on no guess."""
        if not self.interval.assumes.get("lower"):
            return self.interval.lower
        if self._taps is None:
            found = bounds_of(self._layer, ["miyato2018"], execution=self._options.execution)["miyato2018"]
            folded = self._layer.folded
            # What is folded in with a guessed epsilon changes the kernel itself.
            self._taps = found.value if isinstance(found, Bound) and (folded is None or folded.known) else 0.0
        return self._taps

    @property
    def least(self) -> float:
        """What the upper end will never fall below: the norm in the loosest reading, times what padding copies."""
        geometry = self._layer.geometry
        copies = any_size_copies(geometry, self._layer.kernel_size)
        loose = loosest(geometry)
        lower = self.interval.lower
        if loose.groups != geometry.groups:
            if self._least is None:
                self._least = self._certified(replace(self._layer, geometry=loose), 1e-2).lower
            lower = max(lower, self._least)
        return below(lower * copies)

    def tighten(self) -> bool:
        """Certify more narrowly; tell whether that was possible."""
        self.is_late = time.monotonic() > self._deadline
        if self.is_late or not self._steps:
            return False
        found = self._certified(self._layer, self._steps.pop(0))
        self.interval = replace(
            found, lower=max(found.lower, self.interval.lower), upper=min(found.upper, self.interval.upper)
        )
        self.is_late = time.monotonic() > self._deadline
        return True

    def _certified(self, layer: ConvLayer, tol: float) -> Interval:
        budget = Budget(seconds=max(self._deadline - time.monotonic(), _LEAST_SECONDS))
        interval = certified_norm(layer, AnalysisOptions(tol=tol, execution=self._options.execution, budget=budget))
        if layer.folded is None or layer.folded.known:
            return interval
        return replace(interval, assumes={end: (*names, "epsilon") for end, names in interval.assumes.items()})


def decided(norm: LayerNorm, limit: float) -> Finding:
    """Return the verdict on ``max_norm``, making the certificate narrower as far as that helps.

    The interval of a FAIL is what shows it: its lower end leans on no guess.
    """
    while True:
        verdict, reason = _looked_at(norm, limit)
        if verdict is None and norm.tighten():
            continue
        interval = norm.interval
        if verdict == "FAIL" and interval.assumes.get("lower"):
            interval = replace(interval, lower=norm.sure, assumes={**interval.assumes, "lower": ()})
        return Finding("max_norm", limit, verdict or "UNDECIDED", interval, reason if verdict else why_stopped([norm]))


def _looked_at(norm: LayerNorm, limit: float) -> tuple[Verdict | None, str]:
    """Return what the interval as it stands says; None where a narrower one may say more."""
    interval = norm.interval
    if interval.upper <= limit:
        return "PASS", leaning(interval, "upper")
    if norm.sure > limit:
        guess = interval.assumes.get("lower")
        return "FAIL", "shown by its taps alone, whatever is guessed" if guess else ""
    return ("UNDECIDED", _why_hopeless(norm, limit)) if norm.least > limit else (None, "")


def has_not_grown(norm: LayerNorm, before: float) -> bool:
    """Tell whether the norm is certified to be no more than the upper end that was certified before."""
    limit = before * (1 + SAME)
    while norm.upper > limit:
        if norm.least > limit or not norm.tighten():
            return False
    return True


def _why_hopeless(norm: LayerNorm, limit: float) -> str:
    """Say what keeps both verdicts away, however narrow the certificate."""
    interval = norm.interval
    if not interval.assumes.get("lower"):
        return "its padding copies pixels: the upper end holds for every size, the lower one counts no copies"
    if interval.lower > limit:
        return f"above the limit {leaning(interval, 'lower')}, and its taps alone do not show it; {STATE}"
    return f"above the limit or not, that depends on the guessed {_names(interval, 'lower')}; {STATE}"


def why_stopped(norms: Iterable[LayerNorm]) -> str:
    """Say why certificates became no narrower."""
    late = next((norm for norm in norms if norm.is_late), None)
    if late is not None:
        return f"not decided within {late.seconds:g} s; give a larger --budget"
    return "the limit is within rounding of the value"


def leaning(interval: Interval, end: str) -> str:
    """Say what an end of an interval leans on; nothing if it leans on nothing."""
    names = interval.assumes.get(end, ())
    if not names:
        return ""
    return f"if the guessed {_names(interval, end)} {'are' if len(names) > 1 else 'is'} right"


def _names(interval: Interval, end: str) -> str:
    *most, last = (name.replace("_", " ") for name in interval.assumes.get(end, ()))
    return f"{', '.join(most)} and {last}" if most else last

"""What convsv finds out, as frozen values: no computation, no input, no output.

Every number carries what operator it is about (``of``) and what guarantees it (``guarantee``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from convsv.geometry import Geometry

__all__ = [
    "Bound",
    "Check",
    "CheckpointReport",
    "Clipping",
    "Comparison",
    "Density",
    "Finding",
    "Guarantee",
    "Histogram",
    "Interval",
    "LayerChange",
    "LayerReport",
    "NetworkBound",
    "OperationBound",
    "Reached",
    "Report",
    "Severity",
    "Side",
    "Spectrum",
    "SpectrumChange",
    "Status",
    "Step",
    "Trend",
    "Unavailable",
    "Verdict",
]

Guarantee: TypeAlias = Literal["certified", "probabilistic", "estimate"]
Side: TypeAlias = Literal["upper", "lower"]
Verdict: TypeAlias = Literal["PASS", "FAIL", "UNDECIDED"]
Severity: TypeAlias = Literal["off", "warn", "error"]
Status: TypeAlias = Literal["same", "changed", "unknown", "reshaped", "added", "removed"]
Trend: TypeAlias = Literal["increase", "decrease"]


@dataclass(frozen=True)
class Interval:
    """An interval that holds an operator norm.

    Attributes:
        lower: certified lower end.
        upper: certified upper end.
        of: the operator, for instance ``"any size"`` or ``"zeros 56x56"``.
        guarantee: what stands behind both ends.
        assumes: for ``lower`` and ``upper``, the guessed geometry that this end leans on.
        evaluations: number of symbol evaluations spent.
    """

    lower: float
    upper: float
    of: str = "any size"
    guarantee: Guarantee = "certified"
    assumes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"lower": (), "upper": ()})
    evaluations: int = 0

    @property
    def width(self) -> float:
        """Relative width, upper / lower - 1; 0 for the zero operator."""
        if self.lower > 0:
            return self.upper / self.lower - 1
        return 0.0 if self.upper == 0 else float("inf")


@dataclass(frozen=True)
class Histogram:
    """How many values lie where.

    Attributes:
        top: end of the last bin; the first begins at 0, and all are equally wide.
        counts: values a bin, multiplicities counted.
    """

    top: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Density:
    """The distribution of all singular values of one operator, multiplicities counted.

    Attributes:
        edges: values in ascending order.
        below: for each edge, the share of the singular values that lie below it.
        error: for each edge, how far the true share may be from ``below``.
        guarantee: what stands behind ``error``.
        probability: that with which all errors hold at once, if ``guarantee`` is probabilistic.
        probes: random vectors it took; 0 where all values are known.
        steps: Lanczos steps of each.
    """

    edges: tuple[float, ...]
    below: tuple[float, ...]
    error: tuple[float, ...]
    guarantee: Guarantee
    probability: float = 1.0
    probes: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one operator, or what is known of them.

    Attributes:
        method: the method's registered name.
        of: the operator, for instance ``"circular 56x56"``.
        guarantee: what stands behind the values.
        count: number of values, multiplicities counted.
        max: largest value.
        min: smallest value.
        frobenius: root of the sum of squares.
        stable_rank: (frobenius / max) squared; None for the zero operator.
        effective_rank: exponential of the entropy of the normalised values (Roy, Vetterli 2007); None when zero.
        condition: max / min; None when min is 0 or within ``error`` of it.
        quantiles: probability (as a short decimal string) -> value.
        error: absolute bound on the error of each value, from rounding and method.
        kind: ``"full"``, ``"leading"``, or ``"upper"``: certified upper ends of all values.
        assumes: guessed geometry the values lean on.
        residuals: for values of an iteration: some true singular value lies within it of each, in the order of
            ``values``. Whether it is the one of the same rank, they do not say.
        values: the values in descending order, float64.
        lower_values: where ``values`` are certified upper ends, the lower ends in the same order, float64.
        histogram: their distribution.
        quantile_error: bound on what ``quantiles`` err by in addition to ``error``: 0 where all values were held at one
            time, the resolution of a fine histogram where they did not fit.
        upper: certified upper bound of the largest singular value, where ``max`` is a lower one.
        trailing: number of the last ``values`` that are the smallest ones of the operator; all others are leading.
        density: how all singular values are distributed, where not all are known.
        notes: remarks on how the values were found.
    """

    method: str
    of: str
    guarantee: Guarantee
    count: int
    max: float
    min: float
    frobenius: float
    stable_rank: float | None
    effective_rank: float | None
    condition: float | None
    quantiles: Mapping[str, float]
    error: float | None = None
    kind: str = "full"
    assumes: tuple[str, ...] = ()
    residuals: tuple[float, ...] | None = None
    values: NDArray[np.float64] | None = None
    lower_values: NDArray[np.float64] | None = None
    histogram: Histogram | None = None
    quantile_error: float = 0.0
    upper: float | None = None
    trailing: int = 0
    density: Density | None = None
    notes: tuple[str, ...] = ()

    def without_whole_values(self) -> Spectrum:
        """Return the spectrum without what takes much room; a few leading values stay."""
        return self if self.kind == "leading" else replace(self, values=None, lower_values=None)


@dataclass(frozen=True)
class Bound:
    """One published bound on a layer's norm.

    Attributes:
        name: registered name.
        value: the bound.
        side: which side of the norm it is on, if its guarantee holds.
        of: the operator it is about.
        guarantee: what is true of the computed value.
        ratio: value over the certified norm (its upper end for upper bounds, its lower end for lower ones).
        seconds: time it took.
        assumes: guessed geometry the value leans on.
    """

    name: str
    value: float
    side: Side
    of: str
    guarantee: Guarantee
    ratio: float | None = None
    seconds: float | None = None
    assumes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unavailable:
    """A result that does not exist for this layer, and why."""

    reason: str


@dataclass(frozen=True)
class Reached:
    """What an edit of the symbol came to, for the weights as stored, at the frequencies of a grid.

    Attributes:
        edit: ``min_norm``, ``flatten`` or ``rank``.
        wanted: the least singular value, the level of all, or the rank.
        smallest: smallest singular value of the symbol on the grid: between its points there may be smaller ones.
        largest: largest one there.
        beyond: largest singular value behind the rank, over the largest of all; None for other edits.
        grid: frequencies an axis.
        assumes: names of the guessed geometry that the symbol leans on.
        of: the operator: ``symbol`` is the layer without borders, and full circular padding at any size.
        guarantee: ``estimate``, as it is measured between no points but those of the grid.
    """

    edit: str
    wanted: float
    smallest: float
    largest: float
    beyond: float | None
    grid: tuple[int, ...]
    assumes: tuple[str, ...] = ()
    of: str = "symbol"
    guarantee: Guarantee = "estimate"


@dataclass(frozen=True)
class Clipping:
    """What clipping did to one layer, or would do.

    Attributes:
        radius: the largest norm allowed; None where only another edit was asked for.
        method: how it was done; ``"none"`` where the layer was inside already.
        norm_before: norm of the weights as they are stored.
        norm_after: norm of the weights as they are stored afterwards, rounded to their dtype.
        distance: Frobenius norm of what changed over that of the kernel before.
        iterations: rounds or sweeps.
        gap: by how much, relatively, the distance can at most exceed the smallest possible one; None where unknown.
        touched: whether any weight changes.
        notes: what else to know.
        reached: what an edit of the symbol came to; None where none was asked for.
    """

    radius: float | None
    method: str
    norm_before: Interval
    norm_after: Interval
    distance: float
    iterations: int = 0
    gap: float | None = None
    touched: bool = True
    notes: tuple[str, ...] = ()
    reached: Reached | None = None

    @property
    def inside(self) -> bool:
        """Whether the norm afterwards is certified to be within the radius."""
        return self.radius is None or self.norm_after.upper <= self.radius


@dataclass(frozen=True)
class Finding:
    """What was found out about one limit.

    Attributes:
        criterion: ``max_norm``, ``min_norm``, ``max_condition`` or ``max_product``.
        limit: the limit.
        verdict: PASS and FAIL are certified; FAIL leans on no guess.
        interval: what holds the limited value; None where nothing is known of it.
        reason: why, in words; empty where the interval says it all.
        accepted: whether an earlier report knows of it and it has not become worse.
    """

    criterion: str
    limit: float
    verdict: Verdict
    interval: Interval | None = None
    reason: str = ""
    accepted: bool = False

    @property
    def counts(self) -> bool:
        """Whether it is anything to act on."""
        return self.verdict != "PASS" and not self.accepted


@dataclass(frozen=True)
class Check:
    """What the gate says about one layer, or about all layers of a checkpoint together.

    Attributes:
        severity: what follows from a verdict other than PASS: ``off`` was not checked, ``warn`` lets pass.
        findings: one a limit; empty where there is none.
    """

    severity: Severity = "error"
    findings: tuple[Finding, ...] = ()

    @property
    def worst(self) -> Finding | None:
        """The finding that decides: FAIL before UNDECIDED before PASS, and accepted ones after those that count."""
        order = ("FAIL", "UNDECIDED", "PASS")
        return min(self.findings, key=lambda found: (not found.counts, order.index(found.verdict)), default=None)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of :attr:`worst`; None where nothing was checked."""
        return self.worst.verdict if self.worst else None

    def stops(self, verdict: Verdict) -> bool:
        """Tell whether the exit code is to say that there is such a verdict."""
        return self.severity == "error" and any(f.counts and f.verdict == verdict for f in self.findings)


@dataclass(frozen=True)
class LayerReport:
    """All results of one layer.

    Attributes:
        name: module path.
        weight: key of the weight as stored.
        kind: conv1d ... conv_transpose3d.
        shape: stored shape.
        dtype: stored dtype.
        geometry: complete geometry with origins.
        norm: size-free operator norm.
        norm_at_size: norm of the layer as it runs, where its geometry is known.
        symbol_min: infimum over all frequencies of the symbol's smallest singular value, where asked for. It bounds
            the infinite and the fully circular layer from below, never a zero-padded or strided one.
        results: method -> spectrum, or for ``bounds`` a mapping of bounds.
        unavailable: result -> reason.
        notes: remarks on how the layer was found or read.
        folded: name of the batch normalisation that all results have taken in.
        failures: those of ``unavailable`` that exist but could not be computed (numerical failure, out of memory); the
            others do not exist for this layer.
        unread: why its weights could not be read from the file, if so; all that needs them is unavailable.
        clip: what clipping did to it, where that was asked for.
        check: what the gate says, where that was asked for.
    """

    name: str
    weight: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    geometry: Geometry
    norm: Interval | None = None
    norm_at_size: Interval | None = None
    symbol_min: Interval | None = None
    results: Mapping[str, Spectrum | Mapping[str, Bound]] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    unread: str | None = None
    folded: str | None = None
    clip: Clipping | None = None
    check: Check | None = None

    def read_unlike(self, other: LayerReport) -> tuple[str, ...]:
        """Return what a size-free norm depends on, that the two read differently, and that one of them only guesses."""
        return tuple(
            name
            for name in ("stride", "dilation", "groups", "padding_mode")
            if getattr(self.geometry, name) != getattr(other.geometry, name)
            and (self.geometry.guessed(name) or other.geometry.guessed(name))
        )

    def also_assuming(self, name: str) -> LayerReport:
        """Return the report with one more name among what every value of it leans on."""
        results = {
            method: _leaning_on(name, result)
            if isinstance(result, Spectrum)
            else {key: _leaning_on(name, bound) for key, bound in result.items()}
            for method, result in self.results.items()
        }
        return replace(
            self,
            norm=self.norm and _both_leaning_on(name, self.norm),
            norm_at_size=self.norm_at_size and _both_leaning_on(name, self.norm_at_size),
            symbol_min=self.symbol_min and _both_leaning_on(name, self.symbol_min),
            results=results,
        )


V = TypeVar("V", Spectrum, Bound)


def _leaning_on(name: str, value: V) -> V:
    return replace(value, assumes=(*value.assumes, name))


def _both_leaning_on(name: str, interval: Interval) -> Interval:
    return replace(interval, assumes={end: (*interval.assumes.get(end, ()), name) for end in ("lower", "upper")})


@dataclass(frozen=True)
class OperationBound:
    """One operation of a network that the chosen output depends on.

    Attributes:
        name: the module's path, or the node's name; unlike any other's.
        kind: which rule bounds it.
        inputs: names of the operations or network inputs whose values it takes.
        factor: its constant over that of its input; where several are joined, over the geometric mean of theirs, each
            weighed by how much of the joined constant is due to it. None where there is none.
        upper: certified constant of what it makes, from the network's input.
        of: the operator that the factor is about, for instance ``"zeros 8x8"``.
        through: by how many percent the network's bound falls if this factor falls by one.
        share: its part of the logarithm of the network's bound; all parts add up to one. An estimate, for reading.
        unavailable: why it has no bound, where the reason is its own.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    factor: float | None = None
    upper: float | None = None
    of: str = ""
    through: float | None = None
    share: float | None = None
    unavailable: str | None = None


@dataclass(frozen=True)
class NetworkBound:
    """A Lipschitz constant of a network in inference, from l2 to l2: ``||f(x) - f(y)|| <= upper ||x - y||``.

    It is about the real function that the network stands for, not about the rounding of its evaluation.

    Attributes:
        output: name of the chosen output.
        upper: the constant, from all inputs together; None where there is none.
        outputs: the constant of each output.
        inputs: shape of each input for a batch of one, None where unknown.
        operations: those that the output depends on, in order.
        unavailable: why there is no constant.
        failed: whether one exists and could not be computed.
        notes: remarks on how the graph was read.
        guarantee: what stands behind ``upper``.
    """

    output: str
    upper: float | None
    outputs: Mapping[str, float | None]
    inputs: Mapping[str, tuple[int | None, ...] | None]
    operations: tuple[OperationBound, ...] = ()
    unavailable: str | None = None
    failed: bool = False
    notes: tuple[str, ...] = ()
    guarantee: Guarantee = "certified"


@dataclass(frozen=True)
class CheckpointReport:
    """All layers of one checkpoint.

    Attributes:
        path: as the user named it.
        format: name of the reader; ``""`` when it could not be read.
        sha256: hash of the content, where it was read.
        problems: everything that was dropped, refused or doubtful, one line each.
        layers: one report a layer.
        check: what the gate says about all layers together, where that was asked for.
        network: how much the whole network can stretch its input, where that was asked for.
        failed: whether reading it ended with an error, so that layers may be missing.
    """

    path: str
    format: str
    sha256: str | None = None
    problems: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    check: Check | None = None
    failed: bool = False
    network: NetworkBound | None = None


@dataclass(frozen=True)
class SpectrumChange:
    """How far apart the singular values of two versions of a layer are distributed.

    Attributes:
        method: which spectrum.
        old_of: the operator of the old one.
        new_of: the operator of the new one.
        wasserstein1: mean distance of the values, each moved to its place, over the largest old value.
        wasserstein2: root mean square of the same.
        error: bound on the error of both, from that of the values, and from bins where no values were at hand.
    """

    method: str
    old_of: str
    new_of: str
    wasserstein1: float
    wasserstein2: float
    error: float


@dataclass(frozen=True)
class LayerChange:
    """One layer in two checkpoints.

    Attributes:
        name: module path.
        status: ``same``: equal to the last bit; ``unknown``: in both, and nothing at hand tells whether it changed.
        old: its report in the old checkpoint, if it is there.
        new: its report in the new one.
        trend: which way the norm went, where that is certified: the two intervals share no number.
        ratio: holds the new norm over the old one; None where that is not known.
        kernel_distance: Frobenius norm of the difference of the kernels over that of the old one.
        spectrum: how far apart the spectra are.
        geometry: facts about the layer that both tell, and tell differently.
        unavailable: which of these is not known -> why.
    """

    name: str
    status: Status
    old: LayerReport | None
    new: LayerReport | None
    trend: Trend | None = None
    ratio: Interval | None = None
    kernel_distance: float | None = None
    spectrum: SpectrumChange | None = None
    geometry: tuple[str, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """From one checkpoint to the next.

    Attributes:
        old: path of the old checkpoint.
        new: path of the new one.
        layers: every layer of either, in the order of the old one.
    """

    old: str
    new: str
    layers: tuple[LayerChange, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What changed from each checkpoint to the next.

    Attributes:
        steps: one less than there are checkpoints.
        happened: (step, layer, condition) of every change that was named beforehand.
    """

    steps: tuple[Step, ...] = ()
    happened: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True)
class Report:
    """What one command found.

    Attributes:
        command: the verb.
        settings: the options that matter for the numbers.
        checkpoints: one report a checkpoint.
        partial: whether the run was interrupted.
        comparison: what changed between the checkpoints, where that was asked for.
    """

    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: tuple[CheckpointReport, ...] = ()
    partial: bool = False
    comparison: Comparison | None = None

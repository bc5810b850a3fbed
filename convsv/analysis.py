"""Layers in, reports out: what is computed for a layer, and by which routine.

A layer's own trouble (a NaN, a stride that does not divide the size, bytes that cannot be read) becomes an entry of
``unavailable``; the other results and the other layers are not touched by it. What contradicts itself raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch

from convsv.at_size import any_size_copies
from convsv.bounds import bounds_of
from convsv.certificate import Budget, certify, certify_smallest
from convsv.errors import (
    CheckpointError,
    ComputationError,
    ContradictionError,
    GeometryError,
    UnavailableError,
    UsageError,
    error_context,
)
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer, loosest
from convsv.results import Bound, Interval, LayerReport, Spectrum, Unavailable
from convsv.rounding import above
from convsv.spectra import DEFAULT, SPECTRA, Division, Shared, SpectrumOptions, SpectrumPart
from convsv.symbol import normal_form

__all__ = [
    "BOUNDS_METHOD",
    "SYMBOL_MIN",
    "AnalysisOptions",
    "LayerWork",
    "analyze",
    "analyze_layer",
    "certified_norm",
    "certified_upper",
    "check_agreement",
    "method_names",
]

BOUNDS_METHOD = "bounds"
"""The method name under which all bounds are reported together."""
SYMBOL_MIN = "symbol_min"
"""The method name that asks for the infimum of the symbol's smallest singular value."""


@dataclass(frozen=True)
class AnalysisOptions:
    """What to compute.

    Attributes:
        methods: names of spectra, and ``"bounds"``.
        norm: whether to certify the norm.
        tol: wanted relative width of the certified interval.
        values: whether to keep whole spectra.
        execution: where to compute.
        budget: when to stop certifying one layer.
        spectra: what is wanted of spectra; ``values`` above decides on theirs.
    """

    methods: tuple[str, ...] = ()
    norm: bool = True
    tol: float = 1e-3
    values: bool = False
    execution: Execution = field(default_factory=Execution)
    budget: Budget = field(default_factory=Budget)
    spectra: SpectrumOptions = DEFAULT

    def __post_init__(self) -> None:
        """Refuse a width that nothing compares with.

        Raises:
            UsageError: ``tol`` is not a number.
        """
        if math.isnan(self.tol):
            raise UsageError("tol must be a number", found=str(self.tol))


def method_names() -> tuple[str, ...]:
    """Return the names that ``methods`` may hold."""
    return (*SPECTRA, BOUNDS_METHOD, SYMBOL_MIN)


def analyze(layers: Iterable[ConvLayer], options: AnalysisOptions) -> Iterator[LayerReport]:
    """Yield a report a layer, in order, as soon as it is finished.

    Args:
        layers: the layers.
        options: what to compute.

    Raises:
        ContradictionError: two certified statements exclude each other.
    """
    for layer in layers:
        yield analyze_layer(layer, options)


def analyze_layer(layer: ConvLayer, options: AnalysisOptions) -> LayerReport:
    """Return all results of one layer; none where its weights cannot be read, with the reason.

    Args:
        layer: the layer.
        options: what to compute.

    Raises:
        ContradictionError: two certified statements exclude each other.
    """
    work = LayerWork(layer, options)
    with error_context(tensor=layer.name):
        work.norms()
        for name in options.methods:
            work.method(name)
        report = work.report()
        check_agreement(report)
    return report


def certified_norm(layer: ConvLayer, options: AnalysisOptions, *, at_size: bool = False) -> Interval:
    """Return the interval of one layer's norm, as :func:`analyze_layer` reports it.

    Args:
        layer: the layer.
        options: where to compute, and how finely.
        at_size: the norm of the layer as it runs; what of its geometry is guessed is taken as it is.

    Raises:
        UnavailableError: the layer has no such norm, with the reason.
        GeometryError: the layer has no output at its size.
        CheckpointError: its tensor could not be read.
    """
    with error_context(tensor=layer.name):
        return LayerWork(layer, options).certified(at_size=at_size)


def certified_upper(layer: ConvLayer, options: AnalysisOptions) -> tuple[float, str]:
    """Return a certified upper bound of one layer's norm, and the operator that it is about: the better of two.

    Args:
        layer: the layer.
        options: where to compute, and how finely.

    Returns:
        The bound of the layer as it runs, where that is known and smaller, else that of any size.

    Raises:
        UnavailableError: the layer has no norm, with the reason.
        CheckpointError: its tensor could not be read.
    """
    with error_context(tensor=layer.name):
        return LayerWork(layer, options).upper()


class LayerWork:
    """The results of one layer so far.

    Args:
        layer: the layer.
        options: what to compute.
    """

    def __init__(self, layer: ConvLayer, options: AnalysisOptions) -> None:
        layer = _affordable(layer, options.execution.memory)
        self._layer, self._options = layer, options
        self._shared = Shared(layer, options.execution, options.tol, options.budget)
        self._norm: Interval | None = None
        self._norm_at_size: Interval | None = None
        self._symbol_min: Interval | None = None
        self._results: dict[str, Spectrum | Mapping[str, Bound]] = {}
        self._unavailable: dict[str, str] = {}
        self._failures: list[str] = []
        self._unread: str | None = None

    def norms(self) -> None:
        """Certify the norm of any size and, where the geometry is known, at the layer's own."""
        if self._options.norm or BOUNDS_METHOD in self._options.methods:
            self._attempt("norm", self._certify)

    def certified(self, *, at_size: bool) -> Interval:
        """Return the norm of any size, or that at the layer's own."""
        return self._own_size() if at_size else self._any_size(self._shared.in_its_units(self._shared.norm[0]))

    def upper(self) -> tuple[float, str]:
        """Return the smaller upper end, and which operator it is about."""
        norm = self.certified(at_size=False)
        if not self._layer.geometry.guessed("size", "stride", "padding"):
            with suppress(GeometryError):
                at_size = self._shared.in_its_units(self._shared.upper_at_size)
                norm = min(norm, at_size, key=lambda interval: interval.upper)
        return norm.upper, norm.of

    def method(self, name: str) -> None:
        """Compute the results of one method."""
        if name == BOUNDS_METHOD:
            self._attempt(name, self._bounds)
        elif name == SYMBOL_MIN:
            self._attempt(name, self._certify_smallest)
        else:
            self._attempt(name, lambda: self._spectrum(name))

    def part(self, name: str, share: tuple[int, int]) -> SpectrumPart | None:
        """Compute a share of a method's results; where that fails, the report says why."""
        found: list[SpectrumPart] = []

        def compute() -> None:
            part = _division(name).part
            found.append(part(self._layer, self._options.execution, self._wanted, self._shared, share))

        self._attempt(name, compute)
        return found[0] if found else None

    def join(self, name: str, parts: Sequence[SpectrumPart]) -> None:
        """Take the results of one method from all of its shares."""
        self._attempt(name, lambda: self._keep(name, _division(name).whole(self._layer, self._wanted, parts)))

    def report(self) -> LayerReport:
        """Return what was found."""
        layer = self._layer
        folded = layer.folded
        report = LayerReport(
            name=layer.name,
            weight=layer.weight,
            kind=layer.kind,
            shape=layer.shape,
            dtype=layer.dtype,
            geometry=layer.geometry,
            norm=self._norm,
            norm_at_size=self._norm_at_size,
            symbol_min=self._symbol_min,
            results=self._results,
            unavailable=self._unavailable,
            notes=layer.notes,
            failures=tuple(self._failures),
            unread=self._unread,
            folded=folded.name if folded else None,
        )
        return report if folded is None or folded.known else report.also_assuming("epsilon")

    def _attempt(self, name: str, compute: Callable[[], None]) -> None:
        """Compute; turn what this layer does not have, or what failed, into a reason.

        Raises:
            ContradictionError: two certified statements exclude each other.
        """
        if self._unread is not None:  # what failed once is not read again: it may have taken all of its time
            self._unavailable[name] = self._unread
            return
        try:
            compute()
        except (UnavailableError, GeometryError) as error:
            self._unavailable[name] = error.reason
        except CheckpointError as error:
            self._unavailable[name] = self._unread = error.reason
        except ContradictionError:
            raise
        except (ArithmeticError, MemoryError, RuntimeError) as error:
            self._failed(name, str(error).splitlines()[0] if str(error) else type(error).__name__)
        except ComputationError as error:
            self._failed(name, str(error))

    def _failed(self, name: str, reason: str) -> None:
        self._unavailable[name] = reason
        self._failures.append(name)

    def _certify(self) -> None:
        self._norm = self.certified(at_size=False)
        if not self._layer.geometry.guessed("size", "stride", "padding"):
            self._attempt("norm_at_size", self._at_size)

    def _any_size(self, stated: Interval) -> Interval:
        """Return the interval of the size-free norm, with an upper end that no guess can break."""
        geometry = self._layer.geometry
        loose = loosest(geometry)
        if geometry.padding_mode == "circular":
            # Around a circle that the stride does not divide, windows lie nearer than the stride: there the polyphase
            # norm is no bound.
            loose = replace(loose, stride=(1,) * geometry.dims)
        upper, evaluations = stated.upper, stated.evaluations
        if (loose.groups, loose.stride) != (geometry.groups, geometry.stride):
            kernel = torch.from_numpy(self._layer.kernel(loose.groups))
            form = normal_form(kernel, loose.stride, loose.dilation)
            options = self._options
            wide = certify(form, options.tol, execution=options.execution, budget=options.budget)
            upper, evaluations = max(upper, wide.upper), evaluations + wide.evaluations
        copies = any_size_copies(geometry, self._layer.kernel_size)
        upper = above(upper * copies) if copies > 1 else upper
        above_all = ("padding_mode",) if geometry.padding_mode == "zeros" else ("padding_mode", "padding")
        assumes = {"lower": geometry.guessed(*_leaning(geometry)), "upper": geometry.guessed(*above_all)}
        return replace(stated, upper=upper, assumes=assumes, evaluations=evaluations)

    def _at_size(self) -> None:
        self._norm_at_size = self.certified(at_size=True)

    def _own_size(self) -> Interval:
        """Return the interval of the norm at the layer's size."""
        guessed = self._layer.geometry.guessed("dilation", "groups", "padding_mode", "transposed")
        interval = self._shared.in_its_units(self._shared.norm_at_size)
        return replace(interval, assumes={"lower": guessed, "upper": guessed})

    def _certify_smallest(self) -> None:
        geometry, options = self._layer.geometry, self._options
        shared = self._shared
        found = certify_smallest(shared.form, options.tol, execution=options.execution, budget=options.budget)
        guessed = geometry.guessed(*_leaning(geometry))
        self._symbol_min = replace(shared.in_its_units(found), assumes={"lower": guessed, "upper": guessed})

    @property
    def _wanted(self) -> SpectrumOptions:
        return replace(self._options.spectra, values=self._options.values)

    def _spectrum(self, name: str) -> None:
        self._keep(name, SPECTRA[name].compute(self._layer, self._options.execution, self._wanted, self._shared))

    def _keep(self, name: str, spectrum: Spectrum) -> None:
        self._results[name] = spectrum if self._options.values else spectrum.without_whole_values()

    def _bounds(self) -> None:
        found = bounds_of(
            self._layer, execution=self._options.execution, norm=self._norm, norm_at_size=self._norm_at_size
        )
        self._results[BOUNDS_METHOD] = {name: value for name, value in found.items() if isinstance(value, Bound)}
        missing = {name: value.reason for name, value in found.items() if isinstance(value, Unavailable)}
        self._unavailable.update(missing)


def _division(name: str) -> Division:
    """Return how a method divides its work.

    Raises:
        UsageError: it does not.
    """
    division = SPECTRA[name].division
    if division is None:
        raise UsageError("this method does not divide its work", found=name)
    return division


def _affordable(layer: ConvLayer, memory: int) -> ConvLayer:
    """Return a layer, unavailable where its kernel alone would take more than the budget: it is not even read."""
    size = math.prod(layer.shape)
    if layer.problem or 8 * size <= memory:
        return layer
    return replace(layer, problem=f"its {size} weights do not fit into the memory budget of {memory} bytes")


def _leaning(geometry: Geometry) -> tuple[str, ...]:
    """Return what the normal form depends on: the dilation only where there is a stride."""
    return ("stride", "groups", "dilation") if max(geometry.stride) > 1 else ("stride", "groups")


def check_agreement(report: LayerReport) -> None:
    """Refuse certified statements that exclude each other.

    Raises:
        ContradictionError: they do: a bug, never an answer.
    """
    norm = report.norm
    if norm is None:
        return
    lowers = {"the size-free norm": norm.lower}
    if report.norm_at_size is not None:
        lowers["the norm at its size"] = report.norm_at_size.lower
    for name, result in report.results.items():
        if isinstance(result, Spectrum) and result.guarantee == "certified":
            # Leading values without an error were found by iteration, and are rounded down already.
            known = result.error is not None or result.kind == "leading"
            lowers[f"the largest {name} value"] = result.max - (result.error or 0.0) if known else 0.0
    for name, value in lowers.items():
        if value > norm.upper:
            raise ContradictionError(
                f"{name} is above the certified norm", found=f"{value!r} > {norm.upper!r}", advice="please report this"
            )

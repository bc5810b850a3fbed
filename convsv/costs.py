"""What a layer will cost, from its shape and geometry alone: operations, memory and time. Nothing is read or computed.

Operations of the decompositions are LAPACK's textbook counts (Golub, Van Loan, 4th ed.); how many matrices a
certificate factorises depends on the weights, and is a typical number of trained layers. So these are estimates, to
plan by and to begin with the longest: layers with flat spectra (random weights) take several times as long.

Times were fitted on one core, and are scaled to this machine by a :class:`Speed` that is measured once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from convsv.geometry import Geometry
from convsv.layer import ConvLayer, normal_taps

__all__ = ["METHODS", "Cost", "Dimensions", "Divisible", "LayerCost", "Speed", "Wanted", "cost_of", "costs_of"]

_EVALUATIONS = 60.0
"""Symbol evaluations of a certificate of width 1e-2 in two dimensions: the median of trained layers."""
_WORKSPACE = 4
"""LAPACK's copy, its workspace and the parts of a complex matrix, as multiples of it."""
_CHUNK = 32 << 20
"""Bytes that one thread works on at a time, where a single matrix does not need more."""
_DENSE_WORK = 4e9
"""Operations up to which ``exact`` computes all values; beyond, the leading ones."""


@dataclass(frozen=True)
class Speed:
    """How fast one core of a machine is, in operations a second.

    Attributes:
        gemm: matrix products, float64.
        factorise: Cholesky factorisations of complex128 matrices of some hundred rows.
        eigen: eigenvalues of complex128 matrices of some hundred rows.
        small: how much longer than on the machine of the fits small matrices and Python take.
    """

    gemm: float = 4e10
    factorise: float = 2e10
    eigen: float = 8e9
    small: float = 1.0


@dataclass(frozen=True)
class Cost:
    """What some work takes.

    Attributes:
        flops: operations on real numbers.
        memory: bytes at the peak, on one core.
        seconds: on one core.
    """

    flops: float = 0.0
    memory: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of one after the other."""
        return Cost(self.flops + other.flops, max(self.memory, other.memory), self.seconds + other.seconds)

    @staticmethod
    def total(costs: Iterable[Cost]) -> Cost:
        """Return the cost of all, one after the other."""
        return sum(costs, Cost())


@dataclass(frozen=True)
class Wanted:
    """What is to be computed of each layer.

    Attributes:
        methods: as in ``AnalysisOptions``.
        norm: whether the norm is certified.
        tol: wanted width of its interval.
        full: whether ``exact`` computes all values whatever they cost.
        values: whether whole spectra are kept.
    """

    methods: tuple[str, ...] = ()
    norm: bool = True
    tol: float = 1e-3
    full: bool = False
    values: bool = False


@dataclass(frozen=True)
class Dimensions:
    """A layer as the methods see it: its normal form, and its operator.

    Attributes:
        groups: independent matrices a frequency.
        few: the smaller side of the symbol.
        many: the larger side.
        taps: of the normal form.
        lags: entries of the Gram symbol, half of which are stored.
        points: frequencies of the half grid at the layer's size.
        outputs: places of the strided side.
        inputs: places of the other side.
        entries: weights.
    """

    groups: int
    few: int
    many: int
    taps: int
    lags: int
    points: int
    outputs: int
    inputs: int
    entries: int
    dims: int

    @staticmethod
    def of(layer: ConvLayer) -> Dimensions:
        """Return the dimensions of a layer."""
        geometry, shape = layer.geometry, layer.shape
        groups, rows, columns = _channels(layer)
        index, _ = normal_taps(layer.kernel_size, geometry.stride, geometry.dilation)
        columns *= math.prod(geometry.stride)
        taps = index.shape[1:]
        strided = geometry.size if geometry.transposed else _outputs(geometry)
        outputs = math.prod(strided)
        points = outputs if math.prod(taps) > 1 else 1
        return Dimensions(
            groups=groups,
            few=max(1, min(rows, columns)),
            many=max(1, rows, columns),
            taps=math.prod(taps),
            lags=math.prod(2 * k - 1 for k in taps),
            points=points // 2 + 1,
            outputs=outputs,
            inputs=outputs * math.prod(geometry.stride),
            entries=math.prod(shape),
            dims=len(layer.kernel_size),
        )


def _channels(layer: ConvLayer) -> tuple[int, int, int]:
    """Return groups, rows and columns a group of the forward convolution."""
    shape = layer.shape
    if layer.layout == "KCM":
        return max(1, shape[-2]), shape[-1], 1
    rows, columns = (shape[0], shape[1]) if layer.layout == "OIK" else (shape[-1], shape[-2])
    groups = max(1, layer.geometry.groups)
    return groups, max(1, rows // groups), columns


def _outputs(geometry: Geometry) -> tuple[int, ...]:
    return tuple(max(1, n // s) for n, s in zip(geometry.size, geometry.stride, strict=True))


# --------------------------------------------------------------------------------------------------------- the methods

Estimate = Callable[[Dimensions, Wanted, Speed], Cost]
METHODS: dict[str, Estimate] = {}
"""What each method costs, beside reading the kernel; ``norm`` is the certificate, at the layer's size too."""


def _estimate(name: str) -> Callable[[Estimate], Estimate]:
    def register(function: Estimate) -> Estimate:
        METHODS[name] = function
        return function

    return register


def _matrix(d: Dimensions) -> float:
    """Return the bytes of one symbol, complex128."""
    return 16.0 * d.groups * d.few * d.many


def _chunk(count: float, each: float) -> float:
    """Return the bytes that one thread works on at a time."""
    return max(each, min(_CHUNK, count * each))


def _forming(d: Dimensions) -> float:
    """Return the operations of the Gram symbol's coefficients: one product a pair of taps."""
    pairs = d.taps * (d.taps + 1) / 2
    return 2.0 * d.groups * d.few**2 * d.many * pairs


@_estimate("norm")
def _norm(d: Dimensions, wanted: Wanted, speed: Speed) -> Cost:
    """Return the cost of the certificates: Gram coefficients, then factorisations at some frequencies."""
    width = min(max(wanted.tol, 1e-6), 1.0)
    evaluations = _EVALUATIONS * (1e-2 / width) ** 0.15 * 2.0 ** (d.dims - 2) if d.taps > 1 else 2.0
    symbol = 2.0 * d.lags * d.few**2
    each = symbol + 4 / 3 * d.few**3
    flops = _forming(d) + evaluations * each
    seconds = _forming(d) / speed.gemm + evaluations * (symbol / speed.gemm + 4 / 3 * d.few**3 / speed.factorise)
    memory = 8.0 * d.entries + 8.0 * d.lags * d.groups * d.few**2 + _chunk(evaluations, 3 * 16.0 * d.few**2)
    return Cost(flops, memory, 2 * seconds + 0.004 * speed.small * (1 + d.groups))


@dataclass(frozen=True)
class Divisible:
    """Seconds of work that several tasks may share.

    Attributes:
        again: what each of them does anew.
        once: what they share out.
    """

    again: float
    once: float


def _circulant_route(d: Dimensions, speed: Speed) -> tuple[bool, Divisible]:
    """Return whether eigenvalues are the cheaper route to the values on the half grid, and what it takes."""
    few, many = d.few, d.many
    count = d.groups * d.points
    # Nanoseconds a matrix, fitted to 8 to 512 rows: decompositions of small matrices are far from LAPACK's best.
    # One row needs no decomposition: depthwise layers.
    by_svd = count * (2000 + (0.35 * few + 35) * few * (0.25 * few + 0.75 * many) if few > 1 else 100 + 20 * many)
    by_gram = count * (1500 + (0.18 * few + 32 + 0.04 * d.lags) * few * few)
    forming = 3 * _forming(d)  # the kernel is split, so that the entries err by less
    pays = few > 1 and by_gram + 1e9 * forming / Speed().gemm < by_svd
    once = 1e-9 * (by_gram if pays else by_svd) * Speed().eigen / speed.eigen
    return pays, Divisible((forming / speed.gemm if pays else 0.0) + 0.004 * speed.small, once)


@_estimate("circulant")
def _circulant(d: Dimensions, wanted: Wanted, speed: Speed) -> Cost:
    """Return the cost of all singular values of the symbol on the half grid, by the cheaper of the two routes."""
    few, many = d.few, d.many
    svd = 4.0 * (4.0 * many * few**2 - 4 / 3 * few**3)
    gram = 4.0 * 4 / 3 * few**3 + 2.0 * d.lags * few**2
    count = d.groups * d.points
    pays, work = _circulant_route(d, speed)
    flops = _forming(d) + count * gram if pays else count * (svd + 8.0 * d.taps * few * many)
    held = 8.0 * count * few
    lags = 16.0 * d.lags * d.groups * few**2 if pays else 0.0
    memory = 8.0 * d.entries + lags + _chunk(count, _WORKSPACE * _matrix(d)) + held
    return Cost(flops, memory, work.again + work.once)


@_estimate("asymptotic")
def _asymptotic(d: Dimensions, wanted: Wanted, speed: Speed) -> Cost:
    """Return the cost of the same values at other frequencies."""
    return _circulant(d, wanted, speed)


@_estimate("calibrated")
def _calibrated(d: Dimensions, wanted: Wanted, speed: Speed) -> Cost:
    """Return the cost of quantiles on a finer grid and of the moments."""
    once = _circulant(d, wanted, speed)
    return Cost(2 * once.flops, once.memory, 2 * once.seconds + 0.15 * speed.small)


@_estimate("enclosure")
def _enclosure(d: Dimensions, wanted: Wanted, speed: Speed) -> Cost:
    """Return the cost of the values of the grids that hold the layer."""
    once = _circulant(d, wanted, speed)
    return Cost(4 * once.flops, once.memory, 4 * once.seconds + 0.02 * speed.small)


@_estimate("exact")
def _exact(d: Dimensions, wanted: Wanted, speed: Speed) -> Cost:
    """Return the cost of a dense decomposition where that is small, else of the leading values by iteration."""
    many, few = sorted((d.outputs * d.few, d.inputs * d.many), reverse=True)
    dense = d.groups * (4.0 * many * few**2 - 4 / 3 * few**3)
    if wanted.full or dense <= _DENSE_WORK:
        return Cost(dense, 3 * 8.0 * many * few, dense / (0.5 * speed.eigen) + 0.01 * speed.small)
    steps = 60.0
    flops = steps * 4.0 * d.groups * d.few * d.many * d.taps * d.outputs
    vectors = 8.0 * 40 * d.groups * (d.few * d.outputs + d.many * d.outputs)
    columns = min(64.0 * (1 << 20), 8.0 * d.many * d.taps * d.outputs)
    return Cost(flops, 8.0 * d.entries + vectors + 2 * columns, flops / (0.15 * speed.gemm) + 0.15 * speed.small)


@_estimate("bounds")
def _bounds(d: Dimensions, wanted: Wanted, speed: Speed) -> Cost:
    """Return the cost of all published bounds: norms of unfoldings, iterations, and values on grids."""
    grid = _circulant(d, wanted, speed)
    rows = d.few * d.taps
    flops = 3 * grid.flops + 40.0 * d.groups * rows * d.many * d.few + 200 * 4.0 * d.entries * d.outputs
    seconds = 3 * grid.seconds + (flops - 3 * grid.flops) / (0.2 * speed.gemm) + 0.15 * speed.small
    return Cost(flops, grid.memory + 4 * _matrix(d), seconds)


@_estimate("symbol_min")
def _symbol_min(d: Dimensions, wanted: Wanted, speed: Speed) -> Cost:
    """Return the cost of a certificate whose minima are many and flat."""
    once = _norm(d, wanted, speed)
    return Cost(10 * once.flops, once.memory, 10 * once.seconds)


# ------------------------------------------------------------------------------------------------------------ together


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs.

    Attributes:
        name: of the layer.
        each: the cost of each method.
        problem: why nothing will be computed, if so.
        divisible: methods whose work several tasks may share.
    """

    name: str
    each: Mapping[str, Cost] = field(default_factory=dict)
    problem: str | None = None
    divisible: Mapping[str, Divisible] = field(default_factory=dict)

    @property
    def whole(self) -> Cost:
        """All methods, one after the other."""
        return Cost.total(self.each.values())


def costs_of(layer: ConvLayer, wanted: Wanted, speed: Speed | None = None) -> LayerCost:
    """Return what each method costs for a layer.

    Args:
        layer: any layer; its tensor is not read.
        wanted: what is to be computed.
        speed: of this machine; without it that of the machine where the times were fitted.
    """
    if layer.problem or not math.prod(layer.shape):
        return LayerCost(layer.name, {}, layer.problem or "has no weights")
    speed = speed or Speed()
    dimensions = Dimensions.of(layer)
    certified = wanted.norm or "bounds" in wanted.methods
    names = (*(["norm"] if certified else []), *wanted.methods)
    each = {name: METHODS[name](dimensions, wanted, speed) for name in names if name in METHODS}
    # One method divides its work.
    divisible = {"circulant": _circulant_route(dimensions, speed)[1]} if "circulant" in each else {}
    return LayerCost(layer.name, each, divisible=divisible)


def cost_of(layer: ConvLayer, wanted: Wanted, speed: Speed | None = None) -> Cost:
    """Return what a layer costs with all that is wanted of it."""
    return costs_of(layer, wanted, speed).whole

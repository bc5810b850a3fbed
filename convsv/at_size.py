"""A certified interval of the norm of a layer as it runs: its own size, stride and padding.

Upper ends:

* Zero padding (ours): with p zeros before and q after, the layer is a submatrix of the circular convolution of every
  size m >= n + max(p, q) (what wraps falls on zeros), and modulating input and output by e^(i theta.position), a
  unitary map, shifts the frequency grid by theta. So ||A|| <= max_j sigma_1(F(2 pi j / m + theta)) for EVERY shift,
  and the best of a few shifts is a bound below the size-free norm. Strides through the polyphase kernel, whose grid
  has ceil((n + max(p, q)) / s) points; dilation r through F(r w).
  At stride 1 a dilated layer is a direct sum of undilated ones on every r-th pixel, and they are looked at one by one.
* Circular padding of no more than r (k - 1) an axis: a submatrix of the circular convolution of size n itself.
* Everything else (reflect, replicate, excessive circular): S ||pad||, where ||pad||^2 counts the copies of a pixel.

Lower ends are Ritz values of the operator itself, started from a windowed Bloch wave: the plane wave at the frequency
and with the channel vector of the size-free maximum, under a half sine an axis.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convsv.bloch import bloch_waves
from convsv.errors import ContradictionError
from convsv.execution import Execution, full_precision
from convsv.geometry import Geometry, padding_multiplicity
from convsv.golub_kahan import block_ritz_vector, norm_lower_bound
from convsv.gram import Gram, gram, storage
from convsv.grid_maximum import FrequencyGrid, Wanted, grid_peaks, prove_grid
from convsv.operator import ConvOperator, enclosing_circle, without_dilation
from convsv.peaks import Peak
from convsv.results import Interval
from convsv.rounding import above, below, matrix_norm, power_of_two_scale, scale_by_power, unscale
from convsv.symbol import NormalForm, normal_form

__all__ = ["ALL", "Effort", "any_size_copies", "certify_at_size"]

_DENSE_SIDE = 512
"""Largest smaller side of a matrix that is cheaper to look at than its symbol."""
_WIDE = 1e-3
"""Relative width of what the symbol says, from which a matrix twice as large is looked at as well."""
_DENSE_SIDE_IF_WIDE = 1024
_DENSE_ENTRIES = 1 << 21
"""Most entries of such a matrix."""
_LONG = 2e10
"""Operations on circles from which the lower end comes first: it may show that they are not needed."""
_BLOCK = 2
"""Waves in the block that the lower end starts from: the real and the imaginary part of one wave are rivals."""
_STEPS = 10
"""Products of the block with the operator: enough for 1e-4 or better on trained layers."""


@dataclass(frozen=True)
class Effort:
    """What is wanted of the norm at a size.

    Attributes:
        lower: whether the lower end is wanted, which takes most of the time of a large layer; else it may be 0.
        tol: relative width that is narrow enough where more takes long; 0 for all that can be done.
        seconds: most time for an upper end below that of the size-free norm; None for no limit.
    """

    lower: bool = True
    tol: float = 0.0
    seconds: float | None = None

    def clock(self) -> Callable[[], bool]:
        """Return what tells whether the time is up, counted from now."""
        if self.seconds is None:
            return lambda: False
        end = time.monotonic() + self.seconds
        return lambda: time.monotonic() > end


ALL = Effort()
"""Both ends, as near to each other as they come."""


@dataclass(frozen=True)
class _Grid:
    """A circular convolution that contains the layer: points an axis."""

    size: tuple[int, ...]
    shifts: tuple[tuple[int, ...], ...]

    def work(self, form: NormalForm) -> float:
        """Estimate the operations of visiting every point, with every shift."""
        groups, *sides = form.kernel.shape[:3]
        return groups * min(sides) ** 3 * math.prod(self.size) * len(self.shifts)


def certify_at_size(
    kernel: Tensor,
    geometry: Geometry,
    norm: Interval,
    peak: Peak | None,
    *,
    execution: Execution | None = None,
    effort: Effort = ALL,
) -> Interval:
    """Return a certified interval of the norm of the layer as it runs.

    Args:
        kernel: ``(G, O, I, *K)`` float64, finite.
        geometry: complete and meant: nothing in it is questioned.
        norm: certified interval of the size-free norm for this geometry.
        peak: where that norm is attained, as :func:`convsv.certificate.certify_with_peak` gives it.
        execution: where to compute.
        effort: what is wanted of it, and when to stop.

    Returns:
        The interval, ``of`` for instance ``"zeros 56x56"``.

    Raises:
        GeometryError: the layer has no output at this size.
        ContradictionError: the ends exclude each other, which is a bug.

    Guarantee:
        Certified: the submatrix argument above and Cholesky factorisations from above, Rayleigh quotients from below,
        with the slack that :mod:`convsv.rounding` derives. On a GPU the lower end is 0 where it cannot be certified.
    """
    execution = execution or Execution()
    of = f"{geometry.padding_mode} {'x'.join(map(str, geometry.size))}"
    kernel_size = tuple(kernel.shape[3:])
    geometry.output_size(kernel_size)
    if norm.upper == 0:
        return Interval(0.0, 0.0, of)
    parts = without_dilation(geometry, kernel_size)
    if parts is not None:
        found = [certify_at_size(kernel, part, norm, peak, execution=execution, effort=effort) for part in parts]
        return _direct_sum(found, of)
    exponent = power_of_two_scale(float(kernel.abs().max()))
    scaled = scale_by_power(kernel, -exponent).to(execution.torch_device)
    copies = _copies(geometry, kernel_size)
    upper, evaluations = norm.upper if copies == 1 else above(norm.upper * copies), 0
    operator = ConvOperator(scaled.cpu(), geometry)
    small = _dense_norm(operator, _DENSE_SIDE)
    if small is not None:
        return _checked(unscale(small[0], exponent, down=True), min(upper, unscale(small[1], exponent, down=False)), of)
    form = normal_form(scaled, geometry.stride, geometry.dilation)
    precision = storage(form.kernel, execution.memory)
    if peak is None or precision is None:
        return Interval(0.0, upper, of)
    peaks, least = [peak], 0.0
    grid = _containing(geometry, kernel_size)
    early = grid is not None and effort.lower and effort.tol > 0 and grid.work(form) > _LONG
    if early:
        least = unscale(_ritz(scaled, geometry, form, peaks), exponent, down=True)
    if grid is not None and upper > least * (1 + effort.tol):
        circles = _Circles(gram(form.kernel, precision), form, grid, execution, effort.clock())
        enough = math.ldexp(least * (1 + effort.tol), -exponent)
        bound, evaluations, highest = circles.norm(above(math.ldexp(norm.upper, -exponent)), peaks, enough)
        upper = min(upper, unscale(bound, exponent, down=False))
        peaks += [highest] if highest else []
    if not effort.lower:
        return replace(Interval(0.0, upper, of), evaluations=evaluations)
    if not early or (upper > least * (1 + effort.tol) and len(peaks) > 1):
        least = max(least, unscale(_ritz(scaled, geometry, form, peaks), exponent, down=True))
    # On images of few pixels more the circles are too large to be near: there the matrix is worth its cost.
    if upper > least * (1 + _WIDE) and (small := _dense_norm(operator, _DENSE_SIDE_IF_WIDE)) is not None:
        least = max(least, unscale(small[0], exponent, down=True))
        upper = min(upper, unscale(small[1], exponent, down=False))
    return replace(_checked(least, upper, of), evaluations=evaluations)


def _direct_sum(parts: list[Interval], of: str) -> Interval:
    """Return the interval of the largest norm of several layers."""
    lower, upper = (max((getattr(part, end) for part in parts), default=0.0) for end in ("lower", "upper"))
    return Interval(lower, upper, of, evaluations=sum(part.evaluations for part in parts))


def _checked(lower: float, upper: float, of: str) -> Interval:
    """Return the interval.

    Raises:
        ContradictionError: its ends exclude each other, which is a bug.
    """
    if lower > upper:
        raise ContradictionError("the certified lower end is above the upper one", found=f"{lower!r} > {upper!r}")
    return Interval(lower, upper, of)


def _dense_norm(operator: ConvOperator, side: int) -> tuple[float, float] | None:
    """Return a certified interval of the norm of a small operator from its matrix, or None where it is not small."""
    rows, columns = math.prod(operator.output_shape), math.prod(operator.input_shape)
    if min(rows, columns) > side or rows * columns > _DENSE_ENTRIES:
        return None
    lower, upper = matrix_norm(operator.to_dense())
    # Entries are taps, or sums of taps where padding copies: a column is an image of a unit vector.
    wrong = operator.rounding * math.sqrt(columns) * (1 + 2.0**-40)
    return below(lower - wrong), above(upper + wrong)


def _ritz(kernel: Tensor, geometry: Geometry, form: NormalForm, peaks: list[Peak]) -> float:
    """Return a certified Ritz value of the scaled layer, started from the waves of all peaks together."""
    operator = ConvOperator(kernel, geometry)
    if operator.device.type != "cpu":
        # Convolutions there may be formed by algorithms to which the rounding bound does not apply.
        operator = ConvOperator(kernel.cpu(), geometry)
        form, peaks = replace(form, kernel=form.kernel.cpu()), [replace(p, vector=p.vector.cpu()) for p in peaks]
    size = geometry.forward_size(tuple(kernel.shape[3:]))
    # Without the window a wave is better only where padding copies.
    shapes = slice(0, 2 if geometry.padding_mode == "zeros" else 4)
    waves = torch.cat([bloch_waves(form, geometry, peak, size)[shapes] for peak in peaks])
    waves = waves[waves.flatten(1).norm(dim=1) > 0]
    if not len(waves):
        return 0.0
    # The vector may be inexact, what it shows may not: single precision finds it, double precision measures it. In
    # half precision, which a program may have allowed, it would be another one.
    rough = ConvOperator(kernel.to("cpu", torch.float32), geometry)
    with full_precision():
        vector = block_ritz_vector(rough, _best_waves(rough, waves.to(torch.float32), geometry), _STEPS)
    return norm_lower_bound(operator, vector.to(torch.float64), operator.rounding)


def _best_waves(operator: ConvOperator, waves: Tensor, geometry: Geometry) -> Tensor:
    """Return the few unit waves that are stretched most, as inputs of the layer."""
    waves = operator.adjoint(waves) if geometry.transposed else waves
    waves = waves / waves.flatten(1).norm(dim=1).reshape(-1, *[1] * (waves.ndim - 1)).clamp(min=1e-300)
    stretched = operator.apply(waves).flatten(1).norm(dim=1)
    return waves[stretched.argsort(descending=True)[:_BLOCK]]


def _copies(geometry: Geometry, kernel_size: tuple[int, ...]) -> float:
    """Return an upper bound of ||pad||, 1 where padding only adds zeros or wraps no more than the kernel reaches."""
    if geometry.padding_mode == "zeros":
        return 1.0
    sizes = geometry.forward_size(kernel_size)
    if geometry.padding_mode == "circular" and _wraps_once(geometry, kernel_size) and _divides(geometry, sizes):
        return 1.0
    copies = [
        padding_multiplicity(geometry.padding_mode, n, before, after)
        for n, (before, after) in zip(sizes, geometry.padding, strict=True)
    ]
    return above(math.sqrt(math.prod(copies)), 2)


def any_size_copies(geometry: Geometry, kernel_size: tuple[int, ...]) -> float:
    """Return an upper bound of ||pad|| over every input size: 1 for zeros and for ordinary circular padding.

    For the latter it multiplies the norm at stride 1: see :func:`_divides`.

    Args:
        geometry: of which padding, padding mode and dilation count.
        kernel_size: spatial taps.
    """
    mode = geometry.padding_mode
    if mode == "zeros" or (mode == "circular" and _wraps_once(geometry, kernel_size)):
        return 1.0
    most = 1
    for before, after in geometry.padding:
        # A reflection must be smaller than the input; the fewest positions share the copies.
        smallest = max(before, after) + 1 if mode == "reflect" else 1
        sizes = range(smallest, before + after + smallest + 1)
        most *= max(padding_multiplicity(mode, n, before, after) for n in sizes)
    return above(math.sqrt(most), 2)


def _wraps_once(geometry: Geometry, kernel_size: tuple[int, ...]) -> bool:
    axes = zip(geometry.padding, kernel_size, geometry.dilation, strict=True)
    return all(before + after <= d * (k - 1) for (before, after), k, d in axes)


def _divides(geometry: Geometry, sizes: tuple[int, ...]) -> bool:
    """Tell whether the strides divide the sizes: on a circle where they do not, two windows are nearer."""
    return not any(n % s for n, s in zip(sizes, geometry.stride, strict=True))


def _containing(geometry: Geometry, kernel_size: tuple[int, ...]) -> _Grid | None:
    """Return the grid of circular convolutions that contain the layer, or None where there is none."""
    sizes = geometry.forward_size(kernel_size)
    dims = len(sizes)
    if geometry.padding_mode == "circular" and _wraps_once(geometry, kernel_size):
        if not _divides(geometry, sizes):
            return None
        return _Grid(tuple(n // s for n, s in zip(sizes, geometry.stride, strict=True)), ((0,) * dims,))
    if geometry.padding_mode != "zeros":
        return None
    axes = zip(sizes, kernel_size, geometry.stride, geometry.dilation, geometry.padding, strict=True)
    points = tuple(enclosing_circle(n, d * (k - 1) + 1, s, pair)[0] for n, k, s, d, pair in axes)
    return _Grid(points, tuple(itertools.product((0, 1), repeat=dims)))


@dataclass(frozen=True)
class _Circles:
    """The circular convolutions that contain the layer, and how their norms are proved."""

    coefficients: Gram
    form: NormalForm
    grid: _Grid
    execution: Execution
    late: Callable[[], bool]

    def norm(self, top: float, peaks: list[Peak], enough: float) -> tuple[float, int, Peak | None]:
        """Return the least over the shifts of a certified bound over the grid, its cost, and the peak on the grid.

        Args:
            top: certified upper bound of the size-free norm.
            peaks: where that is attained.
            enough: bound that need not be improved.
        """
        active = tuple(bool(degree) for degree in self.form.degrees)
        size = tuple(n if on else 1 for n, on in zip(self.grid.size, active, strict=True))
        shifts = {tuple(s if on else 0 for s, on in zip(shift, active, strict=True)) for shift in self.grid.shifts}
        bound, spent, proved = top, 0, None
        lattices = [FrequencyGrid(size, shift, self.form.dilation, self.form.degrees) for shift in sorted(shifts)]
        highest_of = grid_peaks(self.coefficients, lattices, peaks, self.execution)
        for best, lattice in sorted(zip(highest_of, lattices, strict=True), key=lambda pair: pair[0].value):
            if best.value >= bound**2 or bound <= above(enough, 4):
                break
            wanted = Wanted(top, enough, self.late)
            found, evaluations, highest = prove_grid(self.coefficients, lattice, wanted, best, self.execution)
            spent += evaluations
            if found < bound:
                bound, proved = found, highest
        return bound, spent, proved

"""A certified enclosure of every singular value of a layer as it runs.

Zero padding (ours): the layer A is a submatrix of the circular convolution C of m points an axis where m is large
enough that what wraps falls on zeros (see :mod:`convsv.at_size`), for EVERY shift theta of the frequency grid. A matrix
that loses r rows and columns together keeps its singular values between those of before (Cauchy's interlacing, once for
each row and column):

    sigma_(i + r)(C_theta) <= sigma_i(A) <= sigma_i(C_theta).

With s the stride, C has c_out prod(m) rows and c_in prod(s m) columns, and its values are those of the polyphase
symbol at the grid points; r is what A has less. The best of a few shifts counts on either side.

Other padding P copies: A = T P with T the layer on the padded input, without padding. P has orthogonal columns, whose
squared lengths are the numbers of copies, at least 1. So sigma_i(A) <= ||P|| sigma_i(T), and sigma_i(A) is at least
the value of T that remains after as many columns are lost as P has more rows than columns. Circular padding that
wraps no further than the kernel reaches needs no P: there A itself is a part of C at its own size, unshifted.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.errors import ContradictionError, UnavailableError
from convsv.execution import Execution
from convsv.geometry import Geometry, padding_multiplicity
from convsv.linalg import singular_value_error, singular_values
from convsv.operator import enclosing_circle
from convsv.rounding import above, power_of_two_scale, scale_by_power
from convsv.symbol import NormalForm, grid_symbol, half_grid, normal_form, symbol_error

__all__ = ["enclose_spectrum"]

_WORKSPACE = 4
"""LAPACK's copy, its workspace and the symbol's real and imaginary part, as multiples of the complex symbol."""
_ARRAYS = 6
"""Arrays of all values that are held at one time."""
_ROUNDING = 2.0**-50
"""More than the relative error of the few operations on each end."""

Ends = NDArray[np.float64]


@dataclass(frozen=True)
class _Axis:
    """How a layer lies in a circular convolution along one axis.

    Attributes:
        points: m, grid points.
        rows: outputs that see more than padding.
        columns: inputs.
        copies: largest number of times an input is copied by a padding that C does not have.
        shifts: of the grid, in half steps.
    """

    points: int
    rows: int
    columns: int
    copies: int
    shifts: tuple[int, ...]


def enclose_spectrum(
    kernel: Tensor, geometry: Geometry, *, execution: Execution | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return certified lower and upper ends of all singular values of a layer as it runs.

    Args:
        kernel: ``(G, O, I, *K)`` float64, finite.
        geometry: complete and meant: nothing in it is questioned.
        execution: where to compute, always in float64.

    Returns:
        ``(lower, upper)``, each ``(G * min(rows, columns),)`` float64 and descending: the i-th largest value of all
        groups together lies between the i-th entries. An upper end beyond the range of float64 is infinite.

    Raises:
        GeometryError: the layer has no output at this size.
        UnavailableError: the values do not fit into the memory budget.
        ContradictionError: two ends exclude each other, which is a bug.

    Guarantee:
        Certified: the interlacing above, and the bounds on what rounding does to the symbol and its singular values.
    """
    execution = execution or Execution()
    axes = _axes(geometry, tuple(kernel.shape[3:]))
    count = _count(kernel, geometry)
    if not kernel.numel() or float(kernel.abs().max()) == 0:
        return np.zeros(len(kernel) * count), np.zeros(len(kernel) * count)
    exponent = power_of_two_scale(float(kernel.abs().max()))
    scaled = scale_by_power(kernel.detach().cpu(), -exponent)
    form = normal_form(scaled, geometry.stride, geometry.dilation)
    _check_budget(form, axes, execution)
    lower, upper = _interlaced(form, axes, count, execution)
    if (lower > upper).any():
        raise ContradictionError("a lower end is above the upper one", found=f"{(lower > upper).sum()} values")
    lower, upper = (np.sort(ends.ravel())[::-1] for ends in (lower, upper))
    with np.errstate(over="ignore", under="ignore"):
        lower, upper = np.ldexp(lower, exponent), np.ldexp(upper, exponent)
    # The scale is exact but for results that are denormal.
    return np.where(lower > 0, np.nextafter(lower, 0.0), 0.0), np.where(upper > 0, np.nextafter(upper, np.inf), upper)


def _count(kernel: Tensor, geometry: Geometry) -> int:
    """Return min(rows, columns) of one group."""
    taps = tuple(kernel.shape[3:])
    outputs = geometry.size if geometry.transposed else geometry.output_size(taps)
    return min(kernel.shape[1] * math.prod(outputs), kernel.shape[2] * math.prod(geometry.forward_size(taps)))


def _axes(geometry: Geometry, kernel_size: tuple[int, ...]) -> list[_Axis]:
    sizes = geometry.forward_size(kernel_size)
    used = geometry.size if geometry.transposed else geometry.output_size(kernel_size)
    found = []
    for axis, (n, k) in enumerate(zip(sizes, kernel_size, strict=True)):
        extent, stride = geometry.dilation[axis] * (k - 1) + 1, geometry.stride[axis]
        pads = geometry.padding[axis]
        if geometry.padding_mode == "circular" and sum(pads) < extent and n % stride == 0:
            found.append(_Axis(n // stride, used[axis], n, 1, (0,)))
        else:
            # Copying padding is a map of its own: what follows it is a layer without padding.
            zeros = geometry.padding_mode == "zeros"
            copies = 1 if zeros else padding_multiplicity(geometry.padding_mode, n, *pads)
            length, zeros_read = (n, pads) if zeros else (n + sum(pads), (0, 0))
            points, seeing = enclosing_circle(length, extent, stride, zeros_read)
            rows = len(range(seeing.start, min(seeing.stop, used[axis])))
            found.append(_Axis(points, rows, n, copies, (0, 1)))
    return found


def _check_budget(form: NormalForm, axes: list[_Axis], execution: Execution) -> None:
    groups, outputs, inputs = form.kernel.shape[:3]
    count = groups * min(outputs, inputs) * math.prod(axis.points for axis in axes)
    if _ARRAYS * 8 * count > execution.memory:
        raise UnavailableError(
            f"enclosing {count} singular values does not fit into the memory budget of {execution.memory} bytes"
        )


def _interlaced(form: NormalForm, axes: list[_Axis], count: int, execution: Execution) -> tuple[Ends, Ends]:
    """Return both ends for the scaled kernel, ``(G, count)`` each, descending in each group."""
    groups, outputs, inputs = form.kernel.shape[:3]
    phases = math.prod(form.stride)
    points = math.prod(axis.points for axis in axes)
    rows, columns = outputs * math.prod(axis.rows for axis in axes), math.prod(axis.columns for axis in axes)
    columns *= inputs // phases
    lost = (outputs * points - rows) + (inputs * points - columns)
    copies = above(math.sqrt(math.prod(axis.copies for axis in axes)), 2)
    kept = min(rows, columns, count)
    lower, upper = np.zeros((groups, count)), np.full((groups, count), math.inf)
    # Rows without an entry add zeros to the spectrum.
    upper[:, kept:] = 0.0
    active = [degree > 0 for degree in form.degrees]
    shifts = {
        tuple(shift if on else 0 for shift, on in zip(chosen, active, strict=True))
        for chosen in itertools.product(*(axis.shifts for axis in axes))
    }
    for shift in sorted(shifts):
        values, error = _grid_values(form, axes, shift, execution)
        upper[:, :kept] = np.minimum(upper[:, :kept], (values[:, :kept] + error) * (1 + _ROUNDING) * copies)
        remaining = values[:, lost : lost + count]
        reached = lower[:, : remaining.shape[1]]
        np.maximum(reached, (remaining - error) * (1 - _ROUNDING), out=reached)
    return lower, upper * (1 + _ROUNDING)


def _grid_values(
    form: NormalForm, axes: list[_Axis], shift: tuple[int, ...], execution: Execution
) -> tuple[NDArray[np.float64], float]:
    """Return the singular values of C for each group, ``(G, points * c)`` descending, and a bound on their error."""
    # Along an axis of one tap the symbol does not depend on the frequency: one point stands for all.
    size = tuple(axis.points if degree else 1 for axis, degree in zip(axes, form.degrees, strict=True))
    repeats = math.prod(axis.points for axis in axes) // math.prod(size)
    indices, weights = half_grid(size, shift)
    halves = torch.tensor(shift)
    indices = indices * (halves + 1) + halves
    lattice = tuple(n * (1 + half) for n, half in zip(size, shift, strict=True))

    def work(start: int, stop: int, device: torch.device) -> Tensor:
        there = NormalForm(form.kernel.to(device), form.dilation, form.stride)
        return singular_values(grid_symbol(there, lattice, indices[start:stop])).cpu()

    each = _WORKSPACE * 16 * math.prod(form.kernel.shape[:3])
    found = torch.cat(list(execution.map_chunks(len(indices), each, work))).repeat_interleave(weights, dim=0)
    ascending = np.sort(found.transpose(0, 1).flatten(1).numpy(), axis=1)
    outputs, inputs = form.kernel.shape[1:3]
    error = symbol_error(form.kernel) + singular_value_error((outputs, inputs), torch.float64, float(ascending.max()))
    return np.repeat(ascending[:, ::-1], repeats, axis=1), error

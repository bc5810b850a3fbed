"""Suprema over all frequencies from finitely many.

F has degree d_i in the frequency w_i. Every norm of F(w) is a supremum of real functions Re(c <L, F(w)>) with |c| = 1
and a linear functional L, and along a line through the maximum, less its mean phase, each is of exponential type
tau / 2 with tau = sum_i d_i |w_i - w*_i|. By Bernstein's and Szego's inequality it falls no faster than a cosine: the
norm at w is at least cos(tau / 2) times the largest. On a grid of N_i > d_i points an axis, one axis after the other,

    sup_w ||F(w)|| <= max_grid ||F|| / prod_i cos(pi d_i / (2 N_i)).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convsv.execution import Execution
from convsv.gram import Gram
from convsv.rounding import above, below, gamma
from convsv.symbol import NormalForm, grid_symbol, half_grid, half_grid_span, symbol_error

__all__ = [
    "energies",
    "energy_suprema",
    "gram_phases",
    "gram_symbols",
    "grid_factor",
    "grid_size",
    "largest_values",
    "transposed_if_tall",
]

_POINTS = 1 << 16
"""Most points of a grid for scalar polynomials."""


def grid_size(degrees: Sequence[int], most: int, points: int = _POINTS) -> tuple[int, ...]:
    """Return a grid of ``most`` times the degree an axis, or of fewer where that makes too many points.

    Args:
        degrees: degree of the symbol, one an axis; one point is enough where it is 0.
        most: the largest multiple.
        points: the largest number of points, unless twice the degree an axis is already more.
    """
    for density in range(most, 2, -1):
        size = tuple(max(1, density * degree) for degree in degrees)
        if math.prod(size) <= points:
            return size
    return tuple(max(1, 2 * degree) for degree in degrees)


def grid_factor(degrees: Sequence[int], size: Sequence[int]) -> float:
    """Return 1 / prod_i cos(pi d_i / (2 N_i)), rounded up.

    Args:
        degrees: degree of the symbol, one an axis.
        size: points of the grid, more than the degree on each axis.
    """
    cosine = 1.0
    for degree, count in zip(degrees, size, strict=True):
        if degree:
            # math.cos of a rounded angle below pi / 2: off by less than 2 u in absolute terms.
            cosine = below(cosine * (math.cos(math.pi * degree / (2 * count)) - 2.0**-51), 2)
    return above(1 / cosine, 2)


def gram_phases(coefficients: Gram, size: Sequence[int], indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos(l.w) ``(M, 1 + L)``, lag 0 first, and sin(l.w) ``(M, L)`` at grid points, on the coefficients' device.

    Args:
        coefficients: the Gram symbol; only its lags matter.
        size: points of the grid, one integer an axis.
        indices: ``(M, d)`` int64.
    """
    cosines, sines = coefficients.phases(indices.numpy(), tuple(size))
    return torch.from_numpy(cosines).to(coefficients.even), torch.from_numpy(sines).to(coefficients.even)


def gram_symbols(coefficients: Gram, size: Sequence[int], indices: Tensor) -> Tensor:
    """Return F(w)* F(w) of every group at grid points, ``(M, G, n, n)``; real where n is 1 or there is one tap.

    Each is within ``coefficients.error`` of the true one, in the spectral norm.

    Args:
        coefficients: the Gram symbol.
        size: points of the grid, one integer an axis.
        indices: ``(M, d)`` int64.
    """
    cosines, sines = gram_phases(coefficients, size, indices)
    values = cosines @ coefficients.even.flatten(1)
    if len(coefficients.lags) and coefficients.size > 1:
        values = torch.complex(values, sines @ coefficients.odd.flatten(1))
    return values.reshape(len(indices), coefficients.groups, coefficients.size, coefficients.size)


def transposed_if_tall(kernel: Tensor) -> Tensor:
    """Return a kernel ``(G, O, I, *K)`` with O <= I, the channels swapped if need be: the norm is the same."""
    return kernel if kernel.shape[1] <= kernel.shape[2] else kernel.transpose(1, 2)


def energies(kernel: Tensor) -> Tensor:
    """Return the coefficients of the rows' energies p_i(w) = sum_j |f_ij(w)|^2 = sum_l c_il exp(i l.w).

    Args:
        kernel: ``(G, O, I, *K)`` float64.

    Returns:
        ``(G, O, *(2K - 1))``: c_il = sum_jk K_ijk K_ij(k+l), the lag 0 in the middle; each within
        ``gamma_(I |K|) sum_jk K_ijk^2``.
    """
    taps = tuple(kernel.shape[3:])
    lags = kernel.new_empty(*kernel.shape[:2], *(2 * k - 1 for k in taps))
    for lag in itertools.product(*(range(1 - k, k) for k in taps)):
        if lag > (0,) * len(taps):
            continue
        first, second = kernel, kernel
        for axis, (step, k) in enumerate(zip(lag, taps, strict=True), start=3):
            first = first.narrow(axis, max(0, -step), k - abs(step))
            second = second.narrow(axis, max(0, step), k - abs(step))
        product = (first * second).flatten(2).sum(-1)
        for sign in (1, -1):
            place = tuple(sign * step + k - 1 for step, k in zip(lag, taps, strict=True))
            index: tuple[slice | int, ...] = (slice(None), slice(None), *place)
            lags[index] = product
    return lags


def energy_suprema(kernel: Tensor, execution: Execution, *, together: bool = False) -> tuple[Tensor, Tensor]:
    """Return what the energies p_i(w) reach: certified bounds of their suprema from below and from above.

    From below the largest value on a grid, from above that times the square of :func:`grid_factor`, rounding included.

    Args:
        kernel: ``(G, O, I, *K)`` float64.
        execution: where to compute.
        together: add up the energies of all rows of a group first.

    Returns:
        Two tensors ``(G, O)``, or ``(G, 1)`` if together.
    """
    lags = energies(kernel)
    squares = kernel.square().flatten(2).sum(-1) * (1 + gamma(math.prod(kernel.shape[2:]) + 4))
    if together:
        lags, squares = lags.sum(1, keepdim=True), squares.sum(1, keepdim=True) * (1 + gamma(kernel.shape[1]))
    count = math.prod(kernel.shape[1:])
    # Each of the lags' sums runs over at most so many terms, and is at most the sum of squares.
    forming = gamma(count + 8) * math.prod(lags.shape[2:]) * squares
    degrees = tuple(k - 1 for k in kernel.shape[3:])
    size = grid_size(degrees, 32)
    highest = largest_values(lags, size, execution)[0]
    error = forming + symbol_error(lags.flatten(0, 1)[None, :, None])
    return (highest - error).clamp(min=0), (highest + error) * above(grid_factor(degrees, size) ** 2, 8)


def largest_values(lags: Tensor, size: tuple[int, ...], execution: Execution) -> tuple[Tensor, Tensor]:
    """Return the largest |sum_l c_l exp(i l.w)| over a grid, and where on it.

    Args:
        lags: ``(G, R, *L)`` float64.
        size: points of the grid, one integer an axis.
        execution: where to compute.

    Returns:
        Values ``(G, R)`` and indices ``(G, R, d)`` of one of the points each.
    """
    flat = lags.flatten(0, 1)[None, :, None]
    ones = (1,) * len(size)

    def work(start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        indices, _weights = half_grid(size, start=start, stop=stop)
        if not len(indices):
            return lags.new_zeros(flat.shape[1]), torch.zeros(flat.shape[1], len(size), dtype=torch.int64)
        values = grid_symbol(NormalForm(flat.to(device), ones, ones), size, indices)
        highest, where = values.abs().flatten(1).max(0)
        return highest.to(lags.device), indices[where.cpu()]

    each = 8 * (4 * flat.shape[1] + 6 * math.prod(lags.shape[2:]))
    parts = list(execution.map_chunks(half_grid_span(size), each, work))
    highest, chosen = torch.stack([value for value, _ in parts]).max(0)
    places = torch.stack([where for _, where in parts])[chosen.cpu(), torch.arange(len(chosen))]
    return highest.reshape(lags.shape[:2]), places.reshape(*lags.shape[:2], len(size))

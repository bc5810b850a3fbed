"""Bounds that are maxima over a grid of frequencies: found on the whole grid, differentiated at the maximiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from convsv.bounds import Problem
from convsv.bounds._grids import energies, gram_symbols, grid_factor, grid_size, largest_values, transposed_if_tall
from convsv.bounds.delattre2023 import ROUNDS, circle, gram_iteration
from convsv.bounds.pfister2019 import pfister_factor, pfister_grid
from convsv.bounds.yi2020 import schur_cosine, schur_grid
from convsv.differentiable._entries import gradient
from convsv.differentiable._maximum import spectral_norms
from convsv.differentiable.matrices import singla2021, tap_sum
from convsv.execution import Execution
from convsv.gram import gram
from convsv.linalg import eigenvalues
from convsv.symbol import NormalForm, grid_symbol, half_grid, half_grid_span, normal_form

__all__ = [
    "araujo2021",
    "circulant",
    "delattre2023",
    "frobenius",
    "frobenius_lower",
    "pfister2019",
    "yi2020",
    "yi2020_schur",
]


@gradient("frobenius")
def frobenius(problem: Problem) -> Tensor:
    """Return the root of the largest sum of the rows' energies, times the factor of the grid."""
    highest, factor = _highest_energies(problem, together=True)
    return highest.amax().sqrt() * factor


@gradient("frobenius_lower")
def frobenius_lower(problem: Problem) -> Tensor:
    """Return the largest quadratic mean of the singular values on the grid."""
    highest, _ = _highest_energies(problem, together=True)
    return (highest.amax() / min(problem.form.kernel.shape[1:3])).sqrt()


@gradient("araujo2021")
def araujo2021(problem: Problem) -> Tensor:
    """Return the root of the sum of the rows' largest energies, times the factor of the grid."""
    highest, factor = _highest_energies(problem, together=False)
    return highest.sum(1).amax().sqrt() * factor


@gradient("yi2020_schur")
def yi2020_schur(problem: Problem) -> Tensor:
    """Return Schur's test at its worst frequency on the grid, times the factor of the grid."""
    form, size = _undilated(problem.form), schur_grid(problem.form)

    def products(symbols: Tensor) -> Tensor:
        magnitudes = symbols.abs()
        product: Tensor = magnitudes.sum(-1).amax(-1) * magnitudes.sum(-2).amax(-1)
        return product

    highest = products(_at_maximum(form, size, products, problem.execution))[0]
    return (highest / schur_cosine(form.degrees, size)).sqrt()


@gradient("yi2020")
def yi2020(problem: Problem) -> Tensor:
    """Return the least of the three bounds of the paper."""
    parts = [singla2021(problem, "singla2021_r"), singla2021(problem, "singla2021_s")]
    return torch.stack([*parts, yi2020_schur(problem), tap_sum(problem)]).amin()


@gradient("pfister2019")
def pfister2019(problem: Problem) -> Tensor:
    """Return the largest singular value on the grid, times the paper's factor."""
    kernel, taps = problem.form.kernel, tuple(problem.form.kernel.shape[3:])
    size = pfister_grid(taps, min(kernel.shape[1:3]), kernel.shape[0])
    coefficients = gram(kernel.detach())

    def values(indices: Tensor, _device: torch.device) -> Tensor:
        return eigenvalues(gram_symbols(coefficients, size, indices))[..., -1]

    each = 8 * 16 * coefficients.size**2 * coefficients.groups + 32 * (len(coefficients.lags) + 1)
    point, group = _highest(size, values, problem.execution, each)
    return _norm_at(_undilated(problem.form), size, point, group) * pfister_factor(taps, size)


@gradient("delattre2023")
def delattre2023(problem: Problem) -> Tensor:
    """Return the largest bound by Gram iteration over the circle of the layer's size, its value at one frequency."""
    form, size = _own_form(problem), circle(problem.geometry)

    def iterated(symbols: Tensor) -> Tensor:
        return gram_iteration(symbols.flatten(0, 1), ROUNDS).reshape(symbols.shape[:2])

    return iterated(_at_maximum(form, size, iterated, problem.execution)[None])[0, 0]


@gradient("circulant", side="upper", holds_for="circular")
def circulant(problem: Problem) -> Tensor:
    """Return the norm of the layer on a circle of its own size: the largest singular value on that grid.

    Raises:
        UnavailableError: the stride does not divide the size.
    """
    form, size = _own_form(problem), circle(problem.geometry)

    def values(symbols: Tensor) -> Tensor:
        squares = symbols @ symbols.mH if symbols.shape[-2] <= symbols.shape[-1] else symbols.mH @ symbols
        return eigenvalues(squares)[..., -1]

    return spectral_norms(_at_maximum(form, size, values, problem.execution))[0]


def _own_form(problem: Problem) -> NormalForm:
    return normal_form(problem.kernel, problem.geometry.stride, problem.geometry.dilation)


def _undilated(form: NormalForm) -> NormalForm:
    """Return the form without dilation: it moves frequencies, and all of them are looked at."""
    ones = (1,) * len(form.dilation)
    return NormalForm(form.kernel, ones, ones)


def _highest(
    size: tuple[int, ...], values: Callable[[Tensor, torch.device], Tensor], execution: Execution, each: int
) -> tuple[Tensor, int]:
    """Return the index ``(1, d)`` of the point of a grid, and the group, with the largest value.

    Args:
        size: points of the grid, an axis.
        values: ``(M, G)`` for indices ``(M, d)``.
        execution: where to compute.
        each: bytes a point.
    """

    def work(start: int, stop: int, device: torch.device) -> tuple[float, Tensor, int] | None:
        indices, _weights = half_grid(size, start=start, stop=stop)
        if not len(indices):
            return None
        with torch.no_grad():
            found = values(indices, device)
        best = int(found.argmax())
        row = best // found.shape[1]
        return float(found.flatten()[best]), indices[row : row + 1], best % found.shape[1]

    parts = [part for part in execution.map_chunks(half_grid_span(size), each, work) if part is not None]
    _value, point, group = max(parts, key=lambda part: part[0])
    return point, group


def _at_maximum(
    form: NormalForm, size: tuple[int, ...], values: Callable[[Tensor], Tensor], execution: Execution
) -> Tensor:
    """Return the symbol ``(1, O, I)``, with its gradient, at the point and in the group where a value is largest.

    Args:
        form: the normal form.
        size: points of the grid, an axis.
        values: ``(M, G)`` for symbols ``(M, G, O, I)``.
        execution: where to compute.
    """
    fixed = form.kernel.detach()

    def at(indices: Tensor, device: torch.device) -> Tensor:
        there = NormalForm(fixed.to(device), form.dilation, form.stride)
        return values(grid_symbol(there, size, indices))

    point, group = _highest(size, at, execution, 16 * 6 * math.prod(fixed.shape[:3]))
    return _symbol_at(form, size, point, group)


def _symbol_at(form: NormalForm, size: tuple[int, ...], point: Tensor, group: int) -> Tensor:
    chosen = NormalForm(form.kernel[group : group + 1], form.dilation, form.stride)
    return grid_symbol(chosen, size, point)[0]


def _norm_at(form: NormalForm, size: tuple[int, ...], point: Tensor, group: int) -> Tensor:
    return spectral_norms(_symbol_at(form, size, point, group))[0]


def _highest_energies(problem: Problem, *, together: bool) -> tuple[Tensor, float]:
    """Return what the rows' energies reach on a grid, ``(G, R)``, and the root of the factor of the grid.

    Each is sum_j |f_ij(w)|^2 at its own frequency; R is 1 where they are added up first.
    """
    kernel = transposed_if_tall(problem.form.kernel)
    degrees = tuple(k - 1 for k in kernel.shape[3:])
    size = grid_size(degrees, 32)
    with torch.no_grad():
        lags = energies(kernel.detach())
        lags = lags.sum(1, keepdim=True) if together else lags
        places = largest_values(lags, size, problem.execution)[1]
        turns = places.to(torch.float64) / torch.tensor(size, dtype=torch.float64)
        axes = [torch.arange(k, dtype=torch.float64) for k in kernel.shape[3:]]
        taps = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        angles = (2 * math.pi * (turns @ taps.T % 1.0)).to(kernel.device)
    rows = kernel.flatten(1, 2)[:, None] if together else kernel
    flat = rows.flatten(3)
    waves = [torch.einsum("grjp,grp->grj", flat, part) for part in (angles.cos(), angles.sin())]
    return (waves[0].square() + waves[1].square()).sum(-1), grid_factor(degrees, size)

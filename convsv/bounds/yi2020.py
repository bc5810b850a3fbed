"""Upper bounds read off the spectral density matrix, which is the symbol."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsv.bounds import Problem, bound
from convsv.bounds._grids import grid_size
from convsv.bounds.elementary import tap_sum
from convsv.bounds.singla2021 import singla2021_r, singla2021_s
from convsv.rounding import above, below, gamma
from convsv.symbol import NormalForm, grid_symbol, half_grid, half_grid_span, symbol_error

__all__ = ["schur_cosine", "schur_grid", "yi2020", "yi2020_schur"]

_REFERENCE = "X. Yi: Asymptotic Singular Value Distribution of Linear Convolutional Layers, arXiv:2006.07117, 2020"
_ENTRIES = 1 << 28
"""Most entries of the symbol that are computed."""


@bound(
    "yi2020",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="two spectral norms of (c_out k) x (c_in k), k^d of c_out x c_in, and a grid of symbols",
    reference=_REFERENCE,
)
def yi2020(problem: Problem) -> float:
    """The least of the paper's three: min(R, S) of Singla-Feizi, sup_w sqrt(||F||_1 ||F||_inf), sum_k ||K_k||_2.

    The three are entries of their own too. They are reconstructed from descriptions of the paper, and proved here.
    """
    return min(singla2021_r(problem), singla2021_s(problem), yi2020_schur(problem), tap_sum(problem))


@bound(
    "yi2020_schur",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="a grid of symbols, c_out c_in k^d each",
    reference=_REFERENCE,
)
def yi2020_schur(problem: Problem) -> float:
    """sup_w sqrt(||F(w)||_1 ||F(w)||_inf), by columns and rows: Schur's test at each frequency.

    At the maximum w* the product P of the two norms is that of two real functions whose product h has |h| <= P along
    the line to any w, and is of exponential type tau (see the grids' module). So h falls no faster than a cosine:
    P(w) >= P(w*) cos(tau), and a grid of N_i >= 3 d_i points has max_grid P >= P(w*) prod_i cos(pi d_i / N_i).
    """
    kernel, degrees = problem.form.kernel, problem.form.degrees
    symbols = math.prod(kernel.shape[:3])
    size = schur_grid(problem.form)
    ones = (1,) * len(size)

    def work(start: int, stop: int, device: torch.device) -> float:
        indices, _weights = half_grid(size, start=start, stop=stop)
        if not len(indices):
            return 0.0
        magnitudes: Tensor = grid_symbol(NormalForm(kernel.to(device), ones, ones), size, indices).abs()
        rows, columns = magnitudes.sum(-1).amax(-1) + slack[0], magnitudes.sum(-2).amax(-1) + slack[1]
        return float((rows * columns).max())

    error = symbol_error(kernel)
    slack = tuple(error * math.sqrt(n) * (1 + 1e-9) for n in (kernel.shape[2], kernel.shape[1]))
    parts = problem.execution.map_chunks(half_grid_span(size), 48 * symbols, work)
    # Absolute values and sums of at most so many terms in each of the two factors.
    product = max(parts) * (1 + 2 * gamma(kernel.shape[1] + kernel.shape[2] + 16))
    return above(math.sqrt(above(product / schur_cosine(degrees, size), 4)), 4)


def schur_grid(form: NormalForm) -> tuple[int, ...]:
    """Return the points of the grid an axis, at least three times the degree."""
    degrees, symbols = form.degrees, math.prod(form.kernel.shape[:3])
    return tuple(max(n, 3 * d) for n, d in zip(grid_size(degrees, 32, 2 * _ENTRIES // symbols), degrees, strict=True))


def schur_cosine(degrees: tuple[int, ...], size: tuple[int, ...]) -> float:
    """Return prod_i cos(pi d_i / N_i), rounded down."""
    cosine = 1.0
    for degree, count in zip(degrees, size, strict=True):
        cosine = below(cosine * (math.cos(math.pi * degree / count) - 2.0**-50), 2) if degree else cosine
    return cosine

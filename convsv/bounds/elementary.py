"""Textbook bounds: one line of proof each.

Every bound is for F(w) = sum_k K_k exp(i k.w), the symbol of the normal form ``(G, O, I, *K)``.
"""

from __future__ import annotations

import math

from torch import Tensor

from convsv.bounds import Problem, bound
from convsv.bounds._grids import energy_suprema, transposed_if_tall
from convsv.bounds._norms import norm_lower, norm_upper
from convsv.rounding import above, below, gamma

__all__ = ["frobenius", "frobenius_lower", "l1_linf", "one_tap", "schur_products", "tap_matrices", "tap_sum"]

_HORN_JOHNSON = "R. Horn, C. Johnson: Matrix Analysis, Cambridge University Press, 2nd ed. 2013"


@bound(
    "frobenius",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="c_out c_in (2k)^d + a grid of scalars",
    reference=f"{_HORN_JOHNSON}, section 5.6",
)
def frobenius(problem: Problem) -> float:
    """sup_w ||F(w)||_F: a matrix's Frobenius norm bounds its spectral norm.

    ||F(w)||_F^2 is a scalar trigonometric polynomial, maximised on a grid with its certified factor.
    """
    upper = energy_suprema(transposed_if_tall(problem.form.kernel), problem.execution, together=True)[1]
    return above(math.sqrt(float(upper.max())), 2)


@bound(
    "frobenius_lower",
    side="lower",
    guarantee="certified",
    holds_for="any size",
    cost="c_out c_in (2k)^d + a grid of scalars",
    reference=f"{_HORN_JOHNSON}, section 5.6",
)
def frobenius_lower(problem: Problem) -> float:
    """max_w ||F(w)||_F / sqrt(r) over a grid, r = min(c_out, c_in).

    The largest singular value is at least the quadratic mean of all r.
    """
    kernel = transposed_if_tall(problem.form.kernel)
    lower = energy_suprema(kernel, problem.execution, together=True)[0]
    return below(math.sqrt(float(lower.max()) / kernel.shape[1]), 4)


@bound(
    "l1_linf",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="c_out c_in k^d",
    reference="I. Schur: Bemerkungen zur Theorie der beschränkten Bilinearformen, J. reine angew. Math. 140, 1911",
)
def l1_linf(problem: Problem) -> float:
    """sqrt(max_i sum_jk |K_ijk| * max_j sum_ik |K_ijk|): Schur's test, Young's inequality for one channel."""
    terms = math.prod(problem.form.kernel.shape[1:])
    product = float(schur_products(problem.form.kernel).max())
    return above(math.sqrt(product) * (1 + gamma(terms + 4)), 4)


@bound(
    "tap_sum",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="k^d spectral norms of c_out x c_in",
    reference="triangle inequality; X. Yi: Asymptotic Singular Value Distribution of Linear Convolutional Layers, "
    "arXiv:2006.07117, 2020",
)
def tap_sum(problem: Problem) -> float:
    """sum_k ||K_k||_2: a convolution is a sum of shifts, each times the matrix of one tap."""
    kernel = problem.form.kernel
    sums = norm_upper(tap_matrices(kernel)).reshape(kernel.shape[0], -1).sum(1)
    return above(float(sums.max()) * (1 + gamma(math.prod(kernel.shape[3:]))), 2)


@bound(
    "one_tap",
    side="lower",
    guarantee="certified",
    holds_for="any size",
    cost="k^d spectral norms of c_out x c_in",
    reference=f"{_HORN_JOHNSON}, section 5.6",
)
def one_tap(problem: Problem) -> float:
    """max_k ||K_k||_2: the tap K_k is the mean of F(w) exp(-i k.w) over all frequencies."""
    return float(norm_lower(tap_matrices(problem.form.kernel)).max())


def schur_products(kernel: Tensor) -> Tensor:
    """Return the product of the largest row sum and the largest column sum of magnitudes of each group, ``(G,)``.

    Args:
        kernel: ``(G, O, I, *K)``.
    """
    magnitudes = kernel.abs().flatten(3).sum(-1)
    product: Tensor = magnitudes.sum(2).amax(1) * magnitudes.sum(1).amax(1)
    return product


def tap_matrices(kernel: Tensor) -> Tensor:
    """Return the matrices of all taps, ``(G * prod(K), O, I)``."""
    outputs, inputs = kernel.shape[1:3]
    return kernel.flatten(3).permute(0, 3, 1, 2).reshape(-1, outputs, inputs)

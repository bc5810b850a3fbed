"""Gram iteration on the circulant grid: squaring instead of power iteration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsv.bounds import Problem, bound
from convsv.errors import UnavailableError
from convsv.geometry import Geometry
from convsv.rounding import Precision, above, gamma
from convsv.symbol import grid_symbol, half_grid, half_grid_span, normal_form, symbol_error

__all__ = ["ROUNDS", "circle", "delattre2023", "gram_iteration"]

ROUNDS = 6
"""Squarings."""


@bound(
    "delattre2023",
    side="upper",
    guarantee="certified",
    holds_for="circular",
    cost="6 products of min(c_out, c_in) x c matrices at each frequency of the layer's size",
    reference="B. Delattre, Q. Barthélemy, A. Araujo, A. Allauzen: Efficient Bound of Lipschitz Constant for "
    "Convolutional Layers by Gram Iteration, ICML 2023",
)
def delattre2023(problem: Problem) -> float:
    """max_j ||G_t(w_j)||_F^(1 / 2^t) with G_0 = F and G_t+1 = G_t* G_t, t = 6, over the grid of the layer's size.

    A bound of the circular layer of that size only: neither of the zero-padded one nor of another size. Above the norm
    by a factor of at most min(c_out, c_in)^(1/128).

    Raises:
        UnavailableError: the stride does not divide the size.
    """
    geometry = problem.geometry
    grid = circle(geometry)
    form = normal_form(problem.kernel, geometry.stride, geometry.dilation)

    def work(start: int, stop: int, device: torch.device) -> float:
        indices, _weights = half_grid(grid, start=start, stop=stop)
        if not len(indices):
            return 0.0
        there = type(form)(form.kernel.to(device), form.dilation, form.stride)
        return float(gram_iteration(grid_symbol(there, grid, indices).flatten(0, 1), ROUNDS).max())

    each = 16 * 6 * math.prod(form.kernel.shape[:3])
    highest = max(problem.execution.map_chunks(half_grid_span(grid), each, work))
    return above(highest + symbol_error(form.kernel), 2)


def gram_iteration(matrices: Tensor, rounds: int) -> Tensor:
    """Return certified upper bounds of spectral norms by Gram iteration, rescaled to Frobenius norm 1 at each step.

    With G = G_t of norm 1 and P = fl(G* G): ||G||_2^2 <= ||P||_2 + e, where e bounds the rounding of the product. So a
    bound b of ||P / c||_2, c = ||P||_F, gives ||G||_2 <= sqrt(c b + e); the last b is a Frobenius norm. Nothing
    overflows and no logarithm is needed, for the scales are put back one square root at a time.

    Args:
        matrices: ``(B, m, n)``, real or complex, of entries whose squares neither overflow nor vanish.
        rounds: number of squarings.

    Returns:
        ``(B,)`` float64; 0 for zero matrices.
    """
    current = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    precision = Precision.of(current)
    slack = 8 * gamma(2 * math.prod(current.shape[1:]) + 8, precision.unit)
    first, current = _rescaled(current)
    scales, errors = [], []
    for _ in range(rounds):
        # The product, and the division by its norm, of which each entry errs by a few units.
        errors.append((precision.inner(current.shape[1]) + 4 * precision.unit) * (1 + slack))
        scale, current = _rescaled(current.mH @ current)
        scales.append(scale * (1 + slack))
    value = torch.ones_like(first) * (1 + slack)
    for scale, error in zip(reversed(scales), reversed(errors), strict=True):
        value = (scale * value + error).sqrt() * (1 + 8 * precision.unit)
    return value * first * (1 + 2 * slack)


def _rescaled(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return Frobenius norms and the matrices divided by them; zero matrices stay."""
    norms = torch.linalg.matrix_norm(matrices)
    return norms, matrices / torch.where(norms > 0, norms, torch.ones_like(norms))[:, None, None]


def circle(geometry: Geometry) -> tuple[int, ...]:
    """Return the number of frequencies an axis: the size of the strided side of the layer.

    Raises:
        UnavailableError: the stride does not divide the size.
    """
    if geometry.transposed:
        return geometry.size
    for n, s in zip(geometry.size, geometry.stride, strict=True):
        if n % s:
            raise UnavailableError(f"stride {s} does not divide size {n}")
    return tuple(n // s for n, s in zip(geometry.size, geometry.stride, strict=True))

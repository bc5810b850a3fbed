"""A grid maximum, and how far a trigonometric polynomial can rise between the points of a grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsv.bounds import Problem, bound
from convsv.bounds._grids import gram_symbols
from convsv.gram import Gram, gram
from convsv.rounding import above, eigenvalue_upper, prove_below
from convsv.symbol import half_grid, half_grid_span

__all__ = ["pfister2019", "pfister_factor", "pfister_grid"]

_MOST = 32
"""Grid points an axis, as in the usual comparisons."""
_WORK = 4e11
"""Most operations spent on the grid: wide layers get fewer points, and a larger factor."""


@bound(
    "pfister2019",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="a grid of up to 32^d largest eigenvalues of min(c_out, c_in) rows",
    reference="L. Pfister, Y. Bresler: Bounding Multivariate Trigonometric Polynomials, IEEE Transactions on Signal "
    "Processing 67, 2019",
)
def pfister2019(problem: Problem) -> float:
    """max_grid sigma_1(F) / prod_i sqrt(1 - 2 floor(k_i / 2) / N_i).

    Re(u* F(w) v) is a trigonometric polynomial of degree floor(k_i / 2) in w_i once the kernel is centred, to which
    the paper's factor applies. N_i is 32 an axis, or less where that would take too long, but at least
    4 floor(k_i / 2): from there on the factor is at least 1 / cos(pi floor(k_i / 2) / N_i), which the theorem of the
    grids' module proves to be enough.
    """
    taps = problem.form.kernel.shape[3:]
    coefficients = gram(problem.form.kernel)
    size = pfister_grid(taps, coefficients.size, coefficients.groups)
    # The eigenvalue is of the computed G(w), which is off by at most coefficients.error.
    highest = _grid_maximum(problem, coefficients, size)
    return above(math.sqrt(above(highest + coefficients.error, 4)) * pfister_factor(taps, size), 12 + 4 * len(size))


def pfister_factor(taps: tuple[int, ...], size: tuple[int, ...]) -> float:
    """Return by how much a grid's maximum can fall short of the true one, as computed."""
    return 1 / math.sqrt(math.prod(1 - 2 * (k // 2) / n for k, n in zip(taps, size, strict=True) if k > 1))


def pfister_grid(taps: tuple[int, ...], channels: int, groups: int) -> tuple[int, ...]:
    """Return the points of the grid, at least four times the degree on each axis.

    Args:
        taps: of the kernel, an axis.
        channels: the smaller number of channels of a group.
        groups: number of groups.
    """
    each = max(4.0 * channels**3, 1e4) * groups
    axes = sum(k > 1 for k in taps)
    points = min(_MOST, max(4, int((2 * _WORK / each) ** (1 / max(1, axes)))))
    return tuple(1 if k == 1 else max(points, 4 * (k // 2)) for k in taps)


def _grid_maximum(problem: Problem, coefficients: Gram, size: tuple[int, ...]) -> float:
    """Return a certified upper bound of the largest eigenvalue of the computed G over the grid, in any group."""

    def work(start: int, stop: int, device: torch.device) -> float:
        indices, _weights = half_grid(size, start=start, stop=stop)
        if not len(indices):
            return 0.0
        return _maximum(gram_symbols(coefficients, size, indices).flatten(0, 1).to(device))

    each = 8 * 16 * coefficients.size**2 * coefficients.groups + 32 * (len(coefficients.lags) + 1)
    return max(problem.execution.map_chunks(half_grid_span(size), each, work))


def _maximum(matrices: Tensor) -> float:
    """Bound the largest eigenvalue of all: Cholesky for most, eigenvalues for those that may exceed a guess."""
    guess = torch.full((len(matrices),), _guess(matrices), dtype=torch.float64, device=matrices.device)
    proven, proved = prove_below(matrices, guess)
    bounds = [proved[proven]] if bool(proven.any()) else []
    bounds += [] if bool(proven.all()) else [eigenvalue_upper(matrices[~proven])]
    return float(torch.cat(bounds).max())


def _guess(matrices: Tensor, rounds: int = 12) -> float:
    """Return a little more than what power iteration finds for the largest eigenvalue of all the matrices."""
    vector = matrices.sum(-1, keepdim=True) + 1e-3
    for _ in range(rounds):
        vector = matrices @ (vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp(min=1e-200))
    value = float(torch.linalg.vector_norm(vector, dim=-2).max())
    return value if math.isfinite(value) else 0.0

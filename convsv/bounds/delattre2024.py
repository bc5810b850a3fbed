"""Gram iteration on the kernel: a bound for zero padding and every size."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from convsv.bounds import Problem, bound
from convsv.bounds._grids import gram_phases, gram_symbols
from convsv.errors import UnavailableError
from convsv.gram import Gram, gram
from convsv.rounding import DOUBLE, Precision, gamma
from convsv.symbol import half_grid

__all__ = ["delattre2024", "rounds_of", "row_sums", "wave_phases"]

_ROUNDS = 4
_WORK = 1e12
"""Most operations; wide layers get fewer rounds."""


@bound(
    "delattre2024",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="up to 3 products of min(c_out, c_in) x c matrices at (16 (k - 1) + 1)^d / 2 frequencies",
    reference="B. Delattre, Q. Barthélemy, A. Allauzen: Spectral Norm of Convolutional Layers with Circular and Zero "
    "Paddings, arXiv:2402.00240, 2024",
)
def delattre2024(problem: Problem) -> float:
    """(max_i sum_jl |K_t|_ijl)^(1 / 2^t), K_t the t-fold iterated autocorrelation of the kernel, t = 4.

    K_t is the kernel of (A^T A)^(2^(t-1)), and a convolution's norm is at most its largest row sum. It is computed on
    the smaller channel side, and from the symbol: (F* F)^(2^(t-1)) on a grid of 2^t (k - 1) + 1 points an axis, where
    its transform back is exact. Published code convolves kernels instead, at far greater cost in time and memory. t is
    smaller where memory or time would not do.

    Raises:
        UnavailableError: not even the autocorrelation fits into the memory budget.
    """
    rounds = rounds_of(problem)
    coefficients = gram(problem.form.kernel)
    degrees = problem.form.degrees
    grid = tuple(2**rounds * d + 1 for d in degrees)
    indices, weights = half_grid(grid)
    powers = _Powers(coefficients, gram_symbols(coefficients, grid, indices), rounds)
    total = _certified_sums(powers, wave_phases(coefficients, grid, indices), weights, grid)
    for scale in reversed(powers.scales):
        total = (scale * total).sqrt() * (1 + 8 * DOUBLE)
    return float(total.max())


def rounds_of(problem: Problem) -> int:
    """Return t.

    Raises:
        UnavailableError: not even the autocorrelation fits into the memory budget.
    """
    rounds = next((t for t in range(_ROUNDS, 0, -1) if _fits(problem, t)), 0)
    if not rounds:
        raise UnavailableError("the autocorrelation of the kernel does not fit into the memory budget")
    return rounds


def _fits(problem: Problem, rounds: int) -> bool:
    kernel = problem.form.kernel
    size = min(kernel.shape[1:3])
    points = math.prod(2**rounds * d + 1 for d in problem.form.degrees)
    entries = kernel.shape[0] * size**2
    memory = points // 2 * entries * 16 * 2 + points // 2 * points * 8
    work = points * entries * (4 * size * (rounds - 1) + points)
    return memory <= problem.execution.memory and (work <= _WORK or rounds == 1)


class _Powers:
    """Powers of the Gram symbol on a grid, rescaled, with a bound on what rounding has done to them.

    Attributes:
        current: ``(M, G, n, n)``, at most 1 in Frobenius norm.
        scales: the factors taken out, ``(G,)`` each: of the symbol itself, then of every square.
        error: ``(G,)``, bound on the spectral norm of computed minus true, at any point.
    """

    def __init__(self, coefficients: Gram, symbols: Tensor, rounds: int) -> None:
        self._precision = Precision.of(symbols)
        self._length = symbols.shape[-1]
        self.scales: list[Tensor] = []
        self.error = torch.full(symbols.shape[1:2], coefficients.error, dtype=torch.float64, device=symbols.device)
        self.current = symbols
        self._rescale()
        for _ in range(rounds - 1):
            self._square()
            self._rescale()

    def _square(self) -> None:
        """G <- G* G. With ||G|| <= m, an error e becomes (2 m + e) e, and the product errs by gamma ||G||_F^2."""
        for point in range(0, len(self.current), 64):
            part = self.current[point : point + 64]
            self.current[point : point + 64] = part.mH @ part
        forming = self._precision.inner(self._length) * (1 + 1e-9)
        # ||G||^2 = ||G* G||, which is at most the largest Frobenius norm of the square as computed.
        norm = (self._largest() * (1 + 1e-9) + forming).sqrt()
        self.error = (2 * norm + self.error) * self.error + forming

    def _largest(self) -> Tensor:
        norms: Tensor = torch.linalg.matrix_norm(self.current)
        return norms.amax(0)

    def _rescale(self) -> None:
        scale = self._largest()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        self.current = self.current.div_(scale[:, None, None])
        self.scales.append(scale)
        self.error = (self.error / scale + 4 * DOUBLE) * (1 + 8 * DOUBLE)


def wave_phases(coefficients: Gram, grid: tuple[int, ...], indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines ``(M, 1 + L)`` and sines ``(M, L)`` of l.w for the lags 0 and one of each opposite pair."""
    reach = [range(-(n // 2), n // 2 + 1) for n in grid]
    lags = [lag for lag in itertools.product(*reach) if lag > (0,) * len(grid)]
    wider = replace(coefficients, lags=np.array(lags, dtype=np.int64).reshape(-1, len(grid)))
    return gram_phases(wider, grid, indices)


def _certified_sums(powers: _Powers, phases: tuple[Tensor, Tensor], weights: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return certified upper bounds of max_i sum_jl |K_l,ij|, ``(G,)``, for the kernel K of the current power.

    K_l is an inner product of 2 M terms, |G_ij| <= 1 each. Summed over a row, an error of spectral norm e gives at most
    sqrt(n) e a lag, and there are as many lags as points.
    """
    points, _groups, n = powers.current.shape[:3]
    lags = math.prod(grid)
    each = powers.error + 2 * gamma(2 * points + 64)
    slack = lags * math.sqrt(n) * each * (1 + 1e-9)
    sums = row_sums(powers.current, phases, weights, grid)
    return (sums * (1 + gamma(lags * n + 8)) + slack) * (1 + 4 * DOUBLE)


def row_sums(symbols: Tensor, phases: tuple[Tensor, Tensor], weights: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return max_i sum_jl |K_l,ij|, ``(G,)``, K_l being the mean over the grid of Re(G(w) exp(-i l.w)).

    Args:
        symbols: G ``(M, G, n, n)``, Hermitian, at one of each pair of conjugate points.
        phases: what :func:`wave_phases` returns for the points.
        weights: ``(M,)`` for how many points each stands.
        grid: points of the grid, one integer an axis.
    """
    cosines, sines = phases
    points, groups, n = symbols.shape[:3]
    shares = (weights.to(cosines) / math.prod(grid))[:, None]
    flat = symbols.reshape(points, -1)
    zero = (cosines[:, :1] * shares).T @ flat.real
    sums = zero.reshape(groups, n, n).abs().sum(-1)
    for first in range(0, sines.shape[1], 32):
        some = slice(first, first + 32)
        kernel = (cosines[:, 1:][:, some] * shares).T @ flat.real
        kernel = kernel + (sines[:, some] * shares).T @ flat.imag if flat.is_complex() else kernel
        magnitudes = kernel.reshape(-1, groups, n, n).abs().sum(0)
        # K_(-l) is the transpose of K_l: its rows are the columns.
        sums = sums + magnitudes.sum(-1) + magnitudes.sum(-2)
    largest: Tensor = sums.amax(-1)
    return largest

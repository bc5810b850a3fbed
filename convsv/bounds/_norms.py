"""Certified spectral norms of batches of real matrices, which most bounds come down to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convsv.golub_kahan import LanczosOptions, leading_singular_values
from convsv.linalg import leading_eigenvectors
from convsv.rounding import DOUBLE, Precision, eigenvalue_upper, gamma

__all__ = ["DIRECT", "leading_rows", "norm_lower", "norm_upper", "short_side"]

DIRECT = 192
"""Rows up to which all eigenvalues of the Gram matrix cost less than a Lanczos iteration."""

_UNDERFLOW = 1e-150
"""More than what underflow of products can take from a norm, for entries at most 1."""


def norm_upper(matrices: Tensor) -> Tensor:
    """Return certified upper bounds of spectral norms.

    ``||A||^2 <= lambda_max(fl(A A^T)) + gamma ||A||_F^2``, the eigenvalue bounded by a Cholesky factorisation
    (:func:`convsv.rounding.eigenvalue_upper`).

    Args:
        matrices: ``(B, m, n)`` float64, entries at most 1 in magnitude.

    Returns:
        ``(B,)``, above the norms by a relative m n u or so.

    Raises:
        ComputationError: an entry is not finite.
    """
    short = short_side(matrices)
    gram = short @ short.mT
    estimate = None if short.shape[1] <= DIRECT else _leading(short)[0].square()
    frobenius = gram.diagonal(dim1=-2, dim2=-1).sum(-1) * (1 + 2 * gamma(short.shape[1] * short.shape[2] + 8))
    forming = Precision.of(short).inner(short.shape[2]) * frobenius
    return (eigenvalue_upper(gram, estimate) + forming).sqrt() * (1 + 8 * DOUBLE) + _UNDERFLOW


def norm_lower(matrices: Tensor) -> Tensor:
    """Return certified lower bounds of spectral norms: Rayleigh quotients ``||A^T v|| / ||v||``, rounded down.

    The computed ``A^T v`` errs by at most ``gamma_m ||A||_F ||v||`` and a computed length of n entries by a factor
    1 +- gamma_(n+4) (Higham 2002, section 3.1).

    Args:
        matrices: ``(B, m, n)`` float64, entries at most 1 in magnitude.

    Returns:
        ``(B,)``, not negative.
    """
    short = short_side(matrices)
    rows, columns = short.shape[1:]
    vectors = leading_rows(short)
    image = (short.mT @ vectors[..., None])[..., 0]
    lengths = torch.linalg.vector_norm(vectors, dim=-1) * (1 + gamma(rows + 8))
    frobenius = torch.linalg.matrix_norm(short) * (1 + gamma(rows * columns + 8))
    quotient = torch.linalg.vector_norm(image, dim=-1) * (1 - gamma(columns + 8)) / lengths
    wrong = Precision.of(short).inner(rows) * frobenius * (1 + 2 * gamma(rows + 8))
    lower: Tensor = quotient * (1 - 8 * DOUBLE) - wrong * (1 + 8 * DOUBLE) - _UNDERFLOW
    return lower.clamp(min=0)


def leading_rows(short: Tensor) -> Tensor:
    """Return near-leading left singular vectors ``(B, m)`` of matrices ``(B, m, n)`` with m <= n, as computed."""
    rows = short.shape[1]
    if rows == 1:
        return torch.ones_like(short[..., 0])
    return leading_eigenvectors(short @ short.mT) if rows <= DIRECT else _leading(short)[1]


@dataclass(frozen=True)
class _Matrix:
    """A matrix as an operator that knows its products only."""

    matrix: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[1],)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[0],)

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix


def short_side(matrices: Tensor) -> Tensor:
    """Return matrices ``(B, m, n)`` with m <= n, transposed if need be: the norms are the same."""
    return matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT


def _leading(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return estimates of the largest singular values ``(B,)`` and of their left vectors ``(B, m)``."""
    options = LanczosOptions(tolerance=1e-9, products=2000, subspace=32, confirm=False)
    found = [leading_singular_values(_Matrix(matrix), 1, options=options) for matrix in matrices]
    values = torch.stack([part.values[0] for part in found])
    return values.nan_to_num(nan=math.inf), torch.stack([part.left[0] for part in found])

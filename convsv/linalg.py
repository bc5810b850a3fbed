"""Singular values and eigenvalues of batches of small dense matrices, with a bound on their error.

Knows no convolution. The matrices are expected to be scaled (largest entry near 1), so that nothing overflows.

On a CPU, two LAPACKs are at hand: torch's (MKL in its x86 wheels) and numpy's (OpenBLAS). Measured side by side on one
core (AMD Zen 5, torch 2.13, numpy 2.4, complex128): below 64 rows torch takes 0.75 to 1.0 times as long as numpy, from
64 on 1.05 to 1.7 times; in complex64 it is always faster, as numpy computes in double precision.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.errors import ComputationError
from convsv.execution import numpy_keeps_to_one_thread, one_thread_a_call

__all__ = [
    "decomposition",
    "eigenpairs",
    "eigenvalue_error",
    "eigenvalues",
    "leading_eigenvectors",
    "singular_value_error",
    "singular_values",
]

_Failures: TypeAlias = tuple[type[Exception], ...]
_FAILURES: _Failures = (np.linalg.LinAlgError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]

_NUMPY_FROM = 64
"""Rows and columns from which numpy's LAPACK is the faster one."""
_ITERATED_FROM = 48
"""Rows from which inverse iteration is faster than all eigenvectors: 0.8 times the time at 64, 0.6 times at 96."""
_SETTLED = 2.0**-44
"""Residual, relative to the eigenvalue, up to which inverse iteration counts as converged; it reaches 2^-50."""


def singular_values(matrices: Tensor) -> Tensor:
    """Return the singular values of each matrix, in descending order.

    One row or one column has one singular value, its length. Else LAPACK's gesdd on the whole batch; where it fails,
    each matrix for itself: by gesdd of another LAPACK, which divides and conquers too, then by the QR iteration of
    gesvd, and at last by the eigenvalues of [[0, A], [A*, 0]], which are the singular values and their negatives, to
    the same absolute accuracy.

    Args:
        matrices: ``(..., m, n)``, real or complex, finite.

    Returns:
        ``(..., min(m, n))``, real, within :func:`singular_value_error` of the true values.

    Raises:
        ComputationError: no route gives finite values; a non-finite entry is the usual cause.
    """
    rows, columns = matrices.shape[-2:]
    if min(rows, columns) <= 1:
        lengths: Tensor = torch.linalg.vector_norm(matrices, dim=-1 if rows == 1 else -2)
        return lengths
    try:
        values = _svdvals(matrices)
        if torch.isfinite(values).all():
            return values
    except _FAILURES:
        pass
    flat = matrices.detach().reshape(-1, rows, columns).cpu()
    rescued = torch.stack([_one_by_one(matrix) for matrix in flat]).to(matrices.device)
    return rescued.reshape(*matrices.shape[:-2], min(rows, columns))


def singular_value_error(shape: tuple[int, int], dtype: torch.dtype, largest: float) -> float:
    """Return a bound on the absolute error of each value that :func:`singular_values` computes.

    The methods are backward stable: the computed values are those of A + E with ``||E||_2 <= p(m, n) eps ||A||_2``
    (LAPACK Users' Guide, 3rd ed., section 4.9.1), and by Weyl's inequality no singular value moves by more. The guide
    calls p a modestly growing function and takes 1 for it in practice; we take 4 (m + n), which is what each of the
    m + n Householder reflections adds at most if it errs by a few eps in norm. A single row or column is a sum of
    squares, with the error of Higham (2002), section 3.1.

    Args:
        shape: m and n.
        dtype: dtype of the arithmetic (its real part's).
        largest: an upper estimate of the largest singular value, as computed.
    """
    rows, columns = shape
    eps = float(torch.finfo(dtype).eps)
    factor = max(rows, columns) + 4 if min(rows, columns) <= 1 else 4 * (rows + columns)
    return factor * eps * largest / (1 - factor * eps)


def eigenvalues(hermitian: Tensor) -> Tensor:
    """Return the eigenvalues of each matrix, in ascending order; NaN where LAPACK did not find them.

    Args:
        hermitian: ``(..., n, n)``, real symmetric or complex Hermitian; one triangle is read.

    Returns:
        ``(..., n)``, real, where not NaN within :func:`eigenvalue_error` of the true values.
    """
    try:
        if _is_for_numpy(hermitian):
            with one_thread_a_call():
                return torch.from_numpy(np.linalg.eigvalsh(hermitian.detach().numpy()))
        found: Tensor = torch.linalg.eigvalsh(hermitian)
        return found
    except _FAILURES:
        real = torch.empty(0, dtype=hermitian.dtype).real.dtype
        return torch.full(hermitian.shape[:-1], torch.nan, dtype=real, device=hermitian.device)


def eigenpairs(hermitian: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of each matrix; not for what is to be certified.

    On Gram matrices of trained layers torch's LAPACK was seen to give up in single precision. Where it does, numpy's
    takes over, in double precision.

    Args:
        hermitian: ``(..., n, n)``, real symmetric or complex Hermitian, finite; one triangle is read.

    Returns:
        ``(..., n)``, real and in ascending order, and ``(..., n, n)`` with the vectors in columns.

    Raises:
        ComputationError: neither succeeds; a non-finite entry is the usual cause.
    """
    values, vectors = _rescued(torch.linalg.eigh, np.linalg.eigh, hermitian)
    return values, vectors


def leading_eigenvectors(symmetric: Tensor) -> Tensor:
    """Return an eigenvector of the largest eigenvalue of each matrix; not for what is to be certified.

    From a certain size on the eigenvalues alone are computed, and the vector by two steps of inverse iteration
    (Golub, Van Loan 2013, section 8.2.2) from a fixed start; where its residual is not that of LAPACK's own vectors,
    as :func:`eigenpairs`.

    Args:
        symmetric: ``(B, n, n)``, float64, positive semidefinite, finite.

    Returns:
        ``(B, n)``, of length 1 to working precision.

    Raises:
        ComputationError: no LAPACK succeeds; a non-finite entry is the usual cause.
    """
    found = _by_inverse_iteration(symmetric) if symmetric.shape[-1] >= _ITERATED_FROM else None
    return eigenpairs(symmetric)[1][..., -1] if found is None else found


def _by_inverse_iteration(symmetric: Tensor) -> Tensor | None:
    """Return leading eigenvectors ``(B, n)``, or None where LAPACK fails or one has not converged."""
    size = symmetric.shape[-1]
    try:
        top = torch.linalg.eigvalsh(symmetric)[:, -1:, None]
    except _FAILURES:
        return None
    # The shift must not be an eigenvalue to the last bit.
    shift = (1 + size * float(torch.finfo(symmetric.dtype).eps)) * top
    shifted = symmetric.clone()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(shift[..., 0])
    factors, pivots, _ = torch.linalg.lu_factor_ex(shifted)
    start = _start(size).to(symmetric).expand(len(symmetric), size, 1)
    # Each solution is up to 1e16 times as long as its right side.
    vectors = torch.linalg.lu_solve(factors, pivots, torch.linalg.lu_solve(factors, pivots, start))
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    residuals = torch.linalg.vector_norm(symmetric @ vectors - top * vectors, dim=1, keepdim=True)
    # NaN, where something failed, is not below.
    return vectors[..., 0] if bool((residuals <= _SETTLED * top).all()) else None


@lru_cache(maxsize=64)
def _start(size: int) -> Tensor:
    """Return a vector ``(n, 1)`` that is orthogonal to nothing that kernels have, to be read only."""
    return torch.randn(size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def decomposition(matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition of each matrix, as :func:`eigenpairs`; not for what is to be certified.

    Args:
        matrices: ``(..., m, n)``, real or complex, finite.

    Returns:
        With k = min(m, n): ``(..., m, k)``, the values ``(..., k)`` in descending order, and ``(..., k, n)``.

    Raises:
        ComputationError: neither LAPACK succeeds; a non-finite entry is the usual cause.
    """
    left, values, right = _rescued(
        lambda dense: torch.linalg.svd(dense, full_matrices=False),
        lambda dense: np.linalg.svd(dense, full_matrices=False),
        matrices,
    )
    return left, values, right


def eigenvalue_error(size: int, dtype: torch.dtype) -> float:
    """Return a bound on the error of each value of :func:`eigenvalues`, relative to the largest magnitude.

    As for singular values, by the backward stability of the reduction to a tridiagonal matrix (LAPACK Users' Guide,
    3rd ed., section 4.7.1) and Weyl's inequality; p(n) = 8 n, for n reflections from both sides.

    Args:
        size: n.
        dtype: dtype of the arithmetic (its real part's).
    """
    slack = 8 * size * float(torch.finfo(dtype).eps)
    return slack / (1 - slack)


def _rescued(
    first: Callable[[Tensor], Sequence[Tensor]], second: Callable[[Any], Sequence[Any]], matrices: Tensor
) -> Sequence[Tensor]:
    """Return what torch finds, or else numpy in double precision; in the dtype and on the device of the matrices.

    Raises:
        ComputationError: neither finds finite numbers.
    """
    try:
        found = first(matrices)
        if _all_finite(found):
            return found
    except _FAILURES:
        pass
    wide = torch.complex128 if matrices.is_complex() else torch.float64
    try:
        rescued = [torch.from_numpy(part) for part in second(matrices.detach().to("cpu", wide).numpy())]
    except _FAILURES as error:
        raise ComputationError("a matrix decomposition failed", found=str(error)) from error
    if not _all_finite(rescued):
        raise ComputationError("a matrix decomposition failed", found="NaN or infinite entries")
    real = torch.empty(0, dtype=matrices.dtype).real.dtype
    return [part.to(matrices.device, matrices.dtype if part.is_complex() else real) for part in rescued]


def _all_finite(parts: Sequence[Tensor]) -> bool:
    """Tell whether no entry is NaN or infinite: their sum shows it, at a tenth of the cost of looking at each."""
    return all(cmath.isfinite(part.sum().item()) for part in parts)


def _svdvals(matrices: Tensor) -> Tensor:
    if _is_for_numpy(matrices):
        dense = matrices.detach().numpy()
        # Tall matrices are faster: LAPACK then begins with a QR factorisation of what it is given.
        dense = dense if dense.shape[-2] >= dense.shape[-1] else dense.swapaxes(-1, -2)
        with one_thread_a_call():
            return torch.from_numpy(np.linalg.svd(dense, compute_uv=False))
    # Of the GPU's drivers only gesvd and gesvdj are backward stable; the default may choose gesvda.
    values: Tensor = torch.linalg.svdvals(matrices, driver="gesvdj" if matrices.is_cuda else None)
    return values


def _is_for_numpy(matrices: Tensor) -> bool:
    return (
        matrices.device.type == "cpu"
        and min(matrices.shape[-2:]) >= _NUMPY_FROM
        and matrices.dtype in (torch.float64, torch.complex128)
        and numpy_keeps_to_one_thread()
    )


def _one_by_one(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    few = min(rows, columns)
    dense = matrix.numpy()
    if not np.isfinite(dense).all():
        raise ComputationError("singular values of a matrix with NaN or infinite entries")
    for route in (_gesdd, _qr_iteration, _hermitian):
        try:
            values = route(dense)[:few]
        except _FAILURES:
            continue
        if np.isfinite(values).all():
            return torch.from_numpy(np.ascontiguousarray(values))
    raise ComputationError("the singular value decomposition failed", found=f"a {rows}x{columns} matrix")


def _gesdd(matrix: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False))


def _qr_iteration(matrix: NDArray[Any]) -> NDArray[Any]:
    # Neither torch nor numpy offers gesvd itself. gelss, a solver of least squares, begins with the same steps: it
    # reduces the matrix to a bidiagonal one and calls bdsqr, and tells the singular values that this finds.
    dense = torch.from_numpy(matrix)
    solved = torch.linalg.lstsq(dense, dense.new_zeros(len(dense), 1), driver="gelss")
    return np.asarray(solved.singular_values.numpy())


def _hermitian(matrix: NDArray[Any]) -> NDArray[Any]:
    rows, columns = matrix.shape
    embedded = np.zeros((rows + columns, rows + columns), dtype=matrix.dtype)
    embedded[:rows, rows:] = matrix
    embedded[rows:, :rows] = matrix.conj().T
    eigenvalues = np.linalg.eigvalsh(embedded)[::-1]
    return np.asarray(np.maximum(eigenvalues, 0))

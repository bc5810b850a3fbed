"""Floating point made rigorous: the one place where slack for rounding is derived.

Everything certified rests on three facts about arithmetic with unit roundoff u, gamma_n = n u / (1 - n u):

* An inner product of length n, summed in any order and with or without fused operations, errs by at most
  gamma_n |x|.|y| (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). A complex one is two
  real ones of length 2n, each bounded by gamma_2n |x|.|y|, hence together by sqrt(2) gamma_2n |x|.|y|.
* If floating-point Cholesky of a Hermitian H runs to completion with factor R, then R*R = H + E with
  |E| <= gamma |R|^T |R| entry by entry (Higham, Theorem 10.3; gamma = gamma_(n+1), or sqrt(2) gamma_(2n+4) in complex
  arithmetic by the line above). The columns of R have squared norms at most H_jj / (1 - gamma), so
  ||E|| <= gamma / (1 - gamma) trace(H), and lambda_min(H) >= -||E|| (Rump, BIT 46, 2006). On a GPU, whose triangular
  solves may go through explicit inverses, ||E|| is bounded from the computed residual H - R*R instead.
* sqrt, the four operations and casts are correct to u.

So a success of Cholesky on c I - A *proves* lambda_max(A) <= c + slack. A failure proves nothing, and nothing is ever
concluded from one. Terms for gradual underflow are added throughout; callers keep entries near 1 by powers of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.errors import ComputationError

__all__ = [
    "above",
    "below",
    "cholesky_slack",
    "eigenvalue_upper",
    "gamma",
    "matrix_norm",
    "power_of_two_scale",
    "prove_below",
    "scale_by_power",
    "unscale",
]

_FAILURE: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

DOUBLE = 2.0**-53
"""Unit roundoff of float64."""


def gamma(count: float, unit: float = DOUBLE) -> float:
    """Return gamma_n = n u / (1 - n u), rounded up; infinite where the theory says nothing."""
    product = count * unit
    return product / (1 - product) * (1 + 8 * DOUBLE) if product < 0.5 else math.inf


def above(value: float, steps: int = 1) -> float:
    """Return a float at least ``steps`` roundings above ``value``."""
    return math.nextafter(value * (1 + steps * 2 * DOUBLE), math.inf) if value > 0 else math.nextafter(value, math.inf)


def below(value: float, steps: int = 1) -> float:
    """Return a float at least ``steps`` roundings below ``value``, not negative."""
    return max(0.0, math.nextafter(value * (1 - steps * 2 * DOUBLE), -math.inf))


def power_of_two_scale(largest: float) -> int:
    """Return e such that ``largest * 2**-e`` is in [0.5, 1): scaling by it is exact but for underflow."""
    return math.frexp(largest)[1] if largest > 0 else 0


@dataclass(frozen=True)
class Precision:
    """Constants of one dtype's arithmetic."""

    unit: float
    tiny: float
    is_complex: bool

    @staticmethod
    def of(matrix: Tensor) -> Precision:
        """Return the constants of a tensor's dtype."""
        info = torch.finfo(matrix.dtype)
        return Precision(float(info.eps) / 2, float(info.tiny), matrix.is_complex())

    def inner(self, length: float) -> float:
        """Return the constant of an inner product of that length."""
        return math.sqrt(2) * gamma(2 * length + 4, self.unit) if self.is_complex else gamma(length + 2, self.unit)


def cholesky_slack(size: int, unit: float = DOUBLE) -> float:
    """Return the most that :func:`prove_below` adds to a threshold, relative to it, for positive semidefinite matrices.

    Args:
        size: n.
        unit: unit roundoff of the precision.
    """
    constant = math.sqrt(2) * gamma(2 * size + 6, unit)
    return (
        (constant / (1 - constant) * size + 4 * unit * size + 64 * DOUBLE) * (1 + 2.0**-20)
        if constant < 0.5
        else math.inf
    )


def prove_below(
    hermitian: Tensor, threshold: Tensor, *, overwrite: bool = False, factor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Try to prove that the largest eigenvalues lie below thresholds.

    Args:
        hermitian: ``(B, n, n)``, real or complex, of any precision; only exact Hermitian symmetry is used, one
            triangle is read.
        threshold: ``(B,)`` float64.
        overwrite: whether the matrices may be changed, which saves a copy.
        factor: ``(B, n, n)`` of the matrices' dtype, where the factors are put; None allocates it.

    Returns:
        ``proven`` ``(B,)`` bool and ``bound`` ``(B,)`` float64: where ``proven``, lambda_max <= bound, which is the
        threshold and the slack of rounding. Where not, nothing follows.

    Guarantee:
        Certified: Higham, Theorem 10.3 and Rump 2006 as in the head of this module.
    """
    size = hermitian.shape[-1]
    precision = Precision.of(hermitian)
    shifted = hermitian.neg_() if overwrite else -hermitian
    diagonal = shifted.diagonal(dim1=-2, dim2=-1)
    diagonal += threshold.to(diagonal.dtype)[:, None]
    # A number a matrix: numpy's calls are the cheaper ones.
    traces = np.maximum(_real(diagonal), 0).sum(-1, dtype=np.float64)
    if factor is None:
        factor, info = torch.linalg.cholesky_ex(shifted)
    else:
        info = torch.empty(shifted.shape[:-2], dtype=torch.int32, device=shifted.device)
        torch.linalg.cholesky_ex(shifted, out=(factor, info))
    constant = precision.inner(size + 1)
    if shifted.device.type == "cpu":
        slack = constant / (1 - constant) * traces if constant < 0.5 else np.full_like(traces, math.inf)
    else:
        slack = _residual_norm(shifted, factor, constant).cpu().numpy()
    thresholds = threshold.cpu().numpy()
    # The shift: threshold cast to the working precision, and one subtraction an entry of the diagonal.
    slack = slack + 4 * precision.unit * np.maximum(np.abs(thresholds), traces) + 8 * size * size * precision.tiny
    complete = (info.cpu().numpy() == 0) & np.isfinite(_real(factor.diagonal(dim1=-2, dim2=-1))).all(-1)
    proven = complete & np.isfinite(slack)
    total = thresholds + slack
    # Thresholds may be negative: rounding up is then towards zero.
    bound = total + np.abs(total) * (8 * DOUBLE) + size * 1e-300
    return torch.from_numpy(proven).to(shifted.device), torch.from_numpy(bound).to(shifted.device)


def _real(diagonal: Tensor) -> NDArray[np.floating]:
    return np.asarray(diagonal.real.cpu().numpy())


def _residual_norm(matrix: Tensor, factor: Tensor, constant: float) -> Tensor:
    """Bound ``||matrix - L L*||`` from the computed residual, whatever way the factor came about."""
    lower = factor.tril()
    wide = torch.complex128 if matrix.is_complex() else torch.float64
    residual = torch.linalg.matrix_norm((matrix - lower @ lower.mH).tril().to(wide))
    rounding = constant * torch.linalg.matrix_norm(lower.to(wide)).square()
    # One triangle was read: the whole residual has at most sqrt(2) times its Frobenius norm.
    bound: Tensor = (math.sqrt(2) * residual + rounding) * (1 + 4 * constant)
    return bound


def eigenvalue_upper(hermitian: Tensor, estimate: Tensor | None = None) -> Tensor:
    """Return certified upper bounds on the largest eigenvalues of positive semidefinite matrices.

    Args:
        hermitian: ``(B, n, n)`` float64 or complex128.
        estimate: ``(B,)`` values near the eigenvalues; computed when missing.

    Returns:
        ``(B,)`` float64, within about n^2 u of the eigenvalues where LAPACK converged.

    Raises:
        ComputationError: no bound could be proved (an entry is not finite).
    """
    if estimate is None:
        estimate = _estimated(hermitian)
    size = hermitian.shape[-1]
    start = gamma(16 * size + 16)
    bound = torch.full((hermitian.shape[0],), math.inf, dtype=torch.float64, device=hermitian.device)
    todo = torch.arange(hermitian.shape[0], device=hermitian.device)
    floor = hermitian.abs().amax(dim=(-2, -1)).to(torch.float64) * start + 1e-280
    excess = 1.0
    for _ in range(40):
        threshold = estimate[todo].to(torch.float64).clamp(min=0) * (1 + excess * start) + floor[todo] * excess
        proven, proved = prove_below(hermitian[todo], threshold)
        bound[todo[proven]] = proved[proven]
        todo = todo[~proven]
        if not len(todo):
            return bound
        excess *= 8
    raise ComputationError("no upper bound of an eigenvalue could be proved", found="a matrix that is not finite")


def _estimated(hermitian: Tensor) -> Tensor:
    """Return about the largest eigenvalues; where LAPACK does not find them the largest row sums, which are above."""
    try:
        found: Tensor = torch.linalg.eigvalsh(hermitian)[:, -1]
    except _FAILURE:
        pairs = _by_numpy(hermitian)
        found = hermitian.abs().sum(-1).amax(-1) if pairs is None else pairs[0][:, -1]
    return found


def _leading(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return about the largest eigenvalue ``(1,)`` and its vector; where LAPACK fails, what needs none of it."""
    try:
        values, vectors = torch.linalg.eigh(gram)
    except _FAILURE:
        pairs = _by_numpy(gram)
        if pairs is None:
            return gram.abs().sum(-1).amax(-1, keepdim=True), gram[:, gram.abs().amax(0).argmax()]
        values, vectors = pairs
    return values[-1:], vectors[:, -1]


def _by_numpy(hermitian: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the eigenpairs that another LAPACK finds, if it does."""
    try:
        values, vectors = np.linalg.eigh(hermitian.cpu().numpy())
    except np.linalg.LinAlgError:
        return None
    return torch.from_numpy(values).to(hermitian.device), torch.from_numpy(vectors).to(hermitian.device)


def matrix_norm(matrix: Tensor) -> tuple[float, float]:
    """Return a certified interval of a matrix's spectral norm.

    Args:
        matrix: ``(m, n)`` float64 or complex128, any scale.

    Returns:
        ``(lower, upper)``; both 0 for a zero or empty matrix.

    Raises:
        ComputationError: an entry is not finite.

    Guarantee:
        Certified: a Rayleigh quotient below, Cholesky of the Gram matrix above; relative width about m n u.
    """
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if largest == 0:
        return 0.0, 0.0
    if not math.isfinite(largest):
        raise ComputationError("a matrix is not finite")
    exponent = power_of_two_scale(largest)
    scaled = scale_by_power(matrix, -exponent)
    scaled = scaled if scaled.shape[0] <= scaled.shape[1] else scaled.mT
    precision = Precision.of(scaled)
    long, frobenius = scaled.shape[1], float(torch.linalg.matrix_norm(scaled))
    gram = scaled @ scaled.mH
    estimate, vector = _leading(gram)
    forming = precision.inner(long) * frobenius**2 * (1 + gamma(matrix.numel() + 16))
    upper = above(math.sqrt(float(eigenvalue_upper(gram[None], estimate)[0]) + forming), 4)
    image, length = scaled.mH @ vector, float(torch.linalg.vector_norm(vector))
    ratio = float(torch.linalg.vector_norm(image)) / length
    # Of the product, and of both norms and their quotient.
    wrong = precision.inner(scaled.shape[0]) * frobenius * (1 + gamma(matrix.numel() + 16))
    lower = below(ratio * (1 - gamma(4 * (long + scaled.shape[0]) + 32)) - wrong, 8)
    return unscale(lower, exponent, down=True), unscale(upper, exponent, down=False)


def scale_by_power(tensor: Tensor, exponent: int) -> Tensor:
    """Return ``tensor * 2**exponent``, in two steps where a factor might overflow; exact but for underflow."""
    if abs(exponent) < 100:
        return tensor * 2.0**exponent
    half = exponent // 2
    return tensor * 2.0**half * 2.0 ** (exponent - half)


def unscale(value: float, exponent: int, *, down: bool) -> float:
    """Return ``value * 2**exponent``, rounded outwards where it is subnormal or overflows."""
    try:
        result = math.ldexp(value, exponent)
    except OverflowError:
        return math.nextafter(math.inf, 0) if down else math.inf
    if 0 < abs(result) >= 2.0**-1021:
        return result
    return max(0.0, math.nextafter(result, -math.inf)) if down else math.nextafter(result, math.inf)

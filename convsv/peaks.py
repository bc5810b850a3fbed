"""Where a symbol is largest: frequencies and vectors that show how large the norm at least is.

For a fixed unit vector v the Rayleigh quotient p(w) = v* G(w) v is a scalar trigonometric polynomial below
lambda_1(w): maximising it over w and choosing the best v at that w alternate, each at the cost of one product with the
Gram coefficients. Nothing here needs to be exact: a peak counts only by the lower bound that :func:`lower_bound`
certifies for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.cells import Cells
from convsv.errors import ComputationError
from convsv.execution import Execution
from convsv.gram import Gram
from convsv.linalg import eigenpairs
from convsv.rounding import Precision, above, below, gamma
from convsv.symbol import symbol, symbol_error

__all__ = [
    "Peak",
    "Polynomial",
    "climb",
    "first_peak",
    "leading_vectors",
    "look",
    "lower_bound",
    "quotient",
    "quotients",
    "right_vector",
    "upper_bound",
]


_PATIENCE = 4.0
"""A way that so many times its last gain does not make the highest is left."""


@dataclass(frozen=True)
class Peak:
    """A frequency, a group and a unit vector with a large Rayleigh quotient.

    Attributes:
        frequency: ``(d,)`` in radians, in [0, 2 pi).
        group: the group.
        vector: ``(n, 1)`` on the smaller channel side.
        value: the quotient v* G v, an estimate of lambda_1.
    """

    frequency: NDArray[np.float64]
    group: int
    vector: Tensor
    value: float


def leading_vectors(hermitian: Tensor, start: Tensor, restarts: int = 2, steps: int = 4) -> tuple[Tensor, Tensor]:
    """Return near-leading eigenpairs by restarted Rayleigh-Ritz on small Krylov spaces.

    Args:
        hermitian: ``(B, n, n)``, positive semidefinite.
        start: ``(B, n, 1)``, nonzero.
        restarts: number of spaces.
        steps: dimension of each.

    Returns:
        Ritz values ``(B,)``, lower estimates of the largest eigenvalues, and unit vectors ``(B, n, 1)``.
    """
    size = hermitian.shape[-1]
    if size == 1:
        return hermitian[:, 0, 0].real.clone(), torch.ones_like(start)
    vector = start / torch.linalg.vector_norm(start, dim=-2, keepdim=True)
    values = vector.real
    # Over a bound of the norm no power grows, also where a matrix is nothing but rounding in single precision.
    largest = hermitian.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)
    shrink = 1 / largest / size
    for _ in range(restarts):
        space = [vector]
        for _ in range(min(steps, size) - 1):
            space.append(_image(hermitian, space[-1]) * shrink)
        basis = torch.linalg.qr(torch.cat(space, -1))[0]
        try:
            ritz, combination = eigenpairs(torch.bmm(basis.mH, torch.bmm(hermitian, basis)))
        except ComputationError:  # a peak needs not be the best: any vector shows something
            return (vector.conj() * _image(hermitian, vector)).sum((1, 2)).real, vector
        values, vector = ritz[:, -1], torch.bmm(basis, combination[..., -1:])
    return values, vector


def _image(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return the products of a batch of matrices and vectors: batched BLAS is slow with one column."""
    return (matrices * vectors.mT).sum(-1, keepdim=True) if len(matrices) > 1 else torch.bmm(matrices, vectors)


def climb(coefficients: Gram, starts: list[Peak], precision: float, rounds: int = 20) -> list[Peak]:
    """Move peaks uphill, alternately in the vector and in the frequency.

    Args:
        coefficients: the Gram symbol.
        starts: where to begin.
        precision: relative gain of the norm, on every way that may still lead highest, below which to stop.
        rounds: most alternations.

    Returns:
        The best found on each way, in the order of the starts. A way that falls behind is left.
    """
    on, groups = np.arange(len(starts)), np.array([peak.group for peak in starts])
    frequencies, vectors = np.stack([peak.frequency for peak in starts]), torch.stack([peak.vector for peak in starts])
    best: list[Peak] = []
    before = np.full(len(starts), -math.inf)
    for _ in range(rounds):
        values, vectors = _best_vectors(coefficients, frequencies, vectors, groups)
        now = [Peak(w, g, v, x) for w, g, v, x in zip(frequencies, groups.tolist(), vectors, values, strict=True)]
        best = best or now
        for way, peak in zip(on, now, strict=True):
            best[way] = max(best[way], peak, key=_value)
        gains, top = np.array(values) - before, max(map(_value, best))
        promising = (gains > 2 * precision * top) & (values + _PATIENCE * gains > top)
        if not promising.any():
            break
        kept = np.flatnonzero(promising)
        on, groups, before, vectors = on[kept], groups[kept], values[kept], vectors[kept]
        frequencies = _best_frequencies(quotients(coefficients, vectors, groups), frequencies[kept])
    double = torch.complex128 if vectors.is_complex() else torch.float64
    return [replace(peak, vector=peak.vector.to(double)) for peak in best]


def look(coefficients: Gram, cells: Cells, steps: int = 4, most: int | None = None) -> list[Peak]:
    """Return a rough peak at the centre of every cell: one batch, so not for more cells than fit into memory.

    Args:
        coefficients: the Gram symbol.
        cells: where to look.
        steps: dimension of the Krylov spaces.
        most: how many to return, the highest ones; None for all, in the order of the cells.
    """
    matrices = coefficients.at(coefficients.phases(*cells.fractions()), cells.owners)
    start = _start(coefficients.size, is_complex=matrices.is_complex()).to(matrices).expand(len(matrices), -1, 1)
    found, vectors = leading_vectors(matrices, start, restarts=1, steps=steps)
    values = found.cpu().numpy().astype(np.float64)
    chosen = np.arange(len(values)) if most is None else np.argsort(-values, kind="stable")[:most]
    frequencies = cells.frequencies()
    return [Peak(frequencies[i], int(cells.owners[i]), vectors[i], float(values[i])) for i in chosen.tolist()]


@lru_cache(maxsize=16)
def _start(size: int, *, is_complex: bool) -> Tensor:
    """Return a vector ``(n, 1)`` with no structure of its own, the same for everybody."""
    angles = torch.arange(1, size + 1, dtype=torch.float64).square() * 0.7
    return (torch.polar(torch.ones_like(angles), angles) if is_complex else torch.cos(angles))[:, None]


def first_peak(coefficients: Gram, cells: Cells, execution: Execution, precision: float) -> Peak:
    """Look at every given cell, in memory-sized parts, and climb from the best.

    Args:
        coefficients: the Gram symbol.
        cells: where to look.
        execution: its memory budget counts.
        precision: as for :func:`climb`.
    """
    parts = coefficients.parts(len(cells), execution)
    best = max((look(coefficients, cells.take(slice(*part)), most=1)[0] for part in parts), key=_value)
    return climb(coefficients, [best], precision)[0]


def quotient(coefficients: Gram, peak: Peak) -> Polynomial:
    """Return the Rayleigh quotient of a peak's vector as a polynomial in the frequency."""
    together = quotients(coefficients, peak.vector[None], np.array([peak.group]))
    return Polynomial(together.even[0], together.odd[0], together.lags)


def quotients(coefficients: Gram, vectors: Tensor, groups: NDArray[np.int64]) -> Polynomial:
    """Return the Rayleigh quotients of vectors ``(M, n, 1)`` in their groups, a row each."""
    outer = (vectors.conj() * vectors.mT).flatten(1)
    parts = torch.view_as_real(outer) if outer.is_complex() else outer[..., None]
    even = _products(coefficients.even, parts[..., 0], groups)
    odd = _products(coefficients.odd, parts[..., -1], groups) if outer.is_complex() else np.zeros_like(even[:, 1:])
    return Polynomial(even, odd, coefficients.lags.astype(np.float64))


def _products(coefficients: Tensor, outer: Tensor, groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the inner products ``(M, L)`` of coefficients ``(L, G, n * n)`` with a real matrix of each group."""
    outer = outer.to(coefficients)
    if len(outer) == 1:
        return np.asarray(torch.mv(coefficients[:, int(groups[0])], outer[0])[None].cpu().numpy(), dtype=np.float64)
    chosen = coefficients[:, torch.from_numpy(groups).to(coefficients.device)]
    return np.asarray(torch.einsum("mk,lmk->ml", outer, chosen).cpu().numpy(), dtype=np.float64)


@dataclass(frozen=True)
class Polynomial:
    """Real trigonometric polynomials: p(w) = sum_l even_l cos(l.w) - odd_l sin(l.w), lag 0 first in ``even``.

    One, of coefficients ``(1 + L,)`` and ``(L,)``, or a row each.
    """

    even: NDArray[np.float64]
    odd: NDArray[np.float64]
    lags: NDArray[np.float64]

    def at(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values of one polynomial at frequencies ``(M, d)``."""
        angles = frequencies @ self.lags.T
        return np.asarray(self.even[0] + np.cos(angles) @ self.even[1:] - np.sin(angles) @ self.odd)

    def derivatives(
        self, frequency: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return value, gradient and Hessian at one frequency ``(d,)``, or of each row at its own."""
        angles = frequency @ self.lags.T
        cosines, sines = np.cos(angles), np.sin(angles)
        wave, slope = self.even[..., 1:] * cosines - self.odd * sines, -self.even[..., 1:] * sines - self.odd * cosines
        hessian = (wave[..., None, :] * -self.lags.T) @ self.lags
        return self.even[..., 0] + wave.sum(-1), slope @ self.lags, hessian


def _value(peak: Peak) -> float:
    return peak.value


def _best_vectors(
    coefficients: Gram, frequencies: NDArray[np.float64], vectors: Tensor, groups: NDArray[np.int64]
) -> tuple[NDArray[np.float64], Tensor]:
    angles = frequencies @ coefficients.lags.T
    cosines = np.ones((len(angles), 1 + angles.shape[1]))
    np.cos(angles, out=cosines[:, 1:])
    matrices = coefficients.at((cosines, np.sin(angles)), groups)
    values, vectors = leading_vectors(matrices, vectors.to(matrices.dtype), restarts=1, steps=6)
    return values.cpu().numpy().astype(np.float64), vectors


def _best_frequencies(polynomials: Polynomial, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maximise polynomials by damped Newton steps, each from its frequency."""
    here = frequencies
    current, gradient, hessian = polynomials.derivatives(here)
    for _ in range(2):
        try:
            values, axes = np.linalg.eigh(-hessian)
        except np.linalg.LinAlgError:
            break  # what does not climb is a peak all the same
        # Uphill whatever the signs of the curvature; axes of degree 0 have neither slope nor curvature.
        sizes = np.abs(values)
        sizes = np.maximum(sizes, 1e-12 * np.maximum(sizes.max(-1, keepdims=True), 1e-300))
        step = ((gradient[:, None] @ axes / sizes[:, None]) @ axes.swapaxes(1, 2))[:, 0]
        step *= np.minimum(1.0, 0.5 / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-300))
        there = here + step
        new, slope, curvature = polynomials.derivatives(there)
        better = new > current
        if not better.any():
            break
        # A row that did not get better stays, and so does its next step.
        here = np.where(better[:, None], there, here)
        current, gradient = np.where(better, new, current), np.where(better[:, None], slope, gradient)
        hessian = np.where(better[:, None, None], curvature, hessian)
    return np.mod(here, 2 * math.pi)


def right_vector(kernel: Tensor, peak: Peak) -> Tensor:
    """Return the right singular vector of F(w) that a peak stands for, ``(I,)`` complex.

    Args:
        kernel: ``(G, O, I, *K)`` float64 of the normal form.
        peak: a peak of its Gram symbol.
    """
    taps = kernel[peak.group : peak.group + 1]
    vector = peak.vector[:, 0].to(torch.complex128)
    if taps.shape[2] <= taps.shape[1]:
        return vector
    # The peak is one of the transpose, whose right vectors are the conjugate left vectors of F.
    return symbol(taps, torch.from_numpy(peak.frequency)[None].to(taps.device))[0, 0].mH @ vector.conj()


def lower_bound(kernel: Tensor, peak: Peak) -> float:
    """Return a certified lower bound of the norm from a peak: |F(w) v| / |v|, less every rounding error.

    Args:
        kernel: ``(G, O, I, *K)`` float64, entries at most about 1.
        peak: frequency, group, and a vector on the smaller channel side.
    """
    ratio, wrong = _quotient(kernel, peak)
    return below(ratio - wrong, 8)


def upper_bound(kernel: Tensor, peak: Peak) -> float:
    """Return a certified upper bound of the smallest singular value: |F(w) v| / |v|, plus every rounding error.

    Args:
        kernel: ``(G, O, I, *K)`` float64, entries at most about 1.
        peak: frequency, group, and a vector on the smaller channel side.
    """
    ratio, wrong = _quotient(kernel, peak)
    return above(ratio + wrong, 8)


def _quotient(kernel: Tensor, peak: Peak) -> tuple[float, float]:
    """Return |F(w) v| / |v| as computed, and a bound on its error."""
    taps = kernel[peak.group : peak.group + 1]
    taps = taps if taps.shape[2] <= taps.shape[1] else taps.transpose(1, 2)
    frequency = torch.from_numpy(peak.frequency)[None].to(taps.device)
    matrix = symbol(taps, frequency)[0, 0]
    vector = peak.vector.to(matrix.dtype)
    length = float(torch.linalg.vector_norm(vector))
    frobenius = float(torch.linalg.matrix_norm(matrix)) * (1 + gamma(2 * matrix.numel() + 8))
    if not (length > 0 and math.isfinite(length)):
        return 0.0, frobenius
    rows, columns = matrix.shape
    ratio = float(torch.linalg.vector_norm(matrix @ vector)) / length
    wrong = symbol_error(taps) + Precision.of(matrix).inner(columns) * frobenius
    return ratio, wrong * (1 + 2.0**-40) + ratio * gamma(4 * (rows + columns) + 32)

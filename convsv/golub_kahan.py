"""Leading and trailing singular values of an operator that is known by its products only.

Golub-Kahan-Lanczos bidiagonalisation with full reorthogonalisation and thick restarts (Baglama, Reichel 2005). The
projected matrix is kept as computed, A V = U B, so that A v = sigma u holds for every Ritz triplet to rounding, and
the residual A^T u - sigma v says how far sigma is from a true singular value. A block of several start vectors is
taken in turn, one vector a step (the band form of a block method, as Ruhe 1979 has it for eigenvalues): it finds
multiple and clustered values. Knows no convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "LanczosOptions",
    "LinearOperator",
    "PartialSVD",
    "block_ritz_vector",
    "leading_singular_values",
    "norm_lower_bound",
    "trailing_singular_values",
]


class LinearOperator(Protocol):
    """A linear map between arrays; products carry a leading batch axis."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the arithmetic, real."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the products are formed."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an input."""
        ...

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of an output."""
        ...

    def apply(self, x: Tensor) -> Tensor:
        """Return A x for a batch."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y for a batch."""
        ...


@dataclass(frozen=True)
class LanczosOptions:
    """When to stop and how much to spend.

    Attributes:
        tolerance: residual, relative to the largest value, at which a value counts as found.
        products: largest number of products with A and A^T together.
        subspace: dimension at which the iteration restarts; None for twice the count plus 16.
        seed: of the random vectors.
        confirm: after convergence, go on from a random vector for one more cycle: it finds what the start vector was
            orthogonal to, and further copies of multiple values. Off where only a good lower bound is wanted.
    """

    tolerance: float = 1e-8
    products: int = 5000
    subspace: int | None = None
    seed: int = 0
    confirm: bool = True


@dataclass(frozen=True)
class PartialSVD:
    """Leading or trailing Ritz values and vectors.

    Attributes:
        values: ``(k,)`` in descending order; leading ones are at most the true ones of their rank, trailing ones at
            least, up to rounding.
        left: ``(k, *output_shape)``, orthonormal.
        right: ``(k, *input_shape)``, orthonormal.
        residuals: ``(k,)``, sqrt((||A v - sigma u||^2 + ||A^T u - sigma v||^2) / 2), from products of their own:
            some true singular value lies within it (by the eigenvalues of [[0, A], [A^T, 0]]), up to rounding.
        products: products with A and A^T spent.
        converged: whether every residual reached the tolerance.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    residuals: Tensor
    products: int
    converged: bool


def leading_singular_values(
    operator: LinearOperator,
    count: int = 1,
    *,
    start: Tensor | None = None,
    options: LanczosOptions | None = None,
) -> PartialSVD:
    """Return the ``count`` largest singular values with their vectors and residuals.

    Values of a multiplicity above one need a random vector a copy to be seen; ``confirm`` tries one a round.

    Args:
        operator: the operator.
        count: how many; no more than the smaller side of the operator are returned.
        start: a guess of the leading right singular vector, ``input_shape``, or a block of guesses,
            ``(b, *input_shape)``; random if None or zero.
        options: when to stop.

    Returns:
        What was found when the residuals, or the number of products, reached their limit.
    """
    return _extreme_values(operator, count, start, options or LanczosOptions(), smallest=False)


def trailing_singular_values(
    operator: LinearOperator,
    count: int = 1,
    *,
    start: Tensor | None = None,
    options: LanczosOptions | None = None,
) -> PartialSVD:
    """Return the ``count`` smallest of all ``min(m, n)`` singular values with their vectors and residuals.

    Where they lie close together compared with the largest value, as those of a convolution do, this is slow, and the
    residuals say how far it came.

    Args:
        operator: the operator.
        count: how many; no more than the smaller side of the operator are returned.
        start: as for :func:`leading_singular_values`.
        options: when to stop.

    Returns:
        What was found when the residuals, or the number of products, reached their limit.
    """
    return _extreme_values(operator, count, start, options or LanczosOptions(), smallest=True)


def _extreme_values(
    operator: LinearOperator, count: int, start: Tensor | None, options: LanczosOptions, *, smallest: bool
) -> PartialSVD:
    smaller = min(math.prod(operator.output_shape), math.prod(operator.input_shape))
    count = min(count, smaller)
    dimension = min(smaller, options.subspace or 2 * count + 16)
    work = _Bidiagonalisation(operator, dimension, options.seed, smallest=smallest)
    work.begin(start)
    converged = _iterate(work, count, options)
    return _result(operator, work, min(count, work.filled), converged)


def block_ritz_vector(operator: LinearOperator, block: Tensor, steps: int) -> Tensor:
    """Return the best right Ritz vector of the block Krylov space of A^T A: what several good guesses lead to.

    A block finds its way where the largest singular values are nearly equal, and a single vector that is nearly
    orthogonal to the right one would not (Golub, Underwood 1977).

    Args:
        operator: the operator.
        block: ``(b, *input_shape)``, linearly independent guesses or nearly so.
        steps: products of the block with A; one less with A^T.
    """
    count = math.prod(operator.input_shape)
    basis = _orthonormal(block.reshape(-1, count), block.new_zeros(0, count))
    last, images = basis, []
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        image = operator.apply(last.reshape(-1, *operator.input_shape)).flatten(1)
        images.append(image)
        if step == steps - 1 or len(basis) == count:
            break
        back = operator.adjoint(image.reshape(-1, *operator.output_shape)).flatten(1)
        last = _orthonormal(back, basis)
        if not len(last):
            # The space is invariant, which need not mean that it holds the leading vector: on with any other one.
            other = torch.randn(1, count, generator=random, dtype=torch.float64).to(basis)
            last = _orthonormal(other, basis)
        basis = torch.cat([basis, last])
    stretched = torch.cat(images)
    combination = _eigenpairs(stretched @ stretched.T)[1][:, -1]
    return (combination @ basis).reshape(operator.input_shape)


def _eigenpairs(symmetric: Tensor) -> Sequence[Tensor]:
    """Return eigenvalues and vectors.

    Raises:
        LinAlgError: no LAPACK converges.
    """
    return _or_by_numpy(torch.linalg.eigh, np.linalg.eigh, symmetric)


def _or_by_numpy(
    first: Callable[[Tensor], Sequence[Tensor]], second: Callable[[Any], Sequence[Any]], matrix: Tensor
) -> Sequence[Tensor]:
    """Return what torch's LAPACK finds, or where it does not converge what numpy's does.

    Raises:
        LinAlgError: neither converges.
    """
    try:
        return first(matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        try:
            return [torch.from_numpy(part).to(matrix) for part in second(matrix.cpu().numpy())]
        except np.linalg.LinAlgError:
            raise error from None


def _orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal rows that span what ``rows`` add to an orthonormal basis; rounding is dropped."""
    least = 1e-26 * float(rows.square().sum()) + 1e-290
    for _ in range(2):
        rows = rows - (rows @ basis.T) @ basis
        values, vectors = _eigenpairs(rows @ rows.T)
        kept = values > (1e-20 * values[-1:]).clamp(min=least)
        rows = (vectors[:, kept] / values[kept].sqrt()).T @ rows
        least = 0.25
    return rows


def norm_lower_bound(operator: LinearOperator, vector: Tensor, rounding: float) -> float:
    """Return a certified lower bound of the operator's norm: ||A v|| / ||v||, rounded down.

    ||A|| >= ||A v|| / ||v|| for every v. The computed product errs by at most ``rounding * ||v||``, and a computed
    norm of n entries by a factor within 1 +- (n + 2) u (Higham 2002, section 3.1; the root halves the sum's error).

    Args:
        operator: the operator.
        vector: any nonzero ``input_shape``; exact as stored.
        rounding: bound on ``||fl(A v) - A v|| / ||v||``.

    Returns:
        The bound; 0 for a zero vector.
    """
    largest = float(vector.abs().max())
    if not 0 < largest < math.inf:
        return 0.0
    scaled = _times_power_of_two(vector, -math.frexp(largest)[1])
    length = float(torch.linalg.vector_norm(scaled))
    image = _norm(operator.apply(scaled[None])[0])
    entries = math.prod(operator.input_shape) + math.prod(operator.output_shape)
    slack = (entries + 8) * float(torch.finfo(operator.dtype).eps)
    bound = (image / length * (1 - slack) - rounding) * (1 - slack)
    return max(0.0, bound) if math.isfinite(bound) else 0.0


def _norm(vector: Tensor) -> float:
    """Return the norm, scaled by a power of two on the way: no square overflows, and none that counts underflows."""
    largest = float(vector.abs().max())
    if not 0 < largest < math.inf:
        return largest
    exponent = math.frexp(largest)[1]
    return math.ldexp(float(torch.linalg.vector_norm(_times_power_of_two(vector, -exponent))), exponent)


def _times_power_of_two(vector: Tensor, exponent: int) -> Tensor:
    # In two steps: 2^1074, which a denormal needs, is no double.
    half = exponent // 2
    return vector * 2.0**half * 2.0 ** (exponent - half)


class _Bidiagonalisation:
    """Bases V and U with A V = U B, B upper triangular, grown one vector a step.

    Of A and its transpose it takes the one with the smaller domain: where V fills that, nothing is left over.
    ``pending`` are the vectors that V takes next, orthogonal to it and to one another, as many as the start has; with
    C their ``couplings``, A^T U = V B^T + pending^T C.
    """

    def __init__(self, operator: LinearOperator, dimension: int, seed: int, *, smallest: bool) -> None:
        self.domain, self.image = operator.input_shape, operator.output_shape
        self._operator = operator
        self.swapped = math.prod(self.domain) > math.prod(self.image)
        if self.swapped:
            self.domain, self.image = self.image, self.domain
        like = torch.empty(0, dtype=operator.dtype, device=operator.device)
        self.dimension = dimension
        self.right = like.new_zeros(dimension, math.prod(self.domain))
        self.left = like.new_zeros(dimension, math.prod(self.image))
        self.projected = like.new_zeros(dimension, dimension)
        self.filled = 0
        self.products = 0
        self.pending = self.right[:0]
        self.couplings = like.new_zeros(0, dimension)
        self._smallest = smallest
        self._noise = 8 * float(torch.finfo(operator.dtype).eps)
        self._random = torch.Generator().manual_seed(seed)

    def forward(self, v: Tensor) -> Tensor:
        self.products += 1
        product = self._operator.adjoint if self.swapped else self._operator.apply
        return product(v.reshape(1, *self.domain)).reshape(-1)

    def backward(self, u: Tensor) -> Tensor:
        self.products += 1
        product = self._operator.apply if self.swapped else self._operator.adjoint
        return product(u.reshape(1, *self.image)).reshape(-1)

    def begin(self, start: Tensor | None) -> None:
        """Set the first right vectors: ``start``, or its image where A and its transpose are swapped."""
        vectors = self.right[:0] if start is None else start.reshape(-1, math.prod(self._operator.input_shape))
        for vector in vectors:
            guess = self.backward(vector) if self.swapped else vector
            length = float(torch.linalg.vector_norm(guess))
            if 0 < length < math.inf and len(self.pending) < self.dimension:
                rest, _coefficients, left = _orthogonalised(guess / length, self.pending)
                if left > math.sqrt(self._noise):
                    self._append(rest / left)
        if not len(self.pending):
            self.append_fresh()

    def append_fresh(self) -> None:
        """Let a random vector be taken next, and drop those that waited."""
        self.pending, self.couplings = self.pending[:0], self.couplings[:0]
        self._append(self.fresh(self.right[: self.filled]))

    def _append(self, vector: Tensor, coupling: float = 0.0) -> None:
        self.pending = torch.cat([self.pending, vector[None]])
        self.couplings = torch.cat([self.couplings, self.couplings.new_zeros(1, self.dimension)])
        if coupling:
            self.couplings[-1, self.filled - 1] = coupling

    def fresh(self, basis: Tensor) -> Tensor:
        """Return a random unit vector orthogonal to the rows of ``basis``."""
        unit = torch.randn(basis.shape[1], generator=self._random, dtype=torch.float64).to(basis)
        for _ in range(3):
            unit = _orthogonalised(unit / float(torch.linalg.vector_norm(unit)), basis)[0]
        return unit / float(torch.linalg.vector_norm(unit))

    def grow(self) -> None:
        """Take the first pending vector into V, A times it into U, and find another pending one."""
        j = self.filled
        vector = self.pending[0]
        self.pending, self.couplings = self.pending[1:], self.couplings[1:]
        self.right[j] = vector
        image = self.forward(vector)
        scale = float(torch.linalg.vector_norm(image))
        image, coefficients, alpha = _orthogonalised(image, self.left[:j])
        self.projected[:j, j] = coefficients
        # What is left after cancellation to rounding level is noise, not a direction.
        fresh = alpha <= self._noise * max(scale, float(self.projected.abs().max()))
        self.left[j] = self.fresh(self.left[:j]) if fresh else image / alpha
        self.projected[j, j] = 0.0 if fresh else alpha
        self.filled = j + 1
        self._advance(self.left[j])

    def _advance(self, last: Tensor) -> None:
        if self.filled == self.right.shape[1]:
            return
        back, coefficients, _length = _orthogonalised(self.backward(last), self.pending)
        back, _coefficients, _length = _orthogonalised(back, self.right[: self.filled])
        # Once more, for what rounding left where the two sets are not quite orthogonal.
        back, _coefficients, beta = _orthogonalised(back, self.pending)
        self.couplings[:, self.filled - 1] = coefficients
        is_room = self.filled + len(self.pending) < self.right.shape[1]
        if is_room and beta > self._noise * float(self.projected.abs().max()):
            self._append(back / beta, beta)
        elif not len(self.pending):
            self.append_fresh()

    def ritz(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return P, sigma, Q^T of the projected matrix and the residual of each triplet, the wanted ones first."""
        filled = self.projected[: self.filled, : self.filled]
        left, values, right = _or_by_numpy(torch.linalg.svd, np.linalg.svd, filled)
        if self._smallest:
            left, values, right = left.flip(1), values.flip(0), right.flip(0)
        residuals = torch.linalg.vector_norm(self.couplings[:, : self.filled] @ left, dim=0)
        return left, values, right, residuals

    def restart(self, keep: int) -> None:
        """Shrink the bases to the ``keep`` first Ritz vectors."""
        left, values, right, _residuals = self.ritz()
        self.right[:keep] = right[:keep] @ self.right[: self.filled]
        self.left[:keep] = left.T[:keep] @ self.left[: self.filled]
        self.projected.zero_()
        self.projected[:keep, :keep] = torch.diag(values[:keep])
        kept = self.couplings[:, : self.filled] @ left[:, :keep]
        self.couplings = torch.zeros_like(self.couplings)
        self.couplings[:, :keep] = kept
        self.filled = keep


def _iterate(work: _Bidiagonalisation, count: int, options: LanczosOptions) -> bool:
    """Grow and restart until the wanted values are found and, if asked, confirmed; tell whether they are."""
    confirmed: Tensor | None = None
    while True:
        while work.filled < work.dimension and work.products + 2 <= options.products:
            work.grow()
        _left, values, _right, residuals = work.ritz()
        error = options.tolerance * float(values.max())
        converged = bool((residuals[:count] <= error).all()) and work.filled >= count
        complete = work.filled == work.right.shape[1]
        if complete or work.products + 2 > options.products:
            return converged or complete
        keep = min(count + (work.dimension - count) // 3, work.dimension - 1)
        if converged:
            top = values[:count].clone()
            if not options.confirm or (confirmed is not None and bool((top - confirmed).abs().max() <= error)):
                return True
            confirmed = top
        work.restart(keep)
        if converged:
            work.append_fresh()


def _orthogonalised(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the part of ``vector`` orthogonal to ``basis``, the coefficients of the rest, and the part's norm.

    Gram-Schmidt twice is enough (Giraud, Langou, Rozloznik 2005).
    """
    coefficients = basis @ vector
    vector = vector - basis.T @ coefficients
    again = basis @ vector
    vector = vector - basis.T @ again
    return vector, coefficients + again, float(torch.linalg.vector_norm(vector))


def _result(operator: LinearOperator, work: _Bidiagonalisation, count: int, converged: bool) -> PartialSVD:
    p, sigma, q, _residuals = work.ritz()
    wanted = sigma[:count].argsort(descending=True)
    values = sigma[wanted]
    right, left = q[wanted] @ work.right[: work.filled], p.T[wanted] @ work.left[: work.filled]
    if work.swapped:
        right, left = left, right
    right, left = right.reshape(count, *operator.input_shape), left.reshape(count, *operator.output_shape)
    ahead = operator.apply(right).flatten(1) - values[:, None] * left.flatten(1)
    back = operator.adjoint(left).flatten(1) - values[:, None] * right.flatten(1)
    residuals = ((ahead.square().sum(1) + back.square().sum(1)) / 2).sqrt()
    return PartialSVD(values, left, right, residuals, work.products + 2 * count, converged)

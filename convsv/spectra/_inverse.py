"""Trailing singular values by inverse iteration: the Gram matrix of a layer, factorised slice by slice.

Cut along one axis, a block of a layer is A = sum_t Z_t (x) D_t: Z_t says which slice of the input each slice of the
output reads by tap t, D_t is the matrix of the other axes. So A^T A has few blocks beside its diagonal, and its
Cholesky factor as well: for a layer of c channels at n x n and k taps n * k blocks of (c n)^2 entries, where the matrix
itself has n^2 of them. Nothing is lost by the squares: the factor, of A^T A + tau^2, only leads to the vectors, and
Rayleigh-Ritz with A itself makes values of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from convsv.golub_kahan import LinearOperator
from convsv.spectra._blocks import Block

__all__ = ["GramFactor", "Vectors", "memory_needed", "trailing_vectors"]

_GUARD = 8
"""Vectors beside the wanted ones: the further away the first value is that they leave out, the faster it goes."""
_POWERS, _BASIS = (2, 6), 96
"""Solves of the block between two Rayleigh-Ritz steps: as many as make about so many vectors. The more, the faster it
goes where the smallest values lie near together and far from zero."""
_CYCLES = 30
_SHIFT = 1e-7
"""tau, relative to the norm: its square is about the rounding of a Cholesky factorisation."""
_TINY = 1e-300
"""Instead of zero under a fraction."""


@dataclass(frozen=True)
class _Slices:
    """A block of a layer cut along an axis, seen from the smaller side.

    Attributes:
        axis: the axis, from 0.
        count: slices.
        side: entries of one.
        width: slices that are coupled by the Gram matrix, to one side, itself included.
        reads: for each slice of the larger side, ``(slice, tap)`` of what it is made from.
        readers: for each slice, ``(slice of the larger side, tap)``.
    """

    axis: int
    count: int
    side: int
    width: int
    reads: dict[int, list[tuple[int, int]]]
    readers: dict[int, list[tuple[int, int]]]

    @property
    def size(self) -> int:
        """Bytes of the factor and of what it is made from."""
        taps = 1 + max(tap for row in self.reads.values() for _, tap in row)
        return 8 * self.side**2 * (self.count * self.width + self.width**2 + taps**2)


def _slices(block: Block) -> _Slices:
    """Return the cut with the smallest factor."""
    shape = block.output_shape if block.is_wide else block.input_shape
    return min((_cut(block, axis, shape) for axis in range(len(block.parts))), key=lambda cut: cut.size)


def _cut(block: Block, axis: int, shape: tuple[int, ...]) -> _Slices:
    reads: dict[int, list[tuple[int, int]]] = defaultdict(list)
    readers: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for output, row in enumerate(block.parts[axis].table.tolist()):
        for tap, source in enumerate(row):
            if source >= 0:
                inner, outer = (output, source) if block.is_wide else (source, output)
                reads[outer].append((inner, tap))
                readers[inner].append((outer, tap))
    width = 1 + max(max(row)[0] - min(row)[0] for row in reads.values())
    count = shape[1 + axis]
    return _Slices(axis, count, math.prod(shape) // count, width, reads, readers)


def memory_needed(block: Block, count: int) -> int:
    """Return the bytes that ``count`` trailing values take: the factor, and vectors and images in four copies."""
    size = min(count + _GUARD, *block.sides)
    return _slices(block).size + 4 * 8 * size * (1 + _powers(size)) * sum(block.sides)


def _powers(size: int) -> int:
    return min(max(_BASIS // size, _POWERS[0]), _POWERS[1])


class GramFactor:
    """The Cholesky factor R of the smaller of A^T A and A A^T, plus ``shift^2``: R^T R.

    Args:
        block: A, where the factor shall be; float64.
        shift: tau; made larger where it is too small for a factorisation.
    """

    def __init__(self, block: Block, shift: float) -> None:
        cut = self._cut = _slices(block)
        others = [part for axis, part in enumerate(block.parts) if axis != cut.axis]
        taps = block.kernel.movedim(2 + cut.axis, 0)
        matrices = [Block(tap, others).dense() for tap in taps]
        matrices = [matrix.T for matrix in matrices] if block.is_wide else matrices
        self._products = [[one.T @ other for other in matrices] for one in matrices]
        self._rows: list[tuple[Tensor, Tensor]] = []
        while not self._factorise(shift):
            shift *= 10
        del self._products

    def _factorise(self, shift: float) -> bool:
        """Find the slices of R, each its triangle and what is right of it; tell whether that was possible."""
        cut, self._rows = self._cut, []
        pending: list[list[Tensor]] = []
        for position in range(cut.count):
            reach = min(cut.width, cut.count - position)
            while len(pending) < reach:
                pending.append(self._gram(position + len(pending)))
            blocks = pending.pop(0)
            blocks[0].diagonal().add_(shift**2)
            triangle, failed = torch.linalg.cholesky_ex(blocks[0], upper=True)
            if failed:
                return False
            right = torch.cat(blocks[1:], 1) if len(blocks) > 1 else blocks[0][:, :0]
            right = torch.linalg.solve_triangular(triangle.T, right, upper=False)
            parts = right.split(cut.side, 1) if right.shape[1] else ()
            for first, one in enumerate(parts):
                for second in range(first, len(parts)):
                    pending[first][second - first] -= one.T @ parts[second]
            self._rows.append((triangle, right))
        return True

    def _gram(self, position: int) -> list[Tensor]:
        """Return the blocks of the Gram matrix on and right of the diagonal."""
        cut, like = self._cut, self._products[0][0]
        blocks = [like.new_zeros(like.shape) for _ in range(min(cut.width, cut.count - position))]
        for row, tap in cut.readers[position]:
            for other, second in cut.reads[row]:
                if other >= position:
                    blocks[other - position] += self._products[tap][second]
        return blocks

    def solve(self, vectors: Tensor) -> Tensor:
        """Return the Gram matrix's inverse times vectors: ``(B, C, *size)`` of the smaller side, both."""
        cut = self._cut
        moved = vectors.movedim(2 + cut.axis, 0)
        x = moved.movedim(1, -1).reshape(cut.count * cut.side, -1).contiguous()
        places = [slice(start, start + cut.side) for start in range(0, len(x), cut.side)]
        for (triangle, right), place in zip(self._rows, places, strict=True):
            x[place] = torch.linalg.solve_triangular(triangle.T, x[place], upper=False)
            x[place.stop : place.stop + right.shape[1]] -= right.T @ x[place]
        for (triangle, right), place in reversed(list(zip(self._rows, places, strict=True))):
            x[place] -= right @ x[place.stop : place.stop + right.shape[1]]
            x[place] = torch.linalg.solve_triangular(triangle, x[place], upper=True)
        return x.reshape(*moved.shape[:1], *moved.shape[2:], -1).movedim(-1, 1).movedim(0, 2 + cut.axis)


@dataclass(frozen=True)
class Vectors:
    """What the iteration found.

    Attributes:
        vectors: ``(k, *shape)`` of the smaller side, orthonormal.
        products: products with A and A^T.
        converged: whether every residual reached the tolerance.
    """

    vectors: Tensor
    products: int
    converged: bool


def trailing_vectors(tall: LinearOperator, block: Block, count: int, norm: float, tolerance: float) -> Vectors:
    """Return vectors of the ``count`` smallest of all ``min(m, n)`` singular values.

    Args:
        tall: A or A^T, the one whose inputs are the smaller side, float64.
        block: A, where ``tall`` is.
        count: how many.
        norm: about that of A, positive.
        tolerance: relative to the norm: the residual at which a value counts as found.
    """
    factor = GramFactor(block, _SHIFT * norm)
    shape, length = tall.input_shape, math.prod(tall.input_shape)
    random = torch.Generator().manual_seed(1)
    guesses = torch.randn(min(count + _GUARD, length), length, generator=random, dtype=torch.float64)
    best, products, converged = _orthonormal(guesses.to(block.device)), 0, False
    for _ in range(_CYCLES):
        powers = [best]
        for _ in range(_powers(len(best))):
            powers.append(_orthonormal(factor.solve(powers[-1].reshape(-1, *shape)).flatten(1)))
        basis = _orthonormal(torch.cat(powers))
        images = tall.apply(basis.reshape(-1, *shape)).flatten(1)
        _, values, rotation = torch.linalg.svd(torch.linalg.qr(images.T, mode="r")[1])
        # From here on the smallest value comes first.
        rotation, values = rotation.flip(0), values.flip(0)[:count]
        best, images = rotation[: len(best)] @ basis, rotation[:count] @ images
        back = tall.adjoint(images.reshape(-1, *tall.output_shape)).flatten(1)
        rest = (back - values[:, None] ** 2 * best[:count]).norm(dim=1)
        products += len(basis) + count
        converged = bool((torch.minimum(rest / values.clamp(min=_TINY), rest.sqrt()) <= tolerance * norm).all())
        if converged:
            break
    return Vectors(best[:count].reshape(-1, *shape), products, converged)


def _orthonormal(rows: Tensor) -> Tensor:
    """Return orthonormal rows that span what ``rows`` do, no more than their length."""
    basis: Tensor = torch.linalg.qr(rows.T)[0].T
    return basis

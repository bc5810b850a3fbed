"""The frequencies at which a clip looks at the symbol, in blocks that can be treated at once.

Kernels lie here as ``(T, G, O, I)``, taps first: the symbol at the frequencies of a block is one matrix product with
the phases, and so is its adjoint. Frequencies ``w`` and ``-w`` count as one point of twice the weight, since the symbol
of a real kernel takes conjugate values there.

A block of a grid of m k points an axis holds every m-th point. Its k^d points determine a kernel of k^d taps and are
determined by it (up to a factor the map is unitary), so that a step on one block may be longer than on the whole grid
by the number of blocks: this is what makes block-wise projections fast.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convsv.symbol import half_grid, half_grid_span

__all__ = ["Block", "blocks", "stretches"]


@dataclass(frozen=True)
class Block:
    """Some frequencies of a grid.

    Attributes:
        cosines: ``(M, T)``, of the phases k.w.
        sines: ``(M, T)``.
        weights: ``(M, 1)``: share of the grid that each point stands for.
        step: the inverse of the largest eigenvalue of adjoint times transform: the longest safe gradient step.
    """

    cosines: Tensor
    sines: Tensor
    weights: Tensor
    step: float

    def symbol(self, kernel: Tensor) -> Tensor:
        """Return F(w) of a kernel ``(T, G, O, I)`` at the block's points: ``(M, G, O, I)``, complex."""
        taps = kernel.flatten(1)
        return torch.complex(self.cosines @ taps, self.sines @ taps).reshape(-1, *kernel.shape[1:])

    def kernel(self, symbols: Tensor) -> Tensor:
        """Return the adjoint of :meth:`symbol` on ``(M, G, O, I)``, in the weighted inner product: a real kernel."""
        values = symbols.flatten(1)
        real = (self.weights * self.cosines).T @ values.real + (self.weights * self.sines).T @ values.imag
        return real.reshape(-1, *symbols.shape[1:])

    def to(self, dtype: torch.dtype, device: torch.device) -> Block:
        """Return the block in a real dtype on a device."""
        cosines, sines, weights = (
            part.to(dtype=dtype, device=device) for part in (self.cosines, self.sines, self.weights)
        )
        return Block(cosines, sines, weights, self.step)


def blocks(taps: Sequence[int], size: Sequence[int], dilation: Sequence[int] | None = None) -> list[Block]:
    """Return the points of a grid in blocks of about as many points an axis as the kernel has taps.

    Args:
        taps: of the kernel, an axis.
        size: points of the grid, an axis.
        dilation: of the kernel, an axis: the symbol is taken at ``dilation * w``.

    Returns:
        Blocks in float64 whose weights sum up to 1; those that are their own conjugates come first.
    """
    points, weights = half_grid(size)
    share = weights.to(torch.float64) / math.prod(size)
    steps = torch.tensor([max(1, n // k) for n, k in zip(size, taps, strict=True)])
    mirrored = -points % torch.tensor(tuple(size))
    order = torch.tensor([math.prod(steps.tolist()[axis + 1 :]) for axis in range(len(steps))])
    label, mirrored_label = ((at % steps * order).sum(1) for at in (points, mirrored))
    # Of each conjugate pair the point whose class comes first: so that a class and its mirror image share a block.
    points = torch.where((mirrored_label < label)[:, None], mirrored, points)
    label = torch.minimum(label, mirrored_label)
    found = []
    for value in sorted(set(label.tolist())):
        chosen = label == value
        cosines, sines = _phases(points[chosen], taps, size, dilation)
        part = share[chosen, None]
        normal = cosines.T @ (part * cosines) + sines.T @ (part * sines)
        found.append(Block(cosines, sines, part, 1 / float(torch.linalg.eigvalsh(normal)[-1])))
    return sorted(found, key=lambda block: -block.step)


def stretches(
    taps: Sequence[int], size: Sequence[int], dilation: Sequence[int] | None = None, *, points: int
) -> Iterator[Block]:
    """Yield the points of a grid in their own order, so many at a time, for what walks over all of them at once.

    Args:
        taps: of the kernel, an axis.
        size: points of the grid, an axis.
        dilation: of the kernel, an axis.
        points: in one stretch, at most.

    Returns:
        Blocks in float64, whose ``step`` is that of the whole grid.
    """
    # Taps that fall on each other add up: every frequency sees their sum.
    reach = zip(taps, size, dilation or (1,) * len(taps), strict=True)
    overlap = math.prod(max(Counter(tap * d % n for tap in range(k)).values()) for k, n, d in reach)
    for start in range(0, half_grid_span(size), points):
        indices, weights = half_grid(size, None, start, min(start + points, half_grid_span(size)))
        if len(indices):
            share = weights.to(torch.float64)[:, None] / math.prod(size)
            yield Block(*_phases(indices, taps, size, dilation), share, 1 / overlap)


def _phases(
    points: Tensor, taps: Sequence[int], size: Sequence[int], dilation: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of k.w, ``(M, T)`` each."""
    positions = torch.stack(torch.meshgrid(*[torch.arange(k) for k in taps], indexing="ij"), -1).flatten(0, -2)
    positions = positions * torch.tensor(tuple(dilation or (1,) * len(taps)))
    turns = 2 * math.pi / torch.tensor(tuple(size), dtype=torch.float64)
    angles = (points * turns) @ positions.to(torch.float64).T
    return angles.cos(), angles.sin()

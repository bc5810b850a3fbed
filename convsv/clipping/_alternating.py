"""Change the symbol on a grid, cut what it became to the support of the kernel, and again.

One round of clipping at the layer's size is the published projection (Sedghi, Gupta, Long 2019, algorithm 1; it leaves
norms above the radius). Many rounds reach some kernel within the radius, as a rule not the nearest. Raising small
singular values, making all equal and cutting the rank have no convex set to project onto: rounds go on until nothing
moves any more, and what was reached is measured afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from convsv.clipping._frequencies import Block
from convsv.clipping._nearest import excess
from convsv.linalg import decomposition

__all__ = ["Change", "alternate", "clipped", "flattened", "raised", "truncated"]

Change: TypeAlias = Callable[[Tensor], Tensor]
"""Symbols ``(M, G, O, I)`` -> what to add to them."""

_SETTLED = 1e-4
"""Relative movement of the kernel in one round at which it has come to rest."""


def alternate(
    kernel: Tensor, grid: Callable[[], Iterable[Block]], change: Change, rounds: int, mask: Tensor | None
) -> tuple[Tensor, int]:
    """Return the kernel after so many rounds, or once it rests, and how many there were.

    Args:
        kernel: ``(T, G, O, I)``, float64 or float32, on the device to work on.
        grid: yields the blocks of the grid, in the same dtype and on the same device.
        change: what is done to the symbol.
        rounds: most rounds.
        mask: 1 where a tap may be nonzero; None where all may.
    """
    for done in range(1, rounds + 1):
        moved = torch.zeros_like(kernel)
        for block in grid():
            moved += block.step * block.kernel(change(block.symbol(kernel)))
        moved = moved if mask is None else moved * mask
        kernel = kernel + moved
        if float(moved.norm()) <= _SETTLED * float(kernel.norm()):
            return kernel, done
    return kernel, rounds


def clipped(radius: float) -> Change:
    """Cut singular values down to the radius."""
    return lambda symbols: -excess(symbols, radius)[0]


def raised(least: float, most: float | None) -> Change:
    """Raise singular values to the least one allowed, and cut them down to the largest."""
    return _by_values(lambda values: values.clamp(least, most))


def flattened(level: float) -> Change:
    """Make all singular values equal: the nearest multiple of a matrix with orthonormal rows or columns."""
    return _by_values(lambda values: torch.full_like(values, level))


def truncated(rank: int) -> Change:
    """Drop all but the largest singular values: the nearest matrix of that rank (Eckart, Young 1936)."""
    return _by_values(lambda values: values * (torch.arange(values.shape[-1], device=values.device) < rank))


def _by_values(wanted: Callable[[Tensor], Tensor]) -> Change:
    def change(symbols: Tensor) -> Tensor:
        left, values, right = decomposition(symbols)
        moved: Tensor = (left * (wanted(values) - values)[..., None, :].to(left.dtype)) @ right
        return moved

    return change

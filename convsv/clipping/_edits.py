"""Edits of the symbol that are no projection: they alternate, and what they came to is measured.

They are about the symbol in the geometry as it is known: about the layer without borders. Where stride or groups are
guessed, so is the symbol: unlike a radius, an edit cannot suit every reading at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from convsv.clipping._alternating import Change, alternate, flattened, raised, truncated
from convsv.clipping._frequencies import Block, blocks, stretches
from convsv.clipping._work import FINENESS, Kernel, Work
from convsv.linalg import singular_values
from convsv.results import Reached

__all__ = ["edited", "reached"]

_ROUNDS = 200
"""Most rounds: there is no convex set to project onto, and no rate at which they come to rest."""
_FINER = 2
"""How many times finer than that of the edit the grid is on which its result is measured."""


def edited(work: Work) -> tuple[Kernel, int]:
    """Apply the edit that was asked for, on the small grid; return the kernel and the rounds it took."""
    options = work.options
    grid = _grid(work)
    radius = None if options.radius is None else work.inner(options.radius)
    change: Change
    if options.min_norm is not None:
        change = raised(work.inner(options.min_norm), radius)
    elif options.rank is not None:
        change = truncated(options.rank)
    else:
        change = flattened(_level(work, grid))
    # Blocks are visited together: a step of the whole grid, not of each block alone.
    together = [replace(block, step=1.0) for block in grid]
    kernel, rounds = alternate(work.kernel, lambda: together, change, _ROUNDS, work.mask)
    return work.back(kernel), rounds


def reached(work: Work, stored: Kernel) -> Reached:
    """Measure what an edit came to, at frequencies between those of its own grid too.

    Args:
        work: the layer as it was before.
        stored: the kernel afterwards, canonical.
    """
    options = work.options
    size = tuple(_FINER * n if n > 1 else 1 for n in _size(work))
    kernel = work.normal(stored)
    points = max(1, min(work.execution.memory // (6 * 16 * max(1, kernel[0].numel())), 4096))
    least, most, beyond = math.inf, 0.0, 0.0
    for block in stretches(work.taps, size, points=points):
        values = singular_values(block.to(torch.float64, kernel.device).symbol(kernel))
        least, most = min(least, float(values[..., -1].min())), max(most, float(values[..., 0].max()))
        if options.rank is not None and options.rank < values.shape[-1]:
            beyond = max(beyond, float(values[..., options.rank].max()))
    wanted: float | None = options.min_norm or options.rank
    return Reached(
        edit=options.edits[0],
        wanted=work.outer(_level(work, _grid(work))) if wanted is None else wanted,
        smallest=work.outer(least),
        largest=work.outer(most),
        beyond=beyond / most if most and options.rank is not None else None,
        grid=size,
        assumes=work.geometry.guessed("stride", "groups", *(["dilation"] if max(work.geometry.stride) > 1 else [])),
    )


def _size(work: Work) -> tuple[int, ...]:
    return tuple(FINENESS * k if k > 1 else 1 for k in work.taps)


def _grid(work: Work) -> list[Block]:
    return [block.to(torch.float64, work.execution.torch_device) for block in blocks(work.taps, _size(work))]


def _level(work: Work, grid: Sequence[Block]) -> float:
    """Return to what all singular values are to be made equal: their mean is nearest, the radius is the most."""
    kernel = work.kernel
    total = sum(float((block.weights * _sums(block.symbol(kernel))).sum()) for block in grid)
    mean = total / (kernel.shape[1] * min(kernel.shape[2:]))
    return mean if work.options.radius is None else min(mean, work.inner(work.options.radius))


def _sums(symbols: Tensor) -> Tensor:
    sums: Tensor = singular_values(symbols).sum((-2, -1))[:, None]
    return sums

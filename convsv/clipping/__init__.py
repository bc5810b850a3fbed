"""Move a kernel as little as possible until its norm is within a radius, and keep its support.

The norm itself is judged from outside (a certificate comes in as an argument), and judged on the kernel as it will be
stored: what is promised holds for the rounded weights. The mathematics is that of the size-free norm: the symbol
of the normal form, projected on a grid so small that the image size does not matter, then once over a finer grid, then
scaled by what the certificate still finds too much (a few tenths of a percent).

Methods: ``nearest`` (the default, see :mod:`convsv.clipping._nearest`), ``alternating``, ``sedghi`` (the published
single pass, whose left-over norm is reported and not repaired) and ``scale`` (divide by the norm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from convsv.at_size import any_size_copies
from convsv.clipping._alternating import alternate, clipped
from convsv.clipping._edits import edited, reached
from convsv.clipping._frequencies import Block, blocks, stretches
from convsv.clipping._nearest import nearest, pull_in
from convsv.clipping._options import METHODS, OPERATORS, ClipOptions
from convsv.clipping._work import FINENESS, Kernel, Work
from convsv.errors import ComputationError, GeometryError, UnavailableError
from convsv.execution import Execution, full_precision, one_thread_a_call
from convsv.layer import ConvLayer
from convsv.results import Interval, Reached

__all__ = ["METHODS", "OPERATORS", "ClipOptions", "Clipped", "Judge", "Kernel", "clip_layer"]

Judge: TypeAlias = Callable[[Kernel], Interval]
"""Canonical kernel ``(G, O, I, *K)`` -> certified interval of the norm that is meant."""

_FINER = (2, 4)
"""How many times finer the grids are over which it goes once more."""
_SWEEPS = 60
_WORTH = 3e-4
"""Relative gain of the distance in one sweep that is still worth it."""
_ALTERNATIONS = 20
_SINGLE_RATIO = 32.0
"""Norm over radius up to which single precision finds the singular vectors: its Gram matrix errs by the square."""
_ATTEMPTS = 60
_MARGIN = 2.0**-20
"""First extra step towards zero when a scaled kernel is judged again: covers rounding to float32."""
_MISSED = 2e-3
"""How far below the radius the norm at a size may end before the radius of any size is widened again."""
_SEARCHES = 6
_ALL_ZERO = "every weight is zero now: its dtype holds nothing so small"
_ZERO_STAYS = "a kernel of zeros has no direction to move in, and stays"


@dataclass(frozen=True)
class Clipped:
    """What became of a layer.

    Attributes:
        kernel: ``(G, O, I, *K)`` float64: the effective kernel as a reader will see it.
        method: how it was done; ``"none"`` where it was left alone.
        radius: as asked for.
        before: certified interval of the norm before.
        after: the same of ``kernel``.
        distance: ``||kernel - original||_F / ||original||_F``.
        iterations: sweeps or rounds over the grid.
        gap: by how much, relatively, the distance can at most exceed that of the nearest kernel within the radius;
            None where no such bound is known. From a dual value in floating point: an estimate of a proved bound.
        touched: whether the kernel differs from the original.
        notes: what else to know.
        reached: what an edit of the symbol came to; None where none was asked for.
    """

    kernel: Kernel
    method: str
    radius: float | None
    before: Interval
    after: Interval
    distance: float
    iterations: int = 0
    gap: float | None = None
    touched: bool = True
    notes: tuple[str, ...] = field(default=())
    reached: Reached | None = None


def clip_layer(
    layer: ConvLayer,
    options: ClipOptions,
    judge: Judge,
    *,
    as_stored: Callable[[Kernel], Kernel] | None = None,
    mask: NDArray[np.bool_] | None = None,
    execution: Execution | None = None,
) -> Clipped:
    """Return the layer's kernel within the radius.

    Args:
        layer: the layer.
        options: what to do.
        judge: certifies the norm that is meant; called on kernels as stored only.
        as_stored: what a reader will see of a kernel once it is stored; None for the kernel itself.
        mask: where a tap may be nonzero, in the canonical shape; None for everywhere.
        execution: where to compute.

    Returns:
        The kernel, whose certified upper end is at most the radius, except after ``sedghi``. A layer already within
        the radius is left alone.

    Raises:
        UnavailableError: the layer cannot be read, or holds NaN.
        GeometryError: a size is too small, or has another number of axes.
        ComputationError: no kernel within the radius was found in the stored precision.
    """
    execution = execution or Execution()
    kernel = layer.kernel()
    store = as_stored or (lambda values: values)
    before = judge(kernel)
    inside = options.radius is not None and before.upper <= options.radius
    if before.upper == 0 or (inside and not options.edits):
        notes = (_ZERO_STAYS,) if options.edits and not kernel.any() else ()
        return Clipped(kernel, "none", options.radius, before, before, 0.0, touched=False, notes=notes)
    work = Work(layer, options, execution, mask)
    with one_thread_a_call(), full_precision():
        moved, iterations, bound = _moved(work, before, lambda values: judge(store(values)))
    if options.radius is None or options.method == "sedghi":
        stored = store(moved)
        after = judge(stored)
    else:
        stored, after = _settled(moved, options.radius, judge, store, layer.name)
    length = float(np.linalg.norm(kernel))
    distance = float(np.linalg.norm(stored - kernel))
    gap = distance / bound - 1 if bound else None
    return Clipped(
        kernel=stored,
        method=options.edits[0] if options.edits else options.method,
        radius=options.radius,
        before=before,
        after=after,
        distance=distance / length,
        iterations=iterations,
        gap=gap,
        touched=not np.array_equal(stored, kernel),
        notes=work.notes if stored.any() else (*work.notes, _ALL_ZERO),
        reached=reached(work, stored) if options.edits else None,
    )


def _settled(
    kernel: Kernel, radius: float, judge: Judge, store: Callable[[Kernel], Kernel], name: str
) -> tuple[Kernel, Interval]:
    """Scale a kernel until it is certified within the radius as stored.

    Raises:
        ComputationError: it never was.
    """
    factor, margin = 1.0, _MARGIN
    for _ in range(_ATTEMPTS):
        stored = store(kernel * factor)
        after = judge(stored)
        if after.upper <= radius:
            return stored, after
        # Rounding to a coarse dtype may undo a small step: the margin grows until it does not.
        factor *= radius / after.upper * (1 - margin)
        margin = min(4 * margin, 0.25)
    raise ComputationError("no kernel within the radius was found", tensor=name, found=f"norm {after.upper:.6g}")


def _moved(work: Work, before: Interval, judged: Judge) -> tuple[Kernel, int, float]:
    """Return the kernel after the method's own work, its rounds, and a bound on the distance (0 for none)."""
    options = work.options
    if options.edits:
        return (*edited(work), 0.0)
    radius = options.radius
    assert radius is not None
    if options.method == "scale":
        return work.back(work.kernel), 0, 0.0
    if options.method != "nearest":
        rounds = 1 if options.method == "sedghi" else _ALTERNATIONS
        kernel, done = alternate(work.kernel, _published_grid(work), clipped(work.inner(radius)), rounds, work.mask)
        return work.back(kernel), done, 0.0
    copies = any_size_copies(work.geometry, work.taps) if options.of == "any size" else 1.0
    return _nearest(work, radius / copies, before, judged)


def _nearest(work: Work, radius: float, before: Interval, judged: Judge) -> tuple[Kernel, int, float]:
    """Project; for a norm at a size widen the radius of any size until the norm that is meant is the radius."""
    own = _own_grid(work)
    if work.options.of == "any size" or own is not None:
        return _projected(work, radius, before, own)
    wide, rounds = radius, 0
    for _ in range(_SEARCHES):
        kernel, done, _ = _projected(work, wide, before, None)
        rounds += done
        reached = judged(kernel).upper
        if radius * (1 - _MISSED) <= reached <= radius * (1 + _MISSED):
            break
        wide *= radius / reached
    return kernel, rounds, 0.0


def _own_grid(work: Work) -> tuple[int, ...] | None:
    """Return the grid of circular padding at the layer's size, where it is small enough to project onto itself."""
    geometry = work.geometry
    if work.options.of != "circular" or any(n % s for n, s in zip(geometry.size, geometry.stride, strict=True)):
        return None
    grid = tuple(n // s for n, s in zip(geometry.size, geometry.stride, strict=True))
    fits = all(n <= 2 * FINENESS * k for n, k in zip(grid, work.taps, strict=True))
    return grid if fits else None


def _projected(work: Work, radius: float, before: Interval, own: tuple[int, ...] | None) -> tuple[Kernel, int, float]:
    """Return the nearest kernel on a grid, the sweeps, and the dual bound on the distance.

    Raises:
        UnavailableError: no grid fits into the memory budget.
    """
    inner = work.inner(radius)
    single = before.upper <= _SINGLE_RATIO * radius
    dtype, device = (torch.float32 if single else torch.float64), work.execution.torch_device
    dilation = work.dilation if own else None
    bytes_each = 3 * (8 if single else 16) * work.kernel[0].numel()
    for fineness in range(FINENESS, 0, -1):
        size = own or tuple(fineness * k if k > 1 else 1 for k in work.taps)
        if math.prod(size) // 2 * bytes_each <= work.execution.memory:
            break
    else:
        raise UnavailableError("the memory budget holds no grid of this layer", advice="give more --memory, or scale")
    grid = [block.to(dtype, device) for block in blocks(work.taps, size, dilation)]
    mask = None if work.mask is None else work.mask.to(dtype)
    found = nearest(work.kernel, inner, grid, mask=mask, settings=(_SWEEPS, _WORTH), execution=work.execution)
    kernel = found.kernel
    if own is None and max(size) > 1:
        for times in _FINER:
            finer = blocks(work.taps, tuple(times * n if n > 1 else 1 for n in size))
            kernel = pull_in(kernel, inner, [block.to(dtype, device) for block in finer], mask, work.execution)
    return work.back(kernel), found.sweeps, work.outer(found.bound)


def _published_grid(work: Work) -> Callable[[], Iterable[Block]]:
    """Return the grid of ``sedghi`` (the layer's size) or ``alternating`` (its own small one where no size is said).

    Raises:
        GeometryError: it has fewer points than the kernel has taps, or another number of axes.
    """
    options, dims = work.options, len(work.taps)
    stated = options.size
    if stated is None and options.method == "alternating":
        size = tuple(FINENESS * k if k > 1 else 1 for k in work.taps)
    else:
        chosen = stated or work.geometry.size
        chosen = chosen * dims if len(chosen) == 1 else chosen
        if len(chosen) != dims:
            raise GeometryError("the size has another number of axes", found=f"{len(chosen)} for {dims}")
        size = tuple(-(-n // s) for n, s in zip(chosen, work.geometry.stride, strict=True))
    if any(n < k for n, k in zip(size, work.taps, strict=True)):
        raise GeometryError("the grid has fewer points than the kernel has taps", found="x".join(map(str, size)))
    device = work.execution.torch_device
    share = work.execution.memory // (6 * 16 * max(1, work.kernel[0].numel()))
    points = max(1, min(share, 4096))
    # The published pass is about the layer at its size, where taps are as far apart as the dilation says.
    dilation = work.dilation if options.method == "sedghi" else None
    return lambda: (block.to(torch.float64, device) for block in stretches(work.taps, size, dilation, points=points))

"""Smaller copies of a layer: the same kernel and boundary at a size whose matrix is affordable."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from convsv.errors import GeometryError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.operator import ConvOperator

__all__ = ["affordable_copy", "boundary_axes", "rows_in_use", "smaller_copies"]

_WORK = 1 << 30
"""Most that the matrices of a copy may cost: groups times long side times square of the short side."""
_SIDE = 1 << 10
"""No short side above this is affordable."""


def rows_in_use(geometry: Geometry, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the outputs an axis of the forward convolution that are in use."""
    return geometry.size if geometry.transposed else geometry.output_size(kernel_size)


def boundary_axes(geometry: Geometry, kernel_size: tuple[int, ...]) -> tuple[bool, ...]:
    """Tell along which axes the layer is not the one of a circle, and its values not those of the symbol alone."""
    sizes, rows = geometry.forward_size(kernel_size), rows_in_use(geometry, kernel_size)
    around = geometry.padding_mode == "circular"
    axes = zip(sizes, rows, geometry.stride, geometry.padding, _extents(geometry, kernel_size), strict=True)
    return tuple(
        used * s != n or (sum(pad) > extent - 1 if around else sum(pad) > 0 or extent > s)
        for n, used, s, pad, extent in axes
    )


def smaller_copies(geometry: Geometry, kernel_size: tuple[int, ...]) -> Iterator[Geometry]:
    """Yield the layer's own geometry, and then smaller and smaller ones of its proportions, from half its size on.

    Strides and dilations meet the boundary of each copy as they meet that of the layer, because sizes are congruent.
    Kernels stay within reach of both ends of at least half of them.

    Args:
        geometry: the layer's.
        kernel_size: spatial taps.
    """
    yield geometry
    periods = [math.lcm(s, d) for s, d in zip(geometry.stride, geometry.dilation, strict=True)]
    if geometry.transposed:
        periods = [period // s for period, s in zip(periods, geometry.stride, strict=True)]
    longest, before = max(geometry.size), geometry.size
    for length in range(min(-(-longest // 2), _SIDE * max(geometry.stride)), 0, -1):
        targets = [max(1, -(-n * length // longest)) for n in geometry.size]
        size = tuple(n - (n - t) // p * p for n, t, p in zip(geometry.size, targets, periods, strict=True))
        if size != before:
            before, copy = size, replace(geometry, size=size)
            if not _is_possible(copy, kernel_size):
                return
            yield copy


def affordable_copy(kernel: Tensor, geometry: Geometry, execution: Execution) -> Geometry | None:
    """Return the largest copy whose matrices are affordable, the layer itself if it is; None where there is none.

    Args:
        kernel: ``(G, O, I, *K)``.
        geometry: the layer's.
        execution: its whole memory budget counts, not its threads: they change no number.
    """
    for copy in smaller_copies(geometry, tuple(kernel.shape[3:])):
        operator = ConvOperator(kernel[:1], replace(copy, groups=1))
        short, long = sorted((math.prod(operator.input_shape), math.prod(operator.output_shape)))
        # The matrix, what it is made from, and what the decomposition needs beside it.
        fits = 8 * 4 * short * long <= execution.memory // 2
        if fits and short <= _SIDE and len(kernel) * long * short * short <= _WORK:
            return copy
    return None


def _extents(geometry: Geometry, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """Return how far the kernel reaches: dilated taps."""
    return tuple(d * (k - 1) + 1 for d, k in zip(geometry.dilation, kernel_size, strict=True))


def _is_possible(geometry: Geometry, kernel_size: tuple[int, ...]) -> bool:
    """Tell whether the layer exists, and is at least half as large as its kernel."""
    try:
        sizes = geometry.forward_size(kernel_size)
        ConvOperator(torch.zeros(1, 1, 1, *kernel_size), replace(geometry, groups=1))
    except GeometryError:
        return False
    return all(2 * n >= extent for n, extent in zip(sizes, _extents(geometry, kernel_size), strict=True))

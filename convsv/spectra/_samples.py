"""The symbol sampled over all frequencies: what the spectra start from that need no grid of the layer's own size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.errors import UnavailableError
from convsv.execution import Execution
from convsv.linalg import singular_values
from convsv.operator import ConvOperator
from convsv.results import Spectrum
from convsv.spectra._shared import Shared
from convsv.spectra._statistics import statistics
from convsv.symbol import NormalForm, grid_symbol, half_grid

__all__ = ["SymbolSamples", "estimate", "sample_symbol"]

_VALUES, _FEWEST, _MOST = 1 << 15, 64, 1 << 10
"""Samples a group that are enough, and the fewest and most frequencies to take them at: 32 x 32 for up to 32 channels.
More change the error of the estimates by less than a hundredth of itself."""
_POINTS_A_TAP = 2
"""A symbol of k taps turns k times: fewer points than twice that may miss what lies between."""
_ARRAYS = 4
"""Arrays of all values that are held at one time."""
_WORKSPACE = 4
"""LAPACK's copy, its workspace and the symbol's real and imaginary part, as multiples of the complex symbol."""


@dataclass(frozen=True)
class SymbolSamples:
    """Singular values of the symbol at frequencies that stand for all.

    Attributes:
        kernel: ``(G, O, I, *K)`` float64, largest entry about 1.
        form: its normal form; its dilation is left out of the frequencies, which does not change how the
            values are distributed over all of them.
        frequencies: ``(P, d)`` in radians, every second point of a grid: the others are conjugate to these.
        values: ``(P, G, c)`` float64, descending along c, the smaller number of channels.
        count: number of singular values of one group of the layer as it runs.
    """

    kernel: Tensor
    form: NormalForm
    frequencies: NDArray[np.float64]
    values: NDArray[np.float64]
    count: int


def sample_symbol(shared: Shared, points: int | None = None) -> SymbolSamples:
    """Sample the symbol of a layer, whatever its stride, dilation and size.

    Args:
        shared: of any layer.
        points: frequencies an axis, an even number; None for as many as change nothing any more.

    Raises:
        UnavailableError: a weight is not finite, the kernel has no entries or more than three spatial axes, or the
            values of the layer do not fit into the memory budget.
        GeometryError: the layer has no output.
    """
    shared.require_entries()
    groups, memory = len(shared.kernel), shared.execution.memory
    operator = ConvOperator(shared.kernel, shared.layer.geometry)
    count = min(math.prod(operator.input_shape), math.prod(operator.output_shape)) // groups
    if _ARRAYS * 8 * count * groups > memory:
        raise UnavailableError(f"{count * groups} singular values do not fit into the memory budget of {memory} bytes")
    form = shared.form
    frequencies, values = _sampled(form.kernel, _grid(form, points), shared.execution)
    return SymbolSamples(shared.kernel, form, frequencies, values, count)


def _grid(form: NormalForm, points: int | None) -> tuple[int, ...]:
    """Return the points an axis, even numbers, and 1 where the symbol does not depend on the frequency."""
    active = [degree > 0 for degree in form.degrees]
    enough = min(_MOST, max(_FEWEST, _VALUES // min(form.kernel.shape[1:3])))
    each = round(enough ** (1 / max(1, sum(active))))
    wanted = [points or max(each, _POINTS_A_TAP * taps) for taps in form.kernel.shape[3:]]
    return tuple(2 * -(-n // 2) if on else 1 for n, on in zip(wanted, active, strict=True))


def _sampled(
    kernel: Tensor, size: tuple[int, ...], execution: Execution
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return frequencies and singular values."""
    dims = len(size)
    # Shifted by half a step along one axis of even length no point is its own conjugate: all count the same.
    shift = [0] * dims
    if max(size) > 1:
        shift[next(axis for axis, n in enumerate(size) if n > 1)] = 1
    indices = 2 * half_grid(size, shift)[0] + torch.tensor(shift)
    whole = NormalForm(kernel.to(execution.torch_device, execution.torch_dtype), (1,) * dims, (1,) * dims)
    doubled = tuple(2 * n for n in size)

    def work(start: int, stop: int, device: torch.device) -> NDArray[np.float64]:
        there = NormalForm(whole.kernel.to(device), whole.dilation, whole.stride)
        values = singular_values(grid_symbol(there, doubled, indices[start:stop]))
        return np.asarray(values.to("cpu", torch.float64).numpy())

    each = _WORKSPACE * 2 * whole.kernel.element_size() * math.prod(kernel.shape[:3])
    parts = list(execution.map_chunks(len(indices), each, work))
    return indices.numpy() * (2 * math.pi / np.array(doubled)), np.concatenate(parts)


def estimate(method: str, shared: Shared, values: NDArray[np.float64]) -> Spectrum:
    """Return the spectrum of a layer as it runs that a method estimates.

    Args:
        method: its registered name.
        shared: of the layer.
        values: of the scaled layer, in any order.

    Raises:
        UnavailableError: they exceed the range of float64.
    """
    geometry = shared.layer.geometry
    descending = shared.unscaled(np.sort(values)[::-1])
    return Spectrum(
        method=method,
        of=f"{geometry.padding_mode} {'x'.join(map(str, geometry.size))}",
        guarantee="estimate",
        assumes=geometry.guessed("size", "stride", "padding", "padding_mode", "dilation", "groups", "transposed"),
        values=descending,
        **vars(statistics(descending)),
    )

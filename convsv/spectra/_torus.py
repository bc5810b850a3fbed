"""The largest singular value of a layer's symbol over the frequency torus, to be looked at."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.execution import Execution, full_precision
from convsv.layer import ConvLayer
from convsv.spectra._shared import Shared
from convsv.symbol import NormalForm, symbol

__all__ = ["largest_on_torus"]

_PLANE_POINTS = ((64, 129), (256, 65))
"""Points an axis, for matrices of at most so many rows; larger ones get half as many again."""
_SPACE_POINTS = ((16, 49), (64, 33))


def largest_on_torus(layer: ConvLayer, execution: Execution) -> NDArray[np.float64]:
    """Return sigma_1 of the symbol at frequencies from -pi to pi on each axis, both ends included.

    With stride s the frequencies are those of the output, and with dilation r the symbol is that of the undilated
    kernel at r times the frequency. The value of several groups is the largest of theirs.

    Args:
        layer: any layer.
        execution: where to compute.

    Returns:
        ``(N,) * d`` float64, with an odd N that depends on the number of channels.

    Raises:
        UnavailableError: a weight is not finite.

    Guarantee:
        An estimate: each value is rounded, and none stands for what lies between the points.
    """
    shared = Shared(layer, execution)
    shared.require_entries()
    form, dims = shared.form, len(layer.geometry.size)
    points = _points(min(form.kernel.shape[1:3]), dims)
    # F(-w) is the conjugate of F(w): the rest of the torus mirrors the half with a last frequency of at least 0.
    axis = torch.linspace(-math.pi, math.pi, points, dtype=torch.float64)
    axes = [axis] * (dims - 1) + [axis[points // 2 :]]
    frequencies = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dims)
    with full_precision():
        half = torch.cat([_largest(form, part) for part in torch.split(frequencies, _chunk(form, execution))])
    values = half.reshape(*[points] * (dims - 1), points // 2 + 1)
    mirrored = torch.flip(values, dims=list(range(dims)))[..., :-1]
    whole = torch.cat([mirrored, values], -1).cpu().numpy()
    return np.asarray(np.ldexp(whole, shared.exponent), dtype=np.float64)


def _points(rows: int, dims: int) -> int:
    table = _PLANE_POINTS if dims < 3 else _SPACE_POINTS
    fewest = 33 if dims < 3 else 17
    points = next((points for most, points in table if rows <= most), fewest)
    return 4 * points + 1 if dims == 1 else points


def _chunk(form: NormalForm, execution: Execution) -> int:
    return max(1, execution.memory // (16 * 8 * math.prod(form.kernel.shape[:3])))


def _largest(form: NormalForm, frequencies: Tensor) -> Tensor:
    matrices = symbol(form.kernel.to(torch.float64), frequencies * torch.tensor(form.dilation, dtype=torch.float64))
    wide = matrices.shape[-1] > matrices.shape[-2]
    gram = matrices @ matrices.mH if wide else matrices.mH @ matrices
    squares: Tensor = torch.linalg.eigvalsh(gram)[..., -1]
    return squares.clamp(min=0).sqrt().amax(-1)

"""Bounds by iteration that has a gradient: of the kernel's autocorrelation, and of the kernel as a tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convsv.bounds import Problem
from convsv.bounds.delattre2024 import rounds_of, row_sums, wave_phases
from convsv.bounds.grishina2024 import ROUNDS, STARTS, alternate, contract
from convsv.differentiable._entries import gradient
from convsv.gram import gram
from convsv.symbol import NormalForm, grid_symbol, half_grid

__all__ = ["delattre2024", "grishina2024"]

_TOLERANCE = 1e-14
"""Relative gain below which alternating maximisation stops: the gradient errs by about the root of it."""


@gradient("delattre2024")
def delattre2024(problem: Problem) -> Tensor:
    """Return the root of the largest row sum of the iterated autocorrelation."""
    form, rounds = problem.form, rounds_of(problem)
    kernel = form.kernel if form.kernel.shape[2] <= form.kernel.shape[1] else form.kernel.transpose(1, 2)
    ones = (1,) * len(form.degrees)
    grid = tuple(2**rounds * d + 1 for d in form.degrees)
    indices, weights = half_grid(grid)
    symbols = grid_symbol(NormalForm(kernel, ones, ones), grid, indices)
    power, scales = symbols.mH @ symbols, []
    for squaring in range(rounds):
        power = power if squaring == 0 else power.mH @ power
        # A factor that is taken out and put back has no part in the gradient.
        scale = torch.linalg.matrix_norm(power.detach()).amax(0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        power = power / scale[:, None, None]
        scales.append(scale)
    total = row_sums(power, wave_phases(gram(kernel.detach()), grid, indices), weights, grid)
    for scale in reversed(scales):
        total = (scale * total).sqrt()
    return total.amax()


@gradient("grishina2024")
def grishina2024(problem: Problem) -> Tensor:
    """Return the product of the kernel with the unit vectors of the best local maximum: an estimate, not a bound."""
    kernel = problem.form.kernel
    with torch.no_grad():
        values, vectors = alternate(kernel.detach(), STARTS, ROUNDS, _TOLERANCE)
        group, start = divmod(int(values.argmax()), values.shape[1])
        chosen = [vector[group : group + 1, start : start + 1] for vector in vectors]
    tensor = torch.complex(kernel[group : group + 1], torch.zeros_like(kernel[group : group + 1]))
    product = (contract(tensor, chosen, 0) * chosen[0]).sum()
    return product.abs() * math.sqrt(math.prod(kernel.shape[3:]))

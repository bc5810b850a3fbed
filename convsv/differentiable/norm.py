"""The size-free norm itself, and that of a circle: largest singular values of the symbol."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from convsv.bounds import Problem
from convsv.cells import root_cells
from convsv.differentiable._entries import NORM, gradient
from convsv.differentiable._maximum import spectral_norms
from convsv.gram import gram
from convsv.peaks import climb, look
from convsv.symbol import symbol

__all__ = ["norm"]

_WAYS = 4
"""Starts from which the maximum is looked for at once."""
_PRECISION = 1e-12
"""Relative gain at which the search stops: the gradient errs by about the root of it."""


@gradient(NORM, side="lower")
def norm(problem: Problem) -> Tensor:
    """Return sup_w sigma_1(F(w)) at the maximum that is found, with the gradient Re(u* dF(w) v) there.

    The search climbs from the highest of a grid of frequencies: the value is the norm up to rounding unless another
    peak was missed. ``certified=True`` proves an upper bound of it.
    """
    kernel, degrees = problem.form.kernel, problem.form.degrees
    with torch.no_grad():
        coefficients = gram(kernel.detach())
        # Where the symbol is real (w = 0, pi) every search is stationary, whether that is a peak or a saddle: cells of
        # the second generation have centres besides.
        cells = root_cells(degrees).split().for_owners(np.arange(kernel.shape[0]))
        starts = [
            peak
            for part in coefficients.parts(len(cells), problem.execution)
            for peak in look(coefficients, cells.take(slice(*part)), most=_WAYS)
        ]
        starts = sorted(starts, key=lambda peak: -peak.value)[:_WAYS]
        peak = max(climb(coefficients, starts, _PRECISION, rounds=30), key=lambda found: found.value)
    frequency = torch.from_numpy(peak.frequency)[None].to(kernel.device)
    return spectral_norms(symbol(kernel[peak.group : peak.group + 1], frequency)[0])[0]

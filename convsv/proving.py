"""At which points of a Gram symbol the largest eigenvalue is proved to be below a limit: one Cholesky factor each.

The work that certificates consist of. Large matrices are formed and factorised one after the other, in memory that each
thread uses again; small ones in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import local
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.execution import Execution
from convsv.gram import Gram, Space
from convsv.rounding import DOUBLE, cholesky_slack, prove_below

__all__ = ["OutOfTimeError", "Points", "prove_points"]

_LARGE = 128
"""Channels beyond which fresh memory for every matrix costs too much, time and, in scattered blocks, memory."""


class OutOfTimeError(Exception):
    """The time was up within a batch."""


@dataclass(frozen=True)
class Points:
    """Frequencies and groups.

    Attributes:
        numerators: ``(M, d)`` integers: the frequencies are 2 pi numerators / denominators.
        denominators: one an axis.
        owners: ``(M,)`` the group of each.
    """

    numerators: NDArray[np.int64]
    denominators: tuple[int, ...]
    owners: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self.numerators)

    def take(self, chosen: NDArray[np.bool_] | slice) -> Points:
        """Return some of the points."""
        return Points(self.numerators[chosen], self.denominators, self.owners[chosen])

    def matrices(self, coefficients: Gram, dtype: torch.dtype = torch.complex128) -> Tensor:
        """Return the symbol at all points at once, ``(M, n, n)``, complex in ``dtype`` or real in its real part's."""
        matrices = coefficients.at(coefficients.phases(self.numerators, self.denominators), self.owners)
        return matrices.to(dtype if matrices.is_complex() else torch.zeros(0, dtype=dtype).real.dtype)


def prove_points(
    coefficients: Gram,
    points: Points,
    limits: NDArray[np.float64],
    execution: Execution,
    *,
    dtype: torch.dtype = torch.complex128,
    late: Callable[[], bool] = lambda: False,
) -> NDArray[np.bool_]:
    """Tell at which points the largest eigenvalue is certified to be at most a limit; of the others nothing is known.

    Args:
        coefficients: the Gram symbol.
        points: where.
        limits: ``(M,)``.
        execution: where to compute; its memory is kept to.
        dtype: complex64 or complex128, in which matrices are factorised.
        late: asked before each batch whether the time is up.

    Raises:
        OutOfTimeError: the time is up.

    Guarantee:
        Certified: the error of the symbol and of the factorisation are taken from the limits.
    """
    limits = limits - coefficients.error
    unit = float(torch.finfo(dtype).eps) / 2
    aims = np.minimum(limits, limits / (1 + cholesky_slack(coefficients.size, unit)) * (1 - 8 * DOUBLE))
    large, memory = _one_by_one(coefficients, dtype), local()

    def test(bounds: tuple[int, int]) -> list[bool]:
        part = points.take(slice(*bounds))
        if late():
            raise OutOfTimeError
        thresholds, most = (torch.from_numpy(x[slice(*bounds)]).to(coefficients.even.device) for x in (aims, limits))
        if coefficients.size == 1:
            proven = part.matrices(coefficients, dtype)[:, 0, 0].real <= thresholds
        elif large:
            memory.space = getattr(memory, "space", None) or Space()
            matrices = coefficients.each(coefficients.phases(part.numerators, part.denominators), memory.space)
            proven = torch.cat(
                [_proven(*one, memory.space, late) for one in zip(matrices, thresholds, most, strict=True)]
            )
        else:
            proven, bound = prove_below(part.matrices(coefficients, dtype), thresholds, overwrite=True)
            proven &= bound <= most
        # No array: left behind between large blocks, small ones would keep the C library from using these again.
        return cast("list[bool]", proven.tolist())

    parts = coefficients.parts(len(points), execution)
    memory_here = execution.memory // execution.sharers
    # Where memory is too short for a matrix a thread, BLAS shares each among its threads.
    least = execution.threads * coefficients.bytes_each + coefficients.bytes_held
    if len(parts) == 1 or least > memory_here:
        results = [test(part) for part in parts]
    else:
        longest = 1 if large else max((stop - start for start, stop in parts), default=1)
        results = list(execution.map(test, parts, memory_here // (longest * coefficients.bytes_each)))
    return np.array([one for result in results for one in result], dtype=np.bool_)


def _one_by_one(coefficients: Gram, dtype: torch.dtype) -> bool:
    """Tell whether matrices are formed one after the other."""
    fits = coefficients.groups == 1 and len(coefficients.lags) > 0 and coefficients.even.dtype.to_complex() == dtype
    return coefficients.size > _LARGE and fits


def _proven(matrix: Tensor, aim: Tensor, limit: Tensor, space: Space, late: Callable[[], bool]) -> Tensor:
    """Tell whether one matrix ``(1, n, n)``, which is overwritten, is proved to be below a limit: ``(1,)``.

    Raises:
        OutOfTimeError: the time is up.
    """
    if late():
        raise OutOfTimeError
    factor = space.empty("factor", matrix.shape, matrix, matrix.dtype)
    proven, bound = prove_below(matrix, aim[None], overwrite=True, factor=factor)
    return proven & (bound <= limit)

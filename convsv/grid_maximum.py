"""The certified maximum of sigma_1 over a finite frequency grid, without visiting every point of it.

Let S be an upper bound of the size-free norm and M < S a value. Where lambda_1(w) = S^2 cos^2(theta / 2), the angle
theta changes by at most tau = sum_i d_i |w_i - c_i| (the arccosine form of the inequality in ``certificate``, for any
frequency, not only the maximiser). So a block of grid points with lambda_1(c) <= S^2 cos^2((theta_M + tau) / 2) at its
centre holds none with sigma_1 > M. Blocks that fail are halved, down to single points, where the test is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.execution import Execution
from convsv.gram import Gram
from convsv.linalg import eigenpairs
from convsv.peaks import Peak, leading_vectors
from convsv.rounding import above, below, cholesky_slack, eigenvalue_upper, prove_below

__all__ = ["FrequencyGrid", "grid_peaks", "prove_grid"]

_MARGIN = 1e-7
"""Relative excess at which points are proved to lie below the largest known one."""
_ROOT = math.pi / 2
"""Largest tau within a block at the start."""


@dataclass(frozen=True)
class FrequencyGrid:
    """The frequencies 2 pi r (j + shift / 2) / size on each axis.

    Attributes:
        size: points an axis.
        shift: 0 or 1 an axis.
        dilation: r, an integer an axis.
        degrees: degree of the symbol an axis, dilation aside.
    """

    size: tuple[int, ...]
    shift: tuple[int, ...]
    dilation: tuple[int, ...]
    degrees: tuple[int, ...]

    @property
    def denominators(self) -> tuple[int, ...]:
        """Denominators of centres of blocks of points, see :meth:`numerators`."""
        return tuple(2 * n for n in self.size)

    def numerators(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the centres of blocks of points first..last, ``(M, d)``, over the denominators."""
        return np.asarray((first + last + np.array(self.shift)) * np.array(self.dilation), dtype=np.int64)

    def reach(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return tau between the centre of each block and its farthest point, rounded up."""
        steps = [d * r / n for d, r, n in zip(self.degrees, self.dilation, self.size, strict=True)]
        return np.asarray((last - first) @ np.array(steps) * (math.pi * (1 + 2.0**-45)))

    def nearest(self, frequency: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the points next to a frequency: two an axis, ``(2^d, d)``, first half of the torus or not."""
        axes = []
        for w, n, s, r in zip(frequency, self.size, self.shift, self.dilation, strict=True):
            base = math.floor(w / (2 * math.pi) * n / r - s / 2)
            axes.append(sorted({base % n, (base + 1) % n}))
        points: NDArray[np.int64] = np.array(np.meshgrid(*axes, indexing="ij"), dtype=np.int64)
        return np.asarray(points.reshape(len(axes), -1).T)

    def blocks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and last points of blocks that cover half of the grid (the rest are conjugates)."""
        starts, ends = [], []
        for axis, (n, d, r) in enumerate(zip(self.size, self.degrees, self.dilation, strict=True)):
            stop = (n - self.shift[axis]) // 2 + 1 if axis == 0 else n
            stop = min(stop, n)
            length = n if d == 0 else max(1, math.floor(_ROOT / max(1, len(self.size)) * 2 * n / (2 * math.pi * d * r)))
            cuts = np.arange(0, stop, min(length, stop), dtype=np.int64)
            starts.append(cuts)
            ends.append(np.minimum(cuts + length, stop) - 1)
        first = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(starts))
        last = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
        return first, last


def grid_peaks(coefficients: Gram, grids: list[FrequencyGrid], peaks: list[Peak]) -> list[Peak]:
    """Return for each grid the best point beside any of some peaks: estimates of where the grid's maximum is.

    Args:
        coefficients: the Gram symbol.
        grids: grids that differ in their shifts only.
        peaks: peaks of the symbol over all frequencies.
    """
    places = [(grid, peak, grid.nearest(peak.frequency)) for grid in grids for peak in peaks]
    numerators = np.concatenate([grid.numerators(points, points) for grid, _, points in places])
    owners = np.concatenate([np.full(len(points), peak.group) for _, peak, points in places])
    matrices = coefficients.at(coefficients.phases(numerators, grids[0].denominators), owners)
    starts = [peak.vector.to(matrices.dtype).expand(len(points), -1, 1) for _, peak, points in places]
    values, vectors = leading_vectors(matrices, torch.cat(starts), restarts=1, steps=4)
    frequencies = numerators * (2 * math.pi / np.array(grids[0].denominators))
    each = len(numerators) // len(grids)
    found = []
    for first in range(0, len(numerators), each):
        best = first + int(values[first : first + each].argmax())
        found.append(Peak(frequencies[best], int(owners[best]), vectors[best], float(values[best])))
    return found


def prove_grid(
    coefficients: Gram, grid: FrequencyGrid, norm: float, known: Peak, execution: Execution
) -> tuple[float, int, Peak]:
    """Return a certified upper bound of sigma_1 over the grid, the number of evaluations, and the best point.

    Args:
        coefficients: the Gram symbol.
        grid: the grid.
        norm: certified upper bound of the size-free norm.
        known: the best grid point known before.
        execution: where to compute.

    Guarantee:
        Certified: each block by a Cholesky factorisation with its slack.
    """
    if not math.isfinite(norm):
        return norm, 0, known
    target = min(above(math.sqrt(known.value * (1 + _MARGIN) + coefficients.error), 4), norm)
    first, last = grid.blocks()
    owners = np.repeat(np.arange(coefficients.groups), len(first))
    first, last = (np.tile(part, (coefficients.groups, 1)) for part in (first, last))
    evaluations = 0
    while len(first) and target < norm:
        evaluations += len(first)
        passed = _passes(
            coefficients, grid, (first, last, owners), _thresholds(grid, first, last, norm, target), execution
        )
        single = (first == last).all(1) & ~passed
        if single.any():
            raised, point = _raised(coefficients, grid, first[single], owners[single])
            target = max(target, above(math.sqrt(raised + coefficients.error), 4))
            known = max(known, point, key=lambda peak: peak.value)
        failed = ~passed & ~single
        first, last, owners = _halved(first[failed], last[failed], owners[failed])
    # The quotient target / norm is rounded to nearest: what is proved is a rounding above the target.
    return min(above(target, 2), norm), evaluations, known


def _raised(
    coefficients: Gram, grid: FrequencyGrid, points: NDArray[np.int64], owners: NDArray[np.int64]
) -> tuple[float, Peak]:
    """Return a certified upper bound of lambda_1 over points that are higher than was known, and the highest."""
    matrices = _at(coefficients, grid, points, points, owners)
    uppers = eigenvalue_upper(matrices)
    best = int(uppers.argmax())
    values, vectors = eigenpairs(matrices[best])
    turns = grid.numerators(points, points)[best] / np.array(grid.denominators)
    return float(uppers[best]), Peak(2 * math.pi * turns, int(owners[best]), vectors[:, -1:], float(values[-1]))


def _thresholds(
    grid: FrequencyGrid, first: NDArray[np.int64], last: NDArray[np.int64], norm: float, target: float
) -> NDArray[np.float64]:
    """Return what lambda_1 at the centres must not exceed: S^2 cos^2((theta + tau) / 2), rounded down."""
    # Rounding the angle up by 1e-14 covers the arccosine, whose condition is worst where target is near the norm.
    angle = math.acos(min(1.0, target / norm)) + 1e-14 + grid.reach(first, last) / 2
    inside = np.cos(np.minimum(angle, math.pi / 2)) ** 2 * norm**2 * (1 - 1e-13)
    exact = below(target**2, 4)
    return np.where((first == last).all(1), exact, inside)


def _halved(
    first: NDArray[np.int64], last: NDArray[np.int64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut blocks in two on every axis that has more than one point."""
    for axis in range(first.shape[1]):
        long = last[:, axis] > first[:, axis]
        middle = (first[:, axis] + last[:, axis]) // 2
        left, right = last.copy(), first[long].copy()
        left[:, axis] = middle
        right[:, axis] = middle[long] + 1
        first, last, owners = (
            np.concatenate([first, right]),
            np.concatenate([left, last[long]]),
            np.concatenate([owners, owners[long]]),
        )
    return first, last, owners


def _at(
    coefficients: Gram,
    grid: FrequencyGrid,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    owners: NDArray[np.int64],
) -> Tensor:
    return coefficients.at(coefficients.phases(grid.numerators(first, last), grid.denominators), owners)


def _passes(
    coefficients: Gram,
    grid: FrequencyGrid,
    blocks: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    thresholds: NDArray[np.float64],
    execution: Execution,
) -> NDArray[np.bool_]:
    limits = np.maximum(thresholds - coefficients.error, 0.0)
    aims = limits / (1 + cholesky_slack(coefficients.size)) * (1 - 1e-15)

    def test(bounds: tuple[int, int]) -> Tensor:
        part = slice(*bounds)
        matrices = _at(coefficients, grid, *(array[part] for array in blocks))
        proven, bound = prove_below(matrices, torch.from_numpy(aims[part]).to(matrices.device))
        return proven & (bound <= torch.from_numpy(limits[part]).to(bound.device))

    parts = coefficients.parts(len(thresholds), execution)
    results = [test(parts[0])] if len(parts) == 1 else list(execution.map(test, parts))
    passed: NDArray[np.bool_] = torch.cat(results).cpu().numpy()
    return passed

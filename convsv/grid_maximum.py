"""The certified maximum of sigma_1 over a finite frequency grid, without visiting every point of it.

Let S be an upper bound of the size-free norm and M < S a value. Where lambda_1(w) = S^2 cos^2(theta / 2), the angle
theta changes by at most tau = sum_i d_i |w_i - c_i| (the arccosine form of the inequality in ``certificate``, for any
frequency, not only the maximiser). So a block of grid points with lambda_1(c) <= S^2 cos^2((theta_M + tau) / 2) at its
centre holds none with sigma_1 > M. Blocks that fail are halved, down to single points, where the test is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from convsv.execution import Execution
from convsv.gram import Gram
from convsv.linalg import eigenpairs
from convsv.peaks import Peak, leading_vectors
from convsv.proving import OutOfTimeError, Points, prove_points
from convsv.rounding import above, below, eigenvalue_upper

__all__ = ["FrequencyGrid", "Wanted", "grid_peaks", "prove_grid"]

_MARGIN = 1e-7
"""Relative excess at which points are proved to lie below the largest known one."""
_FEW = 4
"""Points whose eigenvalues are computed before others are compared with them."""
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
            length = n if d == 0 else max(1, math.floor(_ROOT / max(1, len(self.size)) * 2 * n / (2 * math.pi * d * r)))
            cuts = np.arange(0, stop, min(length, stop), dtype=np.int64)
            starts.append(cuts)
            ends.append(np.minimum(cuts + length, stop) - 1)
        first = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(starts))
        last = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, len(ends))
        return first, last


def grid_peaks(coefficients: Gram, grids: list[FrequencyGrid], peaks: list[Peak], execution: Execution) -> list[Peak]:
    """Return for each grid the best point beside any of some peaks: estimates of where the grid's maximum is.

    Args:
        coefficients: the Gram symbol.
        grids: grids that differ in their shifts only.
        peaks: peaks of the symbol over all frequencies.
        execution: its memory is kept to.
    """
    places = [(grid, peak, grid.nearest(peak.frequency)) for grid in grids for peak in peaks]
    numerators = np.concatenate([grid.numerators(points, points) for grid, _, points in places])
    owners = np.concatenate([np.full(len(points), peak.group) for _, peak, points in places])
    starts = torch.cat([peak.vector.expand(len(points), -1, 1) for _, peak, points in places])
    everywhere, found = Points(numerators, grids[0].denominators, owners), []
    for bounds in coefficients.parts(len(numerators), execution):
        part = slice(*bounds)
        matrices = everywhere.take(part).matrices(coefficients)
        values, vectors = leading_vectors(matrices, starts[part].to(matrices.dtype), restarts=1, steps=4)
        places_of = numerators[part] * (2 * math.pi / np.array(grids[0].denominators))
        found += [Peak(*one) for one in zip(places_of, owners[part].tolist(), vectors, values.tolist(), strict=True)]
    each = len(found) // len(grids)
    return [max(found[first : first + each], key=lambda peak: peak.value) for first in range(0, len(found), each)]


@dataclass(frozen=True)
class Wanted:
    """What is to be proved of a grid.

    Attributes:
        norm: certified upper bound of the size-free norm.
        enough: bound that need not be improved.
        late: tells whether the time is up; the bound is then ``norm``.
    """

    norm: float
    enough: float = 0.0
    late: Callable[[], bool] = lambda: False


def prove_grid(
    coefficients: Gram, grid: FrequencyGrid, wanted: Wanted, known: Peak, execution: Execution
) -> tuple[float, int, Peak]:
    """Return a certified upper bound of sigma_1 over the grid, the number of evaluations, and the best point.

    Args:
        coefficients: the Gram symbol.
        grid: the grid.
        wanted: what to prove.
        known: the best grid point known before.
        execution: where to compute.

    Guarantee:
        Certified: each block by a Cholesky factorisation with its slack.
    """
    norm = wanted.norm
    if not math.isfinite(norm):
        return norm, 0, known
    proof = _Proof(coefficients, grid, execution, wanted.late, known)
    target = min(max(above(math.sqrt(known.value * (1 + _MARGIN) + coefficients.error), 4), wanted.enough), norm)
    first, last = grid.blocks()
    owners = np.repeat(np.arange(coefficients.groups), len(first))
    first, last = (np.tile(part, (coefficients.groups, 1)) for part in (first, last))
    try:
        while len(first) and target < norm:
            points = Points(grid.numerators(first, last), grid.denominators, owners)
            passed = proof.passes(points, _thresholds(grid, first, last, norm, target))
            single = (first == last).all(1) & ~passed
            target = proof.raised(points.take(single), target)
            failed = ~passed & ~single
            first, last, owners = _halved(first[failed], last[failed], owners[failed])
    except OutOfTimeError:
        target = norm
    # The quotient target / norm is rounded to nearest: what is proved is a rounding above the target.
    return min(above(target, 2), norm), proof.evaluations, proof.known


@dataclass
class _Proof:
    """What one proof carries along: ``known`` is the best grid point so far."""

    coefficients: Gram
    grid: FrequencyGrid
    execution: Execution
    late: Callable[[], bool]
    known: Peak
    evaluations: int = 0

    def passes(self, points: Points, limits: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell at which points lambda_1 is certified to be at most a limit.

        Raises:
            OutOfTimeError: the time is up.
        """
        self.evaluations += len(points)
        return prove_points(self.coefficients, points, limits, self.execution, late=self.late)

    def raised(self, points: Points, target: float) -> float:
        """Return the target, raised to above sigma_1 at some grid points that may be higher.

        A few at a time are bounded by their eigenvalues; of the others those stay that are higher even than these.

        Raises:
            OutOfTimeError: the time is up.
        """
        while len(points):
            here, points = points.take(slice(_FEW)), points.take(slice(_FEW, None))
            for i in range(len(here)):
                if self.late():
                    raise OutOfTimeError
                upper = self._bound(here.take(slice(i, i + 1)))
                target = max(target, above(math.sqrt(upper + self.coefficients.error), 4))
            points = points.take(~self.passes(points, np.full(len(points), below(target**2, 4))))
        return target

    def _bound(self, point: Points) -> float:
        """Return a certified upper bound of the computed lambda_1 at a point, and remember where it is high."""
        matrix = point.matrices(self.coefficients)
        values, vectors = eigenpairs(matrix)
        turns = point.numerators[0] / np.array(point.denominators)
        peak = Peak(2 * math.pi * turns, int(point.owners[0]), vectors[0, :, -1:], float(values[0, -1]))
        self.known = max(self.known, peak, key=lambda peak: peak.value)
        return float(eigenvalue_upper(matrix, values[:, -1])[0])


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

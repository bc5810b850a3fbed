"""Two routes to the singular values of a symbol at the points of a grid, and the choice between them.

By SVD: backward stable, so every value errs by a small multiple of eps times the largest. By the eigenvalues of the
Gram matrix of the smaller side, whose entries are a short sum over lags whatever the longer side: cheaper, above all
for strided layers, whose symbols have long rows. But an error of e in an eigenvalue is one of e / (2 sigma) in a
singular value sigma, and up to sqrt(e) near zero: 1e-6 of the largest value in float64. So the eigenvalues come first,
with a bound e for each matrix, and matrices that have a value too small for the wanted accuracy are done again by SVD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from convsv.execution import Execution
from convsv.linalg import eigenvalue_error, eigenvalues, singular_value_error, singular_values
from convsv.spectra._sharp_gram import coefficients_size, gram_of_groups, sharp_gram
from convsv.symbol import NormalForm, grid_symbol, half_grid, half_grid_span, symbol_error, unit_roundoff

__all__ = ["ByGram", "BySvd", "Problem", "Route", "choose_route"]

_ACCURACY = {"float64": 1e-9, "float32": 1e-6}
"""What a value may err by, relative to the largest, unless something else is asked for."""
_SMALL = {"float64": 3e7, "float32": 1e6}
"""Nanoseconds of work up to which an SVD in the dtype itself is cheap enough, whatever its accuracy."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_SAMPLE_SHARES = 16
"""Parts of the sample that threads share."""
_WORKSPACE = 4
"""LAPACK's copy, its workspace and the real and imaginary part, as multiples of a complex matrix."""


@dataclass(frozen=True)
class Problem:
    """The symbol of a kernel at the points of a grid.

    Attributes:
        kernel: ``(G, O, I, *K)`` float64, in normal form, largest entry about 1.
        grid: points an axis.
    """

    kernel: Tensor
    grid: tuple[int, ...]

    @property
    def sides(self) -> tuple[int, int]:
        """The smaller and the larger side of a matrix."""
        rows, columns = self.kernel.shape[1:3]
        return min(rows, columns), max(rows, columns)

    @property
    def span(self) -> int:
        """Positions of the half grid."""
        return half_grid_span(self.grid)

    def svd_work(self) -> float:
        """Estimate the nanoseconds of the singular values of all matrices, on one core.

        Fitted, like the next, to complex128 matrices of 8 to 512 rows on one core of an AMD Zen 5.
        """
        few, many = self.sides
        each = 2000 + (0.35 * few + 35) * few * (0.25 * few + 0.75 * many)
        return self.span * self.kernel.shape[0] * each

    def gram_work(self) -> float:
        """Estimate the nanoseconds of forming the Gram matrices' coefficients, and of their values and eigenvalues."""
        few, many = self.sides
        taps = math.prod(self.kernel.shape[3:])
        lags = math.prod(2 * k - 1 for k in self.kernel.shape[3:])
        forming = 3 * 0.04 * few * few * many * taps * (taps + 1) / 2
        each = 1500 + (0.18 * few + 28 + 0.04 * lags + 4) * few * few
        return self.kernel.shape[0] * (forming + self.span * each)

    def sample(self) -> Tensor:
        """Return indices of a few points all over the half grid, ``(M, d)``."""
        count = min(max(2, self.span // 32), 64)
        # Multiples of the golden ratio: equal steps would meet the same column of the grid again and again.
        starts = {int(self.span * ((i + 1) * _GOLDEN % 1)) for i in range(count)}
        found = torch.cat([half_grid(self.grid, start=start, stop=start + 1)[0] for start in sorted(starts)])
        return found if len(found) else torch.zeros(1, len(self.grid), dtype=torch.int64)


class Route(Protocol):
    """A way to the singular values at points of the grid."""

    @property
    def bytes_each(self) -> int:
        """Peak memory of the work on one point."""

    def values(self, indices: Tensor, device: torch.device, *, real: bool) -> Tensor:
        """Return the singular values of all groups, in descending order.

        Args:
            indices: ``(M, d)`` points of the grid.
            device: where to compute.
            real: whether these are self-conjugate points, where the symbol is real.

        Returns:
            ``(M, G, min(O, I))`` float64 on the CPU.
        """

    def error(self, largest: float) -> float:
        """Return a bound on the error of each value, where the largest of all was computed as ``largest``."""


class BySvd:
    """Singular values by SVD, in the precision of a dtype.

    Args:
        problem: the symbol.
        dtype: float64 or float32.
        device: where the kernel is kept.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
        kernel = problem.kernel.to(device, dtype)
        self._grid = problem.grid
        self._form = NormalForm(kernel, (1,) * len(problem.grid), (1,) * len(problem.grid))
        self._lost = symbol_error(kernel)
        if dtype != torch.float64:
            cast = (problem.kernel - kernel.to("cpu", torch.float64)).abs().flatten(3).sum(-1)
            self._lost += float(torch.linalg.vector_norm(cast, dim=(1, 2)).max()) * (1 + 1e-9)

    @property
    def bytes_each(self) -> int:
        """Peak memory of the work on one point."""
        kernel = self._form.kernel
        return _WORKSPACE * 2 * kernel.element_size() * math.prod(kernel.shape[:3])

    def symbol(self, indices: Tensor, device: torch.device, *, real: bool) -> Tensor:
        """Return the symbol at points ``(M, d)`` of the grid: ``(M, G, O, I)``."""
        there = NormalForm(self._form.kernel.to(device), self._form.dilation, self._form.stride)
        found = grid_symbol(there, self._grid, indices)
        # There sines are exactly zero.
        return found.real if real else found

    def values(self, indices: Tensor, device: torch.device, *, real: bool) -> Tensor:
        """Return the singular values: see :class:`Route`."""
        return singular_values(self.symbol(indices, device, real=real)).to("cpu", torch.float64)

    def error(self, largest: float) -> float:
        """Return the bound on the error: see :class:`Route`."""
        kernel = self._form.kernel
        return self._lost + singular_value_error((kernel.shape[1], kernel.shape[2]), kernel.dtype, largest)


class ByGram:
    """Singular values by the eigenvalues of Gram matrices, and by SVD where these are too inaccurate.

    Args:
        problem: the symbol.
        execution: where coefficients are kept, and a sample of the matrices is tried.
        accuracy: wanted error relative to the largest value.
    """

    def __init__(self, problem: Problem, execution: Execution, accuracy: float) -> None:
        device = execution.torch_device
        self._problem = problem
        self._svd = BySvd(problem, torch.float64, device)
        self._gram = sharp_gram(problem.kernel.to(device), execution)
        self._target = 0.0
        # As many whatever the threads: how matrices are batched shows in the last digits.
        shares = problem.sample().chunk(_SAMPLE_SHARES)
        tried = list(execution.map(lambda share: self._eigenvalues(share, device), shares))
        largest, doubt = (torch.cat([one[part] for one in tried]) for part in (0, 1))
        sure = torch.nan_to_num(largest[..., -1] - doubt, nan=0.0)
        # Eight units less leave room for the rounding of the square roots.
        relative = max(0.0, accuracy - 8 * unit_roundoff(torch.float64))
        self._target = relative * math.sqrt(max(0.0, float(sure.max())))
        self.again = float((~self._is_sure(largest, doubt)).double().mean())
        """Share of a sample of the matrices that need an SVD after all."""

    @property
    def bytes_each(self) -> int:
        """Peak memory of the work on one point."""
        lags = 2 * len(self._gram.lags) * 16
        square = 16 * _WORKSPACE * self._gram.groups * self._gram.size**2
        return lags + max(square, self._svd.bytes_each // 4)

    def values(self, indices: Tensor, device: torch.device, *, real: bool) -> Tensor:
        """Return the singular values: see :class:`Route`."""
        found, doubt = self._eigenvalues(indices, device)
        again = ~self._is_sure(found, doubt)
        values = found.clamp(min=0).sqrt().flip(-1)
        points, groups = torch.nonzero(again, as_tuple=True)
        distinct, position = torch.unique(points, return_inverse=True)
        for start in range(0, len(distinct), 4):
            mine = (position >= start) & (position < start + 4)
            symbols = self._svd.symbol(indices[distinct[start : start + 4]], device, real=real)
            chosen = symbols[(position[mine] - start).to(device), groups[mine].to(device)]
            values[points[mine], groups[mine]] = singular_values(chosen).to("cpu", torch.float64)
        return values

    def error(self, largest: float) -> float:
        """Return the bound on the error: see :class:`Route`."""
        rounding = 4 * unit_roundoff(torch.float64) * largest
        return max(self._target + rounding, self._svd.error(largest))

    def _eigenvalues(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return eigenvalues ``(M, G, n)`` in ascending order, and a bound on their error ``(M, G)``."""
        phases = self._gram.phases(indices.numpy(), self._problem.grid)
        found = eigenvalues(gram_of_groups(self._gram, phases, device)).cpu()
        spread = eigenvalue_error(self._gram.size, torch.float64) * found.abs().amax(-1)
        return found, (self._gram.error + spread) * (1 + 1e-12)

    def _is_sure(self, found: Tensor, doubt: Tensor) -> Tensor:
        """Tell of which matrices all singular values are within the target, ``(M, G)``; NaN is not.

        With e the bound on the eigenvalues and t the target, |computed - true| <= sqrt(e) always, and <= t where the
        computed value is at least (e + t^2) / (2 t): then (computed - t)^2 <= computed^2 - e, and likewise above.
        """
        target = self._target
        if target == 0:
            return torch.zeros_like(doubt, dtype=torch.bool)
        least = (doubt + target**2) / (2 * target)
        return (found[..., 0] >= least**2) | ((doubt <= target**2) & torch.isfinite(found).all(-1))


def choose_route(problem: Problem, execution: Execution, accuracy: float | None = None) -> Route:
    """Return the cheaper route that is accurate enough.

    What is small is done by SVD in the dtype that was asked for, and so is what has one row or column, which needs
    no decomposition. All else is done in float64: with eigenvalues where they are cheaper and, in a sample of the
    matrices, seldom in need of an SVD as well.

    Args:
        problem: the symbol.
        execution: where to compute.
        accuracy: wanted error relative to the largest value; None for 1e-9 in float64 and 1e-6 in float32.
    """
    device = execution.torch_device
    if problem.sides[0] == 1 or problem.svd_work() <= _SMALL[execution.dtype]:
        return BySvd(problem, execution.torch_dtype, device)
    fits = coefficients_size(problem.kernel) <= execution.memory // 4
    if fits and problem.gram_work() < problem.svd_work():
        route = ByGram(problem, execution, accuracy or _ACCURACY[execution.dtype])
        if problem.gram_work() + route.again * problem.svd_work() < problem.svd_work():
            return route
    return BySvd(problem, torch.float64, device)

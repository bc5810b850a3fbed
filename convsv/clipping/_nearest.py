"""The kernel nearest to a given one, among those with its support whose symbol is at most the radius on a grid.

The problem is convex: minimise ||X - K||_F^2 / 2 subject to ||F_X(w_j)|| <= R. With the weighted inner product of
:mod:`convsv.clipping._frequencies` its dual is

    maximise  <K, M> - ||M||^2 / 2 - R sum_j weight_j ||Z_j||_*,    M = sum_j adjoint(Z_j),    X = K - M,

||.||_* being the sum of the singular values. A prox step on Z soft-thresholds singular values at R. Steps on the whole
grid at once are Dykstra's alternating projections (Boyle, Dykstra 1986; the equivalence is Tibshirani's, 2017). Here
they run over blocks of frequencies, each with the longest step its own block allows, and are extrapolated between
sweeps (Nesterov 1983, with the restart of O'Donoghue and Candes 2015). The dual value is a lower bound on the distance
of every feasible kernel at all times: that is how far the result can be from the nearest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convsv.clipping._frequencies import Block
from convsv.execution import Execution
from convsv.linalg import eigenpairs

__all__ = ["Projection", "excess", "nearest", "pull_in"]

_THREADED = 1 << 24
"""Floating-point operations of one block from which a second thread pays for its start."""
_IN_A_ROW = 2
"""Sweeps without a gain that end it: after an extrapolation one may gain nothing by chance."""
_MOMENTUM = 0.9
"""Largest extrapolation: blocks are solved one after the other, and longer leaps were seen to cost sweeps."""


@dataclass(frozen=True)
class Projection:
    """A kernel near the wanted one.

    Attributes:
        kernel: ``(T, G, O, I)`` float64.
        sweeps: rounds over the grid.
        bound: a lower bound on the Frobenius distance of every kernel with the support and the radius.
    """

    kernel: Tensor
    sweeps: int
    bound: float


def excess(symbols: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Return what sticks out of the ball: matrices less their nearest ones of spectral norm at most the radius.

    Singular vectors come from the Gram matrix of the smaller side, whose errors near the radius are those of
    the arithmetic times (sigma_1 / radius)^2.

    Args:
        symbols: ``(..., O, I)`` complex.
        radius: positive.

    Returns:
        The excess, of the same shape, and the sums of its singular values, ``(...)``.
    """
    rows, columns = symbols.shape[-2:]
    if min(rows, columns) == 1:
        norms = torch.linalg.vector_norm(symbols, dim=(-2, -1))
        over = (norms - radius).clamp_min(0)
        return symbols * (over / norms.clamp_min(radius))[..., None, None], over
    wide = columns > rows
    gram = symbols @ symbols.mH if wide else symbols.mH @ symbols
    squares, vectors = eigenpairs(gram)
    values = squares.clamp_min(0).sqrt()
    over = (values - radius).clamp_min(0)
    # Few values stick out, as a rule: their vectors come last.
    count = int((over > 0).sum(-1).max()) if over.numel() else 0
    top = vectors[..., vectors.shape[-1] - count :]
    part = (over / values.clamp_min(radius))[..., over.shape[-1] - count :]
    scaled = top * part[..., None, :].to(top.dtype)
    return (scaled @ (top.mH @ symbols) if wide else (symbols @ scaled) @ top.mH), over.sum(-1)


def nearest(
    kernel: Tensor,
    radius: float,
    grid: Sequence[Block],
    *,
    mask: Tensor | None,
    settings: tuple[int, float],
    execution: Execution,
) -> Projection:
    """Approach the nearest kernel whose symbol is at most the radius on a grid.

    Args:
        kernel: ``(T, G, O, I)`` float64.
        radius: positive.
        grid: its blocks, in the dtype and on the device to work with.
        mask: 1 where a tap may be nonzero, of the kernel's shape; None where all may.
        settings: most sweeps, and the relative gain of the dual distance below which one more is not worth it.
        execution: where to compute.
    """
    most, worth = settings
    work = kernel.to(grid[0].cosines)
    nothing = torch.zeros((), dtype=work.dtype, device=work.device)
    state = _State([nothing] * len(grid), [torch.zeros_like(work) for _ in grid])
    before, momentum, best, sweeps, settled = state, 1.0, 0.0, 0, 0
    for sweep in range(most):
        momentum, ahead = _extrapolation(momentum, sweep)
        before, state = state, state.beyond(before, ahead)
        moved = torch.stack(state.parts).sum(0)
        nuclear = 0.0
        for index, block in enumerate(grid):
            target = state.duals[index] / block.step + block.symbol(work - moved)
            over, sums = _threaded(lambda part: excess(part, radius), target, execution)
            dual = over * block.step
            change = block.kernel(dual) if mask is None else block.kernel(dual) * mask
            moved = moved + change - state.parts[index]
            state.duals[index], state.parts[index] = dual, change
            nuclear += float((block.weights[:, 0] * sums.sum(-1)).sum(dtype=torch.float64)) * block.step
        exact = torch.stack(state.parts).to(torch.float64).sum(0)
        value = float((kernel * exact).sum() - (exact**2).sum() / 2) - radius * nuclear
        distance, sweeps = math.sqrt(max(2 * value, 0.0)), sweep + 1
        settled = settled + 1 if abs(distance - best) <= worth * best else 0
        momentum = 1.0 if distance < best else momentum
        best = max(best, distance)
        if settled == _IN_A_ROW:
            break
    return Projection(kernel - torch.stack(state.parts).to(torch.float64).sum(0), sweeps, best)


@dataclass
class _State:
    """Dual variables a block, and what each takes away from the kernel."""

    duals: list[Tensor]
    parts: list[Tensor]

    def beyond(self, before: _State, ahead: float) -> _State:
        """Return this state, carried on in the direction from an earlier one."""
        return _State(
            [now + ahead * (now - then) for now, then in zip(self.duals, before.duals, strict=True)],
            [now + ahead * (now - then) for now, then in zip(self.parts, before.parts, strict=True)],
        )


def _extrapolation(momentum: float, sweep: int) -> tuple[float, float]:
    if sweep == 0:
        return 1.0, 0.0
    following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
    return following, min((momentum - 1) / following, _MOMENTUM)


def pull_in(kernel: Tensor, radius: float, grid: Sequence[Block], mask: Tensor | None, execution: Execution) -> Tensor:
    """Go once over a finer grid and project away what sticks out there: small amounts, at few points.

    Args:
        kernel: ``(T, G, O, I)`` float64.
        radius: positive.
        grid: blocks of the finer grid.
        mask: as in :func:`nearest`.
        execution: where to compute.
    """
    work = kernel.to(grid[0].cosines)
    for block in grid:
        symbols = block.symbol(work)
        outside = _outside(symbols, radius)
        if not bool(outside.any()):
            continue
        over = torch.zeros_like(symbols)
        over[outside] = _threaded(lambda part: excess(part, radius), symbols[outside], execution)[0]
        change = block.kernel(over) * block.step
        work = work - (change if mask is None else change * mask)
    return work.to(kernel)


def _outside(symbols: Tensor, radius: float) -> Tensor:
    """Tell which matrices are not within the radius, by a factorisation that is far cheaper than singular values."""
    rows, columns = symbols.shape[-2:]
    if min(rows, columns) == 1:
        norms: Tensor = torch.linalg.vector_norm(symbols, dim=(-2, -1))
        return norms > radius
    gram = symbols @ symbols.mH if columns > rows else symbols.mH @ symbols
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    failed: Tensor = torch.linalg.cholesky_ex(radius**2 * identity - gram).info
    return failed != 0


def _threaded(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], items: Tensor, execution: Execution
) -> tuple[Tensor, Tensor]:
    """Apply a function to a batch, its parts on several threads where there is enough to do."""
    *_, rows, columns = items.shape
    work = items.numel() * min(rows, columns) * 64
    if execution.threads == 1 or items.shape[0] < 2 or work < _THREADED:
        return function(items)
    parts = list(execution.map(function, items.tensor_split(min(execution.threads, items.shape[0]))))
    return torch.cat([part for part, _ in parts]), torch.cat([sums for _, sums in parts])

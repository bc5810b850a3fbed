"""A certified interval of the size-free operator norm S = sup_w sigma_1(F(w)) from a handful of frequencies.

The theorem (proof in docs/theory.md, by Bernstein's and Szego's inequality): if S is attained at w* and
tau = sum_i d_i |w_i - w*_i| <= pi, with d_i the degree of the symbol in w_i, then

    lambda_1(w) - m >= (S^2 - m) cos^2(tau / 2),    lambda_1 = sigma_1^2,    0 <= m <= inf lambda_min.

So a target U >= S is proved by covering the torus with cells and showing lambda_1(c) <= m + (U^2 - m) cos^2(r / 2)
at the centre c of each, r being its radius: w* lies in one of them. Each test is one Cholesky factorisation
(:func:`convsv.rounding.prove_below`); a cell that fails is cut into smaller ones. Where sigma_1 is far below the norm
a few large cells do, and small ones gather at the maximum only.

The target itself comes from below: unit vectors v give sigma_1(F(w)) >= |F(w) v|, and for fixed v this is the root of a
scalar trigonometric polynomial that is maximised at the cost of one matrix product.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.cells import Cells, concatenate, root_cells
from convsv.errors import ComputationError, ContradictionError, UnavailableError
from convsv.execution import Execution, full_precision, give_back_large_blocks
from convsv.gram import Gram, gram, storage
from convsv.linalg import eigenpairs, eigenvalues
from convsv.peaks import Peak, climb, first_peak, leading_vectors, look, lower_bound, quotient, upper_bound
from convsv.proving import OutOfTimeError, Points, prove_points
from convsv.results import Interval
from convsv.rounding import (
    DOUBLE,
    above,
    below,
    cholesky_slack,
    eigenvalue_upper,
    gamma,
    matrix_norm,
    power_of_two_scale,
    prove_below,
    scale_by_power,
    unscale,
)
from convsv.symbol import NormalForm

__all__ = ["Budget", "certify", "certify_smallest", "certify_with_peak"]

_CONSTANT = 1e-10
"""Size of the terms that vary, relative to the mean eigenvalue, below which a symbol counts as constant."""
_SMALLEST_RADIUS = 1e-7
"""Below this cos^2 is 1 in floating point: cutting a cell further proves nothing."""
_FLAT = 0.25
"""Least ratio of lambda_min to lambda_1 at which the shifted bound is worth its cost."""
_NEARLY_FLAT = 1.0
"""The same ratio below which the symbol may have a floor."""
_SINGLE_FROM = 1e-4
"""Relative width from which single precision is worth a try."""
_SINGLE_SIZE = 256
"""Channels up to which its slack can be small enough."""
_SINGLE_SHARE = 0.4
"""Part of the wanted width that the slack of single precision may take."""
_MANY = 4096
"""Cells that are cut without a test at a time: more of them, and the known peak is not the highest."""
_DIAGONALISED = 4
"""Matrices of which all is asked where Krylov spaces find no way up that must be there."""
_DENSE_SIZE = 512
"""Channels up to which that means to diagonalise them."""
_FEW = 8
"""Failures of one generation that are no reason to look for a higher peak."""
_HUGE = 1024
"""Channels beyond which what is freed is given back to the system at once."""
_TO_COPY = 128 << 20
"""Bytes of a kernel up to which a scaled copy of it is made for the asking."""
_NEAR = 20
"""Powers of two by which the largest entry of a kernel too large to copy may differ from 1."""
_EASY = 0.02
"""By how much the largest root cell may lie above the lower end, at the first target; less at each later one."""
_SAMPLE = 12
"""Cells of a generation that are tested first where there are many."""
_AT_ONCE = 0.75
"""Part of the budget for a first attempt at the last target; the rest proves nearer ones if that fails."""
_SPEED = 1e10
"""Operations a second of one thread, on the safe side, to tell what the budget allows."""
_LADDER = 4.0
"""Each target is about so many times nearer than the one before."""


@dataclass(frozen=True)
class Budget:
    """When to stop, with the interval as it stands.

    Attributes:
        evaluations: most symbol evaluations.
        seconds: most wall time; None for no limit.
    """

    evaluations: int = 20_000_000
    seconds: float | None = 60.0


@dataclass
class _Work:
    """What one certification carries along.

    ``lower`` certifies what a peak shows; ``floor`` is a certified lower bound of lambda_min over the torus, and
    ``ceiling`` an upper bound of the norm that is known beforehand; ``share`` is the part of the budget that may be
    used up to now.
    """

    gram: Gram
    execution: Execution
    budget: Budget
    lower: Callable[[Peak], float]
    floor: float = 0.0
    ceiling: float = math.inf
    single: Gram | None = None
    peak: Peak | None = None
    shown: float = 0.0
    share: float = 1.0
    started: float = field(default_factory=time.monotonic)
    evaluations: int = 0

    def show(self, peak: Peak) -> float:
        """Return the certified lower end that a peak shows, and remember the best peak."""
        value = self.lower(peak)
        if self.peak is None or value > self.shown:
            self.peak, self.shown = peak, value
        return value

    def working(self, *, goal_square: float, width: float) -> tuple[Gram, torch.dtype]:
        """Return the coefficients and the precision to factorise in.

        Single precision is twice as fast, and does where its slack takes a small part of the wanted width.
        """
        rough = self.rough(width)
        if rough is not self.gram:
            slack = cholesky_slack(self.gram.size, 2.0**-24)
            if slack + rough.error / goal_square <= _SINGLE_SHARE * 2 * width:
                return rough, torch.complex64
        return self.gram, torch.complex128

    def rough(self, width: float) -> Gram:
        """Return the coefficients in single precision where that shows vectors well enough for a relative width."""
        if width < _SINGLE_FROM or self.gram.size > _SINGLE_SIZE:
            return self.gram
        self.single = self.single or self.gram.to(torch.float32)
        return self.single

    def matrices(self, cells: Cells) -> Tensor:
        """Return G at the centres of cells, ``(M, n, n)``, complex128 or float64."""
        return Points(*cells.fractions(), cells.owners).matrices(self.gram)

    def affords(self, count: int) -> bool:
        """Tell whether so many more evaluations are within the budget."""
        return self.evaluations + count <= self.share * self.budget.evaluations and not self.late()

    def late(self) -> bool:
        """Tell whether the time is up."""
        seconds = self.budget.seconds
        return seconds is not None and time.monotonic() - self.started > self.share * seconds


def certify(
    form: NormalForm, tol: float = 1e-3, *, execution: Execution | None = None, budget: Budget | None = None
) -> Interval:
    """Return a certified interval of the size-free norm sup_w sigma_1(F(w)).

    Args:
        form: normal form whose kernel is ``(G, O, I, *K)`` float64 and finite; of several groups the largest norm.
            The dilation does not matter.
        tol: wanted relative width, upper / lower - 1.
        execution: where to compute.
        budget: when to stop early; the interval is then wider, and as certified.

    Returns:
        The interval, of ``"any size"``, with the number of symbol evaluations it took. Wider than ``tol`` only when
        the budget ran out or ``tol`` is below what rounding allows (about n^2 times 1e-16).

    Raises:
        ComputationError: a weight is not finite.
        ContradictionError: the ends exclude each other, which is a bug.

    Guarantee:
        Certified in floating point: every end carries the slack that :mod:`convsv.rounding` derives.
    """
    return certify_with_peak(form, tol, execution=execution, budget=budget)[0]


def certify_with_peak(
    form: NormalForm, tol: float = 1e-3, *, execution: Execution | None = None, budget: Budget | None = None
) -> tuple[Interval, Peak | None]:
    """Return what :func:`certify` returns, and the peak that shows the lower end (None for the zero operator).

    The arguments, exceptions and guarantee are those of :func:`certify`.

    Raises:
        ComputationError: a weight is not finite.
        ContradictionError: the ends exclude each other, which is a bug.
    """
    execution = execution or Execution()
    kernel = form.kernel.detach()
    largest = _largest(kernel)
    if largest == 0:
        return Interval(0.0, 0.0), None
    if not math.isfinite(largest):
        raise ComputationError("a weight is not finite")
    scaled, exponent = _scaled(kernel, largest, execution)
    precision = storage(scaled, execution.memory)
    if precision is None:
        return _without_gram(scaled, exponent), None
    started = time.monotonic()
    if min(scaled.shape[1:3]) > _HUGE:
        give_back_large_blocks()
    with full_precision():
        coefficients = gram(scaled, precision)
        work = _Work(coefficients, execution, budget or Budget(), lambda p: lower_bound(scaled, p), started=started)
        lower, upper = _interval(work, root_cells(form.degrees), tol)
    return replace(_unscaled(lower, upper, exponent), evaluations=work.evaluations), work.peak


def _largest(kernel: Tensor) -> float:
    """Return the largest magnitude, NaN where there is one; a large kernel's magnitudes would be a copy of it."""
    return max(abs(float(end)) for end in torch.aminmax(kernel)) if kernel.numel() else 0.0


def _scaled(kernel: Tensor, largest: float, execution: Execution) -> tuple[Tensor, int]:
    """Return a kernel with its largest entry near 1 on the device to compute on, and the power of two it lacks."""
    exponent = power_of_two_scale(largest)
    if abs(exponent) <= _NEAR and kernel.numel() * kernel.element_size() > _TO_COPY:
        # Near enough for nothing to overflow or vanish, and a copy would take a large part of the memory.
        exponent = 0
    scaled = kernel if exponent == 0 else scale_by_power(kernel, -exponent)
    return scaled.to(execution.torch_device), exponent


def _unscaled(lower: float, upper: float, exponent: int) -> Interval:
    """Return the interval of the kernel as it was given.

    Raises:
        ContradictionError: the ends exclude each other, which is a bug.
    """
    _refuse_contradiction(lower, upper)
    return Interval(unscale(lower, exponent, down=True), unscale(upper, exponent, down=False))


def _refuse_contradiction(lower: float, upper: float) -> None:
    if lower > upper:
        raise ContradictionError("the certified lower end is above the upper one", found=f"{lower!r} > {upper!r}")


def certify_smallest(
    form: NormalForm, tol: float = 1e-3, *, execution: Execution | None = None, budget: Budget | None = None
) -> Interval:
    """Return a certified interval of inf_w of the smallest singular value of the symbol.

    This is a statement about the infinite convolution and about full circular padding, where it bounds every singular
    value from below. It is NOT the smallest value of a zero-padded or strided layer, which can be far below.

    With s >= S^2, the matrix polynomial s I - G(w) is positive semidefinite, of the same degrees as G, and its largest
    eigenvalue is s - lambda_min(G): the theorem of this module applies to it as it stands.

    Args:
        form: as for :func:`certify`; of several groups the smallest value.
        tol: wanted width, relative to the norm S (the value itself may be 0).
        execution: where to compute.
        budget: when to stop early.

    Returns:
        The interval, of ``"infinite and full circular"``.

    Raises:
        ComputationError: a weight is not finite.
        ContradictionError: the ends exclude each other, which is a bug.
        UnavailableError: the coefficients do not fit into the memory budget.

    Guarantee:
        Certified in floating point, as for :func:`certify`.
    """
    execution, budget = execution or Execution(), budget or Budget()
    kernel = form.kernel.detach()
    # Scaled before anything else: the norm may be beyond the largest float where the smallest value is not.
    exponent = power_of_two_scale(float(kernel.abs().max()) if kernel.numel() else 0.0)
    scaled = scale_by_power(kernel, -exponent).to(execution.torch_device)
    norm = certify(replace(form, kernel=scaled), 1e-2, execution=execution, budget=budget)
    of = "infinite and full circular"
    if norm.upper == 0:
        return Interval(0.0, 0.0, of)
    top = above(norm.upper**2, 2)
    precision = storage(scaled, execution.memory)
    if precision is None:
        raise UnavailableError("the kernel's Gram symbol does not fit into the memory budget")
    started = time.monotonic()
    coefficients = _complement(gram(scaled, precision), top)

    def shown(peak: Peak) -> float:
        return below(math.sqrt(max(0.0, below(top - above(upper_bound(scaled, peak) ** 2, 2), 2))), 2)

    # G is positive semidefinite: where it is singular nearly everywhere, this is all there is to prove.
    ceiling = above(math.sqrt(top), 2)
    work = _Work(coefficients, execution, budget, shown, started=started, ceiling=ceiling)
    lower, upper = _interval(work, root_cells(form.degrees), tol**2 / 2)
    _refuse_contradiction(lower, upper)
    smallest = below(math.sqrt(max(0.0, below(top - above(upper**2, 2), 2))), 2)
    largest = above(math.sqrt(max(0.0, above(top - below(lower**2, 2), 2))), 2)
    return Interval(
        unscale(smallest, exponent, down=True),
        unscale(largest, exponent, down=False),
        of,
        evaluations=work.evaluations + norm.evaluations,
    )


def _complement(coefficients: Gram, top: float) -> Gram:
    """Return the coefficients of top * I - G(w)."""
    size = coefficients.size
    even = -coefficients.even
    even[0].view(-1, size, size).diagonal(dim1=1, dim2=2).add_(top)
    # Of the shift, and of the sums over lags, whose largest term it now is.
    unit = float(torch.finfo(even.dtype).eps) / 2
    each = 4 * unit + math.sqrt(2) * gamma(len(coefficients.lags) + 4, unit)
    rounding = each * (top + float(even[0].abs().max()))
    return replace(coefficients, even=even, odd=-coefficients.odd, error=coefficients.error + rounding)


def _without_gram(kernel: Tensor, exponent: int) -> Interval:
    """Return what is known at the cost of two matrix norms, for kernels whose Gram symbol does not fit into memory.

    With P taps, F(w) is the matrix of all taps side by side times a matrix of norm sqrt(P), and so for the taps on
    top of each other; and the matrix of all taps is a lower bound (it is a block of the layer's matrix, for
    the tall one of its adjoint).
    """
    taps = math.prod(kernel.shape[3:])
    lower, upper = 0.0, 0.0
    for group in kernel:
        wide, tall = group.flatten(1), group.transpose(0, 1).flatten(1)
        norms = [matrix_norm(matrix) for matrix in (wide, tall)]
        lower = max(lower, *(norm[0] for norm in norms))
        upper = max(upper, above(math.sqrt(taps) * min(norm[1] for norm in norms), 4))
    return Interval(unscale(lower, exponent, down=True), unscale(upper, exponent, down=False))


def _interval(work: _Work, roots: Cells, tol: float) -> tuple[float, float]:
    """Return both ends of the root of sup_w lambda_1."""
    uppers, wave = _coarse_uppers(work)
    upper = float(uppers.max())
    if wave <= _CONSTANT:
        # The Gram matrix is the same everywhere: one eigenvector is all there is to know.
        lower = work.show(_constant_peak(work, int(uppers.argmax())))
        return lower, upper
    flat = wave < _NEARLY_FLAT
    # A first look at the groups that may have the largest norm; the proof finds what this misses.
    likely = np.argsort(-uppers)[: max(4, 64 // work.gram.size)]
    cells = roots.for_owners(likely)
    lower = work.show(first_peak(work.rough(tol), cells, work.execution, tol / 2))
    work.evaluations += len(cells)
    live = np.flatnonzero(uppers > lower)
    if lower == 0 or not len(live):
        # Zero within rounding, as where an orthogonal symbol's complement is asked for: no width is relative to it.
        return lower, upper
    # Rounding alone costs this much: a narrower target would never be proved.
    tol = max(tol, 4 * (cholesky_slack(work.gram.size) + work.gram.error / lower**2))
    if upper <= lower * (1 + tol):
        return lower, upper
    pending = roots.for_owners(live)
    if not flat and _affordable(work, pending, tol):
        # The last target is tried at once, and as a rule proved: nearer ones would double the work.
        work.share = _AT_ONCE
        goal, leaves = _prove(work, pending, _Goal(lower, tol))
        if leaves is not None:
            return goal.lower, min(upper, goal.upper)
        lower, work.share = goal.lower, 1.0
    for target in _targets(roots, upper / lower - 1, tol):
        goal, leaves = _prove(work, pending, _Goal(lower, target))
        lower = goal.lower
        if leaves is None:
            break
        pending, upper = leaves, min(upper, goal.upper)
        if work.floor == 0.0 and flat:
            work.floor = _floor(work, pending, upper)
    return lower, upper


def _affordable(work: _Work, roots: Cells, tol: float) -> bool:
    """Tell whether the budget surely allows to prove a target even where sigma_1 is the same all over.

    Then a cell passes no sooner than its radius alone makes it.
    """
    halves = math.ceil(math.log2(max(1.0, roots.frame.radius / 2 / math.acos(1 / (1 + tol)))))
    count = len(roots) * float(roots.frame.children) ** halves
    seconds = count * 2 * work.gram.size**3 / _SPEED / work.execution.threads
    limit = work.budget.seconds
    return count <= work.budget.evaluations * _AT_ONCE and (limit is None or seconds <= limit / 4)


@dataclass(frozen=True)
class _Goal:
    """A certified lower end and the relative width wanted above it."""

    lower: float
    width: float

    @property
    def upper(self) -> float:
        return self.lower * (1 + self.width) * (1 - 2.0**-50)


def _targets(roots: Cells, width: float, tol: float) -> list[float]:
    """Return the relative widths to prove one after the other, the last being ``tol``.

    Each leaves a valid interval behind for the case that the next one is beyond the budget, at a third of its cost, and
    for a nearly flat symbol a floor, which makes all later ones cheap.
    """
    # A generation of cells meets its target as it is where no centre lies far above the lower end: the gap falls
    # fourfold when radii are halved.
    generations = range(math.ceil(math.log(1 / tol, _LADDER)) + 1)
    halves = [(math.ldexp(roots.frame.radius, -g - 1), _EASY / _LADDER**g) for g in generations]
    widths = [(1 + easy) / math.cos(half) - 1 for half, easy in halves]
    return [*(target for target in widths if 2 * tol < target < width), tol]


def _coarse_uppers(work: _Work) -> tuple[NDArray[np.float64], float]:
    """Bound the norm of each group by the constant term of G and the sizes of all others.

    Returns:
        The bounds ``(G,)``, and the largest ratio of the others' sizes to the mean eigenvalue of the constant term.
        Where it vanishes, as for orthogonal and 1x1 kernels, the bound is the norm itself.
    """
    coefficients = work.gram
    n = coefficients.size
    even, odd = coefficients.norms
    constant, others = even[0].copy(), np.hypot(even[1:], odd).sum(0)
    # The eigenvalue costs more than all else here: only where the constant term dominates.
    worth = np.flatnonzero(others < constant)
    if len(worth):
        matrices = coefficients.even[0, torch.from_numpy(worth).to(coefficients.even.device)]
        constant[worth] = eigenvalue_upper(matrices.to(torch.float64).view(-1, n, n)).cpu().numpy()
    slack = 1 + gamma(len(coefficients.lags) + 8)
    bounds = np.sqrt(np.maximum((constant + others * slack) * (1 + 8 * DOUBLE) + coefficients.error, 0.0))
    work.evaluations += coefficients.groups
    means = coefficients.even[0, :, :: n + 1].to(torch.float64).mean(-1).cpu().numpy()
    wave = float((others / np.maximum(means, 1e-290)).max())
    return np.minimum(np.nextafter(bounds * (1 + 8 * DOUBLE), math.inf), work.ceiling), wave


def _constant_peak(work: _Work, group: int) -> Peak:
    """Return the peak of a symbol whose Gram matrix is the same everywhere: an eigenvector of it."""
    size = work.gram.size
    values, vectors = _leading_pairs(work.gram.even[0, group].to(torch.float64).view(1, size, size))
    return Peak(np.zeros(work.gram.lags.shape[1]), group, vectors[0], float(values[0]))


def _prove(work: _Work, pending: Cells, goal: _Goal) -> tuple[_Goal, Cells | None]:
    """Prove the goal's upper end over all pending cells, cutting those that fail.

    A failure at a threshold above the lower end shows a better peak: the goal then moves up, and what was proved
    before stays proved.

    Returns:
        The goal that was reached, and the cells that prove it; None where the budget ended first.
    """
    leaves = pending.take(slice(0, 0))
    while len(pending):
        pending = _cut_hopeless(work, pending, goal)
        if not work.affords(len(pending)) or float(pending.radii().min()) < _SMALLEST_RADIUS:
            return goal, None
        limits = _thresholds(work, pending, goal)
        try:
            proven = _proven(work, pending, limits, goal)
        except OutOfTimeError:
            return goal, None
        leaves = concatenate(leaves, pending.take(proven))
        expected, pending = len(pending), pending.take(~proven)
        if len(pending):
            many = len(pending) > max(_FEW, expected // 3)
            if many or bool((limits[~proven] > goal.lower**2).any()):
                goal = _higher(work, pending, goal, limits[~proven])
            pending = pending.split()
    return goal, leaves


def _proven(work: _Work, cells: Cells, limits: NDArray[np.float64], goal: _Goal) -> NDArray[np.bool_]:
    """Tell which cells pass. Where a sample says that too few would, the others are not tested and have failed.

    Limits above the lower end are tested all the same: a failure there is how a higher peak is found.
    """
    proven, todo = np.zeros(len(cells), dtype=np.bool_), np.ones(len(cells), dtype=np.bool_)
    doubtful = np.flatnonzero(limits <= goal.lower**2)
    if len(doubtful) > 4 * _SAMPLE:
        sample = np.zeros(len(cells), dtype=np.bool_)
        sample[doubtful[:: len(doubtful) // _SAMPLE]] = True
        proven[sample] = _passes(work, cells.take(sample), limits[sample], goal.width)
        todo &= ~sample
        # A test saves the tests of the children where it succeeds.
        if proven[sample].mean() * cells.frame.children < 1:
            todo[doubtful] = False
    if todo.any():
        proven[todo] = _passes(work, cells.take(todo), limits[todo], goal.width)
    return proven


def _cut_hopeless(work: _Work, cells: Cells, goal: _Goal) -> Cells:
    """Cut, without a test, the cells that would fail it: those where the known peak's vector already shows too much.

    Limits above the lower end are left to the test: a failure there is how a higher peak is found.
    """
    if work.peak is None or work.gram.size == 1:
        return cells
    polynomial = quotient(work.rough(goal.width), work.peak)
    done = cells.take(slice(0, 0))
    while len(cells):
        values, limits = polynomial.at(cells.frequencies()), _thresholds(work, cells, goal)
        hopeless = (values > limits) & (limits <= goal.lower**2) & (cells.owners == work.peak.group)
        done, cells = concatenate(done, cells.take(~hopeless)), cells.take(hopeless)
        if len(cells) > _MANY or not work.affords(len(done) + 2 * len(cells)):
            return concatenate(done, cells)
        if len(cells):
            cells = cells.split()
    return done


def _thresholds(work: _Work, cells: Cells, goal: _Goal) -> NDArray[np.float64]:
    """Return what lambda_1 at the centres must not exceed: m + (U^2 - m) cos^2(r / 2), rounded down, ``(M,)``."""
    cosines = np.cos(np.minimum(cells.radii(), math.pi) / 2) ** 2
    rise = below(goal.upper**2 - work.floor, 4)
    return np.asarray((work.floor + rise * cosines) * (1 - 32 * DOUBLE))


def _passes(work: _Work, cells: Cells, limits: NDArray[np.float64], width: float) -> NDArray[np.bool_]:
    """Tell for each cell whether lambda_1 at its centre is certified to be at most its limit."""
    coefficients, precision = work.working(goal_square=float(limits.max()), width=width)
    points = Points(*cells.fractions(), cells.owners)
    work.evaluations += len(cells)
    return prove_points(coefficients, points, limits, work.execution, dtype=precision, late=work.late)


def _higher(work: _Work, failed: Cells, goal: _Goal, limits: NDArray[np.float64]) -> _Goal:
    """Climb from the most promising failed cell; return the goal moved up, or as it was."""
    some = failed.take(slice(0, max(1, 64 * 64**3 // work.gram.size**3)))
    rough = work.rough(goal.width)
    best = look(rough, some, steps=8, most=1)
    work.evaluations += len(some)
    reached = work.show(climb(rough, best, goal.width / 2)[0])
    wrong = np.flatnonzero(limits > max(goal.lower, reached) ** 2)
    if len(wrong):
        # Small Krylov spaces miss a peak among many nearly equal singular values, as a clipped kernel has them. But the
        # failures say that these matrices have eigenvalues above their limits: until they show, no cell there passes.
        spread = np.zeros(len(failed), dtype=np.bool_)
        spread[wrong[:: -(-len(wrong) // _DIAGONALISED)]] = True
        chosen = failed.take(spread)
        reached = max(reached, work.show(climb(rough, [_leading(work, chosen)], goal.width / 2)[0]))
        work.evaluations += len(chosen)
    return replace(goal, lower=max(goal.lower, reached))


def _leading(work: _Work, cells: Cells) -> Peak:
    """Return the largest of the leading eigenpairs at the centres of a few cells, by all means."""
    matrices = work.matrices(cells)
    if work.gram.size <= _DENSE_SIZE:
        values, vectors = _leading_pairs(matrices)
    else:
        starts = torch.stack([peak.vector for peak in look(work.gram, cells, steps=8)]).to(matrices)
        values, vectors = leading_vectors(matrices, starts, restarts=16, steps=16)
    best = int(values.argmax())
    return Peak(cells.frequencies()[best], int(cells.owners[best]), vectors[best], float(values[best]))


def _leading_pairs(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leading eigenpairs ``(B,)`` and ``(B, n, 1)``; near ones where no LAPACK finds them."""
    try:
        values, vectors = eigenpairs(matrices)
    except ComputationError:
        longest = torch.linalg.vector_norm(matrices, dim=1).argmax(-1)
        starts = matrices.gather(2, longest[:, None, None].expand(-1, matrices.shape[1], 1))
        return leading_vectors(matrices, starts)
    return values[:, -1], vectors[..., -1:]


def _floor(work: _Work, leaves: Cells, upper: float) -> float:
    """Return a certified lower bound m of lambda_min over the torus, or 0 where the symbol is not flat.

    At the minimiser w*, m = lambda_min(w*), the theorem for U^2 I - G gives lambda_min(c) <= U^2 sin^2 + m cos^2 with
    the half distance tau / 2 as angle: m is at least (lambda_min(c) - U^2 sin^2) / cos^2 for the worst cell.
    """
    least = math.inf
    for bounds in work.gram.parts(len(leaves), work.execution):
        part = leaves.take(slice(*bounds))
        matrices = work.matrices(part)
        smallest = _certified_smallest(matrices, upper) - work.gram.error
        square = math.cos(above(float(part.radii().max()), 2) / 2) ** 2 * (1 - 8 * DOUBLE)
        least = min(least, (smallest - above(upper**2, 2) * (1 - square)) / square * (1 - 8 * DOUBLE))
        if least < _FLAT * upper**2 / 2:
            return 0.0
    return below(least, 8)


def _certified_smallest(matrices: Tensor, upper: float) -> float:
    """Return a certified lower bound of the smallest eigenvalue of a batch, or 0 where it is not worth knowing."""
    size = matrices.shape[-1]
    estimate = float(eigenvalues(matrices)[:, 0].min())
    if not estimate >= _FLAT * upper**2:  # also NaN
        return 0.0
    thresholds = torch.full((len(matrices),), -estimate * (1 - 64 * cholesky_slack(size)), dtype=torch.float64)
    proven, bounds = prove_below(-matrices, thresholds.to(matrices.device))
    return -float(bounds.max()) if bool(proven.all()) else 0.0

"""The judge of the certificate: its interval holds the supremum of the largest singular value, whatever the kernel.

Two oracles. A dense frequency grid: its maximum is below the supremum, and the supremum is below it over
prod cos(pi d / 2 N). And symbols to fifty digits, against which nothing is tolerated: a value of sigma_1 anywhere must
not lie above the upper end, and the lower end must not lie above the value at the frequency that shows it.

``HYPOTHESIS_PROFILE=thorough`` repeats the random part ten thousand times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import precise
from cases import GRID, Case, kernels
from convsv import certificate
from convsv.cells import Cells, concatenate, root_cells
from convsv.certificate import Budget, certify, certify_smallest, certify_with_peak
from convsv.errors import ComputationError, ContradictionError, UnavailableError
from convsv.execution import Execution
from convsv.gram import Gram, gram
from convsv.peaks import Peak, look
from convsv.results import Interval
from convsv.symbol import NormalForm, normal_form

ONE_THREAD = Execution(device="cpu", jobs=1)
PATIENT = Budget(seconds=None)
Kernel = NDArray[np.float64]


def form_of(kernel: Kernel) -> NormalForm:
    """A kernel ``(O, I, *K)`` or, of more groups, ``(G, O, I, *K)`` as it is."""
    dims = kernel.ndim - 3
    return normal_form(torch.from_numpy(kernel.copy()), (1,) * dims, (1,) * dims)


def interval_of(kernel: Kernel, tol: float = 1e-3, budget: Budget = PATIENT) -> Interval:
    return certify(form_of(kernel[None]), tol, execution=ONE_THREAD, budget=budget)


def check_exactly(kernel: Kernel, interval: Interval, peak: Any, truth: Any) -> None:
    """Compare with fifty digits. ``truth`` is sigma_1 at some frequency: at most the supremum."""
    with mpmath.workdps(precise.DIGITS):
        assert mpmath.mpf(interval.upper) >= truth
        shown = precise.largest(kernel, peak.frequency.tolist()) if peak is not None else mpmath.mpf(0)
        assert mpmath.mpf(interval.lower) <= shown
        assert shown <= mpmath.mpf(interval.upper)


# ------------------------------------------------------------------------------------ every geometry, dense frequencies


def grid_bounds(form: NormalForm, points: Callable[[int], int]) -> tuple[float, float]:
    """The largest singular value on a dense grid, over all groups, and the bound that it implies for the supremum."""
    sizes = [points(d) if d else 1 for d in form.degrees]
    values = [precise.grid_values(group.numpy(), sizes) for group in form.kernel]
    top = max(float(v.max()) for v in values)
    return top, top / math.prod(math.cos(math.pi * d / (2 * n)) for d, n in zip(form.degrees, sizes, strict=True))


def dense_enough(dims: int) -> Callable[[int], int]:
    return {1: lambda d: 64 * d, 2: lambda d: 16 * d, 3: lambda d: 8 * d}[dims]


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_the_interval_agrees_with_a_dense_grid(case: Case) -> None:
    g = case.geometry
    form = normal_form(torch.from_numpy(case.layer().kernel()), g.stride, g.dilation)
    interval = certify(form, 1e-3, execution=ONE_THREAD, budget=PATIENT)
    least, most = grid_bounds(form, dense_enough(g.dims))
    rounding = 8 * sum(form.kernel.shape[1:3]) * 2.0**-52
    assert interval.upper >= least * (1 - rounding)
    assert interval.lower <= most * (1 + rounding)
    assert interval.width <= 1e-3


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("case", [c for c in GRID if c.geometry.dims < 3][::6], ids=lambda case: case.id)
def test_the_interval_is_as_narrow_as_asked(case: Case, tol: float) -> None:
    g = case.geometry
    form = normal_form(torch.from_numpy(case.layer().kernel()), g.stride, g.dilation)
    assert certify(form, tol, execution=ONE_THREAD, budget=PATIENT).width <= tol


# ----------------------------------------------------------------------------------- adversaries, without any tolerance


def paraunitary(seed: int, n: int = 2) -> Kernel:
    """An orthogonal convolution with 3x3 taps: products of (P + (I - P) z) over both axes."""
    rng = np.random.default_rng(seed)
    kernel = np.linalg.qr(rng.standard_normal((n, n)))[0][:, :, None, None]
    for axis in (0, 0, 1, 1):
        v = rng.standard_normal((n, 1))
        projection = v @ v.T / float((v.T @ v).item())
        factors = np.stack([projection, np.eye(n) - projection], -1)
        shape = list(kernel.shape)
        shape[2 + axis] += 1
        grown = np.zeros(shape)
        for step in (0, 1):
            place = [slice(None)] * 2 + [slice(0, None)] * 2
            place[2 + axis] = slice(step, step + kernel.shape[2 + axis])
            grown[tuple(place)] += np.einsum("ab,bcxy->acxy", factors[..., step], kernel)
        kernel = grown
    return kernel


def one_tap(n: int, tap: tuple[int, ...], taps: tuple[int, ...], matrix: Kernel | None = None) -> Kernel:
    kernel = np.zeros((n, n, *taps))
    kernel[(slice(None), slice(None), *tap)] = np.eye(n) if matrix is None else matrix
    return kernel


def random(shape: Sequence[int], seed: int = 0) -> Kernel:
    return np.random.default_rng(seed).standard_normal(tuple(shape))


def rotation(n: int) -> Kernel:
    return np.linalg.qr(random((n, n), n))[0]


def symmetric(shape: Sequence[int]) -> Kernel:
    """A kernel with every spatial symmetry: its maxima come in eights, or lie on axes."""
    kernel = random(shape)
    return sum((np.flip(k, axes) for k in (kernel, kernel.swapaxes(2, 3)) for axes in ((), 2, 3, (2, 3))), 0 * kernel)


def cancelling(shape: Sequence[int]) -> Kernel:
    """Alternating signs: the maximum is at (pi, pi)."""
    signs = (-1.0) ** np.add.outer(np.arange(shape[2]), np.arange(shape[3]))
    return np.abs(random(shape)) * signs


ADVERSARIES: dict[str, Kernel] = {
    "random": random((3, 2, 3, 3)),
    "random with fewer outputs": random((2, 4, 3, 3)),
    "random in one dimension": random((3, 3, 5)),
    "random in three dimensions": random((2, 2, 2, 2, 2)),
    "half precision weights": random((3, 3, 3, 3)).astype(np.float16).astype(np.float64),
    "denormal weights": random((2, 2, 3)) * 2.0**-1065,
    "the smallest denormal": np.full((2, 2, 2), 5e-324),
    "huge weights": random((2, 2, 3, 3)) * 1e150,
    "tiny weights": random((2, 2, 3, 3)) * 1e-150,
    "near the largest float": random((2, 2, 3)) / np.abs(random((2, 2, 3))).max() * 1e307,
    "rank deficient channels": random((4, 1, 1, 1)) * random((1, 3, 3, 3)),
    "rank one everywhere": random((3, 1, 1, 1)) * random((1, 3, 1, 1)) * random((1, 1, 3, 1)) * random((1, 1, 1, 3), 1),
    "separable ridge": random((2, 2, 1, 1)) * np.ones((1, 1, 3, 1)) * np.eye(1, 3, 1)[None, None],
    "constant along one direction": np.concatenate([random((2, 2, 3, 1)), np.zeros((2, 2, 3, 2))], 3),
    "constant along the diagonal": np.eye(3) * random((2, 2, 1, 1)),
    "shift": one_tap(3, (0, 2), (3, 3)),
    "shifts of different lengths": sum(one_tap(3, (i, 2 - i), (3, 3), np.diag(np.eye(3)[i])) for i in range(3)),
    "rotated and shifted": one_tap(4, (1, 2), (3, 3), rotation(4)),
    "orthogonal pointwise": rotation(5)[:, :, None, None],
    "pointwise": random((5, 3, 1, 1)),
    "paraunitary": paraunitary(0),
    "paraunitary of three channels": paraunitary(1, 3),
    "nearly orthogonal": one_tap(3, (1, 1), (3, 3), rotation(3)) + 1e-3 * random((3, 3, 3, 3)),
    "orthogonal but for the last digits": paraunitary(2) + 1e-13 * random((2, 2, 3, 3)),
    "one huge tap": one_tap(2, (2, 0), (3, 3), random((2, 2))) * 1e8 + random((2, 2, 3, 3)),
    "one tiny channel": random((3, 3, 3, 3)) * np.array([1.0, 1e-8, 1e-200])[:, None, None, None],
    "all symmetries": symmetric((2, 2, 3, 3)),
    "largest at zero": np.abs(random((3, 2, 3, 3))),
    "largest at pi": cancelling((2, 3, 3, 3)),
    "all ones": np.ones((2, 2, 3, 3)),
    "a row": random((2, 3, 1, 5)),
    "a column": random((3, 2, 5, 1)),
    "an even kernel": random((2, 2, 2, 4)),
    "a single channel": random((1, 1, 3, 3)),
    "a single channel in one dimension": random((1, 1, 4)),
    "one output": random((1, 4, 3, 3)),
    "one input": random((4, 1, 3, 3)),
    "a difference": np.array([[[1.0, -1.0]]]),
    "a second difference": np.array([[[1.0, -2.0, 1.0]]]),
    "a cosine to the fifth": np.array([[[1.0, 5, 10, 10, 5, 1]]]) / 32,
    "two equal channels": np.stack([random((2, 3, 3))] * 2),
    "a long kernel": random((1, 2, 17)),
}


@pytest.fixture(scope="module")
def truths() -> dict[str, Any]:
    """The suprema, as far as Newton's method found them."""
    return {}


def truth_of(name: str, truths: dict[str, Any]) -> Any:
    if name not in truths:
        truths[name] = precise.supremum(ADVERSARIES[name], {3: 64, 4: 16, 5: 8}[ADVERSARIES[name].ndim])
    return truths[name]


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_an_adversary_is_enclosed(name: str, tol: float, truths: dict[str, Any]) -> None:
    kernel = ADVERSARIES[name]
    interval, peak = certify_with_peak(form_of(kernel[None]), tol, execution=ONE_THREAD, budget=PATIENT)
    check_exactly(kernel, interval, peak, truth_of(name, truths))
    smallest = 5e-324
    assert interval.upper <= interval.lower * (1 + tol) + 8 * smallest


@pytest.mark.parametrize("evaluations", [0, 1, 10, 100])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_a_tiny_budget_gives_a_valid_interval(name: str, evaluations: int, truths: dict[str, Any]) -> None:
    kernel = ADVERSARIES[name]
    budget = Budget(evaluations=evaluations, seconds=None)
    interval, peak = certify_with_peak(form_of(kernel[None]), 1e-9, execution=ONE_THREAD, budget=budget)
    check_exactly(kernel, interval, peak, truth_of(name, truths))


def turned(angle: float, degree: int = 1) -> Kernel:
    """(I + R z^degree) / 2 with a rotation R: |cos((d w - angle) / 2)|, extremal in the theorem."""
    kernel = np.zeros((2, 2, degree + 1))
    kernel[..., 0] += np.eye(2) / 2
    kernel[..., -1] += np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / 2
    return kernel


EXTREMAL: dict[str, Kernel] = {
    **{f"a cosine turned by {angle}": turned(angle) for angle in (0.0, 0.7, 2.0, 3.1)},
    "a cosine of degree 3": turned(1.0, 3),
    "a cosine in the plane": np.einsum("abx,y->abxy", turned(1.0), np.array([0.5, 0.5])),
    "a product of cosines": np.einsum("abx,bcy->acxy", turned(0.4), turned(2.2)),
    "a product of three cosines": np.einsum("abx,bcy,z->acxyz", turned(0.4), turned(2.2), np.array([1.0, -1.0])),
    "a diagonal cosine": np.array([[[[0.5, 0.0], [0.0, 0.5]]]]),
    "two cosines, one a little higher": np.stack([turned(0.5)[0], turned(2.5)[1] * (1 + 1e-4)]),
}


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4])
@pytest.mark.parametrize("name", [*EXTREMAL, "random", "all symmetries", "paraunitary", "one output"])
def test_a_poor_first_peak_costs_time_and_nothing_else(name: str, tol: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # The search for peaks is usually right at once, and then no proof is put to the test. Nor may the poor vector
    # cut cells: it shows more elsewhere than where it was found.
    monkeypatch.setattr(certificate, "_cut_hopeless", lambda _work, cells, _goal: cells)
    kernel = {**ADVERSARIES, **EXTREMAL}[name]
    truth = precise.supremum(kernel, {3: 64, 4: 16, 5: 8}[kernel.ndim])
    for seed in range(6):
        rng = np.random.default_rng(seed)

        def poor(coefficients: Any, *_rest: Any, rng: np.random.Generator = rng) -> Peak:
            frequency = rng.uniform(0, 2 * math.pi, kernel.ndim - 2)
            vector = torch.from_numpy(rng.standard_normal((coefficients.size, 1))).to(torch.complex128)
            vector = vector.real.clone() if coefficients.size == 1 else vector
            return Peak(frequency, 0, vector, 0.0)

        monkeypatch.setattr(certificate, "first_peak", poor)
        interval, peak = certify_with_peak(form_of(kernel[None]), tol, execution=ONE_THREAD, budget=PATIENT)
        check_exactly(kernel, interval, peak, truth)
        assert interval.width <= tol


def blunted(coefficients: Gram, shift: float) -> Gram:
    """The Gram symbol less ``shift`` times the identity: as wrong as it then says."""
    even = coefficients.even.clone()
    even[0].view(-1, coefficients.size, coefficients.size).diagonal(dim1=1, dim2=2).sub_(shift)
    return replace(coefficients, even=even, error=coefficients.error + abs(shift) * (1 + 1e-6))


@pytest.mark.parametrize("shift", [1e-2, 1e-4])
@pytest.mark.parametrize("tol", [1e-1, 1e-3])
@pytest.mark.parametrize("name", [*EXTREMAL, "random", "one output", "paraunitary", "nearly orthogonal", "pointwise"])
def test_an_error_of_the_gram_symbol_is_allowed_for(
    name: str, tol: float, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = {**ADVERSARIES, **EXTREMAL}[name]
    points = 16 if kernel.ndim < 5 else 8
    few = Budget(evaluations=10_000, seconds=None)
    for sign in (1, -1):
        monkeypatch.setattr(certificate, "gram", lambda *given, by=sign * shift: blunted(gram(*given), by))
        interval, peak = certify_with_peak(form_of(kernel[None]), tol, execution=ONE_THREAD, budget=few)
        check_exactly(kernel, interval, peak, precise.supremum(kernel, points))
        smallest = smallest_of(kernel, tol, few)
        with mpmath.workdps(precise.DIGITS):
            assert smallest.lower <= precise.infimum(kernel, points)


@pytest.mark.parametrize("width", [1e-1, 1e-9], ids=["single precision", "double precision"])
@pytest.mark.parametrize("name", ["random", "random with fewer outputs", "one output", "a single channel", "all ones"])
def test_no_cell_passes_whose_eigenvalue_is_above_its_limit(name: str, width: float) -> None:
    kernel = ADVERSARIES[name] / abs(ADVERSARIES[name]).max()
    cells = root_cells(tuple(k - 1 for k in kernel.shape[2:])).split()
    with mpmath.workdps(precise.DIGITS):
        denominators = cells.fractions()[1]
        turns = [
            [2 * mpmath.pi * int(x) / n for x, n in zip(p, denominators, strict=True)]
            for p in cells.fractions()[0][:40]
        ]
        true = [precise.largest(kernel, turn) ** 2 for turn in turns]
    cells = cells.take(slice(0, 40))
    for shift in (0.0, 1e-3, 1e-1):
        coefficients = blunted(gram(torch.from_numpy(kernel[None])), shift)
        work = certificate._Work(coefficients, ONE_THREAD, PATIENT, lambda _peak: 0.0)
        for step in (-0.9 * shift, -1e-15, 0.0, 1e-15, 2 * shift + 1.0):
            limits = np.array([float(x) * (1 + step) + step for x in true])
            passed = certificate._passes(work, cells, limits, width)
            assert all(x <= limit for x, limit, ok in zip(true, limits.tolist(), passed, strict=True) if ok)
        assert passed.all() or shift > 1e-2


@pytest.mark.parametrize("floor", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("degrees", [(0, 0), (2,), (2, 3), (1, 1, 2)], ids=str)
def test_limits_are_those_of_the_theorem_rounded_down(degrees: tuple[int, ...], floor: float) -> None:
    rng = np.random.default_rng(0)
    radius = {0: 0, 1: mpmath.mpf(1) / 2, 2: mpmath.mpf(2) / 3}[(sum(map(bool, degrees)) + 1) // 2]
    coefficients = gram(torch.ones(1, 1, 1, *(d + 1 for d in degrees), dtype=torch.float64))
    cells = root_cells(degrees)
    for _cut in range(6):
        for lower, width in zip(
            rng.uniform(0.1, 10, 40).tolist(), (10.0 ** rng.uniform(-9, 0, 40)).tolist(), strict=True
        ):
            goal = certificate._Goal(lower, width)
            work = certificate._Work(coefficients, ONE_THREAD, PATIENT, lambda _peak: 0.0, floor=floor * lower**2)
            found = certificate._thresholds(work, cells, goal)
            with mpmath.workdps(precise.DIGITS):
                square, least = mpmath.mpf(goal.upper) ** 2, mpmath.mpf(work.floor)
                cosine = mpmath.cos(mpmath.pi * radius / 2 / 2 ** int(cells.levels[0]))
                true = least + (square - least) * cosine**2
                assert (1 - mpmath.mpf(10) ** -14) * true <= float(found.min())
                assert float(found.max()) <= true
        cells = cells.split().take(slice(0, 3))


@pytest.mark.parametrize("cuts", [0, 1, 3])
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0])
def test_the_floor_is_below_the_smallest_eigenvalue_at_every_frequency(angle: float, cuts: int) -> None:
    # I + a R z: its smallest singular value is 1 - a, off the grid of centres.
    for weight in (0.05, 0.2, 0.3):
        kernel = np.zeros((2, 2, 2))
        kernel[..., 0] = np.eye(2)
        kernel[..., 1] = weight * 2 * turned(angle)[..., 1]
        work = certificate._Work(gram(torch.from_numpy(kernel[None])), ONE_THREAD, PATIENT, lambda _peak: 0.0)
        cells = root_cells((1,))
        for _cut in range(cuts):
            cells = cells.split()
        floor = certificate._floor(work, cells, (1 + weight) * (1 + 1e-12))
        assert floor <= (1 - weight) ** 2
        assert floor > 0 or cuts == 0 or weight > 0.2


@pytest.mark.parametrize("coarse", range(4))
def test_the_floor_holds_for_the_widest_of_several_cells(coarse: int) -> None:
    # I + a R z: the smallest singular value is 1 - a, seen from nearby only by the small cells.
    cells = root_cells((1,)).split()
    kept = np.arange(len(cells)) == coarse % len(cells)
    fine = cells.take(~kept)
    for _cut in range(6):
        fine = fine.split()
    leaves = concatenate(cells.take(kept), fine)
    for angle in np.linspace(0, 2 * math.pi, 16, endpoint=False).tolist():
        kernel = np.zeros((2, 2, 2))
        kernel[..., 0], kernel[..., 1] = np.eye(2), 0.05 * 2 * turned(angle)[..., 1]
        work = certificate._Work(gram(torch.from_numpy(kernel[None])), ONE_THREAD, PATIENT, lambda _peak: 0.0)
        assert 0 < certificate._floor(work, leaves, 1.05 * (1 + 1e-12)) <= (1 - 0.05) ** 2


def test_the_floor_is_that_of_the_theorem_rounded_down(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, cells = np.random.default_rng(0), root_cells((1,)).split().split()
    coefficients = replace(gram(torch.ones(1, 1, 1, 2, dtype=torch.float64)), error=0.0)
    work = certificate._Work(coefficients, ONE_THREAD, PATIENT, lambda _peak: 0.0)
    for upper, share in zip(rng.uniform(0.5, 8, 400).tolist(), rng.uniform(0.16, 1, 400).tolist(), strict=True):
        smallest = share * upper**2
        monkeypatch.setattr(certificate, "_certified_smallest", lambda *_, value=smallest: value)
        found = certificate._floor(work, cells, upper)
        with mpmath.workdps(precise.DIGITS):
            half = mpmath.pi / 2 / 2 ** int(cells.levels.min()) / 2
            sine, cosine = mpmath.sin(half) ** 2, mpmath.cos(half) ** 2
            true = (mpmath.mpf(smallest) - mpmath.mpf(upper) ** 2 * sine) / cosine
            # One that is far below the norm is not worth its cost.
            worth = true > mpmath.mpf(upper) ** 2 / 7
            assert found <= max(true, 0)
            assert not worth or found >= true - mpmath.mpf(upper) ** 2 * mpmath.mpf(10) ** -13


def test_a_wrong_estimate_of_the_smallest_eigenvalue_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "eigenvalues", lambda matrices: torch.ones(matrices.shape[:2]))
    diagonals = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1e6], [1.0, 1.0, 0.5]], dtype=torch.float64)
    matrices = torch.diag_embed(diagonals)
    assert certificate._certified_smallest(matrices, 1.0) == 0
    # Of those that are proved the worst counts: the slack grows with the trace.
    both = certificate._certified_smallest(matrices[:2], 1.0)
    assert 0.9 < both == min(certificate._certified_smallest(one[None], 1.0) for one in matrices[:2]) <= 1


@pytest.mark.parametrize("shift", [1e-2, -1e-2])
def test_the_floor_allows_for_an_error_of_the_gram_symbol(shift: float) -> None:
    # Nearly orthogonal: the floor is near the smallest eigenvalue, and an error of the symbol moves both.
    kernel = np.zeros((2, 2, 2))
    kernel[..., 0], kernel[..., 1] = np.eye(2), 1e-6 * np.eye(2)
    coefficients = blunted(gram(torch.from_numpy(kernel[None])), shift)
    work = certificate._Work(coefficients, ONE_THREAD, PATIENT, lambda _peak: 0.0)
    cells = root_cells((1,))
    for _cut in range(8):
        cells = cells.split()
    assert 0.9 < certificate._floor(work, cells, 1 + 1e-5) <= (1 - 1e-6) ** 2


def test_no_time_at_all_gives_a_valid_interval(truths: dict[str, Any]) -> None:
    kernel = ADVERSARIES["random"]
    interval, peak = certify_with_peak(form_of(kernel[None]), 1e-6, execution=ONE_THREAD, budget=Budget(seconds=0.0))
    check_exactly(kernel, interval, peak, truth_of("random", truths))


@pytest.mark.parametrize("name", [n for n in ADVERSARIES if "orthogonal pointwise" in n or n == "pointwise"])
def test_pointwise_kernels_are_exact(name: str) -> None:
    assert interval_of(ADVERSARIES[name]).width <= 1e-9


@pytest.mark.parametrize("name", ["shift", "shifts of different lengths", "rotated and shifted", "paraunitary"])
def test_orthogonal_kernels_are_exact(name: str) -> None:
    interval = interval_of(ADVERSARIES[name])
    assert interval.width <= 1e-9
    assert interval.lower <= 1 + 1e-12
    assert interval.upper >= 1 - 1e-15


def test_orthogonal_patches_are_exact() -> None:
    patches = rotation(12)[:5].reshape(1, 5, 3, 2, 2)
    form = normal_form(torch.from_numpy(patches), (2, 2), (1, 1))
    interval = certify(form, execution=ONE_THREAD)
    assert interval.width <= 1e-9
    assert interval.lower <= 1 <= interval.upper


def test_depthwise_norms_are_the_largest_of_the_channels() -> None:
    kernel = random((6, 1, 1, 3, 3))
    interval, peak = certify_with_peak(form_of(kernel), 1e-6, execution=ONE_THREAD, budget=PATIENT)
    with mpmath.workdps(precise.DIGITS):
        values = [precise.supremum(channel, 16) for channel in kernel]
        assert interval.lower <= max(values) <= interval.upper
    assert interval.width <= 1e-6
    assert peak is not None
    assert peak.group == values.index(max(values))


def test_groups_of_very_different_size_do_not_disturb_each_other() -> None:
    kernel = random((4, 2, 2, 3, 3)) * np.array([1e-200, 1.0, 1e-9, 0.0])[:, None, None, None, None]
    interval = certify(form_of(kernel), 1e-6, execution=ONE_THREAD, budget=PATIENT)
    with mpmath.workdps(precise.DIGITS):
        assert interval.lower <= precise.supremum(kernel[1], 16) <= interval.upper
    assert interval.width <= 1e-6


def test_two_nearly_equal_groups_are_both_proved() -> None:
    one = random((2, 2, 3, 3))
    kernel = np.stack([one, np.flip(one, (2, 3)) * (1 + 1e-12), one.swapaxes(0, 1) * (1 - 1e-12)])
    interval = certify(form_of(kernel), 1e-9, execution=ONE_THREAD, budget=PATIENT)
    with mpmath.workdps(precise.DIGITS):
        assert interval.upper >= precise.supremum(kernel[1], 16)
    assert interval.width <= 1e-9


def test_the_zero_kernel_and_the_empty_kernel_have_norm_zero() -> None:
    for shape in ((1, 2, 3, 3, 3), (1, 0, 3, 3, 3), (1, 2, 2, 0, 3), (0, 1, 1, 3)):
        interval, peak = certify_with_peak(form_of(np.zeros(shape)))
        assert (interval.lower, interval.upper, peak) == (0.0, 0.0, None)


def test_ends_that_exclude_each_other_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "lower_bound", lambda *_: 1e9)
    with pytest.raises(ContradictionError):
        interval_of(ADVERSARIES["random"])
    monkeypatch.undo()
    interval = certificate._interval
    monkeypatch.setattr(
        certificate,
        "_interval",
        lambda work, *rest: (2.0, 1.0) if math.isfinite(work.ceiling) else interval(work, *rest),
    )
    with pytest.raises(ContradictionError):
        smallest_of(ADVERSARIES["random"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    kernel = random((1, 2, 2, 3))
    kernel[0, 0, 0, 0] = bad
    for verb in (certify, certify_smallest):
        with pytest.raises(ComputationError):
            verb(form_of(kernel))


def test_a_norm_beyond_the_largest_float_has_an_infinite_upper_end() -> None:
    interval = interval_of(np.full((2, 2, 3), 1.5e308))
    assert interval.upper == math.inf
    assert 1.7e308 < interval.lower < math.inf


def test_reduced_precision_elsewhere_does_not_leak_in(truths: dict[str, Any]) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for seed in range(4):
            kernel = random((24, 20, 3, 3), seed)
            interval, peak = certify_with_peak(form_of(kernel[None]), 2e-2, execution=ONE_THREAD, budget=PATIENT)
            least, _most = grid_bounds(form_of(kernel[None]), lambda _d: 48)
            assert interval.upper >= least * (1 - 1e-13)
            assert peak is not None
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("tol", [0.3, 3e-2, 1e-3])
def test_many_channels_are_enclosed(tol: float) -> None:
    # Wide enough for single precision to be worth its slack.
    kernel = random((40, 33, 3, 3))
    interval = interval_of(kernel, tol)
    least, most = grid_bounds(form_of(kernel[None]), lambda _d: 48)
    assert least * (1 - 1e-13) <= interval.upper
    assert interval.lower <= most
    assert interval.width <= tol


# --------------------------------------------------------------------------------------------------- random adversaries


SHAPES = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple)
).map(lambda t: (t[0], t[1], *t[2]))


@settings(max_examples=max(200, settings.default.max_examples))
@given(st.data(), SHAPES, st.sampled_from((1e-1, 1e-3, 1e-6, 1e-9)))
def test_any_kernel_is_enclosed(data: st.DataObject, shape: tuple[int, ...], tol: float) -> None:
    kernel = data.draw(kernels(shape))
    # A width of 1e-9 takes a million cells where the maximum is nearly flat: then the interval is valid, and wider.
    budget = Budget(evaluations=20_000_000 if tol >= 1e-6 else 100_000, seconds=None)
    interval, peak = certify_with_peak(form_of(kernel[None]), tol, execution=ONE_THREAD, budget=budget)
    assert interval.width <= tol or tol < 1e-6
    if not kernel.any():
        assert interval.upper == 0
        return
    check_exactly(kernel, interval, peak, precise.supremum(kernel, 12))


# --------------------------------------------------------------------------------------------------- the smallest value


def smallest_of(kernel: Kernel, tol: float = 1e-3, budget: Budget = PATIENT) -> Interval:
    return certify_smallest(form_of(kernel[None]), tol, execution=ONE_THREAD, budget=budget)


SMALL = [
    name
    for name in ADVERSARIES
    if name not in ("denormal weights", "the smallest denormal", "near the largest float", "a long kernel")
]


@pytest.mark.parametrize("name", SMALL)
def test_the_smallest_value_of_an_adversary_is_enclosed(name: str) -> None:
    kernel = ADVERSARIES[name]
    interval = smallest_of(kernel, 1e-2)
    truth = precise.infimum(kernel, {3: 64, 4: 16, 5: 8}[kernel.ndim])
    with mpmath.workdps(precise.DIGITS):
        assert mpmath.mpf(interval.lower) <= truth
        norm = truth_of(name, {})
        assert interval.lower <= interval.upper
        assert interval.upper - interval.lower <= 1.02e-2 * norm
    # On the other side a grid: from its smallest value the true one is no further than the theorem allows.
    sizes = [64 if k > 1 else 1 for k in kernel.shape[2:]] if kernel.ndim < 5 else [16] * 3
    values = precise.grid_values(kernel / abs(kernel).max(), sizes)[..., -1]
    tau = sum(math.pi * (k - 1) / n for k, n in zip(kernel.shape[2:], sizes, strict=True))
    top = float(norm / float(abs(kernel).max()))
    least = max(0.0, float(values.min()) ** 2 - 1.001 * (top * math.sin(tau / 2)) ** 2) / math.cos(tau / 2) ** 2
    assert interval.upper / float(abs(kernel).max()) >= math.sqrt(least) * (1 - 1e-9) - 1e-12 * top


@pytest.mark.parametrize("evaluations", [0, 1, 10, 100])
@pytest.mark.parametrize("name", ["random", "paraunitary", "shift", "a single channel", "one output", "pointwise"])
def test_the_smallest_value_is_enclosed_within_a_tiny_budget(name: str, evaluations: int) -> None:
    interval = smallest_of(ADVERSARIES[name], 1e-6, Budget(evaluations=evaluations, seconds=None))
    with mpmath.workdps(precise.DIGITS):
        assert mpmath.mpf(interval.lower) <= precise.infimum(ADVERSARIES[name], 16)
        assert interval.lower <= interval.upper


@pytest.mark.parametrize("name", ["shift", "rotated and shifted", "paraunitary", "orthogonal pointwise"])
def test_the_smallest_value_of_an_orthogonal_kernel_is_one(name: str) -> None:
    interval = smallest_of(ADVERSARIES[name])
    assert interval.lower == pytest.approx(1, abs=1e-6)
    assert interval.upper == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 1)], ids=str)
def test_the_smallest_value_of_single_taps_is_found(channels: tuple[int, int]) -> None:
    kernel = np.zeros((*channels, 3, 3))
    kernel[:, :, 1, 0] = 0.7
    truth = 0.7 * math.sqrt(max(channels))
    interval = smallest_of(kernel)
    assert interval.lower <= truth * (1 + 1e-15)
    assert interval.upper >= truth * (1 - 1e-15)
    assert interval.upper - interval.lower <= 1e-3 * truth


def test_the_smallest_value_of_three_taps_is_known() -> None:
    interval = smallest_of(np.array([[[0.0, 0.1, 1.0]]]), 1e-4)
    assert interval.lower <= 0.9 + 1e-12
    assert interval.upper >= 0.9 - 1e-12
    assert interval.upper - interval.lower <= 1.1e-4


def test_a_smallest_value_of_zero_is_reached_from_above() -> None:
    interval = smallest_of(np.array([[[1.0, -1.0]]]), 1e-3)
    assert interval.lower == 0
    assert 0 <= interval.upper <= 2.1e-3


def test_a_dead_channel_needs_no_proof() -> None:
    # Singular at every frequency: without the ceiling millions of cells would say so.
    kernel = random((6, 8, 3, 3))
    kernel[2] = 0
    interval = smallest_of(kernel, 1e-4, Budget(evaluations=20_000, seconds=None))
    norm = interval_of(kernel)
    assert interval.lower == 0
    assert 0 <= interval.upper <= 1e-4 * norm.upper


def test_of_several_groups_the_smallest_counts() -> None:
    kernel = random((3, 2, 2, 3))
    interval = certify_smallest(form_of(kernel), 1e-3, execution=ONE_THREAD, budget=PATIENT)
    with mpmath.workdps(precise.DIGITS):
        truths = [precise.infimum(group, 64) for group in kernel]
        assert interval.lower <= min(truths)
        assert interval.upper >= min(truths) - mpmath.mpf(10) ** -12


def test_a_smallest_value_of_huge_weights_is_enclosed() -> None:
    kernel = ADVERSARIES["random in one dimension"]
    kernel = kernel / abs(kernel).max() * 1.7e308
    interval = smallest_of(kernel)
    with mpmath.workdps(precise.DIGITS):
        assert interval.lower <= precise.infimum(kernel, 64)
        assert interval.upper >= precise.infimum(kernel, 64) * mpmath.mpf(0.9)


@pytest.mark.parametrize("name", ["shift", "orthogonal pointwise", "pointwise", "rotated and shifted"])
def test_a_smallest_value_that_is_the_same_at_every_frequency_is_enclosed_without_tolerance(name: str) -> None:
    interval = smallest_of(ADVERSARIES[name])
    with mpmath.workdps(precise.DIGITS):
        truth = precise.smallest(ADVERSARIES[name], [0.0, 0.0])
        assert mpmath.mpf(interval.lower) <= truth <= mpmath.mpf(interval.upper)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("top", [1.0, 7.3, 1e3, 1e8])
@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1, 5), (3, 3, 1), (2, 2, 3, 3)], ids=str)
def test_the_complement_of_the_gram_symbol_is_within_its_error(
    shape: tuple[int, ...], top: float, dtype: torch.dtype
) -> None:
    kernel = random(shape)
    kernel = kernel / abs(kernel).max()
    coefficients = certificate._complement(gram(torch.from_numpy(kernel[None]), dtype), top)
    dims, size = kernel.ndim - 2, coefficients.size
    for numerator in range(5):
        phases = coefficients.phases(np.full((1, dims), numerator), (7,) * dims)
        computed = coefficients.at(phases)[0].to(torch.complex128)
        with mpmath.workdps(precise.DIGITS):
            true = mpmath.mpf(top) * mpmath.eye(size) - precise.gram(kernel, [2 * mpmath.pi * numerator / 7] * dims)
            wrong = mpmath.svd_c(mpmath.matrix(computed.tolist()) - true, compute_uv=False)[0]
            assert wrong <= coefficients.error
    assert coefficients.error <= 1e3 * float(torch.finfo(dtype).eps) * (top + float(np.square(kernel).sum()))


def test_what_follows_for_the_smallest_value_is_rounded_outwards(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of nearly equal squares the difference has few digits left: that is where a rounding counts.
    rng, interval, complement = np.random.default_rng(0), certificate._interval, certificate._complement
    tops: list[float] = []
    monkeypatch.setattr(certificate, "_complement", lambda given, top: (tops.append(top), complement(given, top))[1])
    for power in rng.uniform(-15, 0, 300):
        one = rng.uniform(0.5, 1)
        other = one * (1 - 10.0 ** rng.uniform(-15, 0))
        ends = []

        def near(work: Any, *rest: Any, power: float = power, ends: list[float] = ends) -> tuple[float, float]:
            if not math.isfinite(work.ceiling):  # the norm itself
                return interval(work, *rest)
            upper = math.sqrt(tops[-1]) * (1 - 10.0**power)
            shown = work.lower(Peak(np.zeros(1), 0, torch.ones(1, 1, dtype=torch.float64), 0.0))
            ends.extend((upper * (1 - 10.0 ** rng.uniform(-15, -1)), upper, shown))
            return ends[0], upper

        monkeypatch.setattr(certificate, "_interval", near)
        found = smallest_of(np.array([[[one, -other]]]))
        top, (lower, upper, shown) = Fraction(tops[-1]), map(Fraction, ends)
        assert Fraction(found.lower) ** 2 <= max(Fraction(0), top - upper**2)
        assert Fraction(found.upper) ** 2 >= top - lower**2
        assert shown**2 <= top - (Fraction(one) - Fraction(other)) ** 2


# -------------------------------------------------------------------------------------------------------- little memory


@pytest.mark.parametrize("name", ADVERSARIES)
def test_coefficients_in_single_precision_give_a_valid_interval(
    name: str, monkeypatch: pytest.MonkeyPatch, truths: dict[str, Any]
) -> None:
    monkeypatch.setattr(certificate, "storage", lambda *_: torch.float32)
    kernel, budget = ADVERSARIES[name], Budget(evaluations=2_000, seconds=None)
    interval, peak = certify_with_peak(form_of(kernel[None]), 1e-3, execution=ONE_THREAD, budget=budget)
    check_exactly(kernel, interval, peak, truth_of(name, truths))
    assert interval.upper <= interval.lower * 1.1 + 4e-323


@pytest.mark.parametrize("name", SMALL)
def test_coefficients_in_single_precision_give_a_valid_smallest_value(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "storage", lambda *_: torch.float32)
    interval = smallest_of(ADVERSARIES[name], 1e-2, Budget(evaluations=2_000, seconds=None))
    with mpmath.workdps(precise.DIGITS):
        assert mpmath.mpf(interval.lower) <= precise.infimum(ADVERSARIES[name], 8)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_without_coefficients_two_matrix_norms_enclose(
    name: str, monkeypatch: pytest.MonkeyPatch, truths: dict[str, Any]
) -> None:
    monkeypatch.setattr(certificate, "storage", lambda *_: None)
    kernel = ADVERSARIES[name]
    interval, peak = certify_with_peak(form_of(kernel[None]), execution=ONE_THREAD)
    assert peak is None
    with mpmath.workdps(precise.DIGITS):
        assert mpmath.mpf(interval.lower) <= truth_of(name, truths) <= mpmath.mpf(interval.upper)
    scale, taps = abs(kernel).max(), math.prod(kernel.shape[2:])
    flat = [k.reshape(len(k), -1) / scale for k in (kernel, kernel.swapaxes(0, 1))]
    norms = [float(np.linalg.norm(matrix, 2)) * scale for matrix in flat]
    assert interval.lower >= max(norms) * (1 - 1e-9) - 4e-323
    assert interval.upper <= math.sqrt(taps) * min(norms) * (1 + 1e-9) + 4e-323
    with pytest.raises(UnavailableError):
        smallest_of(kernel)


def test_without_coefficients_the_factor_is_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "storage", lambda *_: None)
    for norm in np.random.default_rng(0).uniform(0.5, 8, 100).tolist():
        monkeypatch.setattr(certificate, "matrix_norm", lambda _matrix, value=norm: (value, value))
        for taps in (1, 2, 3, 5):
            assert Fraction(interval_of(np.full((1, 1, taps), 0.7)).upper) ** 2 >= taps * Fraction(norm) ** 2


def test_without_coefficients_denormal_ends_are_rounded_outwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "storage", lambda *_: None)
    for seed in range(20):
        kernel = random((2, 2, 1), seed) * 2.0**-1070
        interval = interval_of(kernel)
        with mpmath.workdps(precise.DIGITS):
            assert mpmath.mpf(interval.lower) <= precise.largest(kernel, [0.0]) <= mpmath.mpf(interval.upper)


def test_without_coefficients_the_largest_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "storage", lambda *_: None)
    kernel = random((3, 2, 5, 3)) * np.array([0.1, 1.0, 0.2])[:, None, None, None]
    together, alone = certify(form_of(kernel), execution=ONE_THREAD), interval_of(kernel[1])
    assert (together.lower, together.upper) == (alone.lower, alone.upper)


# ---------------------------------------------------------------------------------------------------------- consistency


CONSISTENT = [
    "random",
    "random with fewer outputs",
    "all symmetries",
    "random in three dimensions",
    "one output",
    "paraunitary",
]


@pytest.mark.parametrize("power", [-900, -31, 1, 400, 990])
@pytest.mark.parametrize("name", CONSISTENT)
def test_scaling_by_a_power_of_two_scales_the_interval_exactly(name: str, power: int) -> None:
    kernel, scale = ADVERSARIES[name], 2.0**power
    plain, scaled = interval_of(kernel), interval_of(kernel * scale)
    assert (scaled.lower, scaled.upper) == (plain.lower * scale, plain.upper * scale)


def overlap(one: Interval, other: Interval) -> bool:
    return one.lower <= other.upper and other.lower <= one.upper


@pytest.mark.parametrize(
    "change",
    [
        lambda k: k.swapaxes(0, 1),
        lambda k: np.flip(k, tuple(range(2, k.ndim))),
        lambda k: np.flip(k, 2),
        lambda k: -k,
        lambda k: k * (-1.0) ** np.arange(k.shape[2]).reshape(-1, *[1] * (k.ndim - 3)),
        lambda k: np.flip(k, 0),
        lambda k: np.pad(k, [(0, 0)] * 2 + [(1, 0)] + [(0, 2)] * (k.ndim - 3)),
        lambda k: np.pad(k, [(0, 1), (0, 2)] + [(0, 0)] * (k.ndim - 2)),
        lambda k: np.tensordot(rotation(len(k)), k, axes=(1, 0)),
    ],
    ids=[
        "channels swapped",
        "taps reversed",
        "one axis reversed",
        "negated",
        "shifted by half a turn",
        "channels reversed",
        "a border of zero taps",
        "zero channels",
        "channels rotated",
    ],
)
@pytest.mark.parametrize("name", CONSISTENT)
def test_what_leaves_the_norm_alone_leaves_intervals_that_overlap(
    name: str, change: Callable[[Kernel], Kernel]
) -> None:
    kernel = ADVERSARIES[name]
    changed = change(kernel)
    for tol in (1e-3, 1e-8):
        one, other = interval_of(kernel, tol), interval_of(changed, tol)
        # A rotation is rounded: the kernels differ in their last digits.
        slack = Interval(other.lower * (1 - 1e-13), other.upper * (1 + 1e-13))
        assert overlap(one, slack)
        assert other.width <= tol


def test_several_groups_have_the_largest_of_their_norms() -> None:
    kernel = random((5, 2, 3, 3, 2))
    together = certify(form_of(kernel), 1e-6, execution=ONE_THREAD, budget=PATIENT)
    apart = [interval_of(group, 1e-6) for group in kernel]
    assert overlap(together, Interval(max(i.lower for i in apart), max(i.upper for i in apart)))
    assert together.width <= 1e-6


def test_the_result_does_not_depend_on_the_memory_that_may_be_used() -> None:
    kernel = random((1, 9, 7, 3, 3))
    intervals = [
        certify(form_of(kernel), 1e-4, execution=Execution(device="cpu", jobs=jobs, memory=memory), budget=PATIENT)
        for jobs, memory in ((1, 1 << 20), (1, 1 << 30), (2, 1 << 22))
    ]
    assert len({(i.lower, i.upper) for i in intervals}) == 1


@pytest.mark.parametrize("power", [-16, -3, 0, 5, 16])
@pytest.mark.parametrize("name", CONSISTENT)
def test_a_kernel_too_large_to_copy_is_neither_scaled_nor_changed(
    name: str, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = ADVERSARIES[name] / abs(ADVERSARIES[name]).max() * 2.0**power
    monkeypatch.setattr(certificate, "scale_by_power", None)
    monkeypatch.setattr("convsv.gram._TO_COPY", 0)
    form = form_of(kernel[None])
    monkeypatch.setattr(certificate, "_TO_COPY", 0)
    interval, peak = certify_with_peak(form, 1e-3, execution=ONE_THREAD, budget=PATIENT)
    np.testing.assert_array_equal(form.kernel[0].numpy(), kernel)
    check_exactly(kernel, interval, peak, precise.supremum(kernel, {3: 64, 4: 16, 5: 8}[kernel.ndim]))
    assert interval.width <= 1e-3


def test_what_is_left_of_a_budget_narrows_the_interval() -> None:
    # The width asked for is out of reach: nothing would be proved by trying it alone.
    kernel = np.random.default_rng(1).standard_normal((8, 8, 3, 3))
    widths = []
    for evaluations in (20, 400, 1600):
        found = interval_of(kernel, 1e-13, Budget(evaluations=evaluations))
        assert found.evaluations <= 1.1 * evaluations + 64
        widths.append(found.upper / found.lower - 1)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize("seed", range(3))
def test_a_peak_that_no_search_finds_is_found_where_the_proof_fails(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # As with many nearly equal singular values: Krylov spaces stay below the peak by more than the width.
    monkeypatch.setattr(certificate, "climb", lambda coefficients, starts, *_: starts)
    monkeypatch.setattr(certificate, "look", short_sighted)
    monkeypatch.setattr(certificate, "first_peak", lambda gram, cells, *_: short_sighted(gram, cells, most=1)[0])
    kernel = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 6, 5, 3, 3)))
    found = certify(NormalForm(kernel, (1, 1), (1, 1)), 1e-3, budget=Budget(evaluations=50_000))
    assert found.upper <= found.lower * (1 + 1e-3)
    grid = np.fft.fft2(kernel[0].numpy(), (64, 64)).transpose(2, 3, 0, 1)
    highest = np.linalg.svd(grid, compute_uv=False).max()
    assert found.lower <= highest * (1 + 1e-3)
    assert found.upper >= highest


def short_sighted(coefficients: Gram, cells: Cells, steps: int = 4, most: int | None = None) -> list[Peak]:
    """A search whose vectors are no better than two steps make them."""
    return look(coefficients, cells, min(steps, 2), most)


@pytest.mark.parametrize("tol", [1e-1, 1e-4])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_matrices_that_share_their_memory_prove_the_same(
    name: str, tol: float, monkeypatch: pytest.MonkeyPatch, truths: dict[str, Any]
) -> None:
    kernel = ADVERSARIES[name]
    apart = interval_of(kernel, tol)
    monkeypatch.setattr("convsv.proving._LARGE", 0)
    for jobs in (1, 3):
        execution = Execution(device="cpu", jobs=jobs)
        together, peak = certify_with_peak(form_of(kernel[None]), tol, execution=execution, budget=PATIENT)
        check_exactly(kernel, together, peak, truth_of(name, truths))
        # In single precision and double the slack differs, and with it which cells are cut.
        assert together.upper <= together.lower * (1 + tol) + 4e-323
        assert overlap(apart, together)


def test_a_generation_that_cannot_pass_is_not_tested_to_the_last_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    # Equally large everywhere, in ever other directions: no cell passes before its radius alone makes it.
    kernel = paraunitary(0) * np.array([1.0, 0.1])[:, None, None, None]
    monkeypatch.setattr(certificate, "_SAMPLE", 10**9)
    whole = interval_of(kernel, 1e-3)
    monkeypatch.undo()
    sampled = interval_of(kernel, 1e-3)
    assert overlap(whole, sampled)
    assert sampled.width <= 1e-3
    assert sampled.evaluations < whole.evaluations

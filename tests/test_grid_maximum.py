"""The maximum over a finite frequency grid: never below the true one, and equal to it, whatever was known before."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import precise
from cases import GRID, Case, kernels
from convsv import grid_maximum
from convsv.certificate import certify_with_peak
from convsv.execution import Execution
from convsv.gram import Gram, Phases, gram
from convsv.grid_maximum import FrequencyGrid, Wanted, grid_peaks, prove_grid
from convsv.peaks import Peak
from convsv.proving import Points
from convsv.rounding import above, power_of_two_scale, scale_by_power
from convsv.symbol import NormalForm, normal_form, symbol

ONE_THREAD = Execution(device="cpu", jobs=1)


def scaled_form(kernel: torch.Tensor, case: Case | None = None) -> NormalForm:
    kernel = scale_by_power(kernel, -power_of_two_scale(float(kernel.abs().max())))
    dims = kernel.ndim - 3
    stride, dilation = (case.geometry.stride, case.geometry.dilation) if case else ((1,) * dims, (1,) * dims)
    return normal_form(kernel, stride, dilation)


def frequencies(grid: FrequencyGrid) -> np.ndarray:
    """Every point by definition, in radians."""
    axes = [
        2 * math.pi * r * (np.arange(n) + s / 2) / n
        for n, s, r in zip(grid.size, grid.shift, grid.dilation, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def dense_maximum(form: NormalForm, grid: FrequencyGrid) -> float:
    matrices = symbol(form.kernel, torch.from_numpy(np.mod(frequencies(grid), 2 * math.pi)))
    return float(torch.linalg.svdvals(matrices).max())


def poor_peak(form: NormalForm, grid: FrequencyGrid) -> Peak:
    """A point of the grid that nobody would take for its maximum."""
    frequency = np.mod(frequencies(grid)[-1], 2 * math.pi)
    size = min(form.kernel.shape[1:3])
    vector = torch.ones(size, 1, dtype=torch.complex128) / math.sqrt(size)
    return Peak(frequency, 0, vector, 0.0)


def grids(form: NormalForm, size: tuple[int, ...]) -> list[FrequencyGrid]:
    active = [bool(d) for d in form.degrees]
    size = tuple(n if on else 1 for n, on in zip(size, active, strict=True))
    shifts = {
        tuple(s if on else 0 for s, on in zip(shift, active, strict=True))
        for shift in itertools.product((0, 1), repeat=len(size))
    }
    return [FrequencyGrid(size, shift, form.dilation, form.degrees) for shift in sorted(shifts)]


def check(form: NormalForm, grid: FrequencyGrid, norm: float, peaks: list[Peak]) -> None:
    coefficients = gram(form.kernel)
    truth = dense_maximum(form, grid)
    known = grid_peaks(coefficients, [grid], peaks, ONE_THREAD)[0] if peaks else poor_peak(form, grid)
    found, evaluations, best = prove_grid(coefficients, grid, Wanted(norm), known, ONE_THREAD)
    assert found >= truth * (1 - 1e-14)
    assert found <= truth * (1 + 1e-6) + 1e-7
    assert found <= norm
    assert evaluations >= 0
    assert best.value <= truth**2 * (1 + 1e-12) + 1e-5


@pytest.mark.parametrize("case", GRID[::2], ids=lambda case: case.id)
def test_every_shifted_grid_is_bounded_by_its_dense_maximum(case: Case) -> None:
    form = scaled_form(torch.from_numpy(case.layer().kernel()), case)
    norm, peak = certify_with_peak(form, 1e-3, execution=ONE_THREAD)
    assert peak is not None
    for grid in grids(form, tuple(n + 1 for n in case.geometry.size)):
        check(form, grid, norm.upper, [peak])
        check(form, grid, norm.upper, [])


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 7), (16, 9), (33, 40)], ids=str)
def test_any_size_of_the_grid_is_searched(size: tuple[int, int]) -> None:
    for seed in range(3):
        form = scaled_form(torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, 2, 3, 3))))
        norm, peak = certify_with_peak(form, 1e-2, execution=ONE_THREAD)
        assert peak is not None
        for grid in grids(form, size):
            check(form, grid, norm.upper, [peak])
            check(form, grid, norm.upper, [])


@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 3), st.integers(0, 1))
def test_grids_of_any_kernel_are_bounded(
    data: st.DataObject, outputs: int, inputs: int, size: int, dilation: int, shift: int
) -> None:
    kernel = data.draw(kernels((1, outputs, inputs, 3)))
    if not kernel.any():
        return
    form = scaled_form(torch.from_numpy(kernel))
    norm, peak = certify_with_peak(form, 1e-2, execution=ONE_THREAD)
    assert peak is not None
    grid = FrequencyGrid((size,), (shift,), (dilation,), form.degrees)
    check(form, grid, norm.upper, [peak])
    check(form, grid, norm.upper, [])


# The extremal polynomials of the theorem: nothing to spare anywhere.
@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [7, 12, 101, 1000])
def test_the_bound_holds_for_extremal_symbols_without_tolerance(degree: int, shift: int, size: int) -> None:
    kernel = np.zeros((1, 1, degree + 1))
    kernel[0, 0, [0, -1]] = 0.5
    form = scaled_form(torch.from_numpy(kernel[None]))
    grid = FrequencyGrid((size,), (shift,), (1,), form.degrees)
    with mpmath.workdps(precise.DIGITS):
        # |F(w)| = |cos(d w / 2)|
        points = [2 * mpmath.pi * (mpmath.mpf(j) + mpmath.mpf(shift) / 2) / size for j in range(size)]
        truth = max(abs(mpmath.cos(degree * w / 2)) for w in points)
    coefficients = gram(form.kernel)
    scale = float(form.kernel.abs().max()) * 2
    for known in (poor_peak(form, grid), _near(form, grid, float(truth * scale) ** 2 * (1 - 1e-6))):
        for norm in (scale * (1 + 1e-12), scale * 1.01, scale * 1.5):
            found, _evaluations, _best = prove_grid(coefficients, grid, Wanted(norm), known, ONE_THREAD)
            with mpmath.workdps(precise.DIGITS):
                assert mpmath.mpf(found) >= truth * scale


@pytest.mark.parametrize("shift", [1e-2, 1e-5])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_error_of_the_gram_symbol_is_allowed_for(shift: float, sign: int) -> None:
    for seed in range(4):
        form = scaled_form(torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 2, 3, 3))))
        norm, peak = certify_with_peak(form, 1e-2, execution=ONE_THREAD)
        assert peak is not None
        coefficients = gram(form.kernel)
        even = coefficients.even.clone()
        even[0].view(-1, 2, 2).diagonal(dim1=1, dim2=2).sub_(sign * shift)
        wrong = replace(coefficients, even=even, error=coefficients.error + shift * (1 + 1e-9))
        grid = FrequencyGrid((11,), (1,), (1,), form.degrees)
        for known in (poor_peak(form, grid), grid_peaks(wrong, [grid], [peak], ONE_THREAD)[0]):
            found, _evaluations, _best = prove_grid(wrong, grid, Wanted(norm.upper), known, ONE_THREAD)
            assert found >= dense_maximum(form, grid) * (1 - 1e-14)


def test_limits_are_those_of_the_theorem_rounded_down() -> None:
    rng, grid = np.random.default_rng(0), FrequencyGrid((40, 9), (1, 0), (1, 3), (2, 1))
    first = np.stack([rng.integers(0, 40, 60), rng.integers(0, 9, 60)], 1)
    last = np.minimum(first + rng.integers(0, 4, (60, 2)) * rng.integers(0, 2, (60, 1)), [39, 8])
    # Next to the norm the arccosine is ill-conditioned, next to a quarter turn the cosine.
    quotients = np.concatenate([1 - 10.0 ** rng.uniform(-16, 0, 40), 10.0 ** rng.uniform(-1.3, 0, 80)])
    for norm, quotient in zip(rng.uniform(0.5, 8, 120).tolist(), quotients.tolist(), strict=True):
        target = norm * quotient
        found = grid_maximum._thresholds(grid, first, last, norm, target).tolist()
        with mpmath.workdps(precise.DIGITS):
            # As prove_grid returns it, rounded up.
            proved, square = mpmath.mpf(above(target, 2)), mpmath.mpf(norm) ** 2
            for (i, j), (k, m), limit in zip(first.tolist(), last.tolist(), found, strict=True):
                tau = mpmath.pi * (mpmath.mpf(2 * (k - i)) / 40 + mpmath.mpf(3 * (m - j)) / 9)
                angle = min(mpmath.acos(min(proved / mpmath.mpf(norm), 1)) + tau / 2, mpmath.pi / 2)
                true = square * mpmath.cos(angle) ** 2 if tau else proved**2
                assert limit <= true or limit <= square * mpmath.mpf(10) ** -30
                # Near the norm itself the arccosine of a rounded quotient is off by the root of a rounding.
                assert limit >= true - square * mpmath.mpf(10) ** (-7 if tau else -14)


def test_the_target_is_raised_to_above_what_the_eigenvalues_say(monkeypatch: pytest.MonkeyPatch) -> None:
    form, rng = noise(2), np.random.default_rng(0)
    grid = FrequencyGrid((9, 9), (0, 0), (1, 1), form.degrees)
    first, last = np.zeros((3, 2), dtype=np.int64), np.zeros((3, 2), dtype=np.int64)
    points = Points(grid.numerators(first, last), grid.denominators, np.zeros(3, dtype=np.int64))
    for error in (0.0, 1e-3):
        coefficients = replace(gram(form.kernel), error=error)
        proof = grid_maximum._Proof(coefficients, grid, ONE_THREAD, lambda: False, poor_peak(form, grid))
        for values in rng.uniform(0.5, 8, (200, 3)).tolist():
            bounds = iter(values)
            monkeypatch.setattr(proof, "_bound", lambda _point, bounds=bounds: next(bounds))
            raised = proof.raised(points, 0.1)
            assert Fraction(raised) ** 2 >= Fraction(max(values)) + Fraction(error)
            assert raised <= math.sqrt(max(values) + error) * (1 + 1e-14)
            assert proof.raised(points.take(slice(0, 0)), 9.0) == 9.0


def noise(channels: int) -> NormalForm:
    """White noise: nearly as large at every frequency, so that points are looked at one by one."""
    return scaled_form(torch.from_numpy(np.random.default_rng(0).standard_normal((1, channels, channels, 3, 3))))


def test_points_are_looked_at_within_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    form, execution = noise(24), Execution(device="cpu", jobs=1, memory=1 << 20)
    coefficients, grid = gram(form.kernel), FrequencyGrid((40, 40), (0, 0), (1, 1), form.degrees)
    norm, peak = certify_with_peak(form, 1e-2, execution=execution)
    assert peak is not None
    most, at = [0], Gram.at

    def counted(self: Gram, phases: Phases, groups: Any = None) -> torch.Tensor:
        most.append(len(phases[0]))
        return at(self, phases, groups)

    monkeypatch.setattr(Gram, "at", counted)
    for known in (poor_peak(form, grid), grid_peaks(coefficients, [grid], [peak], execution)[0]):
        found, evaluations, _best = prove_grid(coefficients, grid, Wanted(norm.upper), known, execution)
        assert evaluations > 4 * max(most)
        assert found >= dense_maximum(form, grid) * (1 - 1e-14)
    assert max(most) * coefficients.bytes_each <= execution.memory


def test_a_bound_that_is_enough_takes_less() -> None:
    form = noise(6)
    coefficients, grid = gram(form.kernel), FrequencyGrid((40, 40), (1, 0), (1, 1), form.degrees)
    norm, peak = certify_with_peak(form, 1e-3, execution=ONE_THREAD)
    assert peak is not None
    known, truth = grid_peaks(coefficients, [grid], [peak], ONE_THREAD)[0], dense_maximum(form, grid)
    spent = []
    for excess in (0.0, 2e-3, 2e-2):
        wanted = Wanted(norm.upper * 1.05, enough=truth * (1 + excess))
        found, evaluations, _best = prove_grid(coefficients, grid, wanted, known, ONE_THREAD)
        assert truth * (1 - 1e-14) <= found <= truth * (1 + excess) * (1 + 1e-6)
        spent.append(evaluations)
    assert spent[0] > spent[1] > spent[2]


def test_when_the_time_is_up_the_norm_itself_is_the_bound() -> None:
    form = noise(3)
    coefficients, grid = gram(form.kernel), FrequencyGrid((9, 9), (0, 0), (1, 1), form.degrees)
    calls = iter([False, False, *[True] * 1000])
    wanted = Wanted(100.0, late=lambda: next(calls))
    found, _evaluations, _best = prove_grid(coefficients, grid, wanted, poor_peak(form, grid), ONE_THREAD)
    assert found == 100.0


def _near(form: NormalForm, grid: FrequencyGrid, value: float) -> Peak:
    poor = poor_peak(form, grid)
    return Peak(poor.frequency, 0, poor.vector, value)


@pytest.mark.parametrize("shift", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (4, 5), (7, 4), (2, 9)], ids=str)
@pytest.mark.parametrize("degrees", [(2, 2), (6, 1), (0, 3), (9, 9)], ids=str)
def test_blocks_and_their_reflections_cover_the_grid(size: Any, shift: Any, degrees: Any) -> None:
    grid = FrequencyGrid(size, shift, (1, 1), degrees)
    covered = set()
    for first, last in zip(*grid.blocks(), strict=True):
        for point in itertools.product(*(range(a, b + 1) for a, b in zip(first, last, strict=True))):
            covered.add(point)
            covered.add(tuple((-x - s) % n for x, s, n in zip(point, shift, size, strict=True)))
    assert covered == set(itertools.product(*map(range, size)))


def test_the_reach_of_a_block_is_the_distance_to_its_corner() -> None:
    grid = FrequencyGrid((8, 6), (1, 0), (1, 3), (2, 1))
    first, last = np.array([[1, 0], [2, 3]]), np.array([[4, 1], [2, 3]])
    centres = 2 * math.pi * grid.numerators(first, last) / np.array(grid.denominators)
    places = frequencies(grid).reshape(8, 6, 2)
    for block in range(2):
        farthest = max(
            2 * abs(places[i, j, 0] - centres[block, 0]) + abs(places[i, j, 1] - centres[block, 1])
            for i in range(first[block, 0], last[block, 0] + 1)
            for j in range(first[block, 1], last[block, 1] + 1)
        )
        reach = grid.reach(first, last)[block]
        assert reach == pytest.approx(farthest, rel=1e-12, abs=1e-12)
        assert reach >= farthest * (1 - 1e-15)


def test_the_points_beside_a_frequency_are_beside_it() -> None:
    grid = FrequencyGrid((10, 7), (0, 1), (1, 1), (2, 2))
    for frequency in ([0.0, 0.0], [6.28, 6.28], [1.0, 2.0]):
        points = grid.nearest(np.array(frequency))
        assert len(points) == 4
        angles = 2 * math.pi * grid.numerators(points, points) / np.array(grid.denominators)
        apart = np.abs((angles - frequency + math.pi) % (2 * math.pi) - math.pi)
        assert (apart <= 2 * math.pi / np.array([10, 7]) + 1e-12).all()

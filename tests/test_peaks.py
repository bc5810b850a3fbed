"""Peaks: what they show is certified to fifty digits, and looking for better ones never loses the one at hand."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import precise
from cases import kernels
from convsv.cells import root_cells
from convsv.execution import Execution
from convsv.gram import gram
from convsv.peaks import (
    Peak,
    climb,
    first_peak,
    leading_vectors,
    look,
    lower_bound,
    quotient,
    quotients,
    right_vector,
    upper_bound,
)
from convsv.rounding import power_of_two_scale, scale_by_power
from convsv.symbol import symbol

ONE_THREAD = Execution(device="cpu", jobs=1)
SHAPES = [(2, 3, 4), (3, 1, 5), (1, 1, 3), (1, 4, 2, 2), (3, 2, 3, 3), (2, 2, 2, 2, 2), (3, 4, 1, 1)]


def scaled(kernel: Any) -> torch.Tensor:
    tensor = torch.from_numpy(kernel)
    return scale_by_power(tensor, -power_of_two_scale(float(tensor.abs().max())))


def random_kernel(shape: tuple[int, ...], groups: int = 1, seed: int = 0) -> torch.Tensor:
    return scaled(np.random.default_rng(seed).standard_normal((groups, *shape)))


def random_peak(shape: tuple[int, ...], groups: int = 1, seed: int = 0) -> Peak:
    rng = np.random.default_rng(seed)
    n = min(shape[:2])
    vector = torch.from_numpy(rng.standard_normal((n, 1)) + 1j * rng.standard_normal((n, 1)))
    if max(shape[2:]) == 1 or n == 1:
        # Their Gram matrices are real, and so are the vectors of their peaks.
        vector = vector.real.clone()
    return Peak(rng.uniform(0, 2 * math.pi, len(shape) - 2), int(rng.integers(groups)), vector / vector.norm(), 0.0)


def stretch(kernel: torch.Tensor, peak: Peak) -> Any:
    """|F(w) v| / |v| of the vector as stored, on the smaller channel side."""
    with mpmath.workdps(precise.DIGITS):
        matrix = precise.symbol(kernel[peak.group].numpy(), peak.frequency.tolist())
        matrix = matrix if matrix.cols <= matrix.rows else matrix.T
        vector = mpmath.matrix(peak.vector.to(torch.complex128).tolist())
        return mpmath.norm(matrix * vector) / mpmath.norm(vector)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_bounds_enclose_what_the_vector_shows(shape: tuple[int, ...], groups: int) -> None:
    for seed in range(10):
        kernel, peak = random_kernel(shape, groups, seed), random_peak(shape, groups, seed)
        shown = stretch(kernel, peak)
        lower, upper = lower_bound(kernel, peak), upper_bound(kernel, peak)
        assert lower <= shown <= upper
        assert upper - lower <= 1e-11
        with mpmath.workdps(precise.DIGITS):
            values = precise.singular_values(kernel[peak.group].numpy(), peak.frequency.tolist())
            assert lower <= values[0]
            assert values[-1] <= upper


@given(st.data(), st.sampled_from(SHAPES), st.integers(0, 2**31), st.sampled_from((1.0, 1e-3, 1e-150, 1e150)))
def test_bounds_of_any_kernel_and_vector_are_certified(
    data: st.DataObject, shape: tuple[int, ...], seed: int, length: float
) -> None:
    drawn = data.draw(kernels((1, *shape)))
    if not drawn.any():
        return
    kernel, peak = scaled(drawn), random_peak(shape, 1, seed)
    peak = Peak(peak.frequency, 0, peak.vector * length, 0.0)
    assert lower_bound(kernel, peak) <= stretch(kernel, peak) <= upper_bound(kernel, peak)


@pytest.mark.parametrize("frequency", [0.0, math.pi, 2 * math.pi, math.pi / 3, 1e-300])
def test_bounds_hold_at_special_frequencies(frequency: float) -> None:
    kernel = random_kernel((2, 2, 5))
    peak = Peak(np.array([frequency]), 0, torch.ones(2, 1, dtype=torch.complex128), 0.0)
    assert lower_bound(kernel, peak) <= stretch(kernel, peak) <= upper_bound(kernel, peak)


def test_bounds_of_a_very_long_kernel_allow_for_its_phases() -> None:
    # k.w is rounded before its cosine is taken: with thousands of taps that is most of the error.
    kernel = random_kernel((1, 1, 3000))
    for frequency in (6.0, 6.2, 5.9, 4.1):
        peak = Peak(np.array([frequency]), 0, torch.ones(1, 1, dtype=torch.float64), 0.0)
        assert lower_bound(kernel, peak) <= stretch(kernel, peak) <= upper_bound(kernel, peak)


@pytest.mark.parametrize("entry", [0.0, math.nan, math.inf])
def test_a_vector_that_shows_nothing_gives_no_bound(entry: float) -> None:
    kernel = random_kernel((2, 2, 3))
    peak = Peak(np.zeros(1), 0, torch.full((2, 1), entry, dtype=torch.float64), 0.0)
    assert not lower_bound(kernel, peak) > 0
    assert not upper_bound(kernel, peak) < precise.smallest(kernel[0].numpy(), [0.0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_right_vector_is_the_one_that_the_symbol_stretches_most(shape: tuple[int, ...]) -> None:
    kernel = random_kernel(shape, 2, 5)
    coefficients = gram(kernel)
    cells = root_cells(tuple(k - 1 for k in shape[2:])).for_owners(np.arange(2))
    peak = first_peak(coefficients, cells, ONE_THREAD, 1e-12)
    vector = right_vector(kernel, peak)
    assert vector.shape == (shape[1],)
    matrix = symbol(kernel, torch.from_numpy(peak.frequency)[None])[0, peak.group]
    shown = float((matrix @ vector).norm() / vector.norm())
    assert shown == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-6)


@given(st.sampled_from(SHAPES), st.integers(0, 2**31), st.sampled_from((1e-2, 1e-9)))
def test_climbing_never_goes_down(shape: tuple[int, ...], seed: int, precision: float) -> None:
    kernel = random_kernel(shape, 2, seed)
    coefficients = gram(kernel)
    starts = [random_peak(shape, 2, seed + i) for i in range(3)]
    before = [lower_bound(kernel, peak) for peak in starts]
    ends = climb(coefficients, starts, precision)
    assert [peak.group for peak in ends] == [peak.group for peak in starts]
    for start, end in zip(before, ends, strict=True):
        after = lower_bound(kernel, end)
        assert after >= start - 1e-11
        assert math.sqrt(max(end.value, 0)) == pytest.approx(after, rel=1e-6, abs=1e-7)
        assert ((end.frequency >= 0) & (end.frequency <= 2 * math.pi)).all()


def test_climbing_reaches_a_smooth_maximum() -> None:
    # |F(w)| = 2 |sin(w / 2)|, from beside its maximum at pi.
    kernel = torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64)
    start = Peak(np.array([2.8]), 0, torch.ones(1, 1, dtype=torch.float64), 0.0)
    end = climb(gram(kernel), [start], 1e-14)[0]
    assert end.frequency[0] == pytest.approx(math.pi, abs=1e-6)
    assert lower_bound(kernel, end) == pytest.approx(2, rel=1e-13)


def test_the_first_peak_of_many_groups_is_in_the_largest() -> None:
    kernel = random_kernel((2, 2, 3), 5) * torch.tensor([0.1, 0.1, 1.0, 0.1, 0.1])[:, None, None, None]
    peak = first_peak(gram(kernel), root_cells((2,)).for_owners(np.arange(5)), ONE_THREAD, 1e-6)
    assert peak.group == 2


def test_a_rough_look_finds_a_vector_at_every_cell() -> None:
    kernel = random_kernel((3, 3, 3, 3))
    cells = root_cells((2, 2))
    peaks = look(gram(kernel), cells, steps=8)
    for peak, frequency in zip(peaks, cells.frequencies(), strict=True):
        np.testing.assert_array_equal(peak.frequency, frequency)
        matrix = symbol(kernel, torch.from_numpy(frequency)[None])[0, 0]
        top = float(torch.linalg.svdvals(matrix)[0]) ** 2
        assert 0.7 * top <= peak.value <= top * (1 + 1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_ritz_values_are_eigenvalues_where_the_space_is_whole(n: int) -> None:
    rng = np.random.default_rng(n)
    factor = torch.from_numpy(rng.standard_normal((4, n, n)) + 1j * rng.standard_normal((4, n, n)))
    matrices = factor @ factor.mH
    start = torch.ones(4, n, 1, dtype=torch.complex128)
    values, vectors = leading_vectors(matrices, start, restarts=4, steps=n)
    assert torch.allclose(values, torch.linalg.eigvalsh(matrices)[:, -1], rtol=1e-9)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4, 1, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), torch.eye(3), torch.diag(torch.tensor([0.0, 0.0, 1e-200]))])
def test_degenerate_matrices_give_finite_vectors(matrix: torch.Tensor) -> None:
    start = torch.ones(1, 3, 1, dtype=torch.float64)
    values, vectors = leading_vectors(matrix.double()[None], start, restarts=2, steps=6)
    assert torch.isfinite(values).all()
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_quotient_is_the_square_of_what_the_vector_shows(shape: tuple[int, ...]) -> None:
    kernel, peak = random_kernel(shape, 2, 3), random_peak(shape, 2, 3)
    coefficients = gram(kernel)
    value, gradient, hessian = quotient(coefficients, peak).derivatives(peak.frequency)
    assert value == pytest.approx(float(stretch(kernel, peak) ** 2), rel=1e-10)
    for axis in range(len(shape) - 2):
        step = np.zeros(len(shape) - 2)
        step[axis] = 1e-5
        polynomial = quotient(coefficients, peak)
        ahead, behind = (polynomial.derivatives(peak.frequency + sign * step) for sign in (1, -1))
        assert gradient[axis] == pytest.approx((ahead[0] - behind[0]) / 2e-5, abs=1e-7)
        assert hessian[axis] == pytest.approx((ahead[1] - behind[1]) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quotients_of_several_vectors_are_those_of_each(shape: tuple[int, ...], groups: int) -> None:
    kernel = random_kernel(shape, groups, 4)
    coefficients, peaks = gram(kernel), [random_peak(shape, groups, seed) for seed in range(3)]
    frequencies = np.stack([peak.frequency for peak in peaks])
    together = quotients(coefficients, torch.stack([p.vector for p in peaks]), np.array([p.group for p in peaks]))
    for row, peak in enumerate(peaks):
        one = quotient(coefficients, peak)
        assert one.at(frequencies)[row] == pytest.approx(float(stretch(kernel, peak) ** 2), rel=1e-10)
        for whole, part in zip(together.derivatives(frequencies), one.derivatives(peak.frequency), strict=True):
            np.testing.assert_allclose(whole[row], part, rtol=1e-12, atol=1e-12)


def test_the_highest_looks_come_in_descending_order() -> None:
    kernel, cells = random_kernel((3, 3, 3, 3)), root_cells((2, 2))
    everything = sorted(look(gram(kernel), cells), key=lambda peak: -peak.value)
    for few, peak in zip(look(gram(kernel), cells, most=4), everything[:4], strict=True):
        assert few.value == peak.value


def test_climbing_in_single_precision_ends_with_a_vector_in_double_precision() -> None:
    kernel = random_kernel((4, 4, 3, 3))
    double, single = gram(kernel), gram(kernel).to(torch.float32)
    peak = first_peak(single, root_cells((2, 2)), ONE_THREAD, 1e-4)
    assert peak.vector.dtype == torch.complex128
    shown = lower_bound(kernel, peak)
    assert shown == pytest.approx(
        lower_bound(kernel, first_peak(double, root_cells((2, 2)), ONE_THREAD, 1e-4)), rel=2e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [2, 64])
def test_a_symbol_that_vanishes_somewhere_is_looked_at(dtype: torch.dtype, channels: int) -> None:
    # Taps that are all alike: at many cells nothing but rounding is left, at zero an eigenvalue as large as can be.
    kernel = scaled(np.full((1, channels, channels, 3, 3), 0.8) * np.linspace(0.4, 1, channels)[:, None, None])
    peak = first_peak(gram(kernel).to(dtype), root_cells((2, 2)), ONE_THREAD, 1e-4)
    top = float(torch.linalg.matrix_norm(kernel.sum((-1, -2))[0], 2))
    assert lower_bound(kernel, peak) == pytest.approx(top, rel=1e-3)

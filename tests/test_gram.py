"""The Gram symbol: computed values are within the stated error of true ones, to fifty digits."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import precise
from cases import kernels
from convsv.execution import Execution
from convsv.gram import Gram, Space, gram
from convsv.rounding import power_of_two_scale, scale_by_power

SHAPES = [(2, 3, 4), (3, 1, 5), (1, 1, 3), (2, 2, 3, 3), (3, 2, 1, 4), (2, 3, 2, 2, 2), (4, 2, 1, 1), (1, 3, 2, 3)]


def scaled(kernel: NDArray[np.float64]) -> torch.Tensor:
    tensor = torch.from_numpy(kernel)
    return scale_by_power(tensor, -power_of_two_scale(float(tensor.abs().max())))


def error_at(coefficients: Gram, kernel: torch.Tensor, numerators: list[int], denominators: tuple[int, ...]) -> Any:
    """The spectral norm of computed minus true, worst over the groups."""
    phases = coefficients.phases(np.array([numerators]), denominators)
    worst = mpmath.mpf(0)
    with mpmath.workdps(precise.DIGITS):
        turns = [2 * mpmath.pi * n / d for n, d in zip(numerators, denominators, strict=True)]
        for group in range(coefficients.groups):
            computed = coefficients.at(phases, np.array([group]))[0].to(torch.complex128)
            true = precise.gram(kernel[group].numpy(), turns)
            difference = mpmath.matrix(computed.tolist()) - true
            worst = max(worst, *mpmath.svd_c(difference, compute_uv=False))
    return worst


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_within_the_error(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    dims = len(shape) - 2
    for signs in (rng.standard_normal((groups, *shape)), np.abs(rng.standard_normal((groups, *shape)))):
        kernel = scaled(signs)
        coefficients = gram(kernel).to(dtype)
        assert coefficients.even.dtype == coefficients.odd.dtype == dtype
        denominators = tuple((24, 7, 10)[:dims])
        for numerators in [[0] * dims, [1] * dims, [n // 2 for n in denominators], [5] * dims]:
            assert error_at(coefficients, kernel, numerators, denominators) <= coefficients.error
        assert coefficients.error <= 1e4 * float(torch.finfo(dtype).eps) * float(kernel.abs().sum()) ** 2


@given(st.data(), st.sampled_from(SHAPES), st.integers(0, 10**6), st.integers(1, 10**6))
def test_values_of_any_kernel_are_within_the_error(
    data: st.DataObject, shape: tuple[int, ...], numerator: int, denominator: int
) -> None:
    kernel = data.draw(kernels((1, *shape)))
    if not kernel.any():
        return
    tensor = scaled(kernel)
    dims = len(shape) - 2
    coefficients = gram(tensor)
    for each in (coefficients, coefficients.to(torch.float32)):
        assert error_at(each, tensor, [numerator % denominator] * dims, (denominator,) * dims) <= each.error


def test_frequencies_of_a_fine_grid_lose_no_digits() -> None:
    kernel = scaled(np.random.default_rng(0).standard_normal((1, 2, 2, 9)))
    coefficients = gram(kernel)
    denominator = 32 << 24
    for numerator in (1, denominator // 3, denominator // 2 - 1, denominator - 1):
        assert error_at(coefficients, kernel, [numerator], (denominator,)) <= coefficients.error


def test_numerators_beyond_a_turn_are_reduced_exactly() -> None:
    coefficients = gram(scaled(np.random.default_rng(0).standard_normal((1, 2, 2, 3))))
    near = coefficients.phases(np.array([[5]]), (12,))
    far = coefficients.phases(np.array([[5 + 12 * 10**9]]), (12,))
    for one, other in zip(near, far, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_matrices_are_hermitian_and_conjugate_at_opposite_frequencies(shape: tuple[int, ...]) -> None:
    coefficients = gram(scaled(np.random.default_rng(1).standard_normal((1, *shape))))
    dims = len(shape) - 2
    points = np.array(list(itertools.product(range(0, 7, 2), repeat=dims)))
    here, there = (coefficients.at(coefficients.phases(sign * points, (7,) * dims)) for sign in (1, -1))
    assert torch.equal(here, here.mH)
    assert torch.allclose(here, there.conj(), rtol=0, atol=1e-14)
    assert here.shape == (len(points), min(shape[:2]), min(shape[:2]))


def test_every_pair_of_opposite_lags_is_there_once() -> None:
    lags = gram(torch.ones(1, 1, 1, 3, 2, 2, dtype=torch.float64)).lags
    expected = set(itertools.product(range(-2, 3), range(-1, 2), range(-1, 2))) - {(0, 0, 0)}
    found = {tuple(lag) for lag in lags.tolist()}
    assert len(found) == len(lags) == len(expected) // 2
    assert found | {tuple(-x for x in lag) for lag in found} == expected


@pytest.mark.parametrize("taps", [(2, 3), (3, 2), (4,), (2, 2, 3)], ids=str)
def test_a_large_kernel_and_its_small_part_have_the_same_coefficients(taps: tuple[int, ...]) -> None:
    # Two ways to form the coefficients, by size: zero channels make the kernel large and change nothing.
    small = scaled(np.random.default_rng(2).standard_normal((1, 3, 2, *taps)))
    large = torch.zeros(1, 400, 200, *taps, dtype=torch.float64)
    large[:, :3, :2] = small
    one, other = gram(small), gram(large)
    np.testing.assert_array_equal(one.lags, other.lags)
    for name in ("even", "odd"):
        grown = getattr(other, name).view(-1, 1, 200, 200)
        assert torch.allclose(grown[:, :, :2, :2].reshape(getattr(one, name).shape), getattr(one, name), atol=1e-14)
        assert float(grown[:, :, 2:].abs().max()) == 0


def test_parts_cover_all_points_within_the_memory() -> None:
    coefficients = gram(torch.ones(1, 40, 40, 3, 3, dtype=torch.float64))
    for memory, jobs in ((1 << 20, 1), (1 << 24, 2), (1 << 30, 1)):
        execution = Execution(device="cpu", memory=memory, jobs=jobs)
        parts = coefficients.parts(5000, execution)
        assert [p for part in parts for p in range(*part)] == list(range(5000))
        longest = max(stop - start for start, stop in parts)
        assert longest == 1 or longest * coefficients.bytes_each * jobs <= memory


def test_the_same_precision_is_the_same_object() -> None:
    coefficients = gram(torch.ones(1, 2, 2, 3, dtype=torch.float64))
    assert coefficients.to(torch.float64) is coefficients


@pytest.mark.parametrize("shape", [*SHAPES, (20, 30, 5, 5), (30, 20, 5, 5)], ids=str)
def test_taps_that_are_gathered_one_by_one_have_the_same_coefficients(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = scaled(np.random.default_rng(3).standard_normal((2, *shape)))
    given, copied = kernel.clone(), gram(kernel)
    monkeypatch.setattr("convsv.gram._TO_COPY", 0)
    gathered = gram(kernel)
    assert torch.equal(kernel, given)
    np.testing.assert_array_equal(gathered.lags, copied.lags)
    for name in ("even", "odd"):
        np.testing.assert_allclose(getattr(gathered, name), getattr(copied, name), rtol=0, atol=copied.error)
    assert gathered.error == pytest.approx(copied.error, rel=1e-6)


@given(st.data(), st.sampled_from(SHAPES))
def test_norms_are_not_below_those_of_the_coefficients(data: st.DataObject, shape: tuple[int, ...]) -> None:
    kernel = data.draw(kernels((1, *shape)))
    if not kernel.any():
        return
    for coefficients in (gram(scaled(kernel)), gram(scaled(kernel), torch.float32)):
        for norms, stored in zip(coefficients.norms, (coefficients.even, coefficients.odd), strict=True):
            for norm, entries in zip(norms[:, 0].tolist(), stored[:, 0].tolist(), strict=True):
                assert norm**2 >= sum(Fraction(x) ** 2 for x in entries) * (1 - Fraction(1, 2**52))
        total = (coefficients.even.abs().sum(0) + coefficients.odd.abs().sum(0)).double()
        assert coefficients.mass() >= float(total.norm(dim=-1).max()) * (1 - 1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1, 5), (2, 2, 3, 3), (2, 3, 2, 2, 2)], ids=str)
def test_one_after_the_other_are_the_same_matrices(shape: tuple[int, ...]) -> None:
    coefficients = gram(scaled(np.random.default_rng(0).standard_normal((1, *shape))))
    space = Space()
    for count in (3, 1, 4):
        numerators = np.arange(count * (len(shape) - 2)).reshape(count, -1)
        phases = coefficients.phases(numerators, (24, 7, 10)[: len(shape) - 2])
        found = [matrix.clone() for matrix in coefficients.each(phases, space)]
        expected = coefficients.at(phases).to(torch.complex128)
        torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=2 * coefficients.error)


def test_a_block_of_memory_is_used_again_where_it_fits() -> None:
    space, like = Space(), torch.zeros(1)
    first = space.empty("one", (3, 4), like, torch.float64)
    assert space.empty("one", (3, 4), like, torch.float64).data_ptr() == first.data_ptr()
    assert space.empty("two", (3, 4), like, torch.float64).data_ptr() != first.data_ptr()
    assert space.empty("one", (4, 4), like, torch.float64).shape == (4, 4)
    assert space.empty("one", (4, 4), like, torch.complex128).dtype == torch.complex128

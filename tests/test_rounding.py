"""What is certified about rounding is true, decided in exact arithmetic: no tolerance anywhere."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import precise
from convsv import rounding
from convsv.errors import ComputationError
from convsv.rounding import (
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

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
TEMPERS = ["random", "rank one", "clustered", "identity", "graded", "nearly singular", "diagonal", "indefinite"]


def hermitian(temper: str, n: int, dtype: torch.dtype, seed: int, exponent: int = 0) -> torch.Tensor:
    """A Hermitian matrix of one temper; all but the indefinite ones positive semidefinite up to rounding."""
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((n, n)) + (1j * rng.standard_normal((n, n)) if dtype.is_complex else 0)
    basis = np.linalg.qr(factor)[0]
    values = {
        "random": None,
        "rank one": np.eye(n)[0],
        "clustered": 1 + 1e-13 * rng.standard_normal(n),
        "identity": np.ones(n),
        "graded": 10.0 ** -np.arange(0, 2 * n, 2),
        "nearly singular": np.where(np.arange(n) == 0, 2.0**-50, 1.0),
        "diagonal": None,
        "indefinite": rng.standard_normal(n),
    }[temper]
    if temper == "diagonal":
        matrix = np.diag(rng.random(n)).astype(factor.dtype)
    else:
        matrix = factor @ factor.conj().T if values is None else (basis * values) @ basis.conj().T
    matrix = np.tril(matrix) + np.tril(matrix, -1).conj().T
    matrix[np.diag_indices(n)] = matrix.diagonal().real
    return scale_by_power(torch.from_numpy(matrix).to(dtype), exponent)


def largest(matrix: torch.Tensor) -> float:
    exponent = power_of_two_scale(float(matrix.abs().max()))
    scaled = scale_by_power(matrix, -exponent).to(torch.complex128)
    return math.ldexp(float(torch.linalg.eigvalsh(scaled)[-1]), exponent)


def check(matrix: torch.Tensor, threshold: float) -> bool:
    """Assert that what is proved is true; tell whether anything was."""
    proven, bound = prove_below(matrix[None], torch.tensor([threshold], dtype=torch.float64))
    if bool(proven):
        assert precise.eigenvalues_at_most(matrix.numpy(), float(bound)), f"{threshold!r} gave {float(bound)!r}"
    return bool(proven)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temper", TEMPERS)
def test_nothing_false_is_proved_near_the_threshold(temper: str, dtype: torch.dtype) -> None:
    eps = float(torch.finfo(dtype).eps)
    for n, seed in itertools.product((1, 2, 3, 5), range(3)):
        matrix = hermitian(temper, n, dtype, seed)
        top = largest(matrix)
        for k in (-64, -8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 8, 16):
            check(matrix, top + abs(top) * k * eps)
        assert check(matrix, top + abs(top) * 1e3 * n * n * eps + 1e-12)


@given(
    st.sampled_from(TEMPERS),
    st.integers(1, 6),
    st.sampled_from(DTYPES),
    st.integers(0, 2**31),
    st.integers(-40, 40),
    st.sampled_from((0, 0, -300, 300, -1000)),
)
def test_nothing_false_is_proved_at_any_scale(
    temper: str, n: int, dtype: torch.dtype, seed: int, steps: int, exponent: int
) -> None:
    if dtype in (torch.float32, torch.complex64):
        exponent //= 10
    matrix = hermitian(temper, n, dtype, seed, exponent)
    top = largest(matrix)
    check(matrix, top + abs(top) * steps * float(torch.finfo(dtype).eps) / 4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_thresholds_below_zero_are_rounded_upwards_too(n: int) -> None:
    matrix = -torch.eye(n, dtype=torch.float64)
    for steps in range(1, 40):
        assert check(matrix, -1 + steps * 2.0**-53)


def test_matrices_that_are_not_finite_prove_nothing() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        for place in ((0, 0), (1, 0), (2, 2), (2, 0)):
            matrix = torch.eye(3, dtype=torch.float64)
            matrix[place] = bad
            if bad == -math.inf and place[0] == place[1]:
                continue  # an eigenvalue of minus infinity is below everything
            proven, _bound = prove_below(matrix[None], torch.tensor([5.0], dtype=torch.float64))
            assert not proven.any()
    proven, bound = prove_below(torch.eye(3, dtype=torch.float64)[None], torch.tensor([math.inf], dtype=torch.float64))
    assert not proven.any() or float(bound) == math.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bad_matrix_of_a_batch_spoils_no_other(dtype: torch.dtype) -> None:
    batch = torch.stack([torch.eye(3, dtype=dtype)] * 3)
    batch[1] = math.nan
    proven, _bound = prove_below(batch, torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64))
    assert proven.tolist() == [True, False, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_slack_bounds_what_a_proof_adds(dtype: torch.dtype) -> None:
    unit = float(torch.finfo(dtype).eps) / 2
    for n, seed in itertools.product((1, 2, 7, 40), range(5)):
        matrix = hermitian("random", n, dtype, seed)
        threshold = largest(matrix) * (1 + 1e-3)
        proven, bound = prove_below(matrix[None], torch.tensor([threshold], dtype=torch.float64))
        assert bool(proven)
        added = Fraction(float(bound)) - Fraction(threshold)
        assert added <= Fraction(threshold) * Fraction(cholesky_slack(n, unit))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_slack_is_what_the_theorem_asks_for(dtype: torch.dtype) -> None:
    # No matrix is known that needs this much: only the theorem says that it is enough.
    unit = Fraction(float(torch.finfo(dtype).eps)) / 2
    for n in (1, 2, 7, 40):
        matrix = hermitian("random", n, dtype, n)
        threshold = largest(matrix) * 1.5
        proven, bound = prove_below(matrix[None], torch.tensor([threshold], dtype=torch.float64))
        assert bool(proven)
        length = 2 * n + 4 if dtype.is_complex else n + 1
        constant = length * unit / (1 - length * unit) * (Fraction(14142, 10000) if dtype.is_complex else 1)
        trace = sum(Fraction(threshold) - Fraction(float(x)) for x in matrix.diagonal().real)
        # Of the factorisation, and of the threshold's cast and the subtraction on the diagonal.
        needed = constant / (1 - constant) * trace + 2 * unit * Fraction(threshold)
        assert Fraction(float(bound)) - Fraction(threshold) >= needed


def test_the_slack_is_infinite_where_the_theory_ends() -> None:
    assert cholesky_slack(10**8, 2.0**-24) == math.inf
    assert gamma(2.0**53) == math.inf


# What everything rests on: the factorisation that is installed here obeys the bound entry by entry.
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("temper", ["random", "graded", "nearly singular", "clustered"])
def test_the_factorisation_obeys_its_componentwise_bound(temper: str, dtype: torch.dtype) -> None:
    for n in (1, 2, 3, 8, 33, 96):
        matrix = hermitian(temper, n, dtype, n)
        shifted = -matrix
        shifted.diagonal().add_(largest(matrix) * (1 + 1e-12 * n))
        factor, info = torch.linalg.cholesky_ex(shifted)
        assert int(info) == 0
        error, size = _residual(shifted.numpy(), np.tril(factor.numpy()))
        unit = 2.0**-53
        constant = math.sqrt(2) * gamma(2 * n + 6, unit) if dtype.is_complex else gamma(n + 3, unit)
        # long double: its own rounding is 2^-11 of what is measured, times the length of the sums.
        assert (error <= constant * (1 + n * 2.0**-9) * size).all()


def _residual(matrix: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    wide = np.clongdouble if np.iscomplexobj(matrix) else np.longdouble
    if np.finfo(np.longdouble).eps > 2.0**-60:
        pytest.skip("long double is no wider than double here")
    error = np.tril(matrix.astype(wide) - factor.astype(wide) @ factor.astype(wide).conj().T)
    return np.abs(error), np.abs(factor).astype(np.longdouble) @ np.abs(factor).astype(np.longdouble).T


# ------------------------------------------------------------------------------------------------------- largest values


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("temper", [t for t in TEMPERS if t != "indefinite"])
def test_upper_bounds_of_eigenvalues_are_above_them_and_near(temper: str, dtype: torch.dtype) -> None:
    for n, exponent in itertools.product((1, 2, 5, 9), (0, -200, 200)):
        batch = torch.stack([hermitian(temper, n, dtype, seed, exponent) for seed in range(3)])
        for matrix, bound in zip(batch, eigenvalue_upper(batch).tolist(), strict=True):
            assert precise.eigenvalues_at_most(matrix.numpy(), bound)
            assert bound <= largest(matrix) * (1 + 1e-11) + 1e-270
        for poor in (0.0, math.ldexp(0.1, exponent)):
            guess = torch.full((3,), poor, dtype=torch.float64)
            bounds = eigenvalue_upper(batch, guess).tolist()
            assert all(precise.eigenvalues_at_most(m.numpy(), b) for m, b in zip(batch, bounds, strict=True))


def test_the_zero_matrix_has_an_upper_bound() -> None:
    assert 0 <= float(eigenvalue_upper(torch.zeros(1, 3, 3, dtype=torch.float64))[0]) <= 1e-270


def test_no_upper_bound_of_nan() -> None:
    matrix = torch.full((1, 2, 2), math.nan, dtype=torch.float64)
    with pytest.raises(ComputationError):
        eigenvalue_upper(matrix, torch.ones(1, dtype=torch.float64))


# --------------------------------------------------------------------------------------------------------- matrix norms


def check_norm(matrix: np.ndarray, width: float = 1e-10) -> tuple[float, float]:
    lower, upper = matrix_norm(torch.from_numpy(matrix))
    assert 0 <= lower <= upper
    assert upper == math.inf or precise.norm_squared_at_most(matrix, Fraction(upper) ** 2)
    # The norm is at least ``lower``, unless it is at most something smaller.
    assert lower == 0 or not precise.norm_squared_at_most(matrix, Fraction(lower) ** 2 * (1 - Fraction(1, 2**200)))
    assert upper <= lower * (1 + width) + 5e-322
    return lower, upper


@pytest.mark.parametrize("scale", [1.0, 1e150, 1e-150, 1e-300, 1e300, 2.0**-1060], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 4), (4, 3), (6, 6)], ids=str)
def test_matrix_norms_are_enclosed_at_any_scale(shape: tuple[int, int], scale: float) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    check_norm(matrix / abs(matrix).max() * scale, 1e-10 if scale > 1e-301 else 1e-2)


def test_a_matrix_of_all_scales_at_once_is_enclosed() -> None:
    check_norm(np.array([[1e300, 1e-300], [1e-20, 5e-324]]))
    check_norm(np.array([[5e-324, 0.0], [0.0, 5e-324]]), 3.0)


@pytest.mark.parametrize("n", [2, 5, 8])
def test_orthogonal_and_rank_one_matrices_are_enclosed(n: int) -> None:
    rng = np.random.default_rng(n)
    check_norm(np.linalg.qr(rng.standard_normal((n, n)))[0])
    check_norm(np.eye(n)[:, ::-1].copy())
    check_norm(np.outer(rng.standard_normal(n), rng.standard_normal(n)))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from((0, 1e-8, 1e-16, 1.0)))
def test_matrix_norms_are_enclosed(rows: int, columns: int, seed: int, mix: float) -> None:
    rng = np.random.default_rng(seed)
    check_norm(np.ones((rows, columns)) + mix * rng.standard_normal((rows, columns)))


@pytest.mark.parametrize("entry", [0.7, 0.9, 0.62])
def test_the_norm_of_a_long_constant_row_is_enclosed(entry: float) -> None:
    # Sums of equal numbers err in one direction all the way: the worst that summation does in practice.
    n = 4_000_037
    lower, upper = matrix_norm(torch.full((1, n), entry, dtype=torch.float64))
    assert Fraction(lower) ** 2 <= Fraction(entry) ** 2 * n <= Fraction(upper) ** 2


def test_the_norm_of_the_empty_and_the_zero_matrix_is_zero() -> None:
    assert matrix_norm(torch.zeros(0, 3, dtype=torch.float64)) == (0.0, 0.0)
    assert matrix_norm(torch.zeros(2, 3, dtype=torch.float64)) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_matrix_that_is_not_finite_has_no_norm(bad: float) -> None:
    with pytest.raises(ComputationError):
        matrix_norm(torch.tensor([[1.0, bad]], dtype=torch.float64))


def test_a_norm_beyond_the_largest_float_has_an_infinite_upper_end() -> None:
    lower, upper = matrix_norm(torch.full((4, 4), 1.5e308, dtype=torch.float64))
    assert upper == math.inf
    assert 1.7e308 < lower < math.inf


# -------------------------------------------------------------------------------------------------------- single floats


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False), st.integers(1, 20))
def test_above_and_below_move_by_all_the_steps(value: float, steps: int) -> None:
    unit = Fraction(1, 2**53)
    higher = above(value, steps)
    assert higher == math.inf or Fraction(higher) > Fraction(value) * (1 + steps * unit)
    lower = below(value, steps)
    assert Fraction(lower) <= max(Fraction(value) * (1 - steps * unit), 0)
    assert lower >= 0


@given(st.floats(min_value=-1e300, max_value=-1e-300))
def test_above_moves_negative_numbers_up(value: float) -> None:
    assert above(value) > value


@given(st.floats(min_value=0, allow_infinity=False, exclude_min=True))
def test_the_scale_brings_any_number_near_one(value: float) -> None:
    exponent = power_of_two_scale(value)
    assert 0.5 <= Fraction(value) / Fraction(2) ** exponent < 1
    scaled = float(scale_by_power(torch.tensor([value], dtype=torch.float64), -exponent))
    assert Fraction(scaled) * Fraction(2) ** exponent == Fraction(value)


@given(st.floats(min_value=0, max_value=8), st.integers(-1100, 1050))
def test_scaling_back_rounds_outwards(value: float, exponent: int) -> None:
    exact = Fraction(value) * Fraction(2) ** exponent
    lower, upper = unscale(value, exponent, down=True), unscale(value, exponent, down=False)
    assert Fraction(lower) <= exact
    assert upper == math.inf or Fraction(upper) >= exact
    if 2.0**-1000 < exact < 2.0**1000:
        assert lower == upper


@given(st.integers(1, 10**6), st.sampled_from((2.0**-53, 2.0**-24)))
def test_gamma_is_rounded_up(count: int, unit: float) -> None:
    product = count * Fraction(unit)
    assert Fraction(gamma(count, unit)) >= product / (1 - product)


@pytest.mark.parametrize("is_complex", [False, True])
def test_inner_products_err_by_less_than_their_constant(is_complex: bool) -> None:
    rng = np.random.default_rng(0)
    for n, _repeat in itertools.product((1, 2, 10, 200), range(10)):
        x, y = (rng.standard_normal(n) + (1j * rng.standard_normal(n) if is_complex else 0) for _ in range(2))
        computed = (torch.from_numpy(x) @ torch.from_numpy(y)).item()
        parts = [(_exact(a), _exact(b)) for a, b in zip(x, y, strict=True)]
        real = sum(a[0] * b[0] - a[1] * b[1] for a, b in parts) - Fraction(complex(computed).real)
        imaginary = sum(a[0] * b[1] + a[1] * b[0] for a, b in parts) - Fraction(complex(computed).imag)
        constant = rounding.Precision.of(torch.from_numpy(x)).inner(n)
        size = float(np.abs(x) @ np.abs(y)) * (1 + 1e-10)
        assert math.hypot(float(real), float(imaginary)) <= constant * size


def _exact(value: complex) -> tuple[Fraction, Fraction]:
    return Fraction(complex(value).real), Fraction(complex(value).imag)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_proof_in_the_matrices_own_memory_is_the_same_proof(dtype: torch.dtype) -> None:
    batch = torch.stack([hermitian("random", 5, dtype, seed) for seed in range(6)])
    thresholds = torch.linspace(0.0, 2.0, 6, dtype=torch.float64) * float(batch.abs().max())
    kept = batch.clone()
    plain = prove_below(batch, thresholds)
    assert torch.equal(batch, kept)
    factor = torch.empty_like(batch)
    elsewhere = prove_below(batch, thresholds, factor=factor)
    for one, two, three in zip(
        plain, elsewhere, prove_below(batch, thresholds, overwrite=True, factor=factor), strict=True
    ):
        assert torch.equal(one, two)
        assert torch.equal(one, three)

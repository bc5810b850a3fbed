"""Singular values that are never NaN: every route gives the same, and the error that is stated holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsv import linalg
from convsv.errors import ComputationError
from convsv.linalg import (
    decomposition,
    eigenpairs,
    eigenvalue_error,
    eigenvalues,
    leading_eigenvectors,
    singular_value_error,
    singular_values,
)

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def check_error(matrix: torch.Tensor, values: torch.Tensor) -> None:
    """Compare each value with forty digits: no difference is larger than the stated error."""
    with mpmath.workdps(40):
        exact = mpmath.svd_c(mpmath.matrix(matrix.to(torch.complex128).tolist()), compute_uv=False)
        error = singular_value_error(tuple(matrix.shape), values.dtype, float(values.max()))
        for computed, true in zip(values.tolist(), exact, strict=True):
            assert abs(computed - true) <= error


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_values_are_within_their_error(rows: int, columns: int, rank: int, dtype: torch.dtype, seed: int) -> None:
    matrix = random((rows, rank), dtype, seed) @ random((rank, columns), dtype, seed + 1)
    check_error(matrix, singular_values(matrix))


@pytest.mark.parametrize("shape", [(4, 1, 7), (4, 7, 1), (4, 1, 1), (2, 3, 1, 5)])
def test_one_row_or_column_is_measured_without_lapack(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random(shape, torch.complex128)
    expected = torch.linalg.svdvals(matrix)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("LAPACK was called")

    monkeypatch.setattr(torch.linalg, "svdvals", refuse)
    assert torch.allclose(singular_values(matrix), expected, rtol=1e-14)
    assert singular_values(matrix).shape == expected.shape


def fail(*_: Any, **__: Any) -> None:
    raise np.linalg.LinAlgError("did not converge")


def fail_as_torch(*_: Any, **__: Any) -> None:
    raise torch.linalg.LinAlgError("did not converge")


ROUTES: dict[str, list[tuple[Any, str]]] = {
    "gesdd of numpy": [(torch.linalg, "svdvals")],
    "the QR iteration": [(torch.linalg, "svdvals"), (np.linalg, "svd")],
    "a Hermitian matrix": [(torch.linalg, "svdvals"), (np.linalg, "svd"), (torch.linalg, "lstsq")],
}
"""Routes, and what fails before they are taken."""
LAST = (np.linalg, "eigvalsh")


def breaking(monkeypatch: pytest.MonkeyPatch, *functions: tuple[Any, str]) -> None:
    for where, name in functions:
        monkeypatch.setattr(where, name, fail_as_torch if where is torch.linalg else fail)


def taken_alone(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    """Let everything fail but one route."""
    kept = {"gesdd of numpy": "svd", "the QR iteration": "lstsq", "a Hermitian matrix": "eigvalsh"}[route]
    breaking(monkeypatch, *(found for found in (*ROUTES["a Hermitian matrix"], LAST) if found[1] != kept))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2, 4, 6), (5, 6, 4), (4, 4), (2, 40, 5), (70, 64)])
def test_every_route_gives_the_same_values(
    dtype: torch.dtype, shape: tuple[int, ...], route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = random(shape, dtype)
    expected = singular_values(matrices)
    taken_alone(monkeypatch, route)
    values = singular_values(matrices)
    assert values.shape == expected.shape
    assert values.dtype == expected.dtype
    error = singular_value_error(shape[-2:], expected.dtype, float(expected.max()))  # type: ignore[arg-type]
    assert torch.allclose(values, expected, rtol=0, atol=2 * error)


@pytest.mark.parametrize("route", ROUTES)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(1, 5), st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_the_stated_error_is_that_of_every_route(
    route: str, rows: int, columns: int, rank: int, dtype: torch.dtype, seed: int
) -> None:
    matrix = random((rows, rank), dtype, seed) @ random((rank, columns), dtype, seed + 1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        taken_alone(monkeypatch, route)
        check_error(matrix, singular_values(matrix))


@pytest.mark.parametrize("route", ROUTES)
def test_a_route_is_taken_where_those_before_it_fail(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other: gesdd twice, then the QR iteration, then the eigenvalues."""
    matrices = random((2, 4, 6), torch.complex128)
    expected = singular_values(matrices)
    taken: list[str] = []

    def noting(name: str, call: Any) -> Any:
        def noted(*given: Any, **named: Any) -> Any:
            taken.append(name)
            return call(*given, **named)

        return noted

    for where, name in (*ROUTES["a Hermitian matrix"], LAST):
        monkeypatch.setattr(where, name, noting(name, getattr(where, name)))
    breaking(monkeypatch, *ROUTES[route])
    assert torch.allclose(singular_values(matrices), expected, rtol=1e-13)
    assert taken == {"gesdd of numpy": ["svd"], "the QR iteration": ["lstsq"], "a Hermitian matrix": ["eigvalsh"]}[
        route
    ] * len(matrices)


@pytest.mark.parametrize("spoilt", ["svd", "lstsq"])
def test_a_route_that_gives_nan_is_passed_over(spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = random((2, 4, 6), torch.float64)
    expected = singular_values(matrices)
    breaking(monkeypatch, (torch.linalg, "svdvals"), (np.linalg, "svd"))
    nan = torch.full((4,), torch.nan, dtype=torch.float64)
    if spoilt == "svd":
        monkeypatch.setattr(np.linalg, "svd", lambda *_, **__: nan.numpy())
    else:
        solved = SimpleNamespace(singular_values=nan)
        monkeypatch.setattr(torch.linalg, "lstsq", lambda *_, **__: solved)
    assert torch.allclose(singular_values(matrices), expected, rtol=1e-13)


def test_nan_from_the_batch_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = random((4, 3, 3), torch.float64)
    expected = singular_values(matrices)
    monkeypatch.setattr(torch.linalg, "svdvals", lambda m, driver: torch.full(m.shape[:-1], torch.nan))
    assert torch.allclose(singular_values(matrices), expected)


def test_failure_of_every_route_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, *ROUTES["a Hermitian matrix"], LAST)
    with pytest.raises(ComputationError, match="decomposition failed"):
        singular_values(random((4, 3, 3), torch.float64))


def test_nan_entries_are_an_error() -> None:
    matrices = random((2, 3, 3), torch.float64)
    matrices[1, 2, 0] = torch.nan
    with pytest.raises(ComputationError, match="NaN or infinite"):
        singular_values(matrices)


def test_singular_matrix_has_no_negative_value(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_alone(monkeypatch, "a Hermitian matrix")
    assert bool((singular_values(torch.ones(3, 4, 4, dtype=torch.float64)) >= 0).all())


# --------------------------------------------------------------------------------------------------------- eigenvalues


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_eigenvalues_are_within_their_error(size: int, rank: int, dtype: torch.dtype, seed: int) -> None:
    factor = random((size, rank), dtype, seed)
    matrix = factor @ factor.mH
    matrix = (matrix + matrix.mH) / 2
    found = eigenvalues(matrix)
    with mpmath.workdps(40):
        exact = mpmath.eigh(mpmath.matrix(matrix.to(torch.complex128).tolist()), eigvals_only=True)
        error = eigenvalue_error(size, found.dtype) * float(found.abs().max())
        for computed, true in zip(found.tolist(), sorted(exact), strict=True):
            assert abs(computed - true) <= error


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 70])
def test_eigenvalues_that_lapack_did_not_find_are_nan(
    dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail_as_torch)
    monkeypatch.setattr(np.linalg, "eigvalsh", fail)
    found = eigenvalues(torch.eye(size, dtype=dtype).expand(2, size, size))
    assert found.shape == (2, size)
    assert found.dtype == torch.empty(0, dtype=dtype).real.dtype
    assert bool(found.isnan().all())


# ---------------------------------------------------------------------------------------------------------- two LAPACKs


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(2, 64, 64), (2, 66, 100), (2, 100, 66)])
def test_both_lapacks_give_the_same(
    dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = random(shape, dtype)
    found = singular_values(matrices), eigenvalues(matrices @ matrices.mH)
    monkeypatch.setattr(linalg, "numpy_keeps_to_one_thread", lambda: False)
    others = singular_values(matrices), eigenvalues(matrices @ matrices.mH)
    for one, other in zip(found, others, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-13 * float(other.max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_large_matrices_survive_a_failure_of_the_batch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = random((2, 64, 70), dtype)
    expected = singular_values(matrices)
    monkeypatch.setattr(torch.linalg, "svdvals", fail_as_torch)
    monkeypatch.setattr(np.linalg, "svd", fail)
    assert torch.allclose(singular_values(matrices), expected, rtol=0, atol=1e-13 * float(expected.max()))


# ------------------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["at once", "torch fails", "torch finds NaN"])
def test_eigenpairs_and_decompositions_build_the_matrices_again(
    dtype: torch.dtype, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = random((3, 2, 4, 6), dtype)
    gram = matrices @ matrices.mH
    nan = torch.full((1,), torch.nan)
    if how != "at once":
        broken = fail_as_torch if how == "torch fails" else lambda *_, **__: (nan, nan, nan)
        monkeypatch.setattr(torch.linalg, "svd", broken)
        monkeypatch.setattr(torch.linalg, "eigh", broken)
    values, vectors = eigenpairs(gram)
    left, singular, right = decomposition(matrices)
    real = gram.real.dtype
    assert (values.dtype, vectors.dtype, left.dtype, singular.dtype) == (real, dtype, dtype, real)
    torch.testing.assert_close((vectors * values[..., None, :]) @ vectors.mH, gram)
    torch.testing.assert_close((left * singular[..., None, :]) @ right, matrices)
    assert (values.diff() >= 0).all()
    assert (singular.diff() <= 0).all()


def test_vectors_that_no_route_finds_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "eigh", fail_as_torch)
    monkeypatch.setattr(np.linalg, "eigh", fail)
    with pytest.raises(ComputationError, match="decomposition failed"):
        eigenpairs(torch.eye(3))
    with pytest.raises(ComputationError, match="decomposition failed"):
        decomposition(torch.full((3, 3), torch.nan))


@pytest.mark.parametrize("size", [5, 64, 100])
@pytest.mark.parametrize("kind", ["spread", "equal", "one", "diagonal", "zero"])
def test_leading_eigenvectors_belong_to_the_largest_eigenvalue(size: int, kind: str) -> None:
    factors = {
        "spread": random((2, size, 2 * size), torch.float64),
        "equal": torch.eye(size, dtype=torch.float64).expand(2, size, size),
        "one": torch.ones(2, size, 1, dtype=torch.float64),
        "diagonal": torch.diag(torch.arange(size, dtype=torch.float64)).expand(2, size, size),
        "zero": torch.zeros(2, size, 1, dtype=torch.float64),
    }[kind]
    matrices = factors @ factors.mT
    vectors = leading_eigenvectors(matrices)
    largest = torch.linalg.eigvalsh(matrices)[:, -1:]
    # A backward stable eigenpair: the residual is a rounding error of the matrix.
    wrong = (matrices @ vectors[..., None])[..., 0] - largest * vectors
    slack = eigenvalue_error(size, torch.float64)
    assert float(torch.linalg.vector_norm(wrong, dim=1).max()) <= 4 * slack * float(largest.max())
    assert torch.allclose(torch.linalg.vector_norm(vectors, dim=1), torch.ones(2, dtype=torch.float64), rtol=slack)


@pytest.mark.parametrize("broken", ["eigvalsh", "lu_solve"])
def test_leading_eigenvectors_fall_back(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    factor = random((2, 64, 70), torch.float64)
    matrices = factor @ factor.mT
    expected = leading_eigenvectors(matrices)
    wrong = fail if broken == "eigvalsh" else lambda factors, pivots, right: torch.ones_like(right)
    monkeypatch.setattr(torch.linalg, broken, wrong)
    cosines = (leading_eigenvectors(matrices) * expected).sum(1).abs()
    assert torch.allclose(cosines, torch.ones(2, dtype=torch.float64), rtol=1e-9)

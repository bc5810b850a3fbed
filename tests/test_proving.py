"""Proofs at points of a Gram symbol: the same by every route, and none once the time is up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convsv import proving
from convsv.execution import Execution
from convsv.gram import Gram, gram
from convsv.proving import OutOfTimeError, Points, prove_points

ONE_THREAD = Execution(device="cpu", jobs=1)
GROUPS = {"one channel": (1, 1, 3, 3), "small matrices": (1, 3, 2, 3), "matrices of groups": (2, 3, 2, 3)}


def problem(shape: tuple[int, ...]) -> tuple[Gram, Points, np.ndarray]:
    coefficients = gram(torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, shape)))
    dims, count = len(shape) - 3, 60
    numerators = np.arange(count * dims, dtype=np.int64).reshape(count, dims) % 11
    points = Points(numerators, (11,) * dims, np.arange(count, dtype=np.int64) % shape[0])
    return coefficients, points, torch.linalg.eigvalsh(points.matrices(coefficients))[:, -1].numpy()


@pytest.mark.parametrize("alone", [False, True], ids=["in batches", "one by one"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", GROUPS)
def test_points_pass_where_the_limit_is_above(
    name: str, dtype: torch.dtype, *, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "_LARGE", 0 if alone else 1000)
    coefficients, points, largest = problem(GROUPS[name])
    coefficients = coefficients.to(torch.float32 if dtype == torch.complex64 else torch.float64)
    near = 1e-4 if dtype == torch.complex64 else 1e-12
    assert prove_points(coefficients, points, largest * (1 + near), ONE_THREAD, dtype=dtype).all()
    assert not prove_points(coefficients, points, largest * (1 - near), ONE_THREAD, dtype=dtype).any()
    mixed = np.where(np.arange(len(points)) % 3 == 0, largest * (1 + near), largest * (1 - near))
    found = prove_points(coefficients, points, mixed, ONE_THREAD, dtype=dtype)
    assert (found == (np.arange(len(points)) % 3 == 0)).all()


@pytest.mark.parametrize("alone", [False, True], ids=["in batches", "one by one"])
@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("name", GROUPS)
def test_nothing_is_tested_once_the_time_is_up(
    name: str, before: int, *, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "_LARGE", 0 if alone else 1000)
    # A few points a batch.
    monkeypatch.setattr(Gram, "parts", lambda _self, count, _execution: [(i, i + 4) for i in range(0, count, 4)])
    coefficients, points, largest = problem(GROUPS[name])
    asked = iter([False] * before)
    with pytest.raises(OutOfTimeError):
        prove_points(coefficients, points, largest * 2, ONE_THREAD, late=lambda: next(asked, True))


def test_large_matrices_are_not_all_factorised_once_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "_LARGE", 0)
    monkeypatch.setattr(Gram, "parts", lambda _self, count, _execution: [(0, count)])
    coefficients, points, largest = problem(GROUPS["small matrices"])
    asked = iter([False] * 5)
    with pytest.raises(OutOfTimeError):
        prove_points(coefficients, points, largest * 2, ONE_THREAD, late=lambda: next(asked, True))

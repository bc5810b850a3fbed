"""Trailing values by inverse iteration: against dense matrices, on every kind of layer, and how it stops."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
from cases import GRID, Case, cases, kernels
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.operator import ConvOperator
from convsv.results import Spectrum
from convsv.spectra import SpectrumOptions
from convsv.spectra._blocks import Block
from convsv.spectra._dense import DenseLayer
from convsv.spectra._inverse import GramFactor, memory_needed, trailing_vectors
from convsv.spectra.exact import exact

EXACT = import_module("convsv.spectra.exact")
LEADING = import_module("convsv.spectra._leading")
CPU = Execution("cpu", jobs=1)


@pytest.fixture(autouse=True)
def iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small enough for a dense matrix."""
    monkeypatch.setattr(EXACT, "_DENSE_WORK", -1.0)


def blocks(case: Case, stored: Any = None) -> list[Block]:
    shared = EXACT.Shared(case.layer(stored), CPU)
    dense = DenseLayer.of(shared.kernel, case.geometry)
    return [dense.one(parts) for parts in dense.blocks]


def square(shape: tuple[int, ...], n: int, **geometry: Any) -> Case:
    facts: dict[str, Any] = {"size": (n, n), "stride": (1, 1), "padding": ((1, 1), (1, 1))}
    return Case(shape, Geometry(**{**facts, **geometry}))


def values_of(found: Spectrum) -> np.ndarray:
    assert found.values is not None
    return found.values


# ----------------------------------------------------------------------------------------------------------- the factor


@pytest.mark.parametrize("case", GRID[::3], ids=lambda case: case.id)
def test_the_factor_solves_with_the_gram_matrix_of_the_smaller_side(case: Case) -> None:
    for block in blocks(case):
        matrix = block.dense()
        wide = matrix.shape[0] < matrix.shape[1]
        gram = (matrix @ matrix.T if wide else matrix.T @ matrix) + 0.25 * torch.eye(min(matrix.shape))
        shape = block.output_shape if wide else block.input_shape
        wanted = torch.randn(3, math.prod(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = GramFactor(block, 0.5).solve((wanted @ gram).reshape(3, *shape)).flatten(1)
        assert found.numpy() == pytest.approx(wanted.numpy(), rel=0, abs=1e-11)


def test_the_factor_is_cut_along_the_axis_that_makes_it_small() -> None:
    long = square((3, 3, 3, 3), 0, size=(40, 5))
    turned = square((3, 3, 3, 3), 0, size=(5, 40))
    sizes = [memory_needed(blocks(case)[0], 1) for case in (long, turned)]
    assert sizes[0] == sizes[1]
    wider = square((3, 3, 3, 3), 0, size=(14, 15))
    assert sizes[0] < memory_needed(blocks(wider)[0], 1)


def test_a_matrix_that_is_singular_gets_a_larger_shift() -> None:
    case = square((2, 2, 3, 3), 5)
    (block,) = blocks(case, np.ones(case.shape))
    gram = block.dense().T @ block.dense()
    assert torch.linalg.cholesky_ex(gram + 1e-17 * torch.eye(50))[1] > 0
    found = GramFactor(block, 1e-9).solve(torch.ones(1, *block.input_shape, dtype=torch.float64))
    assert torch.isfinite(found).all()


# ----------------------------------------------------------------------------------------------------------- the values


@pytest.mark.parametrize("case", GRID[1::4], ids=lambda case: case.id)
def test_trailing_values_are_those_of_the_dense_matrix(case: Case) -> None:
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU, SpectrumOptions(top=1, trailing=4))
    expected = true if found.kind == "full" else np.concatenate([true[:1], true[-4:]])
    assert values_of(found) == pytest.approx(expected, rel=0, abs=1e-7 * true[0])


@settings(max_examples=40)
@given(st.data())
def test_trailing_values_of_every_kernel_are_certified(data: st.DataObject) -> None:
    case = data.draw(cases())
    stored = data.draw(kernels(case.shape))
    true = oracle.singular_values(case.dense(stored))
    found = exact(case.layer(stored), CPU, SpectrumOptions(top=1, trailing=2))
    if found.kind == "leading" and found.error is None:
        slack = 1e-13 * true[0]
        assert found.residuals is not None
        assert np.all(values_of(found)[1:] >= true[-2:] - slack)
        for value, residual in zip(values_of(found), found.residuals, strict=True):
            assert np.abs(value - true).min() <= residual + slack


KINDS = {
    "square": square((8, 8, 3, 3), 12),
    "more outputs": square((9, 5, 3, 3), 11),
    "fewer outputs": square((5, 9, 3, 3), 11),
    "strided": square((8, 3, 3, 3), 16, stride=(2, 2)),
    "strided, fewer outputs": square((4, 4, 3, 3), 16, stride=(2, 2)),
    "transposed": square((5, 3, 4, 4), 7, stride=(2, 2), transposed=True, output_padding=(1, 0)),
    "dilated": square((3, 3, 3, 3), 13, dilation=(2, 3), padding=((2, 2), (3, 3))),
    "uneven padding": square((4, 4, 4, 4), 11, padding=((0, 3), (2, 1))),
    "reflecting": square((4, 4, 3, 3), 12, padding_mode="reflect"),
    "around one circle too far": square((4, 4, 3, 3), 12, padding_mode="circular", padding=((1, 1), (1, 2))),
    "groups": square((8, 4, 3, 3), 9, groups=2),
    "a line": Case((6, 6, 5), Geometry((60,), (1,), ((2, 2),))),
    "a volume": Case((3, 3, 3, 3, 3), Geometry((6, 5, 4), (1, 1, 1), ((1, 1),) * 3)),
}


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_every_kind_of_layer_converges(case: Case) -> None:
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU, SpectrumOptions(top=1, trailing=5))
    assert values_of(found)[1:] == pytest.approx(true[-5:], rel=0, abs=1e-9 * true[0])
    assert found.residuals is not None
    assert max(found.residuals) <= 2e-6 * true[0]
    assert found.notes[1].startswith("trailing values by inverse iteration")
    assert "stopped" not in found.notes[1]


def test_values_far_below_the_rounding_of_squares_are_found() -> None:
    # A shift, nearly: one singular value of about 0.1 ** 300, all others from 0.9 on, at distances of 1e-5.
    taps = np.array([0.0, 0.1, 1.0]).reshape(1, 1, 3)
    case = Case((1, 1, 3), Geometry((300,), (1,), ((1, 1),)))
    found = exact(case.layer(taps), CPU, SpectrumOptions(top=1, trailing=3))
    true = oracle.singular_values(case.dense(taps))
    assert true[-1] < 1e-15
    assert values_of(found)[1:] == pytest.approx(true[-3:], rel=1e-9, abs=1e-11)


def test_equal_values_are_all_found() -> None:
    identity = np.zeros((6, 6, 3, 3))
    identity[range(6), range(6), 1, 1] = 2.0
    found = exact(square((6, 6, 3, 3), 8).layer(identity), CPU, SpectrumOptions(top=1, trailing=9))
    assert values_of(found) == pytest.approx([2.0] * 10, rel=1e-11)


@pytest.mark.parametrize("exponent", [-900, 900])
def test_scaling_by_a_power_of_two_scales_the_values_exactly(exponent: int) -> None:
    case, options = KINDS["square"], SpectrumOptions(top=1, trailing=3)
    one, other = (exact(case.layer(k), CPU, options) for k in (case.kernel(), np.ldexp(case.kernel(), exponent)))
    assert np.array_equal(np.ldexp(values_of(one), exponent), values_of(other))


def test_single_precision_finds_the_same() -> None:
    case, options = KINDS["square"], SpectrumOptions(top=1, trailing=3)
    one, other = (exact(case.layer(), Execution("cpu", dtype=d, jobs=1), options) for d in ("float64", "float32"))
    assert np.array_equal(values_of(one)[1:], values_of(other)[1:])


def test_it_takes_few_products() -> None:
    case = KINDS["square"]
    (block,) = blocks(case)
    kernel = block.kernel[None]
    found = trailing_vectors(ConvOperator(kernel, case.geometry), block, 3, 10.0, 1e-6)
    assert found.converged
    assert found.products <= 400


# ------------------------------------------------------------------------------------------------------- within memory


def test_beyond_the_memory_budget_it_is_the_other_iteration_and_says_what_this_one_needs() -> None:
    case = square((4, 4, 3, 3), 18)
    (block,) = blocks(case)
    needed = memory_needed(block, 2)
    little = Execution("cpu", jobs=1, memory=needed - 1)
    found = exact(case.layer(), little, SpectrumOptions(top=1, trailing=2))
    true = oracle.singular_values(case.dense())
    assert found.notes[1].startswith("trailing values by Golub-Kahan-Lanczos; inverse iteration")
    assert "--memory" in found.notes[1]
    assert np.all(values_of(found)[1:] >= true[-2:] * (1 - 1e-12))
    enough = Execution("cpu", jobs=1, memory=needed)
    assert "inverse iteration," in exact(case.layer(), enough, SpectrumOptions(top=1, trailing=2)).notes[1]


@pytest.mark.cuda
def test_gpu_has_the_values_of_the_cpu() -> None:
    case, options = KINDS["square"], SpectrumOptions(top=1, trailing=3)
    cpu, gpu = (exact(case.layer(), Execution(device), options) for device in ("cpu", "cuda"))
    assert values_of(gpu) == pytest.approx(values_of(cpu), rel=1e-9)

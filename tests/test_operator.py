"""The layer as it runs against the dense matrix by definition; the adjoint against its identity."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cases import GRID, NAMED, Case, cases, kernels
from convsv.errors import GeometryError, UnavailableError
from convsv.geometry import Geometry
from convsv.layer import to_canonical
from convsv.operator import ConvOperator, enclosing_circle, without_dilation


def operator_of(case: Case) -> ConvOperator:
    kernel = torch.from_numpy(to_canonical(case.kernel(), "OIK", case.geometry.groups))
    return ConvOperator(kernel, case.geometry)


def random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_dense_form_is_the_matrix_by_definition(case: Case) -> None:
    assert operator_of(case).to_dense().numpy() == pytest.approx(case.dense(), abs=1e-14)


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_adjoint_is_the_transposed_matrix(case: Case) -> None:
    operator = operator_of(case)
    y = random((3, *operator.output_shape), 1)
    expected = y.flatten(1).numpy() @ case.dense()
    assert operator.adjoint(y).flatten(1).numpy() == pytest.approx(expected, abs=1e-12)
    assert operator.adjoint(y).shape[1:] == operator.input_shape


@pytest.mark.parametrize("dilation", [(1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("transposed", [False, True])
def test_three_axes_of_double_precision_are_convolved_as_torch_does(
    dilation: tuple[int, int, int], mode: str, transposed: bool
) -> None:
    geometry = Geometry((5, 7, 8), (1, 1, 1), ((1, 0), (2, 1), (2, 2)), mode, dilation, 1, transposed, (0, 0, 0))
    kernel = random((1, 4, 3, 2, 3, 2), 2)
    ours, theirs = ConvOperator(kernel, geometry), ConvOperator(kernel.to(torch.float32), geometry)
    for product, shape in (("apply", ours.input_shape), ("adjoint", ours.output_shape)):
        x = random((2, *shape), 3)
        found, expected = getattr(ours, product)(x), getattr(theirs, product)(x.to(torch.float32))
        assert found.shape == expected.shape
        assert torch.allclose(found, expected.to(torch.float64), atol=2e-5)
        assert float((found - expected).abs().max()) < theirs.rounding * float(x.norm())


@given(cases())
def test_adjoint_identity_holds(case: Case) -> None:
    operator = operator_of(case)
    x, y = random((2, *operator.input_shape), 0), random((2, *operator.output_shape), 1)
    scale = float(operator.rounding) * 2**53 * float(x.norm() * y.norm())
    image, back = operator.apply(x), operator.adjoint(y)
    assert image.shape == y.shape
    assert back.shape == x.shape
    assert float((image * y).sum()) == pytest.approx(float((x * back).sum()), abs=1e-15 * scale + 1e-300)


@given(st.data())
def test_every_kernel_gives_the_matrix_by_definition(data: st.DataObject) -> None:
    case = data.draw(cases())
    stored = data.draw(kernels(case.shape))
    kernel = torch.from_numpy(to_canonical(stored, "OIK", case.geometry.groups))
    dense = case.dense(stored)
    assert ConvOperator(kernel, case.geometry).to_dense().numpy() == pytest.approx(
        dense, abs=1e-14 * np.abs(stored).sum()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMED)
def test_product_is_within_its_rounding(name: str, dtype: torch.dtype) -> None:
    case = NAMED[name]
    # Short binary fractions: where taps fall onto one another, the dense matrix holds their sums exactly.
    stored = np.round(case.kernel() * 1024) / 1024
    kernel = torch.from_numpy(to_canonical(stored, "OIK", case.geometry.groups)).to(dtype)
    operator = ConvOperator(kernel, case.geometry)
    x = random(operator.input_shape, 0).to(dtype)
    entries = [Fraction(float(v)) for v in x.flatten()]
    exact = [sum(Fraction(float(a)) * b for a, b in zip(row, entries, strict=True)) for row in case.dense(stored)]
    wrong = [Fraction(float(a)) - b for a, b in zip(operator.apply(x[None]).flatten(), exact, strict=True)]
    assert math.sqrt(sum(w * w for w in wrong)) <= operator.rounding * float(x.double().norm())


def test_reflection_beyond_the_input_is_refused() -> None:
    with pytest.raises(GeometryError, match="reflect"):
        ConvOperator(torch.ones(1, 1, 1, 3), Geometry((2,), (1,), ((2, 2),), "reflect"))


def test_four_axes_are_unavailable() -> None:
    with pytest.raises(UnavailableError, match="1 to 3 spatial axes"):
        ConvOperator(torch.ones(1, 1, 1, 1, 1, 1, 1), Geometry((2,) * 4, (1,) * 4, ((0, 0),) * 4))


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMED)
def test_gpu_agrees_with_the_cpu(name: str) -> None:
    case = NAMED[name]
    kernel = torch.from_numpy(to_canonical(case.kernel(), "OIK", case.geometry.groups)).cuda()
    assert ConvOperator(kernel, case.geometry).to_dense().cpu().numpy() == pytest.approx(case.dense(), abs=1e-12)


# ----------------------------------------------------------------------------------------------------- in a circle


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 4), st.integers(0, 6), st.integers(0, 6))
def test_a_zero_padded_axis_is_part_of_the_circle_that_encloses_it(
    n: int, extent: int, stride: int, before: int, after: int
) -> None:
    if n + before + after < extent:
        return
    points, seeing = enclosing_circle(n, extent, stride, (before, after))
    outputs = (n + before + after - extent) // stride + 1
    for output in range(outputs):
        read = [output * stride + tap - before for tap in range(extent)]
        inside = {tap: place for tap, place in enumerate(read) if 0 <= place < n}
        assert bool(inside) == (output in seeing)
        if inside:
            around = {tap: place % (points * stride) for tap, place in enumerate(read)}
            assert {tap: place for tap, place in around.items() if place < n} == inside
    assert len(seeing) <= points


DILATED = [
    *[case for case in GRID if max(case.geometry.dilation) > 1 and max(case.geometry.stride) == 1],
    Case((3, 2, 3), Geometry((32,), (1,), ((12, 12),), "zeros", (12,))),
    Case((2, 2, 3), Geometry((7,), (1,), ((0, 9),), "zeros", (4,))),
    Case((2, 2, 2), Geometry((9,), (1,), ((11, 0),), "zeros", (5,), 1, True)),
]


@pytest.mark.parametrize("case", DILATED, ids=lambda case: case.id)
def test_a_dilated_layer_is_a_direct_sum_of_undilated_ones(case: Case) -> None:
    parts = without_dilation(case.geometry, case.shape[2:])
    if case.geometry.padding_mode != "zeros":
        assert parts is None
        return
    whole = np.linalg.svd(case.dense(), compute_uv=False)
    # A transposed layer is the adjoint of the convolution that its kernel, read in the same axes, makes.
    found = [np.linalg.svd(Case(case.shape, part).dense(case.kernel()), compute_uv=False) for part in parts or []]
    values = np.unique(np.concatenate(found).round(9))
    missing = [value for value in whole if np.abs(values - value).min() > 1e-8 and value > 1e-8]
    assert not missing
    assert values.max() == pytest.approx(whole.max())
    assert all(np.abs(whole - value).min() < 1e-8 for value in values if value > 1e-8)


def test_strides_and_undilated_layers_are_left_as_they_are() -> None:
    assert without_dilation(Geometry((9,), (2,), ((1, 1),), "zeros", (2,)), (3,)) is None
    assert without_dilation(Geometry((9,), (1,), ((1, 1),)), (3,)) is None

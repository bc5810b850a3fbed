"""Canonical kernels and the normal form: the same nonzero singular values as the layer by definition."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
from cases import GRID, Case, cases, make_layer
from convsv.errors import GeometryError, UnavailableError
from convsv.geometry import Geometry
from convsv.layer import Layout, as_float64, from_canonical, loosest, normal_taps, to_canonical

PLAIN = Geometry((4, 4), (1, 1), ((1, 1), (1, 1)))


def dense_normal_form(kernel: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The normal-form kernel of an ungrouped ``(O, I, *K)`` by one loop a tap."""
    outputs, inputs = kernel.shape[:2]
    flat = kernel.reshape(outputs, inputs, -1)
    result = np.zeros((outputs, inputs, *index.shape))
    for place, tap in np.ndenumerate(index):
        if tap >= 0:
            result[(slice(None), slice(None), *place)] = flat[:, :, tap]
    return result.reshape(outputs, inputs * index.shape[0], *index.shape[1:])


# ------------------------------------------------------------------------------------------------------ canonical form


def test_pytorch_layout_splits_the_outputs_into_groups() -> None:
    stored = np.arange(4 * 3 * 5).reshape(4, 3, 5)
    kernel = to_canonical(stored, "OIK", 2)
    assert kernel.shape == (2, 2, 3, 5)
    assert np.array_equal(kernel[1, 0], stored[2])


def test_keras_layout_has_channels_last() -> None:
    stored = np.random.default_rng(0).standard_normal((3, 5, 2, 4))
    kernel = to_canonical(stored, "KIO", 1)
    assert kernel.shape == (1, 4, 2, 3, 5)
    assert kernel[0, 3, 1, 2, 4] == stored[2, 4, 1, 3]


def test_keras_depthwise_layout_has_a_group_a_channel() -> None:
    stored = np.random.default_rng(0).standard_normal((3, 5, 4, 2))
    kernel = to_canonical(stored, "KCM", 1)
    assert kernel.shape == (4, 2, 1, 3, 5)
    assert kernel[3, 1, 0, 2, 4] == stored[2, 4, 3, 1]


@pytest.mark.parametrize(("layout", "groups"), [("OIK", 1), ("OIK", 2), ("KIO", 1), ("KIO", 2), ("KCM", 1)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_canonical_form_can_be_undone(layout: Layout, groups: int, dims: int) -> None:
    taps = (2, 3, 5)[:dims]
    shape = (4, 6, *taps) if layout == "OIK" else (*taps, 6, 4)
    stored = np.random.default_rng(0).standard_normal(shape)
    assert np.array_equal(from_canonical(to_canonical(stored, layout, groups), layout), stored)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(GeometryError, match="groups must divide"):
        to_canonical(np.zeros((4, 1, 3)), "OIK", 3)


# ------------------------------------------------------------------------------------------------------- normal form


def zero_padded(kernel: np.ndarray, geometry: Geometry, size: tuple[int, ...]) -> np.ndarray:
    """The strided convolution with every output that a nonzero input reaches: no value depends on the padding."""
    around = [
        (s * -(-d * (k - 1) // s), d * (k - 1) + s)
        for k, d, s in zip(kernel.shape[2:], geometry.dilation, geometry.stride, strict=True)
    ]
    return oracle.convolution(
        kernel, size, stride=geometry.stride, padding=around, dilation=geometry.dilation, groups=1
    )


@pytest.mark.parametrize("case", [case for case in GRID if not case.geometry.transposed], ids=lambda case: case.id)
def test_normal_form_has_the_same_nonzero_singular_values(case: Case) -> None:
    g = case.geometry
    index, left = normal_taps(case.shape[2:], g.stride, g.dilation)
    rows = tuple(2 if g.dims > 1 else 3 for _ in g.size)
    for kernel in to_canonical(case.kernel(), "OIK", g.groups):
        strided = zero_padded(kernel, g, tuple(n * s for n, s in zip(rows, g.stride, strict=True)))
        normal = dense_normal_form(kernel, index)
        reach = [(d * (k - 1), d * (k - 1)) for k, d in zip(normal.shape[2:], left, strict=True)]
        plain = oracle.convolution(normal, rows, stride=(1,) * g.dims, padding=reach, dilation=left)
        want, have = oracle.singular_values(strided), oracle.singular_values(plain)
        few = min(len(want), len(have))
        assert have[:few] == pytest.approx(want[:few], abs=1e-12)
        assert np.all(want[few:] < 1e-12)
        assert np.all(have[few:] < 1e-12)


def test_patchify_becomes_one_tap() -> None:
    index, left = normal_taps((2, 3), (2, 3), (1, 1))
    assert index.shape == (6, 1, 1)
    assert sorted(index.ravel()) == list(range(6))
    assert left == (1, 1)


def test_dilation_stays_at_stride_one() -> None:
    index, left = normal_taps((3, 3), (1, 1), (2, 5))
    assert np.array_equal(index[0].ravel(), np.arange(9))
    assert left == (2, 5)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_every_tap_occurs_exactly_once(k: int, stride: int, dilation: int) -> None:
    index, _ = normal_taps((k, k), (stride, stride), (dilation, dilation))
    assert sorted(index[index >= 0]) == list(range(k * k))


# ------------------------------------------------------------------------------------------------------------- layers


@given(cases())
def test_kind_and_taps_are_read_off_the_layer(case: Case) -> None:
    layer = case.layer()
    assert layer.kernel_size == case.shape[2:]
    assert layer.kind == f"conv{'_transpose' if case.geometry.transposed else ''}{case.geometry.dims}d"
    assert layer.kernel().shape == (case.geometry.groups, case.shape[0] // case.geometry.groups, *case.shape[1:])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_every_stored_dtype_becomes_float64_exactly(dtype: type) -> None:
    stored = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(dtype)
    kernel = make_layer(stored, PLAIN).kernel()
    assert kernel.dtype == np.float64
    assert np.array_equal(kernel[0].astype(dtype).view(np.uint8), stored.view(np.uint8))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_counted(bad: float) -> None:
    stored = np.ones((2, 2, 3, 3))
    stored[0, 1, 2, 0] = bad
    with pytest.raises(UnavailableError, match="1 of 36 weights are NaN or infinite"):
        make_layer(stored, PLAIN).kernel()


# --------------------------------------------------------------------------------------------------- loosest geometry


def test_guessed_groups_and_stride_become_one() -> None:
    guessed = Geometry((4,), (2,), ((0, 0),), groups=3, origin={"groups": "inferred", "stride": "assumed"})
    assert (loosest(guessed).groups, loosest(guessed).stride) == (1, (1,))


def test_known_stride_falls_with_a_guessed_dilation() -> None:
    g = Geometry((4,), (2,), ((0, 0),), origin={"stride": "stored", "dilation": "assumed"})
    assert loosest(g).stride == (1,)


def test_known_geometry_stays() -> None:
    g = Geometry((4,), (2,), ((0, 0),), dilation=(3,), groups=2)
    assert loosest(g) == g


@given(cases(transposed=False))
def test_loosest_reading_bounds_the_layer(case: Case) -> None:
    # sup over frequencies of the loose symbol, by a fine grid, is never below the layer's own circular norm.
    g = case.geometry
    kernel = case.kernel()
    size = tuple(s * 2 for s in g.stride)
    true = oracle.singular_values(oracle.circular(kernel, size, stride=g.stride, dilation=g.dilation, groups=g.groups))[
        0
    ]
    unknown = Geometry(g.size, g.stride, g.padding, "zeros", g.dilation, g.groups, origin={"stride": "assumed"})
    loose = loosest(unknown)
    bound = oracle.singular_values(
        oracle.circular(kernel, size, stride=loose.stride, dilation=loose.dilation, groups=loose.groups)
    )[0]
    assert bound >= true * (1 - 1e-12)


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float16", 0x7C01), ("float32", 0x7F800001), ("float64", 0x7FF0000000000001)]
)
def test_a_signalling_nan_is_read_without_a_word(dtype: str, bits: int) -> None:
    values = np.array([bits], f"u{np.dtype(dtype).itemsize}").view(dtype)
    assert np.isnan(as_float64(values)).all()

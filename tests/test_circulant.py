"""The circulant spectrum against the dense matrix on a circle, the published two lines, and multiple precision."""

from __future__ import annotations

import itertools
import math
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
from cases import GRID, NAMED, Case, cases, fitting, kernels, make_layer
from convsv.errors import UnavailableError, UsageError
from convsv.execution import Execution
from convsv.geometry import Geometry, GeometryFacts, resolve
from convsv.layer import ConvLayer
from convsv.results import Spectrum
from convsv.spectra import SPECTRA, Shared, SpectrumOptions, _routes
from convsv.spectra._routes import ByGram, BySvd, Problem, choose_route
from convsv.spectra.circulant import circulant, singular_vectors
from convsv.symbol import normal_form

CPU = Execution("cpu", jobs=1)


def dense(case: Case, stored: np.ndarray) -> np.ndarray:
    """All singular values of the layer on a circle; of the adjoint for a transposed one."""
    g = case.geometry
    size = tuple(n * s for n, s in zip(g.size, g.stride, strict=True)) if g.transposed else g.size
    matrix = oracle.circular(stored, size, stride=g.stride, dilation=g.dilation, groups=g.groups)
    return oracle.singular_values(matrix)


def square(stored: np.ndarray, n: int, **geometry: Any) -> Case:
    return Case(stored.shape, Geometry((n, n), (1, 1), ((1, 1), (1, 1)), **geometry))


# ---------------------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("case", [fitting(case) for case in GRID], ids=lambda case: case.id)
def test_equals_the_dense_matrix_on_a_circle(case: Case) -> None:
    expected = dense(case, case.kernel())
    found = circulant(case.layer(), CPU)
    assert found.values is not None
    assert found.values == pytest.approx(expected, rel=0, abs=1e-12 * expected[0])
    assert found.count == len(expected)
    assert found.error is not None
    assert found.error < 1e-12 * expected[0]


@given(st.data())
def test_equals_the_dense_matrix_for_every_kernel(data: st.DataObject) -> None:
    case = fitting(data.draw(cases()))
    stored = data.draw(kernels(case.shape))
    expected = dense(case, stored)
    found = circulant(case.layer(stored), CPU)
    assert found.values == pytest.approx(expected, rel=0, abs=1e-12 * expected[0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(3, 2, 3), (2, 3, 2, 2), (2, 2, 1, 1), (3, 1, 3, 2), (1, 1, 4)])
def test_values_are_within_their_error_of_the_true_ones(dtype: str, shape: tuple[int, ...]) -> None:
    stored = np.random.default_rng(0).standard_normal(shape)
    size = (5, 4)[: len(shape) - 2]
    case = Case(shape, Geometry(size, (1,) * len(size), ((0, 0),) * len(size)))
    with mpmath.workdps(40):
        true: list[Any] = []
        for point in np.ndindex(*size):
            matrix = mpmath.matrix(*shape[:2])
            for tap in np.ndindex(*shape[2:]):
                turn = sum(mpmath.mpf(j * k) / n for j, k, n in zip(point, tap, size, strict=True))
                taps = stored[(slice(None), slice(None), *tap)]
                matrix += mpmath.matrix(taps.tolist()) * mpmath.expjpi(2 * turn)
            true += list(mpmath.svd_c(matrix, compute_uv=False))
        found = circulant(case.layer(stored), Execution("cpu", dtype=dtype, jobs=1))
        assert found.values is not None
        assert found.error is not None
        for computed, exact in zip(found.values.tolist(), sorted(true, reverse=True), strict=True):
            assert abs(computed - exact) <= found.error
    assert found.error < {"float64": 1e-12, "float32": 1e-3}[dtype]


# --------------------------------------------------------------------------------------------- the published two lines


def published(kernel: np.ndarray, n: int) -> np.ndarray:
    """Sedghi, Gupta, Long (2019), section 3, with PyTorch's order of axes; crops kernels larger than the input."""
    transforms = np.fft.fft2(kernel, (n, n), axes=(2, 3)).transpose(2, 3, 0, 1)
    return np.sort(np.linalg.svd(transforms, compute_uv=False).ravel())[::-1]


def test_equals_the_published_code_on_a_trained_network(shared_checkpoints: Path) -> None:
    state = torch.load(shared_checkpoints / "resnet20-cifar10.th", map_location="cpu", weights_only=True)
    weights = {key: value.numpy() for key, value in state["state_dict"].items() if value.ndim == 4}
    assert len(weights) == 19
    for key, stored in weights.items():
        n = {16: 32, 32: 16, 64: 8}[stored.shape[0]]
        found = circulant(square(stored, n).layer(stored), CPU)
        expected = published(stored.astype(np.float64), n)
        assert found.values == pytest.approx(expected, rel=0, abs=1e-13 * expected[0]), key


@pytest.mark.parametrize("n", [3, 4, 7, 16])
@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (2, 6, 2, 3), (3, 3, 1, 1)])
def test_equals_the_published_code_where_the_kernel_fits(shape: tuple[int, ...], n: int) -> None:
    stored = np.random.default_rng(0).standard_normal(shape)
    found = circulant(square(stored, n).layer(stored), CPU)
    assert found.values == pytest.approx(published(stored, n), abs=1e-13 * found.max)


# ---------------------------------------------------------------------------------------------------- what it is about


def test_spectrum_says_what_it_is_about() -> None:
    found = circulant(NAMED["patchify"].layer(), CPU)
    assert (found.method, found.of, found.guarantee, found.kind) == ("circulant", "circular 6x4", "certified", "full")


def test_transposed_layer_has_the_values_of_its_adjoint() -> None:
    stored = np.random.default_rng(0).standard_normal((3, 2, 4, 4))
    transposed = Geometry((5, 4), (2, 2), ((1, 1), (1, 1)), transposed=True)
    forward = replace(transposed, size=(10, 8), transposed=False)
    up, down = (circulant(make_layer(stored, g), CPU) for g in (transposed, forward))
    assert np.array_equal(up.values, down.values)  # type: ignore[arg-type]
    assert (up.of, down.of) == ("circular 5x4", "circular 10x8")
    assert up.count == 5 * 4 * min(3, 2 * 4)


def test_groups_are_the_union_of_their_spectra() -> None:
    stored = np.random.default_rng(0).standard_normal((6, 2, 3, 3))
    whole = circulant(square(stored, 5, groups=3).layer(stored), CPU)
    parts = [circulant(square(part, 5).layer(part), CPU).values for part in np.split(stored, 3)]
    assert whole.values == pytest.approx(np.sort(np.concatenate(parts))[::-1], abs=1e-13)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("guesses", "changes", "expected"),
    [
        ((), {}, ()),
        (("size", "padding_mode", "transposed"), {}, ("size",)),
        (("stride", "dilation", "groups"), {}, ("stride", "groups", "dilation")),
        (("transposed", "size"), {"stride": (2, 2)}, ("size", "transposed")),
    ],
)
def test_spectrum_names_the_guesses_that_it_leans_on(
    guesses: tuple[str, ...], changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    g = replace(NAMED["no padding"].geometry, size=(4, 4), origin=dict.fromkeys(guesses, "assumed"), **changes)
    assert circulant(make_layer(np.ones((2, 2, 3, 3)), g), CPU).assumes == expected


def test_pointwise_layer_does_not_lean_on_its_dilation() -> None:
    g = resolve((1, 1), [("option", GeometryFacts(size=4))])
    assert circulant(make_layer(np.ones((2, 2, 1, 1)), g), CPU).assumes == ("stride", "groups")


# --------------------------------------------------------------------------------------------- what there is none for


@pytest.mark.parametrize(
    ("size", "stride", "reason"),
    [((7, 8), (2, 2), "stride 2 does not divide size 7"), ((6, 8), (2, 3), "stride 3 does not divide size 8")],
)
def test_stride_that_does_not_divide_is_unavailable(
    size: tuple[int, ...], stride: tuple[int, ...], reason: str
) -> None:
    g = Geometry(size, stride, ((1, 1), (1, 1)))
    with pytest.raises(UnavailableError) as error:
        circulant(make_layer(np.ones((2, 2, 3, 3)), g), CPU)
    assert str(error.value) == reason


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (2, 0, 3, 3), (2, 2, 0, 3)])
def test_kernel_without_entries_is_unavailable(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnavailableError, match="no entries"):
        circulant(square(np.zeros(shape), 4).layer(np.zeros(shape)), CPU)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_unavailable(bad: float) -> None:
    stored = np.ones((2, 2, 3, 3))
    stored[0, 0, 0, 0] = bad
    with pytest.raises(UnavailableError, match="1 of 36 weights"):
        circulant(square(stored, 4).layer(stored), CPU)


def test_spectrum_beyond_the_memory_budget_is_unavailable() -> None:
    stored = np.ones((1, 1, 3, 3))
    with pytest.raises(UnavailableError, match="do not fit into the memory budget"):
        circulant(square(stored, 1000).layer(stored), Execution("cpu", memory=1 << 20))


def test_norm_beyond_float64_is_unavailable() -> None:
    stored = np.full((4, 4, 3, 3), 1.5e308)
    with pytest.raises(UnavailableError, match="range of float64"):
        circulant(square(stored, 4).layer(stored), CPU)


# ------------------------------------------------------------------------------------------------ scales and precision


@pytest.mark.parametrize("exponent", [-1022, -500, 500, 1000])
def test_scaling_by_a_power_of_two_scales_the_values_exactly(exponent: int) -> None:
    stored = np.random.default_rng(0).integers(-4, 5, (3, 2, 3, 3)).astype(np.float64)
    plain, scaled = (circulant(square(stored, 5).layer(k), CPU) for k in (stored, np.ldexp(stored, exponent)))
    assert np.array_equal(np.ldexp(plain.values, exponent), scaled.values)  # type: ignore[arg-type]


def test_zero_kernel_has_zero_values() -> None:
    found = circulant(square(np.zeros((3, 2, 3, 3)), 4).layer(np.zeros((3, 2, 3, 3))), CPU)
    assert (found.count, found.max, found.min, found.stable_rank, found.condition) == (32, 0, 0, None, None)


def test_denormal_kernel_keeps_its_values() -> None:
    stored = np.full((1, 1, 3), 5e-324)
    found = circulant(make_layer(stored, Geometry((4,), (1,), ((1, 1),))), CPU)
    assert found.values is not None
    assert found.values.tolist() == [1.5e-323, 5e-324, 5e-324, 5e-324]


def close_within_errors(one: Spectrum, other: Spectrum) -> bool:
    assert one.values is not None
    assert other.values is not None
    assert one.error is not None
    assert other.error is not None
    return bool(np.abs(one.values - other.values).max() <= one.error + other.error)


@pytest.mark.parametrize("name", [name for name in NAMED if name != "stride above the kernel"])
def test_float32_is_within_its_stated_error(name: str) -> None:
    layer = fitting(NAMED[name]).layer()
    double, single = (circulant(layer, Execution("cpu", dtype=dtype, jobs=1)) for dtype in ("float64", "float32"))
    assert close_within_errors(double, single)
    assert single.error is not None
    assert 1e-8 * single.max < single.error < 1e-3 * single.max


# ----------------------------------------------------------------------------------------- eigenvalues of Gram matrices

SUMMARY = SpectrumOptions(values=False)


@pytest.fixture
def always_gram(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the route of large problems whatever the size, also where it does not pay."""

    def choose(problem: Problem, execution: Execution, accuracy: float | None = None) -> ByGram:
        return ByGram(problem, execution, accuracy or {"float64": 1e-9, "float32": 1e-6}[execution.dtype])

    monkeypatch.setattr("convsv.spectra.circulant.choose_route", choose)


@pytest.mark.usefixtures("always_gram")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", [fitting(case) for case in (*NAMED.values(), *GRID[::20])], ids=lambda case: case.id)
def test_eigenvalues_equal_the_dense_matrix_within_the_error(case: Case, dtype: str) -> None:
    expected = dense(case, case.kernel())
    found = circulant(case.layer(), Execution("cpu", dtype=dtype, jobs=1))
    assert found.error is not None
    assert np.abs(found.values - expected).max() <= found.error + 1e-13 * expected[0]
    assert found.error <= {"float64": 1e-9, "float32": 1e-6}[dtype] * expected[0] * (1 + 1e-9)


@given(data=st.data(), accuracy=st.sampled_from([1e-12, 1e-9, 1e-6, 1e-3]))
def test_eigenvalues_are_accurate_for_every_kernel(data: st.DataObject, accuracy: float) -> None:
    # Kernels of low rank have values near zero, where eigenvalues alone would err by 1e-8 of the largest.
    case = fitting(data.draw(cases()))
    stored = data.draw(kernels(case.shape))
    expected = dense(case, stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convsv.spectra.circulant.choose_route", ByGram)
        found = circulant(case.layer(stored), CPU, SpectrumOptions(accuracy=accuracy))
    assert found.error is not None
    assert np.abs(found.values - expected).max() <= found.error + 1e-13 * expected[0]
    # Where taps cancel, what is left of their rounding is not small beside the largest value.
    taps = 1e-14 * np.abs(stored).sum()
    assert found.error <= max(accuracy, 1e-12) * expected[0] * (1 + 1e-9) + taps + 1e-300


def square_problem(stored: np.ndarray, n: int) -> Problem:
    return Problem(torch.from_numpy(stored / np.abs(stored).max())[None], (n, n))


def test_only_matrices_with_small_values_need_an_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 - z has a zero at frequency 0 alone: on 6 points an axis, at 6 of 36.
    stored = np.zeros((3, 3, 1, 2))
    stored[:, :, 0, 0], stored[:, :, 0, 1] = np.eye(3), -np.eye(3)
    seen: list[int] = []
    plain = _routes.singular_values

    def counting(matrices: torch.Tensor) -> torch.Tensor:
        seen.append(math.prod(matrices.shape[:-2]))
        return plain(matrices)

    monkeypatch.setattr(_routes, "singular_values", counting)
    route = ByGram(square_problem(stored, 6), CPU, 1e-9)
    indices = torch.tensor(list(np.ndindex(6, 6)))
    values = route.values(indices, torch.device("cpu"), real=False)
    assert sum(seen) == 6
    turns = 2 * np.pi * indices[:, 1].double() / 6
    expected = torch.abs(1 - torch.polar(torch.ones_like(turns), turns))
    assert torch.allclose(values, expected[:, None, None].expand(36, 1, 3), rtol=0, atol=1e-9)


@pytest.mark.usefixtures("always_gram")
def test_eigenvalues_that_lapack_does_not_find_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.random.default_rng(0).standard_normal((4, 3, 3, 3))
    expected = published(stored, 6)
    monkeypatch.setattr(
        _routes, "eigenvalues", lambda matrices: torch.full(matrices.shape[:-1], torch.nan, dtype=torch.float64)
    )
    found = circulant(square(stored, 6).layer(stored), CPU)
    assert found.values == pytest.approx(expected, rel=0, abs=1e-13 * expected[0])


@pytest.mark.usefixtures("always_gram")
def test_zero_kernel_has_zero_values_by_either_route() -> None:
    stored = np.zeros((4, 3, 3, 3))
    found = circulant(square(stored, 6).layer(stored), CPU)
    assert (found.count, found.max, found.min) == (3 * 36, 0, 0)


def test_small_problems_are_decomposed_in_their_own_precision() -> None:
    for dtype, channels in (("float64", 16), ("float32", 4)):
        problem = square_problem(np.random.default_rng(0).standard_normal((channels, channels, 3, 3)), 16)
        route = choose_route(problem, Execution("cpu", dtype=dtype, jobs=1))
        assert isinstance(route, BySvd)
        assert 1e-16 < route.error(1.0) / float(torch.finfo(getattr(torch, dtype)).eps) < 1e4


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_large_problems_take_the_eigenvalues_where_few_values_are_small(dtype: str) -> None:
    rng = np.random.default_rng(0)
    full = rng.standard_normal((32, 96, 2, 2))
    defective = full.copy()
    defective[0] = defective[1]
    single = rng.standard_normal((1, 96, 3, 3))
    execution = Execution("cpu", dtype=dtype, jobs=1)
    assert isinstance(choose_route(square_problem(full, 64), execution), ByGram)
    assert isinstance(choose_route(square_problem(single, 512), execution), BySvd)
    # Of sqrt(1e-13) an eigenvalue near zero leaves 3e-7: enough in float32 only.
    route = choose_route(square_problem(defective, 64), execution)
    assert isinstance(route, {"float64": BySvd, "float32": ByGram}[dtype])


def test_large_layer_is_within_the_accuracy_that_it_states() -> None:
    stored = np.random.default_rng(0).standard_normal((32, 24, 3, 3))
    layer = Case((32, 24, 3, 3), Geometry((64, 64), (2, 2), ((1, 1), (1, 1)))).layer(stored)
    expected = published(np.asarray(normal_form(torch.from_numpy(stored)[None], (2, 2), (1, 1)).kernel[0]), 32)
    for dtype, accuracy in (("float64", 1e-9), ("float32", 1e-6)):
        found = circulant(layer, Execution("cpu", dtype=dtype))
        assert found.error is not None
        assert 1e-2 * accuracy < found.error / expected[0] <= accuracy * (1 + 1e-9)
        assert np.abs(found.values - expected).max() <= found.error


def test_accuracy_that_eigenvalues_do_not_reach_is_an_svd() -> None:
    problem = square_problem(np.random.default_rng(0).standard_normal((32, 96, 2, 2)), 64)
    assert isinstance(choose_route(problem, CPU, 1e-15), BySvd)


@pytest.mark.parametrize("accuracy", [0.0, -1e-9, math.nan])
def test_accuracy_must_be_positive(accuracy: float) -> None:
    with pytest.raises(UsageError, match="accuracy"):
        SpectrumOptions(accuracy=accuracy)


# ------------------------------------------------------------------------------------------------------ statistics only


@pytest.mark.parametrize("case", [fitting(case) for case in NAMED.values()], ids=lambda case: case.id)
def test_statistics_without_values_are_the_same(case: Case) -> None:
    whole, summary = (circulant(case.layer(), CPU, SpectrumOptions(values=values)) for values in (True, False))
    assert summary.values is None
    assert replace(whole, values=None) == summary


def test_spectrum_beyond_the_memory_budget_has_statistics() -> None:
    stored = np.random.default_rng(0).standard_normal((1, 1, 3, 3))
    layer = square(stored, 1000).layer(stored)
    small, large = (circulant(layer, Execution("cpu", memory=memory), SUMMARY) for memory in (1 << 20, 1 << 30))
    assert large.quantile_error == 0
    assert 0 < small.quantile_error < 1e-5 * small.max
    for probability, value in large.quantiles.items():
        assert abs(small.quantiles[probability] - value) <= small.quantile_error * (1 + 1e-9)
    assert small.effective_rank == pytest.approx(large.effective_rank, rel=1e-12)
    same = {"quantiles": {}, "quantile_error": 0.0, "frobenius": 0.0, "stable_rank": None, "effective_rank": None}
    assert replace(small, **same) == replace(large, **same)  # type: ignore[arg-type]
    assert small.frobenius == pytest.approx(large.frobenius, rel=1e-12)


def test_memory_does_not_grow_with_the_size_of_the_input() -> None:
    stored = np.random.default_rng(0).standard_normal((1, 1, 3, 3))

    def peak(n: int) -> int:
        tracemalloc.start()
        try:
            assert (
                circulant(square(stored, n).layer(stored), Execution("cpu", memory=1 << 20, jobs=1), SUMMARY).count
                == n * n
            )
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(512)
    # The half grid of the second has 6 MB more of values.
    assert peak(1448) < peak(724) + (1 << 20)


# ----------------------------------------------------------------------------------------------------- singular vectors


@pytest.mark.parametrize(
    "case",
    [
        fitting(NAMED[name])
        for name in NAMED
        if name not in ("circular padding beyond the input", "stride above the kernel")
    ],
    ids=lambda case: case.id,
)
@pytest.mark.parametrize("transposed", [False, True])
def test_singular_vectors_are_plane_waves_of_the_layer(case: Case, *, transposed: bool) -> None:
    g, stored = case.geometry, case.kernel()
    points = tuple(n // s for n, s in zip(g.size, g.stride, strict=True))
    matrix = oracle.circular(stored, g.size, stride=g.stride, dilation=g.dilation, groups=g.groups)
    geometry = replace(g, size=points, transposed=True, padding_mode="zeros") if transposed else g
    indices = [[(3 * axis + 1 + m) % n for axis, n in enumerate(points)] for m in range(2)]
    found = singular_vectors(make_layer(stored, geometry), indices)
    place = np.stack(np.meshgrid(*map(np.arange, points), indexing="ij"), -1).reshape(-1, len(points))
    for m, frequency in enumerate(found.frequencies):
        wave = np.exp(1j * place @ frequency) / math.sqrt(len(place))
        for rank in range(found.values.shape[-1]):
            plain, folded = found.left[m, 0, rank], found.right[m, 0, rank]
            plain, folded = (folded, plain) if transposed else (plain, folded)
            strided = np.outer(folded, wave).reshape(-1, *g.stride, *points)
            dims = len(points)
            order = [0, *(axis for a in range(dims) for axis in (1 + dims + a, 1 + a))]
            image, source = np.outer(plain, wave).ravel(), strided.transpose(order).ravel()
            value = found.values[m, 0, rank]
            assert np.linalg.norm(source) == pytest.approx(1)
            assert np.abs(matrix @ source - value * image).max() < 1e-12 * np.abs(matrix).sum()
            assert np.abs(matrix.T @ image - value * source).max() < 1e-12 * np.abs(matrix).sum()


def test_singular_vectors_have_the_scale_of_the_kernel() -> None:
    stored = np.random.default_rng(0).standard_normal((6, 2, 3, 3)) * 1e-300
    layer = square(stored, 4, groups=3).layer(stored)
    found = singular_vectors(layer, np.array([[0, 0], [5, -1]]))
    assert found.values.shape == (2, 3, 2)
    assert found.values[0] == pytest.approx(np.linalg.svd(stored.sum((2, 3)).reshape(3, 2, 2), compute_uv=False))
    assert found.frequencies.tolist() == [[0, 0], [math.pi / 2, 3 * math.pi / 2]]


@pytest.mark.parametrize("indices", [[[0]], [0, 0], [[0.5, 0.0]], np.zeros((1, 3), dtype=np.int64)])
def test_frequencies_are_integers_one_an_axis(indices: Any) -> None:
    with pytest.raises(UsageError, match="one an axis"):
        singular_vectors(square(np.ones((2, 2, 3, 3)), 4).layer(np.ones((2, 2, 3, 3))), indices)


# -------------------------------------------------------------------------------------------------- chunks and threads

LARGE = np.random.default_rng(0).standard_normal((24, 20, 3, 3))


def test_values_do_not_depend_on_the_number_of_threads() -> None:
    results = [circulant(square(LARGE, 16).layer(LARGE), Execution("cpu", jobs=jobs)).values for jobs in (1, 2, 5)]
    assert all(np.array_equal(results[0], other) for other in results[1:])  # type: ignore[arg-type]


def test_the_error_does_not_depend_on_the_number_of_threads() -> None:
    stored = np.random.default_rng(0).standard_normal((48, 40, 3, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convsv.spectra.circulant.choose_route", lambda *of: ByGram(*of[:2], 1e-9))
        found = [circulant(square(stored, 32).layer(stored), Execution("cpu", jobs=jobs)) for jobs in (1, 2, 3, 5)]
    assert len({one.error for one in found}) == 1


def test_values_do_not_depend_on_the_memory_budget() -> None:
    layer, budgets = square(LARGE, 32).layer(LARGE), (1 << 20, 1 << 30)
    results = [circulant(layer, Execution("cpu", memory=memory, jobs=2)) for memory in budgets]
    assert close_within_errors(*results)
    assert results[0].values == pytest.approx(results[1].values, rel=0, abs=1e-14 * results[0].max)


def test_depthwise_and_pointwise_layers_stay_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    # One singular value a matrix needs no decomposition; one tap has one symbol for the whole grid.
    decompositions = itertools.count()
    svdvals = torch.linalg.svdvals

    def counting(matrices: torch.Tensor, **options: Any) -> torch.Tensor:
        for _ in range(math.prod(matrices.shape[:-2])):
            next(decompositions)
        return svdvals(matrices, **options)

    monkeypatch.setattr(torch.linalg, "svdvals", counting)
    depthwise = np.random.default_rng(0).standard_normal((256, 1, 7, 7))
    assert circulant(square(depthwise, 20, groups=256).layer(depthwise), CPU).count == 256 * 400
    assert next(decompositions) == 0
    pointwise = np.random.default_rng(0).standard_normal((30, 20, 1, 1))
    assert circulant(square(pointwise, 20).layer(pointwise), CPU).count == 20 * 400
    assert next(decompositions) == 2


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gpu_is_within_the_stated_errors(dtype: str) -> None:
    layer = square(LARGE, 16).layer(LARGE)
    assert close_within_errors(circulant(layer, Execution("cuda", dtype=dtype)), circulant(layer, CPU))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gpu_is_within_the_stated_errors_for_large_layers(dtype: str) -> None:
    stored = np.random.default_rng(0).standard_normal((32, 24, 3, 3))
    layer = Case((32, 24, 3, 3), Geometry((64, 64), (2, 2), ((1, 1), (1, 1)))).layer(stored)
    found = circulant(layer, Execution("cuda", dtype=dtype))
    assert close_within_errors(found, circulant(layer, CPU))
    assert found.error is not None
    assert found.error <= {"float64": 1e-9, "float32": 1e-6}[dtype] * found.max * (1 + 1e-6)


# ----------------------------------------------------------------------------------------------------------- in shares


def in_shares(layer: ConvLayer, execution: Execution, options: SpectrumOptions, count: int) -> Spectrum:
    """The spectrum from shares that were computed apart from one another, and have travelled."""
    division = SPECTRA["circulant"].division
    assert division is not None
    parts = [division.part(layer, execution, options, Shared(layer, execution), (k, count)) for k in range(count)]
    return division.whole(layer, options, pickle.loads(pickle.dumps(parts)))


def assert_the_same(found: Spectrum, expected: Spectrum) -> None:
    assert replace(found, values=None) == replace(expected, values=None)
    assert (found.values is None) is (expected.values is None)
    assert found.values is None or np.array_equal(found.values, expected.values)


@pytest.mark.parametrize("case", [fitting(case) for case in (*NAMED.values(), *GRID[::7])], ids=lambda case: case.id)
def test_shares_come_to_the_same_bits(case: Case) -> None:
    for count, values in ((2, True), (3, False), (7, True)):
        options = SpectrumOptions(values=values)
        assert_the_same(in_shares(case.layer(), CPU, options, count), circulant(case.layer(), CPU, options))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("geometry", [{}, {"stride": (2, 2)}, {"groups": 2}, {"dilation": (2, 2)}])
def test_shares_of_large_layers_come_to_the_same_bits(dtype: str, geometry: dict[str, Any]) -> None:
    # Large enough for eigenvalues, and for many chunks; the second time values are not held.
    stored = np.random.default_rng(0).standard_normal((24, 24 // geometry.get("groups", 1), 3, 3))
    facts = Geometry((40, 40), **{"stride": (1, 1), "padding": ((1, 1), (1, 1)), **geometry})
    layer = make_layer(stored, facts)
    for memory in (1 << 30, 1 << 20):
        execution, options = Execution("cpu", dtype, memory, jobs=1), SpectrumOptions(values=False)
        whole = circulant(layer, execution, options)
        for count in (2, 5):
            assert_the_same(in_shares(layer, execution, options, count), whole)


def test_a_share_computes_its_own_frequencies_only(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, seen = square(np.ones((4, 4, 3, 3)), 32).layer(), list[int]()
    original = BySvd.values

    def values(self: BySvd, indices: torch.Tensor, device: torch.device, *, real: bool) -> torch.Tensor:
        seen.append(len(indices))
        return original(self, indices, device, real=real)

    monkeypatch.setattr(BySvd, "values", values)
    division = SPECTRA["circulant"].division
    assert division is not None
    for number in range(4):
        seen.append(0)
        division.part(layer, CPU, SpectrumOptions(), Shared(layer, CPU), (number, 4))
        assert 0 < sum(seen) < 32 * 17 / 2
        seen.clear()

"""The norm of the layer as it runs: enclosed for every geometry, and narrowly for trained layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracle
import precise
from cases import GRID, Case, cases, fitting, geometry_like, is_possible, kernels
from convsv import at_size
from convsv.at_size import Effort, any_size_copies, certify_at_size
from convsv.bloch import bloch_waves
from convsv.certificate import Budget, certify_with_peak
from convsv.errors import ContradictionError, GeometryError
from convsv.execution import Execution
from convsv.geometry import PADDINGS, Geometry
from convsv.golub_kahan import LanczosOptions, leading_singular_values
from convsv.operator import ConvOperator
from convsv.results import Interval
from convsv.symbol import normal_form

ONE_THREAD = Execution(device="cpu", jobs=1)
PATIENT = Budget(seconds=None)


@pytest.fixture(autouse=True, scope="module", params=["by its symbol", "by its matrix"])
def route(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small operators have two routes; every test takes both."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "by its symbol":
            patch.setattr(at_size, "_DENSE_SIDE", 0)
            patch.setattr(at_size, "_DENSE_SIDE_IF_WIDE", 0)
        yield


def intervals_of(case: Case, kernel: np.ndarray | None = None, tol: float = 1e-3) -> tuple[Interval, Interval]:
    """Of any size, for the stated geometry, and at the layer's own size."""
    g = case.geometry
    canonical = torch.from_numpy(case.layer(kernel).kernel().copy())
    form = normal_form(canonical, g.stride, g.dilation)
    norm, peak = certify_with_peak(form, tol, execution=ONE_THREAD, budget=PATIENT)
    return norm, certify_at_size(canonical, g, norm, peak, execution=ONE_THREAD)


def check(case: Case, kernel: np.ndarray | None = None) -> None:
    norm, interval = intervals_of(case, kernel)
    truth = float(np.linalg.norm(case.dense(kernel), 2))
    assert interval.lower <= truth * (1 + 1e-13)
    assert interval.upper >= truth * (1 - 1e-13)
    assert interval.lower <= interval.upper
    if case.geometry.padding_mode == "zeros":
        assert interval.upper <= norm.upper
    size = "x".join(map(str, case.geometry.size))
    assert interval.of == f"{case.geometry.padding_mode} {size}"


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_the_dense_norm_is_enclosed(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("mode", sorted(PADDINGS))
@pytest.mark.parametrize("grown", [0, 1, 5], ids=lambda n: f"size plus {n}")
def test_every_padding_mode_and_odd_sizes_are_enclosed(mode: str, grown: int) -> None:
    for case in GRID[grown % 3 :: 3]:
        if case.geometry.transposed and mode != "zeros":
            continue
        size = tuple(n + grown for n in case.geometry.size)
        if math.prod(size) > 200:
            continue
        changed = geometry_like(case, padding_mode=mode, size=size)
        if is_possible(changed):
            check(changed)


@pytest.mark.parametrize("case", [c for c in GRID if not c.geometry.transposed][::7], ids=lambda case: case.id)
def test_circular_padding_of_the_kernels_reach_is_within_the_grid(case: Case) -> None:
    for start in (0, 1):
        reach = [d * (k - 1) for d, k in zip(case.geometry.dilation, case.shape[2:], strict=True)]
        pads = tuple((start * r // 2, r - start * r // 2) for r in reach)
        check(geometry_like(fitting(case), padding_mode="circular", padding=pads))


@pytest.mark.parametrize(
    ("stride", "size", "taps"),
    [
        ((2,), (3,), (2,)),
        ((2,), (5,), (3,)),
        ((3,), (7,), (4,)),
        ((2, 2), (3, 3), (2, 2)),
        ((2, 2), (3, 4), (2, 2)),
        ((2, 2), (4, 3), (2, 2)),
    ],
)
def test_a_stride_that_does_not_divide_the_circle_is_no_submatrix_of_the_polyphase_circle(
    stride: tuple[int, ...], size: tuple[int, ...], taps: tuple[int, ...]
) -> None:
    # Windows of ones: the last overlaps the first around the circle, though none overlaps its neighbour on a line.
    case = Case((1, 1, *taps), Geometry(size, stride, tuple((0, k - 1) for k in taps), "circular"))
    check(case, np.ones(case.shape))


UNUSUAL: dict[str, Case] = {
    "uneven padding": Case((2, 3, 3, 3), Geometry((5, 6), (1, 1), ((0, 2), (1, 0)))),
    "padding beyond the kernel": Case((2, 2, 3), Geometry((4,), (1,), ((5, 7),))),
    "padding beyond the kernel, with a stride": Case((2, 2, 3), Geometry((5,), (2,), ((6, 9),))),
    "padding beyond the kernel, stride beyond it too": Case((2, 2, 2), Geometry((7,), (4,), ((9, 3),))),
    "padding after that is never read": Case((2, 2, 3), Geometry((7,), (3,), ((0, 1),))),
    "an end of the input that is never read": Case((2, 2, 2), Geometry((8,), (3,), ((1, 0),))),
    "stride and dilation": Case((2, 2, 3), Geometry((9,), (2,), ((2, 1),), dilation=(3,))),
    "dilation that shares a factor": Case((2, 2, 3), Geometry((6,), (1,), ((3, 3),), dilation=(3,))),
    "kernel larger than the input": Case((2, 2, 5), Geometry((2,), (1,), ((2, 2),))),
    "kernel larger than the padded grid": Case((1, 1, 7), Geometry((1,), (1,), ((3, 3),))),
    "transposed with output padding": Case(
        (2, 3, 3), Geometry((4,), (3,), ((1, 1),), transposed=True, output_padding=(2,))
    ),
    "transposed with large padding": Case((2, 2, 4), Geometry((5,), (2,), ((3, 2),), transposed=True)),
    "transposed and dilated": Case((2, 2, 2), Geometry((4,), (2,), ((0, 1),), dilation=(3,), transposed=True)),
    "circular beyond the input": Case((2, 2, 3), Geometry((2,), (1,), ((4, 4),), "circular")),
    "reflect": Case((2, 2, 3, 3), Geometry((3, 4), (1, 1), ((2, 1), (1, 2)), "reflect")),
    "replicate": Case((2, 2, 3, 3), Geometry((3, 4), (1, 1), ((2, 1), (1, 2)), "replicate")),
    "pointwise with circular padding": Case((2, 2, 1, 1), Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), "circular")),
    "pointwise with replicate padding": Case((2, 2, 1, 1), Geometry((2, 1), (1, 1), ((1, 1), (1, 1)), "replicate")),
    "a dot": Case((1, 1, 1), Geometry((1,), (1,), ((0, 0),))),
    "a row of one tap": Case((2, 3, 1, 3), Geometry((4, 4), (1, 2), ((0, 0), (1, 1)))),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_geometry_is_enclosed(name: str) -> None:
    case = UNUSUAL[name]
    for kernel in (None, np.ones(case.shape), np.abs(case.kernel())):
        check(case, kernel)


@pytest.mark.parametrize("scale", [2.0**-1060, 1e-150, 1e150, 1e306])
def test_weights_of_any_scale_are_enclosed(scale: float) -> None:
    case = Case((2, 2, 3), Geometry((5,), (1,), ((1, 1),)))
    kernel = case.kernel() / abs(case.kernel()).max() * scale
    _norm, interval = intervals_of(case, kernel)
    # Scaled by a power of two, so that the dense oracle neither overflows nor loses digits.
    exponent = math.frexp(scale)[1]
    scaled = np.ldexp(np.ldexp(kernel, -exponent // 2), -exponent - -exponent // 2)
    truth = float(np.linalg.norm(case.dense(scaled), 2))
    lower, upper = (
        math.ldexp(math.ldexp(x, -exponent // 2), -exponent - -exponent // 2) for x in (interval.lower, interval.upper)
    )
    granularity = math.ldexp(5e-324, 0) / scale
    assert lower <= truth * (1 + 1e-13) + granularity
    assert upper >= truth * (1 - 1e-13) - granularity
    assert upper <= lower * 1.5 + 4 * granularity


@pytest.mark.parametrize("way", ["as it is", "the lower end first", "the matrix last"])
@pytest.mark.parametrize("mode", ["zeros", "circular", "replicate"])
def test_denormal_weights_are_enclosed_without_tolerance(mode: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "the matrix last":
        for name, value in {"_DENSE_SIDE": 0, "_DENSE_SIDE_IF_WIDE": 1024, "_WIDE": -1.0}.items():
            monkeypatch.setattr(at_size, name, value)
    monkeypatch.setattr(at_size, "_LONG", 0)
    effort = Effort(tol=1e-12) if way == "the lower end first" else at_size.ALL
    for seed, taps in itertools.product(range(6), (1, 2)):
        case = Case((2, 2, taps), Geometry((4,), (1,), ((0, taps - 1),), mode))
        kernel = np.random.default_rng(seed).standard_normal(case.shape) * 2.0**-1070
        stored, g = torch.from_numpy(kernel[None].copy()), case.geometry
        norm, peak = certify_with_peak(normal_form(stored, (1,), (1,)), 1e-6, execution=ONE_THREAD, budget=PATIENT)
        interval = certify_at_size(stored, g, norm, peak, execution=ONE_THREAD, effort=effort)
        dense = case.dense(kernel)
        assert precise.norm_squared_at_most(dense, Fraction(interval.upper) ** 2)
        assert not precise.norm_squared_at_most(dense, Fraction(interval.lower) ** 2 * (1 - Fraction(1, 10**25)))


@pytest.mark.parametrize("case", GRID[::12], ids=lambda case: case.id)
def test_where_the_circles_are_wide_the_matrix_is_looked_at(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_DENSE_SIDE": 0, "_DENSE_SIDE_IF_WIDE": 1024}.items():
        monkeypatch.setattr(at_size, name, value)
    check(case)
    interval = intervals_of(case)[1]
    assert interval.upper <= interval.lower * (1 + 2e-3)


def test_a_norm_beyond_the_largest_float_proves_nothing_at_a_size() -> None:
    case = Case((2, 2, 3), Geometry((5,), (1,), ((1, 1),)))
    norm, interval = intervals_of(case, np.full(case.shape, 1.5e308))
    assert norm.upper == interval.upper == math.inf


def test_the_zero_kernel_has_norm_zero() -> None:
    case = UNUSUAL["reflect"]
    _norm, interval = intervals_of(case, np.zeros(case.shape))
    assert (interval.lower, interval.upper) == (0.0, 0.0)


def test_a_layer_without_output_is_refused() -> None:
    case = Case((1, 1, 3), Geometry((2,), (1,), ((0, 0),)))
    with pytest.raises(GeometryError):
        intervals_of(case)


def test_ends_that_exclude_each_other_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_size, "matrix_norm", lambda _matrix: (2e9, 1e9))
    monkeypatch.setattr(at_size, "_ritz", lambda *_: 1e9)
    with pytest.raises(ContradictionError):
        intervals_of(UNUSUAL["uneven padding"])


@settings(max_examples=max(150, settings.default.max_examples))
@given(st.data(), cases())
def test_any_layer_is_enclosed(data: st.DataObject, case: Case) -> None:
    kernel = data.draw(kernels(case.shape))
    check(case, kernel)


# ----------------------------------------------------------------------------------------------- of every size together


SMALL_SIZES = range(1, 9)


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-6])
@pytest.mark.parametrize("case", GRID[::3], ids=lambda case: case.id)
def test_an_interval_that_is_narrow_enough_is_an_interval(
    case: Case, tol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for layers whose circles take long: the lower end first, and no more work than the width needs.
    monkeypatch.setattr(at_size, "_LONG", 0)
    kernel, g = torch.from_numpy(case.layer().kernel().copy()), case.geometry
    norm, peak = certify_with_peak(normal_form(kernel, g.stride, g.dilation), tol, execution=ONE_THREAD, budget=PATIENT)
    best = certify_at_size(kernel, g, norm, peak, execution=ONE_THREAD)
    found = certify_at_size(kernel, g, norm, peak, execution=ONE_THREAD, effort=Effort(tol=tol))
    truth = float(np.linalg.norm(case.dense(), 2))
    assert found.lower <= truth * (1 + 1e-13)
    assert found.upper >= truth * (1 - 1e-13)
    assert found.evaluations <= best.evaluations
    assert found.upper <= max(best.upper, best.lower * (1 + tol)) * (1 + 1e-6)


def test_without_time_the_upper_end_is_that_of_any_size() -> None:
    case = next(c for c in GRID if c.geometry.padding_mode == "zeros")
    kernel, g = torch.from_numpy(case.layer().kernel().copy()), case.geometry
    norm, peak = certify_with_peak(normal_form(kernel, g.stride, g.dilation), 1e-3, execution=ONE_THREAD)
    found = certify_at_size(kernel, g, norm, peak, execution=ONE_THREAD, effort=Effort(seconds=-1.0))
    truth = float(np.linalg.norm(case.dense(), 2))
    assert found.lower <= truth * (1 + 1e-13)
    assert truth * (1 - 1e-13) <= found.upper <= norm.upper


def sizes_that_exist(case: Case) -> Iterator[Case]:
    for n in SMALL_SIZES:
        for m in SMALL_SIZES if case.geometry.dims > 1 else (0,):
            changed = geometry_like(case, size=(n, m)[: case.geometry.dims])
            if is_possible(changed):
                yield changed


@pytest.mark.parametrize("mode", sorted(PADDINGS))
@pytest.mark.parametrize("padding", [((0, 0),), ((1, 1),), ((2, 0),), ((0, 3),), ((4, 4),)], ids=str)
@pytest.mark.parametrize("taps", [1, 2, 3])
def test_no_size_exceeds_the_norm_times_the_copies(mode: str, padding: tuple[tuple[int, int]], taps: int) -> None:
    for kernel in (np.ones((2, 2, taps)), np.random.default_rng(taps).standard_normal((2, 2, taps))):
        case = Case(kernel.shape, Geometry((8,), (1,), padding, mode))
        canonical = torch.from_numpy(kernel[None])
        norm, _peak = certify_with_peak(normal_form(canonical, (1,), (1,)), execution=ONE_THREAD)
        most = norm.upper * any_size_copies(case.geometry, (taps,))
        for sized in sizes_that_exist(case):
            assert np.linalg.norm(sized.dense(kernel), 2) <= most * (1 + 1e-13), sized.id


def test_copies_multiply_over_the_axes() -> None:
    one = Geometry((8,), (1,), ((1, 2),), "replicate")
    two = Geometry((8, 8), (1, 1), ((1, 2), (0, 1)), "replicate")
    assert any_size_copies(one, (3,)) == pytest.approx(2, rel=1e-12)
    assert any_size_copies(two, (3, 3)) == pytest.approx(math.sqrt(8), rel=1e-12)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_ordinary_padding_copies_nothing(mode: str) -> None:
    assert any_size_copies(Geometry((8, 8), (1, 1), ((1, 1), (1, 1)), mode), (3, 3)) == 1.0


# -------------------------------------------------------------------------------------------------------- start vectors


@pytest.mark.parametrize("case", [c for c in GRID if not c.geometry.transposed][::9], ids=lambda case: case.id)
def test_a_wave_lives_in_its_own_group_and_on_the_whole_input(case: Case) -> None:
    g = case.geometry
    canonical = torch.from_numpy(case.layer().kernel())
    form = normal_form(canonical, g.stride, g.dilation)
    _norm, peak = certify_with_peak(form, execution=ONE_THREAD)
    assert peak is not None
    waves = bloch_waves(form, g, peak, g.size)
    groups, _outputs, inputs = canonical.shape[:3]
    assert waves.shape == (4, groups * inputs, *g.size)
    assert torch.isfinite(waves).all()
    by_group = waves.reshape(4, groups, -1).norm(dim=(0, 2))
    assert torch.nonzero(by_group).flatten().tolist() == [peak.group]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_wave_is_nearly_the_leading_vector_of_a_large_layer(stride: int, dilation: int) -> None:
    kernel = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 3, 2, 3)))
    geometry = Geometry((400,), (stride,), ((2, 2),), dilation=(dilation,))
    form = normal_form(kernel, geometry.stride, geometry.dilation)
    norm, peak = certify_with_peak(form, execution=ONE_THREAD)
    assert peak is not None
    waves = bloch_waves(form, geometry, peak, geometry.size)
    images = ConvOperator(kernel, geometry).apply(waves)
    stretched = images.flatten(1).norm(dim=1) / waves.flatten(1).norm(dim=1).clamp(min=1e-9)
    assert float(stretched[:2].max()) >= 0.999 * norm.lower


# ------------------------------------------------------------------------------------------------------- trained layers


def trained_layers(folder: Path) -> Iterator[tuple[str, np.ndarray, Geometry]]:
    path = folder / "resnet20-cifar10.th"
    if not path.exists():
        pytest.skip("no trained network beside the repository")
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    for name, weight in weights.items():
        if weight.ndim != 4:
            continue
        stage = int(name.split("layer")[1][0]) if "layer" in name else 1
        first = stage > 1 and ".0.conv1." in name
        size = (32, 16, 8)[stage - 1] * (2 if first else 1)
        yield name, weight.double().numpy(), Geometry((size,) * 2, (2,) * 2 if first else (1,) * 2, ((1, 1),) * 2)


def test_trained_layers_are_enclosed_within_half_a_percent(shared_checkpoints: Path) -> None:
    above, below = [], []
    for name, weight, geometry in trained_layers(shared_checkpoints):
        kernel = torch.from_numpy(weight[None])
        form = normal_form(kernel, geometry.stride, geometry.dilation)
        norm, peak = certify_with_peak(form, 1e-3, execution=ONE_THREAD, budget=PATIENT)
        assert peak is not None
        interval = certify_at_size(kernel, geometry, norm, peak, execution=ONE_THREAD)
        operator = ConvOperator(kernel, geometry)
        start = bloch_waves(form, geometry, peak, geometry.size)[0]
        found = leading_singular_values(operator, 1, start=start, options=LanczosOptions(tolerance=1e-6))
        exact = float(found.values[0])
        assert found.converged, name
        assert interval.lower <= exact * (1 + 1e-11), name
        assert interval.upper >= exact * (1 - 1e-13), name
        above.append(interval.upper / exact)
        below.append(interval.lower / exact)
    assert len(above) == 19
    assert math.exp(sum(map(math.log, above)) / len(above)) <= 1.005
    assert min(below) >= 0.9999


def test_the_dense_norm_of_a_known_layer() -> None:
    # n zeros and ones: the path of five vertices, whose largest eigenvalue is 2 cos(pi / 6).
    case = Case((1, 1, 3), Geometry((5,), (1,), ((1, 1),)))
    kernel = np.array([[[1.0, 0.0, 1.0]]])
    truth = 2 * math.cos(math.pi / 6)
    assert oracle.singular_values(case.dense(kernel))[0] == pytest.approx(truth)
    _norm, interval = intervals_of(case, kernel)
    assert interval.lower <= truth <= interval.upper
    assert interval.lower == pytest.approx(truth, rel=1e-9)
    moved = replace(case, geometry=replace(case.geometry, padding=((2, 0),)))
    check(moved, kernel)

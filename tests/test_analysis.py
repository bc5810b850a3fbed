"""Layers in, reports out: what each end leans on, that no guess breaks an upper end, and that a bug never passes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import precise
from cases import GRID, Case, cases, kernels, make_layer
from convsv.analysis import AnalysisOptions, analyze, analyze_layer, certified_norm, method_names
from convsv.certificate import Budget
from convsv.errors import CheckpointError, ComputationError, ContradictionError, GeometryError, UsageError
from convsv.execution import Execution
from convsv.geometry import Geometry, GeometryFacts, resolve
from convsv.layer import ConvLayer, to_canonical
from convsv.results import LayerReport, Spectrum
from convsv.spectra import SPECTRA, Method, _shared
from convsv.symbol import normal_form

QUICK = AnalysisOptions(execution=Execution(device="cpu", jobs=1))


def layer_with(kernel: NDArray[Any], known: GeometryFacts | None = None) -> ConvLayer:
    """A layer of which the facts were stated; the rest is assumed."""
    sources: Any = [("option", known)] if known else []
    return make_layer(kernel, resolve(kernel.shape[2:], sources))


def report_of(kernel: NDArray[Any], known: GeometryFacts | None = None) -> LayerReport:
    return analyze_layer(layer_with(kernel, known), QUICK)


def supremum(kernel: NDArray[Any], stride: int, dilation: int, groups: int) -> float:
    """The largest singular value on a dense grid, over all groups of one reading of a kernel."""
    canonical = torch.from_numpy(np.ascontiguousarray(to_canonical(kernel, "OIK", groups)))
    dims = kernel.ndim - 2
    form = normal_form(canonical, (stride,) * dims, (dilation,) * dims)
    sizes = [16 * d if d else 1 for d in form.degrees]
    return max(float(precise.grid_values(group.numpy(), sizes).max()) for group in form.kernel)


# ---------------------------------------------------------------------------------------------------- what ends lean on


KERNEL = np.random.default_rng(0).standard_normal((4, 2, 3, 3))


@pytest.mark.parametrize(
    ("known", "lower", "upper"),
    [
        (GeometryFacts(), {"stride", "groups"}, {"padding_mode"}),
        (GeometryFacts(stride=1), {"groups"}, {"padding_mode"}),
        (GeometryFacts(stride=2), {"groups", "dilation"}, {"padding_mode"}),
        (GeometryFacts(stride=2, dilation=1), {"groups"}, {"padding_mode"}),
        (GeometryFacts(groups=2), {"stride"}, {"padding_mode"}),
        (GeometryFacts(stride=1, groups=1, padding_mode="zeros"), set(), set()),
        (GeometryFacts(stride=1, groups=1, padding_mode="reflect"), set(), {"padding"}),
        (GeometryFacts(stride=1, groups=1, padding_mode="reflect", padding=1), set(), set()),
        (GeometryFacts(padding_mode="circular", stride=1, groups=1), set(), {"padding"}),
    ],
)
def test_each_end_names_the_guesses_it_leans_on(known: GeometryFacts, lower: set[str], upper: set[str]) -> None:
    norm = report_of(KERNEL, known).norm
    assert norm is not None
    assert set(norm.assumes["lower"]) == lower
    assert set(norm.assumes["upper"]) == upper
    assert norm.guarantee == "certified"


# Whatever is only guessed is another thing in truth.
@pytest.mark.parametrize("channels", [(4, 2), (6, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("taps", [(3,), (2, 3)], ids=str)
def test_no_reading_of_what_is_guessed_exceeds_the_upper_end(channels: tuple[int, int], taps: tuple[int, ...]) -> None:
    for seed, signs in itertools.product(range(2), (1, 0)):
        kernel = np.random.default_rng(seed).standard_normal((*channels, *taps))
        kernel = kernel if signs else np.abs(kernel)
        every = [g for g in (1, 2, 3, 6) if channels[0] % g == 0]
        readings = {(s, d, g): supremum(kernel, s, d, g) for s, d, g in itertools.product((1, 2, 3), (1, 2), every)}
        for stride, dilation, groups in itertools.product((None, 1, 2, 3), (None, 1, 2), (None, *every)):
            norm = report_of(kernel, GeometryFacts(stride=stride, dilation=dilation, groups=groups)).norm
            assert norm is not None
            told = (stride, dilation, groups)
            possible = {
                reading: value
                for reading, value in readings.items()
                if all(known in (None, true) for known, true in zip(told, reading, strict=True))
            }
            assert max(possible.values()) <= norm.upper * (1 + 1e-12), (told, possible)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_no_finite_layer_exceeds_the_upper_end_of_a_bare_kernel(transposed: bool, size: int) -> None:
    kernel = np.random.default_rng(3).standard_normal((2, 3, 3))
    norm = report_of(kernel).norm
    assert norm is not None
    for stride, dilation, pad in itertools.product((1, 2, 3), (1, 2), ((0, 0), (1, 1), (2, 0), (4, 5))):
        geometry = Geometry((size,), (stride,), (pad,), "zeros", (dilation,), transposed=transposed)
        try:
            geometry.output_size((3,))
        except GeometryError:  # no such layer
            continue
        dense = Case(kernel.shape, geometry).dense(kernel)
        assert np.linalg.norm(dense, 2) <= norm.upper * (1 + 1e-13)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [1, 2, 3, 4])
def test_ordinary_circular_padding_exceeds_the_upper_end_at_no_size(taps: int, stride: int) -> None:
    for kernel in (np.ones((1, 1, taps)), np.random.default_rng(taps).standard_normal((2, 2, taps))):
        for before in range(taps):
            pad = (before, taps - 1 - before)
            stated = Geometry((8,), (stride,), (pad,), "circular")
            norm = analyze_layer(make_layer(kernel, stated), QUICK).norm
            assert norm is not None
            for size in range(1, 11):
                case = Case(kernel.shape, replace(stated, size=(size,)))
                assert np.linalg.norm(case.dense(kernel), 2) <= norm.upper * (1 + 1e-13), size


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_copying_padding_exceeds_the_upper_end_at_no_size(mode: str) -> None:
    kernel = np.abs(np.random.default_rng(1).standard_normal((2, 2, 2)))
    for pad in ((0, 0), (1, 2), (3, 3)):
        stated = Geometry((8,), (1,), (pad,), mode)
        norm = analyze_layer(make_layer(kernel, stated), QUICK).norm
        assert norm is not None
        for size in range(max(pad) + 1 if mode == "reflect" else 1, 10):
            case = Case(kernel.shape, replace(stated, size=(size,)))
            assert np.linalg.norm(case.dense(kernel), 2) <= norm.upper * (1 + 1e-13), (pad, size)


@pytest.mark.parametrize("case", GRID[::5], ids=lambda case: case.id)
def test_both_norms_of_a_known_layer_are_those_of_its_matrix(case: Case) -> None:
    report = analyze_layer(case.layer(), QUICK)
    truth = float(np.linalg.norm(case.dense(), 2))
    assert report.norm is not None
    assert report.norm_at_size is not None
    assert report.norm.upper >= truth * (1 - 1e-13)
    assert report.norm_at_size.lower <= truth * (1 + 1e-13)
    assert report.norm_at_size.upper >= truth * (1 - 1e-13)
    assert report.failures == ()


@given(st.data(), cases())
def test_no_layer_contradicts_itself(data: st.DataObject, case: Case) -> None:
    kernel = data.draw(kernels(case.shape))
    report = analyze_layer(case.layer(kernel), replace(QUICK, methods=tuple(SPECTRA), tol=1e-2))
    truth = float(np.linalg.norm(case.dense(kernel), 2))
    assert report.norm is not None
    assert report.norm.upper >= truth * (1 - 1e-13)


# --------------------------------------------------------------------------------------------------- the norm at a size


@pytest.mark.parametrize("missing", ["size", "stride", "padding"])
def test_a_norm_at_a_size_needs_size_stride_and_padding(missing: str) -> None:
    facts = GeometryFacts(size=5, stride=1, padding=1)
    assert report_of(KERNEL, facts).norm_at_size is not None
    report = report_of(KERNEL, replace(facts, **{missing: None}))
    assert report.norm_at_size is None
    assert "norm_at_size" not in report.unavailable


def test_a_norm_at_a_size_names_the_other_guesses() -> None:
    interval = report_of(KERNEL, GeometryFacts(size=5, stride=1, padding=1, dilation=1)).norm_at_size
    assert interval is not None
    assert set(interval.assumes["lower"]) == set(interval.assumes["upper"]) == {"groups", "padding_mode", "transposed"}
    assert interval.of == "zeros 5x5"


@pytest.mark.parametrize(
    "facts",
    [GeometryFacts(size=2, stride=1, padding=0), GeometryFacts(size=2, stride=1, padding=3, padding_mode="reflect")],
    ids=["no output", "a reflection larger than the input"],
)
def test_a_layer_that_cannot_run_has_a_norm_of_any_size_only(facts: GeometryFacts) -> None:
    report = report_of(KERNEL, facts)
    assert report.norm is not None
    assert report.norm_at_size is None
    assert report.unavailable["norm_at_size"]
    assert report.failures == ()


# ------------------------------------------------------------------------------------------------------ a bug is raised


def fake(**changes: Any) -> Method:
    values: dict[str, Any] = {
        "method": "fake",
        "of": "circular 4x4",
        "guarantee": "certified",
        "count": 1,
        "max": 1e6,
        "min": 0.0,
        "frobenius": 1e6,
        "stable_rank": 1.0,
        "effective_rank": 1.0,
        "condition": None,
        "quantiles": {},
        "error": 1e-9,
    }
    spectrum = Spectrum(**{**values, **changes})
    return Method("fake", "certified", "nobody", lambda _layer, _execution, _options=None, _known=None: spectrum)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register a method called ``fake`` for one test."""
    assert "circulant" in SPECTRA  # walked before anything is added

    def register(method: Method) -> AnalysisOptions:
        monkeypatch.setitem(SPECTRA._entries, "fake", method)
        return replace(QUICK, methods=("fake",))

    return register


def test_a_certified_value_above_the_certified_norm_is_a_contradiction(fakes: Any) -> None:
    with pytest.raises(ContradictionError, match="layer"):
        analyze_layer(layer_with(KERNEL), fakes(fake()))


def test_a_value_above_by_less_than_its_error_is_none(fakes: Any) -> None:
    norm = report_of(KERNEL).norm
    assert norm is not None
    just = fake(max=norm.upper * 1.01, error=norm.upper * 0.02)
    assert "fake" in analyze_layer(layer_with(KERNEL), fakes(just)).results
    too_far = fake(max=norm.upper * 1.01, error=norm.upper * 0.005)
    with pytest.raises(ContradictionError):
        analyze_layer(layer_with(KERNEL), fakes(too_far))


@pytest.mark.parametrize("guarantee", ["estimate", "probabilistic"])
def test_an_estimate_contradicts_nothing(fakes: Any, guarantee: str) -> None:
    assert "fake" in analyze_layer(layer_with(KERNEL), fakes(fake(guarantee=guarantee))).results


def test_a_norm_at_a_size_above_the_norm_of_any_size_is_a_contradiction(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _shared.certify_at_size

    def wrong(*arguments: Any, **options: Any) -> Any:
        interval = original(*arguments, **options)
        return replace(interval, lower=interval.upper * 10, upper=interval.upper * 11)

    monkeypatch.setattr(_shared, "certify_at_size", wrong)
    with pytest.raises(ContradictionError):
        report_of(KERNEL, GeometryFacts(size=5, stride=1, padding=1))


def test_an_error_within_a_method_fails_that_method_alone(fakes: Any) -> None:
    def broken(_layer: ConvLayer, _execution: Execution, _options: Any = None, _known: Any = None) -> Spectrum:
        raise ComputationError("it broke")

    report = analyze_layer(layer_with(KERNEL), fakes(Method("fake", "certified", "nobody", broken)))
    assert "it broke" in report.unavailable["fake"]
    assert report.failures == ("fake",)
    assert report.norm is not None


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory"), ZeroDivisionError("division by zero")])
def test_an_exhausted_machine_fails_one_result(fakes: Any, error: Exception) -> None:
    def broken(_layer: ConvLayer, _execution: Execution, _options: Any = None, _known: Any = None) -> Spectrum:
        raise error

    report = analyze_layer(layer_with(KERNEL), fakes(Method("fake", "certified", "nobody", broken)))
    assert report.failures == ("fake",)
    assert report.unavailable["fake"]


# ---------------------------------------------------------------------------------------------------------- bad weights


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_make_all_results_unavailable(bad: float) -> None:
    kernel = KERNEL.copy()
    kernel[1, 1, 1, 1] = bad
    options = replace(QUICK, methods=method_names())
    bad_report, good = list(analyze([layer_with(kernel), layer_with(KERNEL)], options))
    assert bad_report.norm is None
    assert set(bad_report.unavailable) >= {"norm", *method_names()}
    assert "1 of 72 weights" in bad_report.unavailable["norm"]
    assert bad_report.failures == ()
    assert good.norm is not None


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 2, 0)], ids=str)
def test_empty_kernels_end_in_a_report(shape: tuple[int, ...]) -> None:
    report = analyze_layer(layer_with(np.zeros(shape)), replace(QUICK, methods=method_names()))
    assert report.failures == ()
    assert report.norm is None or (report.norm.lower, report.norm.upper) == (0.0, 0.0)


def test_zero_kernels_have_norm_zero_everywhere() -> None:
    facts = GeometryFacts(size=4, stride=1, padding=1)
    report = analyze_layer(layer_with(np.zeros((2, 2, 3)), facts), replace(QUICK, methods=method_names()))
    for interval in (report.norm, report.norm_at_size):
        assert interval is not None
        assert (interval.lower, interval.upper) == (0.0, 0.0)
    assert report.failures == ()


def test_a_layer_with_a_problem_says_so() -> None:
    layer = replace(layer_with(KERNEL), problem="quantised")
    report = analyze_layer(layer, QUICK)
    assert "quantised" in report.unavailable["norm"]
    assert report.norm is None


def test_weights_that_cannot_be_read_are_asked_for_once_and_make_everything_unavailable() -> None:
    asked = []

    def unreadable() -> NDArray[Any]:
        asked.append(1)
        raise CheckpointError("short read", found="3 bytes")

    layer = replace(layer_with(KERNEL), read=unreadable, name="deep.layer")
    report = analyze_layer(layer, replace(QUICK, methods=method_names()))
    assert len(asked) == 1
    assert report.unavailable == dict.fromkeys(("norm", *method_names()), "short read (found 3 bytes)")
    assert report.unread == "short read (found 3 bytes)"
    assert (report.norm, report.results, report.failures) == (None, {}, ())
    with pytest.raises(CheckpointError, match=r"deep\.layer"):
        certified_norm(layer, QUICK)


# -------------------------------------------------------------------------------------------------------------- options


def test_without_the_norm_nothing_is_certified() -> None:
    options = replace(QUICK, norm=False, methods=("circulant",))
    report = analyze_layer(layer_with(KERNEL, GeometryFacts(size=4)), options)
    assert report.norm is None
    assert "circulant" in report.results
    assert report.unavailable == {}


def test_a_tiny_budget_leaves_a_valid_interval() -> None:
    report = analyze_layer(layer_with(KERNEL), replace(QUICK, tol=1e-9, budget=Budget(evaluations=0)))
    truth = supremum(KERNEL, 1, 1, 1)
    assert report.norm is not None
    assert report.norm.lower <= truth * 1.01
    assert report.norm.upper >= truth * (1 - 1e-13)


def test_a_width_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError):
        AnalysisOptions(tol=float("nan"))


def test_reports_come_in_order_as_they_are_finished() -> None:
    layers = [replace(layer_with(KERNEL), name=str(i)) for i in range(3)]
    stream = analyze(iter(layers), QUICK)
    assert next(stream).name == "0"
    assert [report.name for report in stream] == ["1", "2"]


def test_a_report_repeats_what_the_layer_says_of_itself() -> None:
    layer = replace(layer_with(KERNEL.astype(np.float32)), notes=("found by name",), weight="a.weight")
    report = analyze_layer(layer, QUICK)
    assert (report.name, report.weight, report.kind) == ("layer", "a.weight", "conv2d")
    assert (report.shape, report.dtype, report.notes) == ((4, 2, 3, 3), "float32", ("found by name",))
    assert report.geometry is layer.geometry


def test_methods_are_those_of_the_registry_and_all_bounds_together() -> None:
    assert set(method_names()) >= {*SPECTRA, "bounds"}


def test_one_norm_alone_is_that_of_the_report() -> None:
    layer = layer_with(KERNEL, GeometryFacts(size=5, stride=2, padding=1, groups=1))
    report = analyze_layer(layer, QUICK)
    assert certified_norm(layer, QUICK) == report.norm
    assert certified_norm(layer, QUICK, at_size=True) == report.norm_at_size

"""The library's verbs: what kernels they take, what they answer, and what they raise."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import convsv
from cases import NAMED, Case
from convsv import api
from convsv.errors import GeometryError, UnavailableError, UsageError
from convsv.execution import Execution
from convsv.geometry import Geometry, GeometryFacts
from convsv.results import Bound, Spectrum, Unavailable
from convsv.spectra import SPECTRA, SpectrumOptions

KERNEL = np.random.default_rng(0).standard_normal((3, 2, 3, 3))


def same(one: Any, other: Any) -> bool:
    return (one.lower, one.upper) == (other.lower, other.upper)


# ---------------------------------------------------------------------------------------------------------- input kinds


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", ">f4", ">f2"])
def test_numpy_kernels_of_any_precision_and_byte_order_mean_their_exact_values(dtype: str) -> None:
    stored = KERNEL.astype(dtype)
    assert same(api.operator_norm(stored, tol=1e-9), api.operator_norm(stored.astype(np.float64), tol=1e-9))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_kernels_of_small_formats_mean_their_exact_values(name: str) -> None:
    stored = KERNEL.astype(getattr(ml_dtypes, name))
    assert same(api.operator_norm(stored), api.operator_norm(stored.astype(np.float64)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_tensors_mean_their_exact_values(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(KERNEL).to(dtype)
    assert same(api.operator_norm(tensor), api.operator_norm(tensor.double().numpy()))


def test_parameters_and_tensors_in_a_graph_are_taken() -> None:
    parameter = torch.nn.Parameter(torch.from_numpy(KERNEL))
    assert same(api.operator_norm(parameter), api.operator_norm(KERNEL))
    assert same(api.operator_norm(parameter * 1.0), api.operator_norm(KERNEL))


@pytest.mark.parametrize(
    "view",
    [
        lambda k: np.flip(k, 0),
        lambda k: np.flip(k[:1], 0),
        lambda k: np.flip(k[:, :1], 1),
        np.asfortranarray,
        lambda k: k[:, :, ::2, ::-1],
        lambda k: np.broadcast_to(k[:1], (2, *k.shape[1:])),
        lambda k: k.swapaxes(0, 1),
    ],
)
def test_views_of_arrays_are_taken(view: Any) -> None:
    seen = view(KERNEL)
    assert same(api.operator_norm(seen), api.operator_norm(np.array(seen.tolist())))


def test_views_of_tensors_are_taken() -> None:
    tensor = torch.from_numpy(KERNEL).transpose(0, 1)
    assert same(api.operator_norm(tensor), api.operator_norm(tensor.contiguous()))


def test_read_only_arrays_are_taken_without_a_warning_and_nothing_is_written() -> None:
    frozen = KERNEL.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.operator_norm(frozen)
        api.analyze(frozen, methods=("circulant", "bounds"))
    before = KERNEL.copy()
    api.analyze(KERNEL, methods=("circulant", "bounds"))
    np.testing.assert_array_equal(KERNEL, before)


@pytest.mark.parametrize(
    "kernel",
    [
        np.ones((2, 2, 3), dtype=np.int64),
        np.ones((2, 2, 3), dtype=np.complex128),
        np.ones((2, 2, 3), dtype=np.bool_),
        torch.ones(2, 2, 3, dtype=torch.int64),
        torch.ones(2, 2, 3, dtype=torch.complex64),
        torch.ones(2, 2, 3, dtype=torch.bool),
        np.array([[["a"]]]),
    ],
    ids=lambda k: f"{type(k).__name__} {k.dtype}",
)
@pytest.mark.parametrize("verb", [api.operator_norm, api.spectrum, api.bounds, api.analyze])
def test_what_is_not_floating_point_is_refused(verb: Any, kernel: Any) -> None:
    with pytest.raises(UsageError, match="floating point"):
        verb(kernel)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is double here")
def test_extended_precision_is_refused_rather_than_rounded() -> None:
    with pytest.raises(UsageError):
        api.operator_norm(KERNEL.astype(np.longdouble))


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)], ids=str)
@pytest.mark.parametrize("verb", [api.operator_norm, api.spectrum, api.bounds, api.analyze])
def test_what_has_no_spatial_axis_is_refused(verb: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError):
        verb(np.ones(shape))


@pytest.mark.parametrize(
    "geometry",
    [
        GeometryFacts(groups=2),
        GeometryFacts(groups=0),
        GeometryFacts(stride=(1, 1, 1)),
        GeometryFacts(stride=0),
        GeometryFacts(padding=-1),
        GeometryFacts(padding_mode="mirror"),
        Geometry((8,), (1,), ((0, 0),)),
        Geometry((8, 8), (1, 1), ((0, 0), (0, 0)), groups=2),
    ],
    ids=str,
)
def test_a_geometry_that_does_not_fit_is_refused(geometry: Any) -> None:
    for verb in (api.operator_norm, api.spectrum, api.bounds, api.analyze):
        with pytest.raises(GeometryError):
            verb(KERNEL, geometry)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_kernel_that_is_not_finite_is_unavailable(bad: float) -> None:
    kernel = KERNEL.copy()
    kernel[0, 0, 0, 0] = bad
    for verb in (api.operator_norm, api.spectrum, api.bounds):
        with pytest.raises(UnavailableError, match="NaN or infinite"):
            verb(kernel)
    report = api.analyze(kernel, methods=("circulant", "bounds"))[0]
    assert report.norm is None
    assert set(report.unavailable) >= {"norm", "circulant", "bounds"}
    assert report.failures == ()


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (3, 0, 3, 3), (3, 3, 0, 3)], ids=str)
def test_an_empty_kernel_has_norm_zero(shape: tuple[int, ...]) -> None:
    interval = api.operator_norm(np.zeros(shape))
    assert (interval.lower, interval.upper) == (0.0, 0.0)


def test_the_zero_kernel_has_norm_zero() -> None:
    interval = api.operator_norm(np.zeros((2, 2, 3, 3)))
    assert (interval.lower, interval.upper) == (0.0, 0.0)


# -------------------------------------------------------------------------------------------------------------- answers


def test_the_norm_of_a_difference_is_two() -> None:
    interval = convsv.operator_norm(np.array([[[1.0, -1.0]]]), tol=1e-6)
    assert interval.lower <= 2 <= interval.upper
    assert interval.width <= 1e-6
    assert interval.of == "any size"
    assert interval.guarantee == "certified"


@pytest.mark.parametrize("tol", [0.5, 1e-2, 1e-8])
def test_the_interval_is_as_narrow_as_asked(tol: float) -> None:
    assert api.operator_norm(KERNEL, tol=tol).width <= tol


@pytest.mark.parametrize("tol", [0.0, -1.0])
def test_a_tolerance_beyond_rounding_gives_what_rounding_allows(tol: float) -> None:
    assert 0 < api.operator_norm(KERNEL, tol=tol).width <= 1e-10


def test_a_tolerance_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError):
        api.operator_norm(KERNEL, tol=float("nan"))


def test_without_a_geometry_the_upper_end_leans_on_the_padding_mode_only() -> None:
    interval = api.operator_norm(KERNEL)
    assert interval.assumes["upper"] == ("padding_mode",)
    assert set(interval.assumes["lower"]) == {"stride", "groups"}


def test_a_full_geometry_leans_on_nothing() -> None:
    geometry = Geometry((8, 8), (2, 1), ((1, 1), (1, 1)))
    assert api.operator_norm(KERNEL, geometry).assumes == {"lower": (), "upper": ()}


def test_facts_that_are_known_are_not_assumed() -> None:
    interval = api.operator_norm(KERNEL, GeometryFacts(stride=2, groups=1, padding_mode="zeros"))
    assert set(interval.assumes["lower"]) <= {"dilation"}
    assert interval.assumes["upper"] == ()


def test_a_spectrum_by_any_method_has_its_name() -> None:
    spectrum = api.spectrum(KERNEL, GeometryFacts(size=6), method="circulant")
    assert spectrum.method == "circulant"
    assert spectrum.max <= api.operator_norm(KERNEL).upper


def test_a_spectrum_is_what_its_options_ask_for() -> None:
    def found(**wanted: Any) -> Spectrum:
        options = SpectrumOptions(**wanted)
        return convsv.spectrum(KERNEL, GeometryFacts(size=6, padding=1), method="exact", options=options)

    whole, some, plain, spread = found(), found(top=3, trailing=2), found(values=False), found(density=True)
    assert whole.values is not None
    assert some.values is not None
    assert (whole.kind, some.kind, some.trailing) == ("full", "leading", 2)
    assert some.values.tolist() == [*whole.values[:3], *whole.values[-2:]]
    assert (plain.values, plain.histogram, plain.quantiles) == (None, whole.histogram, whole.quantiles)
    assert spread.density is not None
    assert whole.density is None


@pytest.mark.parametrize("method", sorted(SPECTRA))
def test_statistics_alone_are_those_of_the_values(method: str) -> None:
    known, plain = GeometryFacts(size=6, padding=1), SpectrumOptions(values=False)
    whole = convsv.spectrum(KERNEL, known, method=method)
    alone = convsv.spectrum(KERNEL, known, method=method, options=plain)
    assert whole.values is not None
    assert (alone.values, alone.lower_values) == (None, None)
    assert (alone.max, alone.min, alone.count, alone.histogram) == (
        whole.max, whole.min, len(whole.values), whole.histogram,
    )  # fmt: skip


def test_a_spectrum_is_computed_where_it_is_asked_for() -> None:
    single = convsv.spectrum(KERNEL, GeometryFacts(size=4), execution=Execution("cpu", dtype="float32"))
    double = convsv.spectrum(KERNEL, GeometryFacts(size=4), execution=Execution("cpu"))
    assert single.error is not None
    assert double.error is not None
    assert single.error > 1e4 * double.error
    with pytest.raises(UnavailableError, match="memory budget"):
        convsv.spectrum(KERNEL, GeometryFacts(size=512), execution=Execution("cpu", memory=1 << 20))


def test_analyze_hands_the_options_of_spectra_on() -> None:
    known, wanted = GeometryFacts(size=6, padding=1), SpectrumOptions(top=2)
    found = api.analyze(KERNEL, known, methods=("exact",), spectra=wanted)[0].results["exact"]
    assert isinstance(found, Spectrum)
    assert (found.kind, found.count) == ("leading", 2)


def test_unknown_names_are_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(UsageError, match="circulant"):
        api.spectrum(KERNEL, method="no such")
    with pytest.raises(UsageError, match="circulant"):
        api.analyze(KERNEL, methods=("no such",))
    with pytest.raises(UsageError, match="no such"):
        api.bounds(KERNEL, names=("no such",))


def test_bounds_are_on_their_side_of_the_norm() -> None:
    norm = api.operator_norm(KERNEL)
    found = api.bounds(KERNEL)
    assert found
    for name, bound in found.items():
        assert isinstance(bound, (Bound, Unavailable))
        if isinstance(bound, Bound) and bound.guarantee == "certified" and bound.of == "any size":
            if bound.side == "upper":
                assert bound.value >= norm.lower, name
            else:
                assert bound.value <= norm.upper, name


def test_analyze_takes_kernels_layers_and_many_of_them() -> None:
    layer = api.layer_of(KERNEL, name="first")
    assert [report.name for report in api.analyze(layer)] == ["first"]
    assert [report.name for report in api.analyze([layer, layer])] == ["first", "first"]
    assert [report.name for report in api.analyze(iter([layer]))] == ["first"]
    assert [report.name for report in api.analyze(torch.from_numpy(KERNEL))] == ["kernel"]


def test_values_are_kept_only_on_request() -> None:
    kept, dropped = (
        api.analyze(KERNEL, GeometryFacts(size=4), methods=("circulant",), values=wanted)[0].results["circulant"]
        for wanted in (True, False)
    )
    assert kept.values is not None  # type: ignore[union-attr]
    assert dropped.values is None  # type: ignore[union-attr]


def test_transposed_kernels_are_stored_the_other_way_round() -> None:
    case = Case((3, 2, 3), Geometry((4,), (2,), ((1, 1),), transposed=True, output_padding=(1,)))
    report = api.analyze(case.kernel(), case.geometry)[0]
    truth = float(np.linalg.norm(case.dense(), 2))
    assert report.kind == "conv_transpose1d"
    assert report.norm is not None
    assert report.norm_at_size is not None
    assert report.norm_at_size.lower <= truth * (1 + 1e-13) <= report.norm.upper * (1 + 1e-12)


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300, 1e308])
def test_kernels_of_any_scale_have_a_norm(scale: float) -> None:
    interval = api.operator_norm(np.full((2, 2, 3), scale))
    assert 0 < interval.lower <= interval.upper


def test_a_layer_is_taken_as_it_is_and_brings_its_geometry() -> None:
    layer = NAMED["patchify"].layer()
    assert convsv.operator_norm(layer) == convsv.operator_norm(layer.read(), layer.geometry)
    assert convsv.spectrum(layer).max == convsv.spectrum(layer.read(), layer.geometry).max
    with pytest.raises(UsageError, match="its own geometry"):
        convsv.operator_norm(layer, layer.geometry)

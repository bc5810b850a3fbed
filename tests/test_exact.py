"""The exact spectrum against the dense matrix by definition, spectra in closed form, and power iteration."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from safetensors.numpy import save_file
from typer.testing import CliRunner

import convsv
import oracle
from cases import GRID, NAMED, Case, cases, geometry_like, kernels, make_layer
from convsv.analysis import AnalysisOptions, analyze_layer
from convsv.cli import app
from convsv.errors import GeometryError, UnavailableError, UsageError
from convsv.execution import Execution
from convsv.geometry import Geometry, GeometryFacts, resolve
from convsv.operator import ConvOperator
from convsv.results import Spectrum
from convsv.spectra import SpectrumOptions
from convsv.spectra._blocks import Block
from convsv.spectra.exact import exact

# The function of that name hides the module from plain imports.
MODULE = import_module("convsv.spectra.exact")
LEADING = import_module("convsv.spectra._leading")
CPU = Execution("cpu", jobs=1)


@pytest.fixture
def iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small enough for a dense matrix."""
    monkeypatch.setattr(MODULE, "_DENSE_WORK", -1.0)


def square(shape: tuple[int, ...], n: int, **geometry: Any) -> Case:
    facts: dict[str, Any] = {"size": (n, n), "stride": (1, 1), "padding": ((1, 1), (1, 1))}
    return Case(shape, Geometry(**{**facts, **geometry}))


def line(taps: list[float], n: int, pad: int) -> Any:
    """A layer of one channel on a line."""
    return make_layer(np.array(taps).reshape(1, 1, -1), Geometry((n,), (1,), ((pad, pad),)))


def values_of(found: Spectrum) -> np.ndarray:
    assert found.values is not None
    return found.values


def agree(found: Spectrum, true: np.ndarray, top: int, trailing: int) -> None:
    """Values found by iteration are on their side of the true ones, and as near to some as they say."""
    assert found.residuals is not None
    wanted = np.concatenate([true[:top], true[len(true) - trailing :]])
    slack = 1e-13 * true[0]  # what the oracle itself may err by
    assert len(values_of(found)) == len(found.residuals) == len(wanted)
    assert np.all(values_of(found)[:top] <= true[:top] + slack)
    assert np.all(values_of(found)[top:] >= wanted[top:] - slack)
    nearest = np.abs(values_of(found)[:, None] - true).min(1)
    assert np.all(nearest <= np.array(found.residuals) + slack)


# ----------------------------------------------------------------------------------------------- the oracle: all values


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_all_values_are_those_of_the_dense_matrix(case: Case) -> None:
    expected = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU)
    assert (found.kind, found.count) == ("full", len(expected))
    assert found.error is not None
    assert found.error < 1e-12 * expected[0]
    assert values_of(found) == pytest.approx(expected, rel=0, abs=found.error + 1e-13 * expected[0])


@given(st.data())
def test_every_kernel_has_the_values_of_its_dense_matrix(data: st.DataObject) -> None:
    case = data.draw(cases())
    stored = data.draw(kernels(case.shape))
    expected = oracle.singular_values(case.dense(stored))
    found = exact(case.layer(stored), CPU)
    assert found.count == len(expected)
    assert values_of(found) == pytest.approx(expected, rel=0, abs=1e-12 * expected[0])


@pytest.mark.parametrize("size", [(5, 4), (6, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_of_keras_is_the_layer_that_has_so_many_outputs(size: tuple[int, int], stride: int) -> None:
    geometry = resolve((3, 4), [("option", GeometryFacts(size=size, stride=stride, padding="same"))])
    case = Case((2, 3, 3, 4), geometry)
    assert geometry.output_size((3, 4)) == tuple(-(-n // stride) for n in size)
    assert values_of(exact(case.layer(), CPU)) == pytest.approx(oracle.singular_values(case.dense()), abs=1e-12)


def test_transposed_layer_has_the_values_of_the_convolution_it_is_the_adjoint_of() -> None:
    stored = np.random.default_rng(0).standard_normal((3, 2, 4, 4))
    forward = Geometry((10, 8), (2, 2), ((1, 1), (1, 1)))
    up, down = (exact(make_layer(stored, g), CPU) for g in (replace(forward, size=(5, 4), transposed=True), forward))
    assert np.array_equal(values_of(up), values_of(down))
    assert (up.of, down.of) == ("zeros 5x4", "zeros 10x8")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMED)
def test_values_are_within_their_error(name: str, dtype: str) -> None:
    case = NAMED[name]
    found = exact(case.layer(), Execution("cpu", dtype=dtype, jobs=1))
    true = oracle.singular_values(case.dense())
    assert found.error is not None
    assert np.all(np.abs(values_of(found) - true) <= found.error + 1e-13 * true[0])
    assert found.error < {"float64": 1e-12, "float32": 1e-3}[dtype] * true[0]


# --------------------------------------------------------------------------------------------- the oracle: some values


@pytest.mark.usefixtures("iterated")
@pytest.mark.parametrize("case", GRID[::4], ids=lambda case: case.id)
def test_leading_and_trailing_values_are_those_of_the_dense_matrix(case: Case) -> None:
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU, SpectrumOptions(top=3, trailing=2))
    if len(true) <= 5:
        assert (found.kind, found.count) == ("full", len(true))
        return
    agree(found, true, 3, 2)
    expected = np.concatenate([true[:3], true[-2:]])
    assert values_of(found) == pytest.approx(expected, rel=0, abs=1e-6 * true[0])
    assert found.frobenius == pytest.approx(float(np.linalg.norm(true)), rel=1e-12)
    assert found.upper is None or found.upper >= true[0] * (1 - 1e-14)


@pytest.mark.usefixtures("iterated")
@settings(max_examples=40)
@given(st.data())
def test_leading_values_of_every_kernel_are_certified(data: st.DataObject) -> None:
    case = data.draw(cases())
    stored = data.draw(kernels(case.shape))
    true = oracle.singular_values(case.dense(stored))
    found = exact(case.layer(stored), CPU, SpectrumOptions(top=2))
    if found.kind == "leading" and found.error is None:
        agree(found, true, 2, 0)
        assert found.upper is not None
        assert found.max <= found.upper


@pytest.mark.usefixtures("iterated")
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_leading_values_at_a_larger_size(mode: str) -> None:
    case = square((4, 4, 3, 3), 13, padding_mode=mode)
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU, SpectrumOptions(top=5))
    agree(found, true, 5, 0)
    assert values_of(found) == pytest.approx(true[:5], rel=0, abs=1e-9 * true[0])
    assert max(found.residuals or ()) <= 2e-6 * true[0]
    assert found.notes[0].endswith("operator products")


@pytest.mark.usefixtures("iterated")
@pytest.mark.parametrize("name", ["strided", "transposed", "grouped", "dilated", "uneven padding"])
def test_leading_values_of_every_kind_of_layer(name: str) -> None:
    case = {
        "strided": square((5, 3, 3, 3), 14, stride=(2, 2)),
        "transposed": square((5, 3, 4, 4), 7, stride=(2, 2), transposed=True, output_padding=(1, 0)),
        "grouped": square((9, 2, 3, 3), 8, groups=3),
        "dilated": square((3, 3, 3, 3), 9, dilation=(2, 3), padding=((2, 2), (3, 3))),
        "uneven padding": square((3, 4, 4, 4), 9, padding=((0, 3), (2, 1))),
    }[name]
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU, SpectrumOptions(top=5))
    agree(found, true, 5, 0)
    assert values_of(found) == pytest.approx(true[:5], rel=0, abs=1e-9 * true[0])


@pytest.mark.usefixtures("iterated")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_leading_values_are_certified_in_float64_whatever_finds_them(dtype: str) -> None:
    case = square((6, 5, 3, 3), 10)
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), Execution("cpu", dtype=dtype, jobs=1), SpectrumOptions(top=3))
    agree(found, true, 3, 0)
    assert values_of(found) == pytest.approx(true[:3], rel=1e-9)
    assert max(found.residuals or ()) <= {"float64": 2e-6, "float32": 2e-5}[dtype] * true[0]


# ------------------------------------------------------------------------------------ closed forms: clusters and copies


def second_difference(n: int) -> np.ndarray:
    """Singular values of the taps 1, 2, 1 with zero padding: 2 + 2 cos(pi j / (n + 1)), tops 1/n^2 apart."""
    return 2 + 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1))


@pytest.mark.usefixtures("iterated")
@pytest.mark.parametrize("n", [50, 400])
def test_clustered_top_is_resolved(n: int) -> None:
    found = exact(line([1, 2, 1], n, 1), CPU, SpectrumOptions(top=5))
    agree(found, second_difference(n), 5, 0)
    assert values_of(found) == pytest.approx(second_difference(n)[:5], rel=1e-10)


@pytest.mark.usefixtures("iterated")
def test_double_values_are_found_twice() -> None:
    n = 14
    stored = np.outer([1.0, 2, 1], [1.0, 2, 1])[None, None]
    one = second_difference(n)
    true = np.sort(np.outer(one, one).ravel())[::-1]
    found = exact(make_layer(stored, square(stored.shape, n).geometry), CPU, SpectrumOptions(top=6))
    assert true[1] == pytest.approx(true[2])  # the second is double
    assert values_of(found) == pytest.approx(true[:6], rel=1e-9)


@pytest.mark.usefixtures("iterated")
def test_copies_of_a_block_count_each() -> None:
    pointwise = square((4, 3, 1, 1), 5, padding=((0, 0), (0, 0)))
    one = np.linalg.svd(pointwise.kernel()[:, :, 0, 0], compute_uv=False)
    found = exact(pointwise.layer(), CPU, SpectrumOptions(top=30, trailing=4))
    assert values_of(found) == pytest.approx([one[0]] * 25 + [one[1]] * 5 + [one[2]] * 4, rel=1e-12)


@pytest.mark.usefixtures("iterated")
def test_equal_groups_count_each() -> None:
    stored = np.tile(np.random.default_rng(0).standard_normal((1, 1, 3, 3)), (5, 1, 1, 1))
    case = square(stored.shape, 9, groups=5)
    true = oracle.singular_values(case.dense(stored))
    found = exact(case.layer(stored), CPU, SpectrumOptions(top=7))
    assert true[0] == pytest.approx(true[4])
    assert values_of(found) == pytest.approx(true[:7], rel=1e-10)


@pytest.mark.usefixtures("iterated")
def test_groups_that_cannot_hold_a_leading_value_are_left_out() -> None:
    random = np.random.default_rng(0).standard_normal((9, 1, 3, 3))
    stored = random * (10.0 ** -np.arange(9)).reshape(-1, 1, 1, 1)
    case = square(stored.shape, 6, groups=9)
    worked = LEADING.extreme_values
    spent = []

    def counting(*args: Any, **options: Any) -> Any:
        spent.append(worked(*args, **options))
        return spent[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "extreme_values", counting)
        found = exact(case.layer(stored), CPU, SpectrumOptions(top=4))
    assert values_of(found) == pytest.approx(oracle.singular_values(case.dense(stored))[:4], rel=1e-10)
    assert [work.blocks for work in spent] == [1]


@pytest.mark.usefixtures("iterated")
def test_identity_has_equal_values() -> None:
    stored = np.zeros((3, 3, 3, 3))
    stored[range(3), range(3), 1, 1] = 2.0
    found = exact(make_layer(stored, square(stored.shape, 8).geometry), CPU, SpectrumOptions(top=4, trailing=4))
    assert values_of(found) == pytest.approx([2.0] * 8, rel=1e-12)


@pytest.mark.usefixtures("iterated")
def test_rows_and_columns_that_nothing_reads_are_trailing_zeros() -> None:
    # Every third pixel is read; five of the eight outputs see nothing but zeros.
    case = Case((2, 2, 1), Geometry((9,), (3,), ((6, 9),)))
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU, SpectrumOptions(top=2, trailing=5))
    assert values_of(found) == pytest.approx(np.concatenate([true[:2], true[-5:]]), abs=1e-12)
    assert values_of(found)[-1] == 0


# ----------------------------------------------------------------------------------------- what it costs, in products


def test_norm_takes_a_fifth_of_the_products_of_power_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.random.default_rng(0).standard_normal((64, 64, 3, 3))
    layer = make_layer(stored, square(stored.shape, 56).geometry)
    # The reference: a hundred products more, with which it no longer changes in the eighth digit.
    spent = itertools.count()

    def counted(product: Any) -> Any:
        def counting(operator: Any, x: torch.Tensor) -> torch.Tensor:
            for _ in range(len(x)):
                next(spent)
            result: torch.Tensor = product(operator, x)
            return result

        return counting

    plain = {"apply": ConvOperator.apply, "adjoint": ConvOperator.adjoint}
    for kind, name in itertools.product((ConvOperator, Block), plain):
        monkeypatch.setattr(kind, name, counted(getattr(kind, name)))
    monkeypatch.setattr(LEADING, "_PRODUCTS", 250)
    true = exact(layer, CPU, SpectrumOptions(top=1)).max
    first = next(spent)
    monkeypatch.setattr(LEADING, "_PRODUCTS", 150)
    found = exact(layer, CPU, SpectrumOptions(top=1))
    count = next(spent) - first - 1
    assert 1 - found.max / true <= 1e-6
    assert 100 < count <= 220, "the iteration's, those of the certified bounds, and those that certify the value"

    operator = ConvOperator(torch.from_numpy(stored)[None], layer.geometry)
    x = torch.randn(1, *operator.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reached = 0.0
    for step in range(5 * count):
        x = x / x.norm() if step % 2 == 0 else x
        x = plain["apply" if step % 2 == 0 else "adjoint"](operator, x)
        reached = float(x.norm()) if step % 2 == 0 else reached
    assert 1 - reached / true > 1e-6, "power iteration is as good with five times the products"


# ------------------------------------------------------------------------------------------------------- what it takes


def test_small_layer_is_computed_whole_and_says_how() -> None:
    found = exact(NAMED["patchify"].layer(), CPU)
    assert (found.method, found.of, found.guarantee, found.kind) == ("exact", "zeros 6x4", "certified", "full")
    assert found.notes == ("all values by LAPACK, from dense matrices of 5x8",)
    assert (found.residuals, found.upper, found.trailing) == (None, None, 0)


def test_large_layer_gives_six_leading_values_unasked() -> None:
    found = exact(line([1, 2, 1], 3000, 1), CPU)
    assert (found.kind, found.count, found.error) == ("leading", 6, None)
    assert (found.quantiles, found.condition, found.effective_rank, found.histogram) == ({}, None, None, None)
    assert found.frobenius == pytest.approx(float(np.linalg.norm(second_difference(3000))), rel=1e-12)
    assert found.stable_rank == pytest.approx((found.frobenius / found.max) ** 2)
    assert found.upper is not None
    assert found.max <= second_difference(3000)[0] <= found.upper <= 4 * (1 + 1e-3)


def test_full_is_full_whatever_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_DENSE_WORK", -1.0)
    found = exact(line([1, 2, 1], 60, 1), CPU, SpectrumOptions(full=True))
    assert found.kind == "full"
    assert values_of(found) == pytest.approx(second_difference(60), rel=1e-12)


def test_some_values_of_a_small_layer_are_cut_from_all() -> None:
    case = square((3, 3, 3, 3), 6)
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU, SpectrumOptions(top=4, trailing=2))
    assert (found.kind, found.count, found.trailing) == ("leading", 6, 2)
    assert values_of(found) == pytest.approx(np.concatenate([true[:4], true[-2:]]), abs=1e-12)
    assert found.residuals == (found.error,) * 6
    assert (found.max, found.min) == (values_of(found)[0], values_of(found)[-1])
    assert found.frobenius == pytest.approx(float(np.linalg.norm(true)))


def test_more_values_than_there_are_is_all_of_them() -> None:
    found = exact(NAMED["one row"].layer(), CPU, SpectrumOptions(top=1000))
    assert (found.kind, found.count) == ("full", 10)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_layer_that_pads_around_the_circle_is_its_circulant(stride: tuple[int, int]) -> None:
    case = square((3, 4, 3, 3), 6, padding_mode="circular", stride=stride, dilation=(1, 2), padding=((2, 0), (1, 3)))
    found = exact(case.layer(), CPU)
    assert values_of(found) == pytest.approx(oracle.singular_values(case.dense()), abs=1e-12)
    assert "symbol" in found.notes[0]
    assert found.of == "circular 6x6"


@pytest.mark.parametrize(
    "wrong", [{"top": 0}, {"trailing": -1}, {"full": True, "top": 3}, {"full": True, "trailing": 1}]
)
def test_contradictory_wishes_are_usage(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SpectrumOptions(**wrong)


def test_same_layer_same_values() -> None:
    layer = line([1, 2, 1], 2000, 1)
    once, again = (exact(layer, CPU, SpectrumOptions(top=3, trailing=0)) for _ in range(2))
    assert np.array_equal(values_of(once), values_of(again))


@pytest.mark.parametrize(
    ("guesses", "expected"),
    [((), ()), (("size", "padding", "padding_mode"),) * 2, (("stride", "dilation"), ("stride", "dilation"))],
)
def test_spectrum_names_the_guesses_that_it_leans_on(guesses: tuple[str, ...], expected: tuple[str, ...]) -> None:
    geometry = replace(NAMED["no padding"].geometry, origin=dict.fromkeys(guesses, "assumed"))
    assert exact(make_layer(np.ones((2, 2, 3, 3)), geometry), CPU).assumes == expected


# ------------------------------------------------------------------------------------------------------------- density


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("shape", [(4, 4, 3, 3), (2, 6, 3, 3)])
def test_density_encloses_the_true_distribution(
    mode: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = square(shape, 12, padding_mode=mode)
    true = oracle.singular_values(case.dense())
    monkeypatch.setattr(MODULE, "_DENSE_WORK", -1.0)
    found = exact(case.layer(), CPU, SpectrumOptions(top=1, density=True)).density
    assert found is not None
    assert (found.guarantee, found.probability, found.probes) == ("probabilistic", 0.99, 4)
    shares = np.array([(true < edge).mean() for edge in found.edges])
    assert np.all(np.abs(shares - found.below) <= found.error)
    assert max(found.error) < 0.2
    assert np.all(np.diff(found.edges) > 0)


def test_density_of_a_large_layer_is_close() -> None:
    # 40,000 values in closed form.
    one = second_difference(200)
    true = np.outer(one, one).ravel()
    stored = np.outer([1.0, 2, 1], [1.0, 2, 1])[None, None]
    found = exact(make_layer(stored, square(stored.shape, 200).geometry), CPU, SpectrumOptions(top=1, density=True))
    assert found.density is not None
    shares = np.array([(true < edge).mean() for edge in found.density.edges])
    assert np.all(np.abs(shares - found.density.below) <= found.density.error)
    assert max(found.density.error) < 0.1
    assert float(np.median(found.density.error)) < 0.03


def test_density_of_known_values_is_certified() -> None:
    case = square((3, 3, 3, 3), 6)
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), CPU, SpectrumOptions(density=True)).density
    assert found is not None
    assert (found.guarantee, found.probes) == ("certified", 0)
    shares = [(true < edge).mean() for edge in found.edges[:-1]]
    assert list(found.below[:-1]) == pytest.approx(shares, abs=1e-12)


# --------------------------------------------------------------------------------------------- what there is none for


def test_full_beyond_the_memory_budget_is_refused_with_what_it_needs() -> None:
    case = square((64, 64, 3, 3), 56)
    with pytest.raises(UnavailableError) as error:
        exact(case.layer(), CPU, SpectrumOptions(full=True))
    assert "all 200704 singular values need 900" in error.value.what
    assert "GiB" in error.value.what
    assert "a dense matrix of 200704x200704" in error.value.what
    assert "more than the memory budget of 1.0 GiB" in error.value.what


def test_vectors_beyond_the_memory_budget_are_refused() -> None:
    with pytest.raises(UnavailableError, match=r"singular vectors need .* more than the memory budget"):
        exact(line([1, 2, 1], 50_000, 1), Execution("cpu", memory=1 << 20, jobs=1))


def test_density_beyond_the_memory_budget_is_refused() -> None:
    with pytest.raises(UnavailableError, match="memory budget"):
        exact(line([1, 2, 1], 5_000, 1), Execution("cpu", memory=1 << 20, jobs=1), SpectrumOptions(top=1, density=True))


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (2, 0, 3, 3), (2, 2, 0, 3)])
def test_kernel_without_entries_is_unavailable(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnavailableError, match="no entries"):
        exact(square(shape, 4).layer(np.zeros(shape)), CPU)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_unavailable(bad: float) -> None:
    stored = np.ones((2, 2, 3, 3))
    stored[0, 0, 0, 0] = bad
    with pytest.raises(UnavailableError, match="1 of 36 weights"):
        exact(square(stored.shape, 4).layer(stored), CPU)


def test_layer_without_an_output_is_a_wrong_geometry() -> None:
    with pytest.raises(GeometryError, match="larger than the padded input"):
        exact(make_layer(np.ones((1, 1, 5)), Geometry((3,), (1,), ((0, 0),))), CPU)


@pytest.mark.parametrize("options", [SpectrumOptions(), SpectrumOptions(top=2)], ids=["all", "some"])
def test_norm_beyond_float64_is_unavailable(options: SpectrumOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_DENSE_WORK", 4e9 if options.top is None else -1.0)
    with pytest.raises(UnavailableError, match="range of float64"):
        exact(square((4, 4, 3, 3), 4).layer(np.full((4, 4, 3, 3), 1.5e308)), CPU, options)


def test_zero_kernel_has_zero_values() -> None:
    found = exact(square((3, 2, 3, 3), 4).layer(np.zeros((3, 2, 3, 3))), CPU)
    assert (found.count, found.max, found.min, found.stable_rank, found.condition) == (32, 0, 0, None, None)


@pytest.mark.usefixtures("iterated")
def test_zero_kernel_has_leading_zeros() -> None:
    options = SpectrumOptions(top=3, trailing=1, density=True)
    found = exact(square((3, 2, 3, 3), 6).layer(np.zeros((3, 2, 3, 3))), CPU, options)
    assert found.kind == "leading"
    assert values_of(found).tolist() == [0] * 4
    assert max(found.residuals or (1,)) < 1e-300
    assert (found.max, found.upper, found.frobenius, found.stable_rank) == (0, 0, 0, None)


@pytest.mark.parametrize("exponent", [-1000, -300, 300, 1000])
@pytest.mark.parametrize("work", [4e9, -1.0], ids=["all", "some"])
def test_scaling_by_a_power_of_two_scales_the_values_exactly(
    exponent: int, work: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "_DENSE_WORK", work)
    stored = np.random.default_rng(0).integers(-4, 5, (3, 2, 3, 3)).astype(np.float64)
    options = SpectrumOptions(top=2) if work < 0 else SpectrumOptions()
    plain, scaled = (exact(square(k.shape, 5).layer(k), CPU, options) for k in (stored, np.ldexp(stored, exponent)))
    assert np.array_equal(np.ldexp(values_of(plain), exponent), values_of(scaled))


def test_denormal_kernel_keeps_its_values() -> None:
    found = exact(make_layer(np.full((1, 1, 1), 5e-324), Geometry((4,), (1,), ((0, 0),))), CPU)
    assert values_of(found).tolist() == [5e-324] * 4


# ---------------------------------------------------------------------------------------------- analysis, command line


def test_analysis_hands_the_wishes_on_and_keeps_leading_values() -> None:
    wanted = AnalysisOptions(("exact",), execution=CPU, spectra=SpectrumOptions(top=2))
    report = analyze_layer(line([1, 2, 1], 40, 1), wanted)
    found = report.results["exact"]
    assert isinstance(found, Spectrum)
    assert (found.kind, len(values_of(found))) == ("leading", 2)
    whole = analyze_layer(line([1, 2, 1], 40, 1), AnalysisOptions(("exact",), execution=CPU)).results["exact"]
    assert isinstance(whole, Spectrum)
    assert (whole.kind, whole.values) == ("full", None)


def test_library_gives_the_spectrum_by_name() -> None:
    stored = NAMED["one row"].kernel()
    found = convsv.spectrum(stored, NAMED["one row"].geometry, method="exact")
    assert found.values == pytest.approx(oracle.singular_values(NAMED["one row"].dense()), abs=1e-12)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A checkpoint of a small convolution, and of one with a NaN."""
    random = np.random.default_rng(0)
    broken = np.ones((2, 2, 3, 3), np.float32)
    broken[0, 0, 0, 0] = np.nan
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": random.standard_normal((4, 3, 3, 3)).astype(np.float32), "b.weight": broken}, path)
    return str(path)


def command(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def layers_of(result: Any) -> list[Any]:
    assert result.exit_code == 0, result.stderr
    whole = json.loads(result.stdout)
    schema = json.loads((resources.files("convsv.reports") / "report.schema.json").read_text("utf-8"))
    Draft202012Validator(schema).validate(whole)
    layers: list[Any] = whole["checkpoints"][0]["layers"]
    return layers


def test_command_reports_all_values_of_a_small_layer(model: str) -> None:
    first, second = layers_of(command("exact", model, "--size", "8", "--format", "json"))
    found = first["results"]["exact"]
    assert (found["of"], found["kind"], found["guarantee"], found["count"]) == ("zeros 8x8", "full", "certified", 192)
    assert "values" not in found
    assert second["results"] == {}
    assert second["unavailable"] == {"exact": "1 of 36 weights are NaN or infinite"}


def test_command_reports_leading_values_with_residuals(model: str) -> None:
    args = ("--size", "8", "--top", "3", "--trailing", "2", "--density", "--format", "json")
    found = layers_of(command("exact", model, *args))[0]["results"]["exact"]
    assert (found["kind"], found["count"], found["trailing"]) == ("leading", 5, 2)
    assert len(found["residuals"]) == len(found["values"]) == 5
    assert found["density"]["guarantee"] == "certified"
    assert found["notes"]


def test_method_exact_stands_beside_the_norm(model: str) -> None:
    args = ("--size", "8", "--method", "exact", "--method", "circulant", "--top", "1", "--format", "json")
    first = layers_of(command("analyze", model, *args))[0]
    assert set(first["results"]) == {"exact", "circulant"}
    assert first["results"]["exact"]["max"] <= first["norm"]["upper"]


def test_command_iterates_where_the_layer_is_large(model: str) -> None:
    args = ("--size", "40", "--include", "a", "--density", "--format", "json")
    found = layers_of(command("exact", model, *args))[0]["results"]["exact"]
    assert (found["kind"], found["count"], found["error"]) == ("leading", 6, None)
    assert found["max"] <= found["upper"]
    assert found["density"]["guarantee"] == "probabilistic"


def test_settings_hold_the_wishes(model: str) -> None:
    whole = json.loads(command("exact", model, "--size", "8", "--top", "3", "--format", "json").stdout)
    wishes = {name: whole["settings"][name] for name in ("top", "trailing", "full", "density")}
    assert wishes == {"top": 3, "trailing": 0, "full": False, "density": False}


def test_refusal_names_the_memory_and_is_no_failure(model: str) -> None:
    args = ("--size", "32", "--include", "a", "--full", "--memory", "2MiB", "--format", "json")
    reason = layers_of(command("exact", model, *args))[0]["unavailable"]["exact"]
    assert "all 3072 singular values need 288.0 MiB" in reason
    assert "memory budget of 2.0 MiB" in reason


@pytest.mark.parametrize(
    "args",
    [
        ("exact", "--top", "0"),
        ("exact", "--top", "3", "--full"),
        ("analyze", "--top", "3"),
        ("exact", "--trailing", "-1"),
    ],
)
def test_wrong_wishes_are_usage(model: str, args: tuple[str, ...]) -> None:
    result = command(args[0], model, *args[1:])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len([text for text in result.stderr.splitlines() if text.startswith("error: ")]) == 1


def test_table_never_shows_a_leading_value_as_the_smallest(model: str) -> None:
    for size in ("8", "40"):
        result = command("exact", model, "--size", size, "--top", "3", "--include", "a", "--format", "table")
        assert "(3 leading)" in result.stdout
        assert "3 leading" in result.stdout.replace("(3 leading)", "")
    assert "≥ " in result.stdout


def test_arrays_hold_the_values(model: str, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    assert command("exact", model, "--size", "8", "--include", "a", "--spectra", str(path)).exit_code == 0
    with np.load(path) as file:
        assert file["a/exact"].shape == (192,)


# ----------------------------------------------------------------------------------------------------------------- CUDA


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMED)
def test_gpu_has_the_values_of_the_cpu(name: str) -> None:
    one, other = (exact(NAMED[name].layer(), execution) for execution in (Execution("cuda"), CPU))
    assert one.error is not None
    assert other.error is not None
    assert np.abs(values_of(one) - values_of(other)).max() <= one.error + other.error


@pytest.mark.cuda
@pytest.mark.usefixtures("iterated")
def test_gpu_finds_the_leading_values() -> None:
    case = geometry_like(square((6, 5, 3, 3), 12))
    true = oracle.singular_values(case.dense())
    found = exact(case.layer(), Execution("cuda"), SpectrumOptions(top=4, density=True))
    agree(found, true, 4, 0)
    assert values_of(found) == pytest.approx(true[:4], rel=1e-9)

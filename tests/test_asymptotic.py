"""The asymptotic spectrum: how many values, what they tend to, and how quantiles are read."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from typer.testing import CliRunner

import oracle
from cases import GRID, NAMED, Case, geometry_like, make_layer
from convsv.certificate import certify
from convsv.cli import app
from convsv.errors import GeometryError, UnavailableError
from convsv.execution import Execution
from convsv.geometry import Geometry, GeometryFacts, resolve
from convsv.spectra._samples import sample_symbol
from convsv.spectra._shared import Shared
from convsv.spectra.asymptotic import MEASURED_BEST, QuantileVariant, asymptotic, quantiles
from convsv.spectra.circulant import circulant
from trained import errors

CPU = Execution("cpu", jobs=1)
HINTS = get_type_hints(QuantileVariant)
VARIANTS = [
    QuantileVariant(nodes, interpolation, branches)
    for nodes, interpolation, branches in itertools.product(
        *(get_args(HINTS[name]) for name in ("nodes", "interpolation", "branches"))
    )
]


def line(n: int, channels: int = 3, **geometry: Any) -> Case:
    return Case((channels, channels, 3), Geometry((n,), (1,), ((1, 1),), **geometry))


def values_of(case: Case, stored: np.ndarray | None = None, **options: Any) -> np.ndarray:
    found = asymptotic(case.layer(stored), options.pop("execution", CPU), **options).values
    assert found is not None
    return found


# ------------------------------------------------------------------------------------------------------------ how many


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_as_many_values_as_the_dense_matrix_has(case: Case) -> None:
    found = asymptotic(case.layer(), CPU)
    assert found.count == min(case.dense().shape)
    assert found.of.startswith(case.geometry.padding_mode)
    assert found.guarantee == "estimate"
    assert found.error is None


def test_a_size_that_the_stride_does_not_divide_has_values() -> None:
    case = Case((4, 2, 3, 3), Geometry((7, 7), (2, 2), ((1, 1), (1, 1))))
    with pytest.raises(UnavailableError):
        circulant(case.layer(), CPU)
    assert len(values_of(case)) == min(case.dense().shape)


# --------------------------------------------------------------------------------------------------- what they tend to


@pytest.mark.parametrize("name", ["pointwise", "patchify"])
def test_a_symbol_that_is_constant_is_read_exactly(name: str) -> None:
    case = NAMED[name]
    assert values_of(case) == pytest.approx(oracle.singular_values(case.dense()), rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.nodes} {v.interpolation} {v.branches}")
def test_every_variant_tends_to_the_exact_values(variant: QuantileVariant) -> None:
    far = []
    for n in (10, 40, 160):
        case = line(n)
        stored = line(10).kernel()
        far.append(errors(values_of(case, stored, variant=variant), oracle.singular_values(case.dense(stored)))[0])
    assert far[1] < 0.5 * far[0]
    assert far[2] < 0.5 * far[1]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_copied_borders_have_the_same_limit(mode: str) -> None:
    case = line(160, padding_mode=mode)
    assert errors(values_of(case), oracle.singular_values(case.dense()))[0] < 0.05


def test_dilation_does_not_change_the_limit() -> None:
    plain = line(12)
    dilated = geometry_like(plain, dilation=(3,), padding=((3, 3),))
    assert np.array_equal(values_of(dilated, plain.kernel()), values_of(plain))


def test_values_lie_below_the_norm() -> None:
    case = Case((3, 5, 3, 3), Geometry((9, 9), (1, 1), ((1, 1), (1, 1))))
    form = Shared(case.layer(), CPU)
    norm = certify(form.form, 1e-3, execution=CPU)
    found = values_of(case)
    assert found[0] <= norm.upper * 2.0**form.exponent
    assert found[0] > 0.9 * norm.lower * 2.0**form.exponent


def test_of_groups_it_is_the_union() -> None:
    case = Case((6, 2, 3), Geometry((8,), (1,), ((1, 1),), groups=3))
    alone = [values_of(Case((2, 2, 3), replace(case.geometry, groups=1)), case.kernel()[g : g + 2]) for g in (0, 2, 4)]
    assert values_of(case) == pytest.approx(np.sort(np.concatenate(alone))[::-1], rel=1e-12)


def test_a_transposed_layer_has_the_values_of_its_adjoint() -> None:
    adjoint = Case((3, 2, 4), Geometry((12,), (2,), ((1, 1),)))
    transposed = Case((3, 2, 4), Geometry((6,), (2,), ((1, 1),), transposed=True))
    assert np.array_equal(values_of(transposed, adjoint.kernel()), values_of(adjoint))


def test_a_power_of_two_scales_the_values_exactly() -> None:
    case = line(8)
    for exponent in (-300, 300):
        assert np.array_equal(values_of(case, np.ldexp(case.kernel(), exponent)), np.ldexp(values_of(case), exponent))


def test_single_precision_is_near_double() -> None:
    case = Case((4, 3, 3, 3), Geometry((9, 9), (1, 1), ((1, 1), (1, 1))))
    double = values_of(case)
    single = values_of(case, execution=Execution("cpu", dtype="float32", jobs=1))
    assert single == pytest.approx(double, rel=0, abs=1e-5 * double[0])


# ---------------------------------------------------------------------------------------------- how quantiles are read


def column(values: list[float]) -> np.ndarray:
    return np.array(values)[:, None, None]


def test_nodes_from_the_top() -> None:
    samples = column([float(i) for i in range(101)])

    def read(nodes: Any) -> list[float]:
        return quantiles(samples, 4, QuantileVariant(nodes, "linear")).tolist()

    assert read("i/n") == pytest.approx([75, 50, 25, 0])
    assert read("i/(n+1)") == pytest.approx([80, 60, 40, 20])
    assert read("(i-1/2)/n") == pytest.approx([87.5, 62.5, 37.5, 12.5])


def test_branches_share_the_values_and_the_larger_ones_take_the_rest() -> None:
    samples = np.array([[[9.0, 1.0]]])
    each = quantiles(samples, 5, MEASURED_BEST)
    assert sorted(each.tolist()) == [1, 1, 9, 9, 9]
    together = quantiles(samples, 4, QuantileVariant("(i-1/2)/n", "linear", "all"))
    assert sorted(together.tolist()) == pytest.approx([2, 4, 6, 8])


def test_fewer_values_than_branches_are_the_largest() -> None:
    assert quantiles(np.array([[[9.0, 5.0, 1.0]]]), 2, MEASURED_BEST).tolist() == [9.0, 5.0]


def test_groups_are_read_each_for_itself() -> None:
    samples = np.array([[[1.0], [10.0]], [[2.0], [20.0]]])
    found = quantiles(samples, 2, QuantileVariant("(i-1/2)/n", "hazen"))
    assert sorted(found.tolist()) == pytest.approx([1, 2, 10, 20])


def test_points_are_those_asked_for() -> None:
    case = Case((2, 2, 3, 1), Geometry((6, 6), (1, 1), ((1, 1), (0, 0))))
    samples = sample_symbol(Shared(case.layer(), CPU), points=7)
    # An even number along the axis that matters, half of them conjugate to the others; one along the other.
    assert samples.values.shape == (4, 1, 2)
    assert (samples.frequencies[:, 1] == 0).all()


@pytest.mark.parametrize("taps", [3, 40, 2000])
def test_samples_are_dense_enough_for_the_kernel(taps: int) -> None:
    case = Case((1, 1, taps), Geometry((5000,), (1,), ((taps // 2, taps // 2),)))
    samples = sample_symbol(Shared(case.layer(), CPU))
    assert len(samples.values) >= max(512, taps)


def test_samples_and_their_conjugates_are_equidistant() -> None:
    case = Case((2, 3, 3, 2), Geometry((6, 6), (1, 1), ((1, 1), (1, 0))))
    half = sample_symbol(Shared(case.layer(), CPU), points=6).frequencies
    both = np.mod(np.concatenate([half, -half]), 2 * np.pi)
    grid = {(round(float(w[0]) * 6 / np.pi), round(float(w[1]) * 6 / np.pi)) for w in both}
    assert grid == {(i, j) for i in range(1, 12, 2) for j in range(0, 12, 2)}


# -------------------------------------------------------------------------------------------------------- where none is


def test_it_leans_on_the_whole_geometry() -> None:
    stored = np.ones((2, 2, 3))
    geometry = resolve((3,), [("option", GeometryFacts(size=9))])
    assert asymptotic(make_layer(stored, geometry), CPU).assumes == (
        "stride",
        "padding",
        "padding_mode",
        "dilation",
        "groups",
        "transposed",
    )


def test_the_zero_kernel_has_zeros() -> None:
    found = asymptotic(line(5).layer(np.zeros((3, 3, 3))), CPU)
    assert found.values is not None
    assert not found.values.any()
    assert (found.count, found.stable_rank, found.condition) == (15, None, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_have_none(bad: float) -> None:
    stored = line(5).kernel()
    stored[0, 1, 2] = bad
    with pytest.raises(UnavailableError, match="NaN or infinite"):
        asymptotic(line(5).layer(stored), CPU)


def test_a_kernel_without_entries_has_none() -> None:
    with pytest.raises(UnavailableError, match="no entries"):
        asymptotic(Case((0, 2, 3), Geometry((4,), (1,), ((1, 1),))).layer(), CPU)


def test_more_values_than_memory_are_refused() -> None:
    case = Case((8, 8, 3, 3), Geometry((300, 300), (1, 1), ((1, 1), (1, 1))))
    with pytest.raises(UnavailableError, match="memory budget"):
        asymptotic(case.layer(), Execution("cpu", memory=1 << 20, jobs=1))


def test_values_beyond_the_range_of_floats_are_refused() -> None:
    with pytest.raises(UnavailableError, match="range of float64"):
        asymptotic(line(5).layer(np.full((3, 3, 3), 1.7e308)), CPU)


def test_a_kernel_larger_than_the_padded_input_is_an_error() -> None:
    with pytest.raises(GeometryError):
        asymptotic(Case((1, 1, 9), Geometry((3,), (1,), ((1, 1),))).layer(), CPU)


# ----------------------------------------------------------------------------------------------------- the command line


def test_the_command_reports_it_at_a_size_no_stride_divides(sample_checkpoints: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    model = str(sample_checkpoints / "digits.keras")
    done = CliRunner().invoke(app, ["asymptotic", "--calibrated", model, "--values", "-o", str(target)])
    assert done.exit_code == 0, done.stderr
    layers = json.loads(target.read_text())["checkpoints"][0]["layers"]
    assert len(layers) == 8
    for layer in layers:
        assert set(layer["results"]) == {"asymptotic", "calibrated"}
        for result in layer["results"].values():
            assert len(result["values"]) == result["count"]
            assert result["guarantee"] == "estimate"


def test_the_command_alone_reports_the_one_method(sample_checkpoints: Path) -> None:
    model = str(sample_checkpoints / "digits.keras")
    done = CliRunner().invoke(app, ["asymptotic", model, "--format", "json"])
    assert done.exit_code == 0
    assert {key for layer in json.loads(done.stdout)["checkpoints"][0]["layers"] for key in layer["results"]} == {
        "asymptotic"
    }

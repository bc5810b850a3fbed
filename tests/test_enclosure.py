"""The certified enclosure of all singular values against the dense matrix, over the whole geometry grid."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

import oracle
from cases import GRID, NAMED, Case, cases, geometry_like, kernels
from convsv import enclosure as module
from convsv.cli import app
from convsv.enclosure import enclose_spectrum
from convsv.errors import ContradictionError, UnavailableError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import to_canonical
from convsv.spectra import enclosure as method_module
from convsv.spectra.circulant import circulant

CPU = Execution("cpu", jobs=1)
Ends = tuple[np.ndarray, np.ndarray]


def ends_of(case: Case, stored: np.ndarray | None = None) -> Ends:
    kernel = to_canonical(case.kernel() if stored is None else stored, "OIK", case.geometry.groups)
    return enclose_spectrum(torch.from_numpy(np.array(kernel)), case.geometry, execution=CPU)


def assert_enclosed(case: Case, stored: np.ndarray, ends: Ends) -> None:
    true = oracle.singular_values(case.dense(stored))
    lower, upper = ends
    assert lower.shape == upper.shape == true.shape
    # The oracle's own rounding: the ends of a full circulant are only 1e-14 apart.
    slack = 1e-13 * true[0]
    assert (lower <= true + slack).all()
    assert (true <= upper + slack).all()
    assert (np.diff(lower) <= 0).all()
    assert (np.diff(upper) <= 0).all()
    assert lower[-1] >= 0


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_every_value_of_the_dense_matrix_is_enclosed(case: Case) -> None:
    assert_enclosed(case, case.kernel(), ends_of(case))


@given(st.data())
def test_every_value_is_enclosed_for_every_kernel(data: st.DataObject) -> None:
    case = data.draw(cases())
    stored = data.draw(kernels(case.shape))
    assert_enclosed(case, stored, ends_of(case, stored))


# ------------------------------------------------------------------------------------------------------ how close it is


def square(channels: int, n: int, **geometry: object) -> Case:
    return Case((channels, channels, 3, 3), Geometry((n, n), (1, 1), ((1, 1), (1, 1)), **geometry))  # type: ignore[arg-type]


def test_full_circular_padding_leaves_rounding_only() -> None:
    case = square(3, 6, padding_mode="circular")
    lower, upper = ends_of(case)
    exact = circulant(case.layer(), CPU).values
    assert (upper - lower).max() < 1e-12 * upper[0]
    assert upper == pytest.approx(exact, rel=0, abs=1e-12 * upper[0])


def test_a_pointwise_layer_is_known_to_rounding() -> None:
    lower, upper = ends_of(NAMED["pointwise"])
    assert (upper - lower).max() < 1e-12 * upper[0]


def test_a_patchify_layer_is_known_to_rounding() -> None:
    lower, upper = ends_of(NAMED["patchify"])
    assert (upper - lower).max() < 1e-12 * upper[0]


def test_the_enclosure_narrows_as_the_size_grows() -> None:
    widths = []
    for n in (25, 100, 400):
        lower, upper = ends_of(Case((3, 3, 3), Geometry((n,), (1,), ((1, 1),))))
        widths.append(float((upper - lower).mean() / upper[0]))
    # By interlacing it is as wide as the few values are apart that the boundary takes: a fixed number of them.
    assert widths[1] < 0.4 * widths[0]
    assert widths[2] < 0.4 * widths[1]


def test_the_upper_end_of_the_norm_is_near() -> None:
    case = square(2, 12)
    assert ends_of(case)[1][0] < 1.02 * oracle.singular_values(case.dense())[0]


def test_shifts_bring_the_upper_ends_nearer() -> None:
    case = geometry_like(NAMED["no padding"], size=(6, 6))
    form = module.normal_form(torch.from_numpy(case.kernel()[None]), (1, 1), (1, 1))
    axes = module._axes(case.geometry, (3, 3))
    unshifted = module._grid_values(form, axes, (0, 0), CPU)[0][0]
    _, upper = ends_of(case)
    assert (upper <= unshifted[: len(upper)] * (1 + 1e-12)).all()
    assert (upper < unshifted[: len(upper)] * 0.999).any()


def test_outputs_that_see_only_padding_are_certified_zeros() -> None:
    case = Case((2, 1, 1), Geometry((2,), (1,), ((2, 2),)))
    wide = Case((1, 4, 1), Geometry((2,), (1,), ((2, 2),)))
    lower, upper = ends_of(wide)
    assert list(upper[2:]) == [0.0] * 4
    assert list(lower[2:]) == [0.0] * 4
    assert lower[0] > 0
    assert ends_of(case)[0][-1] > 0


# --------------------------------------------------------------------------------------------------- certified, exactly


def test_ends_hold_in_multiple_precision() -> None:
    case = Case((2, 2, 2), Geometry((4,), (1,), ((1, 1),), "circular"))
    fitting = geometry_like(case, padding=((0, 1),))
    stored = case.kernel()
    lower, upper = ends_of(fitting, stored)
    with mpmath.workdps(40):
        true = sorted(
            (
                mpmath.mpf(v)
                for v in mpmath.svd_r(
                    mpmath.matrix(oracle.circular(stored, (4,), stride=(1,), dilation=(1,)).tolist()), compute_uv=False
                )
            ),
            reverse=True,
        )
        assert all(low <= v <= high for low, v, high in zip(lower.tolist(), true, upper.tolist(), strict=True))
    assert upper[0] - lower[0] < 1e-13


@pytest.mark.parametrize("exponent", [-1060, -500, 500, 1000])
def test_scale_does_not_matter(exponent: int) -> None:
    case = geometry_like(NAMED["no padding"], size=(5, 5))
    lower, upper = ends_of(case)
    scaled_lower, scaled_upper = ends_of(case, np.ldexp(case.kernel(), exponent))
    assert (scaled_upper >= np.ldexp(upper, exponent) * (1 - 1e-9)).all()
    assert (scaled_lower <= scaled_upper).all()
    if exponent > -1000:
        assert scaled_upper == pytest.approx(np.ldexp(upper, exponent), rel=1e-12)
        assert scaled_lower == pytest.approx(np.ldexp(lower, exponent), rel=1e-12)


def test_the_zero_kernel_is_certified_zero() -> None:
    case = NAMED["no padding"]
    lower, upper = ends_of(case, np.zeros(case.shape))
    assert not lower.any()
    assert not upper.any()


def test_groups_merge_by_rank() -> None:
    case = Case((4, 1, 3), Geometry((6,), (1,), ((1, 1),), groups=4))
    lower, upper = ends_of(case)
    alone = [ends_of(Case((1, 1, 3), Geometry((6,), (1,), ((1, 1),))), case.kernel()[g : g + 1]) for g in range(4)]
    assert lower == pytest.approx(np.sort(np.concatenate([pair[0] for pair in alone]))[::-1])
    assert upper == pytest.approx(np.sort(np.concatenate([pair[1] for pair in alone]))[::-1])


def test_a_contradiction_is_never_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_grid_values", lambda *_: (np.ones((1, 25)) * math.sqrt(2), -1.0))
    with pytest.raises(ContradictionError):
        ends_of(Case((1, 1, 1), Geometry((25,), (1,), ((0, 0),))), np.ones((1, 1, 1)))


# ---------------------------------------------------------------------------------------------------------- the method


def test_method_reports_upper_ends_and_keeps_the_lower_ones_beside_them() -> None:
    case = NAMED["no padding"]
    lower, upper = ends_of(case)
    found = method_module.enclosure(case.layer(), CPU)
    assert (found.method, found.of, found.guarantee, found.kind) == ("enclosure", "zeros 5x4", "certified", "upper")
    assert np.array_equal(found.values, upper)  # type: ignore[arg-type]
    assert np.array_equal(found.lower_values, lower)  # type: ignore[arg-type]
    assert found.error is not None
    assert found.error >= (upper - lower).max()
    assert found.count == len(oracle.singular_values(case.dense()))


def test_method_has_none_for_weights_that_are_not_finite() -> None:
    case = NAMED["no padding"]
    stored = case.kernel()
    stored[0, 0, 0, 0] = np.nan
    with pytest.raises(UnavailableError, match="NaN"):
        method_module.enclosure(case.layer(stored), CPU)


def test_method_has_none_for_a_kernel_without_entries() -> None:
    with pytest.raises(UnavailableError, match="no entries"):
        method_module.enclosure(Case((0, 2, 3), Geometry((4,), (1,), ((1, 1),))).layer(), CPU)


def test_method_has_none_beyond_the_range_of_floats() -> None:
    case = NAMED["no padding"]
    with pytest.raises(UnavailableError, match="range of float64"):
        method_module.enclosure(case.layer(np.full(case.shape, 1.7e308)), CPU)


def test_method_has_none_beyond_the_memory_budget() -> None:
    with pytest.raises(UnavailableError, match="memory budget"):
        method_module.enclosure(square(4, 300).layer(), Execution("cpu", memory=1 << 20, jobs=1))


@pytest.mark.parametrize("channels", [(1, 16), (16, 1)])
def test_the_budget_counts_the_singular_values_of_the_smaller_side(channels: tuple[int, int]) -> None:
    def refused(outputs: int, inputs: int) -> str:
        layer = Case((outputs, inputs, 3, 3), Geometry((300, 300), (1, 1), ((1, 1), (1, 1)))).layer()
        with pytest.raises(UnavailableError, match="memory budget") as error:
            method_module.enclosure(layer, Execution("cpu", memory=1 << 20, jobs=1))
        return str(error.value)

    assert refused(*channels) == refused(1, 1)


# ----------------------------------------------------------------------------------------------------- the command line


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.stderr
    return done.stdout


def results(text: str) -> list[dict[str, Any]]:
    report = json.loads(text)
    schema = json.loads((resources.files("convsv.reports") / "report.schema.json").read_text("utf-8"))
    Draft202012Validator(schema).validate(report)
    return [layer["results"]["enclosure"] for layer in report["checkpoints"][0]["layers"]]


def test_the_report_has_lower_ends_with_values_only(sample_checkpoints: Path) -> None:
    model = str(sample_checkpoints / "digits.keras")
    common = ("analyze", model, "--method", "enclosure", "--include", "s*", "--format", "json")
    (plain,) = results(run(*common))
    assert plain["kind"] == "upper"
    assert not {"values", "lower_values"} & set(plain)
    (whole,) = results(run(*common, "--values"))
    assert len(whole["values"]) == len(whole["lower_values"]) == whole["count"]
    assert all(low <= high for low, high in zip(whole["lower_values"], whole["values"], strict=True))


def test_the_array_file_has_lower_ends_beside_the_upper_ones(sample_checkpoints: Path, tmp_path: Path) -> None:
    target = tmp_path / "spectra.npz"
    model = str(sample_checkpoints / "digits.keras")
    run("analyze", model, "--method", "enclosure", "--include", "s*", "--spectra", str(target))
    with np.load(target, allow_pickle=False) as file:
        assert (file["stem/enclosure_lower"] <= file["stem/enclosure"]).all()
        kinds = {entry["dataset"]: entry["kind"] for entry in json.loads(str(file["index"]))}
    assert kinds == {"stem/enclosure": "upper", "stem/enclosure_lower": "lower"}


def test_the_table_says_that_they_are_upper_ends(sample_checkpoints: Path) -> None:
    model = str(sample_checkpoints / "digits.keras")
    shown = run("analyze", model, "--method", "enclosure", "--include", "s*", "--format", "table")
    assert shown.count("≤") == 2
    assert "upper ends of all singular values" in " ".join(shown.split())

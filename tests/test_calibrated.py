"""The calibrated estimates: exact moments, and how near they come on trained layers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
from cases import GRID, NAMED, Case, cases, kernels
from convsv.errors import UnavailableError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import to_canonical
from convsv.spectra import _copies, _moments
from convsv.spectra._copies import affordable_copy, boundary_axes, smaller_copies
from convsv.spectra._moments import bent, frobenius_norm, largest_value
from convsv.spectra._samples import sample_symbol
from convsv.spectra._shared import Shared
from convsv.spectra.asymptotic import asymptotic
from convsv.spectra.calibrated import calibrated
from convsv.spectra.circulant import circulant
from trained import at_size, errors, exact_values, resnet20

CPU = Execution("cpu", jobs=1)


def canonical(case: Case, stored: np.ndarray | None = None) -> torch.Tensor:
    return torch.from_numpy(
        np.array(to_canonical(case.kernel() if stored is None else stored, "OIK", case.geometry.groups))
    )


def values_of(case: Case, stored: np.ndarray | None = None, execution: Execution = CPU) -> np.ndarray:
    found = calibrated(case.layer(stored), execution).values
    assert found is not None
    return found


def image(channels: int, n: int, **geometry: Any) -> Case:
    return Case((channels, channels, 3, 3), Geometry((n, n), (1, 1), ((1, 1), (1, 1)), **geometry))


# ---------------------------------------------------------------------------------------- acceptance on trained layers

MEASURED = [
    ("conv1", 16),
    ("layer1.0.conv2", 12),
    ("layer1.2.conv1", 12),
    ("layer2.0.conv1", 16),
    ("layer2.0.conv2", 8),
    ("layer2.2.conv2", 8),
    ("layer3.0.conv1", 8),
    ("layer3.0.conv1", 12),
    ("layer3.2.conv2", 8),
]
"""Layers of a trained ResNet-20 that are larger than what is decomposed as a whole."""


@pytest.mark.parametrize(("name", "n"), MEASURED)
def test_asymptotic_is_no_worse_than_circulant_and_calibrated_at_most_a_third(
    name: str, n: int, shared_checkpoints: Path
) -> None:
    stored = resnet20(shared_checkpoints)[name]
    case = at_size(name, stored, n)
    exact, layer = exact_values(case, stored), case.layer(stored)
    assert affordable_copy(canonical(case, stored), case.geometry, CPU) != case.geometry
    found = {method.__name__: method(layer, CPU).values for method in (circulant, asymptotic, calibrated)}
    l2, mean, largest = ({m: errors(values, exact)[which] for m, values in found.items()} for which in range(3))
    assert l2["asymptotic"] <= l2["circulant"]
    assert l2["calibrated"] <= l2["circulant"] / 3
    assert mean["calibrated"] <= mean["circulant"] / 3
    assert largest["calibrated"] <= largest["circulant"]


# ------------------------------------------------------------------------------------------------------- exact moments


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_the_frobenius_norm_is_that_of_the_dense_matrix(case: Case) -> None:
    assert frobenius_norm(canonical(case), case.geometry) == pytest.approx(np.linalg.norm(case.dense()), rel=1e-12)


@given(st.data())
def test_the_frobenius_norm_is_exact_for_every_kernel(data: st.DataObject) -> None:
    case = data.draw(cases())
    stored = data.draw(kernels(case.shape))
    expected = float(np.linalg.norm(case.dense(stored)))
    largest = math.prod(case.shape) * float(np.abs(stored).max())
    # Taps of opposite signs that meet on one input cancel: exact relative to the taps.
    found = frobenius_norm(canonical(case, stored), case.geometry)
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-6 * largest)


@pytest.mark.parametrize("case", GRID[::3], ids=lambda case: case.id)
def test_the_largest_value_is_found_from_below(case: Case) -> None:
    samples = sample_symbol(Shared(case.layer(), CPU))
    true = oracle.singular_values(case.dense())[0]
    found = largest_value(samples, case.geometry, CPU) * 2.0 ** Shared(case.layer(), CPU).exponent
    assert true * (1 - 1e-3) <= found <= true * (1 + 1e-5)


def test_of_a_very_large_layer_the_norm_of_a_smaller_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((2, 2, 3), Geometry((400,), (1,), ((1, 1),)))
    samples = sample_symbol(Shared(case.layer(), CPU))
    exact = largest_value(samples, case.geometry, CPU)
    monkeypatch.setattr(_moments, "_ENTRIES", 300)
    assert largest_value(samples, case.geometry, CPU) == pytest.approx(exact, rel=1e-3)
    monkeypatch.setattr(_moments, "_ENTRIES", 1)
    assert largest_value(samples, case.geometry, CPU) == samples.values.max()


# Of a single tap all values are as large as the largest: no order-keeping change gives them another sum of squares.
SEVERAL = [c for c in (*GRID[::7], *NAMED.values()) if min(c.dense().shape) > 4 and max(c.shape[2:]) > 1]


@pytest.mark.parametrize("case", SEVERAL, ids=lambda case: case.id)
def test_both_moments_are_met_where_values_are_estimated(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copies, "_SIDE", min(case.dense().shape) // case.geometry.groups - 1)
    found, true = values_of(case), oracle.singular_values(case.dense())
    assert len(found) == len(true)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(true), rel=2e-3)
    assert found[0] == pytest.approx(true[0], rel=2e-3)


# ------------------------------------------------------------------------------------------------------------- bending


@pytest.mark.parametrize("sharpness", [2, 8])
@pytest.mark.parametrize("factor", [0.6, 0.95, 1.0, 1.2])
def test_bent_values_have_both_moments_and_their_order(sharpness: int, factor: float) -> None:
    values = np.linspace(3.0, 0.0, 500)
    frobenius = factor * float(np.linalg.norm(values))
    found = bent(values, frobenius, 2.5, sharpness)
    assert found[0] == pytest.approx(2.5)
    assert np.linalg.norm(found) == pytest.approx(frobenius, rel=1e-6)
    assert (np.diff(found) <= 0).all()
    assert found[-1] == 0


def test_values_that_have_both_moments_stay() -> None:
    values = np.geomspace(2.0, 1e-9, 100)
    assert bent(values, float(np.linalg.norm(values)), 2.0, 8) == pytest.approx(values, rel=1e-9)


def test_equal_values_stay_equal() -> None:
    assert bent(np.full(9, 2.0), 6.0, 2.0, 8) == pytest.approx(np.full(9, 2.0))


# -------------------------------------------------------------------------------------------------------------- copies


def test_a_layer_whose_matrix_is_affordable_gets_its_own_values() -> None:
    for case in GRID[::10]:
        true = oracle.singular_values(case.dense())
        assert values_of(case) == pytest.approx(true, rel=0, abs=2e-3 * true[0])
        if any(boundary_axes(case.geometry, case.shape[2:])):
            assert values_of(case) == pytest.approx(true, rel=0, abs=1e-12 * true[0])


def test_copies_keep_the_proportions_and_what_strides_and_dilations_leave_over() -> None:
    geometry = Geometry((45, 23), (2, 1), ((2, 2), (3, 3)), dilation=(3, 2))
    found = list(smaller_copies(geometry, (3, 3)))
    assert found[0] == geometry
    assert all(copy == replace(geometry, size=copy.size) for copy in found)
    assert all(copy.size[0] % 6 == 45 % 6 and copy.size[1] % 2 == 23 % 2 for copy in found)
    assert found[1].size == (27, 13)
    assert all(a.size != b.size for a, b in itertools.pairwise(found))
    # At least half as large as the kernel's reach of 7 and 5.
    assert found[-1].size == (9, 3)


def test_a_transposed_layer_has_copies_of_its_own_input() -> None:
    geometry = Geometry((9,), (2,), ((1, 1),), transposed=True, output_padding=(1,))
    assert [copy.size for copy in smaller_copies(geometry, (4,))] == [(9,), (5,), (4,), (3,), (2,), (1,)]


def test_reflections_limit_how_small_a_copy_is() -> None:
    geometry = Geometry((20,), (1,), ((3, 3),), "reflect")
    assert [copy.size for copy in smaller_copies(geometry, (7,))][-1] == (4,)


@pytest.mark.parametrize(
    ("case", "open_"),
    [
        (NAMED["pointwise"], False),
        (NAMED["patchify"], False),
        (NAMED["pointwise with stride"], False),
        (NAMED["no padding"], True),
        (image(2, 6), True),
        (image(2, 6, padding_mode="circular"), False),
        (image(2, 6, padding_mode="reflect"), True),
        (Case((2, 2, 2), Geometry((7,), (2,), ((0, 0),))), True),
        (Case((2, 2, 1), Geometry((7,), (1,), ((1, 1),))), True),
    ],
)
def test_which_layers_have_a_boundary(case: Case, open_: bool) -> None:
    assert any(boundary_axes(case.geometry, case.shape[2:])) == open_


def test_copies_bring_the_small_values_near(monkeypatch: pytest.MonkeyPatch) -> None:
    # Taps 0, .1, 1: the symbol is nowhere below .9, the zero-padded layer has one value that is next to nothing.
    case = Case((1, 1, 3), Geometry((40,), (1,), ((1, 1),)))
    stored = np.array([[[0.0, 0.1, 1.0]]])
    monkeypatch.setattr(_copies, "_SIDE", 30)
    true = oracle.singular_values(case.dense(stored))
    assert true[-1] < 1e-12
    assert values_of(case, stored)[-1] < 0.3
    assert asymptotic(case.layer(stored), CPU).min > 0.89


def test_dilated_layers_are_bundles_of_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Case((4, 4, 3), Geometry((20,), (1,), ((1, 1),)))
    dilated = Case((4, 4, 3), Geometry((60,), (1,), ((3, 3),), dilation=(3,)))
    monkeypatch.setattr(_copies, "_SIDE", 70)
    thrice = np.repeat(values_of(plain), 3)
    monkeypatch.setattr(_copies, "_SIDE", 200)
    own = np.repeat(oracle.singular_values(plain.dense()), 3)
    assert oracle.singular_values(dilated.dense(plain.kernel())) == pytest.approx(own, abs=1e-12)
    assert errors(values_of(dilated, plain.kernel()), thrice)[0] < 0.01


def test_without_an_affordable_copy_there_are_still_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    case = image(3, 8)
    true = oracle.singular_values(case.dense())
    monkeypatch.setattr(_copies, "_SIDE", 0)
    found = values_of(case)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(true), rel=1e-5)
    assert errors(found, true)[0] < 0.5 * errors(asymptotic(case.layer(), CPU).values, true)[0]  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- odd kernels


def test_the_zero_kernel_has_zeros() -> None:
    found = calibrated(image(2, 40).layer(np.zeros((2, 2, 3, 3))), CPU)
    assert found.values is not None
    assert not found.values.any()


def test_a_layer_that_only_sees_padding_has_zeros() -> None:
    stored = np.zeros((1, 1, 5))
    stored[0, 0, 4] = 1.0
    case = Case((1, 1, 5), Geometry((2,), (1,), ((2, 2),)))
    assert not case.dense(stored).any()
    assert not values_of(case, stored).any()


def test_weights_that_are_not_finite_have_none() -> None:
    stored = image(2, 6).kernel()
    stored[1, 1, 1, 1] = np.inf
    with pytest.raises(UnavailableError, match="NaN or infinite"):
        calibrated(image(2, 6).layer(stored), CPU)


def test_a_power_of_two_scales_the_values_exactly() -> None:
    case = image(3, 30)
    for exponent in (-400, 400):
        assert np.array_equal(values_of(case, np.ldexp(case.kernel(), exponent)), np.ldexp(values_of(case), exponent))


def test_single_precision_is_near_double() -> None:
    case = image(4, 20)
    double = values_of(case)
    assert values_of(case, execution=Execution("cpu", dtype="float32", jobs=1)) == pytest.approx(
        double, rel=0, abs=1e-4 * double[0]
    )


def test_little_memory_leaves_the_moments() -> None:
    case = image(8, 60)
    found = calibrated(case.layer(), Execution("cpu", memory=1 << 20, jobs=1))
    assert found.count == 8 * 60 * 60
    assert found.frobenius == pytest.approx(frobenius_norm(canonical(case), case.geometry), rel=1e-6)


@pytest.mark.parametrize("memory", [1 << 20, 3 << 20, 12 << 20, 48 << 20])
@pytest.mark.parametrize("channels", [8, 64])
def test_no_value_depends_on_threads_or_on_who_shares_the_budget(channels: int, memory: int) -> None:
    layer = image(channels, 24 if channels < 64 else 8).layer()
    plans = [Execution("cpu", memory=memory, jobs=jobs, sharers=n) for jobs, n in ((1, 1), (2, 1), (4, 1), (1, 3))]
    for method in (calibrated, circulant):
        first, *others = (method(layer, plan) for plan in plans)
        for other in others:
            np.testing.assert_array_equal(first.values, other.values)
            assert first.error == other.error

"""Geometry: padding maps against numpy's, sizes against PyTorch's, and which source wins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
from cases import GRID, NAMED, Case
from convsv.errors import GeometryError
from convsv.geometry import PADDINGS, Geometry, GeometryFacts, Origin, padding_multiplicity, resolve

NUMPY_MODES = {"circular": "wrap", "replicate": "edge", "reflect": "reflect"}


@pytest.mark.parametrize("mode", PADDINGS)
@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 12))
def test_padding_map_equals_numpy_pad(mode: str, n: int, before: int, after: int) -> None:
    if mode == "reflect" and max(before, after) >= n:
        with pytest.raises(GeometryError, match="reflect"):
            PADDINGS[mode](n, before, after)
        return
    if mode == "zeros":
        expected = np.pad(np.arange(n), (before, after), constant_values=-1)
    else:
        expected = np.pad(np.arange(n), (before, after), mode=NUMPY_MODES[mode])  # type: ignore[call-overload]
    assert np.array_equal(PADDINGS[mode](n, before, after), expected)


@pytest.mark.parametrize("mode", PADDINGS)
@given(st.integers(4, 9), st.integers(0, 3), st.integers(0, 3))
def test_multiplicity_is_the_squared_norm_of_the_padding(mode: str, n: int, before: int, after: int) -> None:
    matrix = np.zeros((before + n + after, n))
    for row in range(before + n + after):
        read = oracle.source(row - before, n, mode)
        if read is not None:
            matrix[row, read] = 1
    assert padding_multiplicity(mode, n, before, after) == pytest.approx(np.linalg.norm(matrix, 2) ** 2)


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.id)
def test_sizes_are_those_of_the_dense_matrix(case: Case) -> None:
    g = case.geometry
    rows, columns = case.dense().shape
    outputs, inputs = case.shape[0], case.shape[1] * g.groups
    if g.transposed:
        outputs, inputs = inputs, outputs
    assert outputs * np.prod(g.output_size(case.shape[2:])) == rows
    assert inputs * np.prod(g.size) == columns
    assert g.forward_size(case.shape[2:]) == (g.output_size(case.shape[2:]) if g.transposed else g.size)


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (0, 4)}, "size must be at least 1"),
        ({"stride": (0, 1)}, "stride must be at least 1"),
        ({"stride": (1,)}, "one entry a spatial axis"),
        ({"dilation": (1, 0)}, "dilation must be at least 1"),
        ({"padding": ((0, -1), (0, 0))}, "must not be negative"),
        ({"padding": ((0, 0),)}, "one entry a spatial axis"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"padding_mode": "mirror"}, "unknown padding mode"),
        ({"output_padding": (0, -1)}, "output_padding must be at least 0"),
    ],
)
def test_impossible_geometry_is_refused(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"size": (4, 4), "stride": (1, 1), "padding": ((1, 1), (1, 1))}
    with pytest.raises(GeometryError, match=message):
        Geometry(**{**fields, **changes})


def test_kernel_beyond_the_padded_input_has_no_output() -> None:
    with pytest.raises(GeometryError, match="larger than the padded input"):
        Geometry((3,), (1,), ((0, 0),)).output_size((4,))


def test_transposed_layer_that_is_padded_away_has_no_output() -> None:
    with pytest.raises(GeometryError, match="no output"):
        Geometry((1,), (1,), ((2, 2),), transposed=True).output_size((3,))


# ------------------------------------------------------------------------------------------------------- resolution


def test_nothing_said_is_assumed() -> None:
    g = resolve((3, 3), [])
    assert (g.size, g.stride, g.padding, g.padding_mode) == ((32, 32), (1, 1), ((1, 1), (1, 1)), "zeros")
    assert set(g.origin.values()) == {"assumed"}


@pytest.mark.parametrize(
    ("transposed", "stated", "origin"),
    [(False, None, "stored"), (True, None, "assumed"), (True, 1, "stored"), (None, None, "assumed")],
    ids=["forward", "transposed", "transposed and stated", "unknown"],
)
def test_that_a_forward_layer_has_no_output_padding_is_known_as_well_as_that_it_is_forward(
    transposed: bool | None, stated: int | None, origin: str
) -> None:
    g = resolve((3,), [("stored", GeometryFacts(stride=2, transposed=transposed, output_padding=stated))])
    assert g.origin["output_padding"] == origin


def test_stronger_source_wins_whatever_the_order() -> None:
    said: list[tuple[Origin, GeometryFacts]] = [
        ("option", GeometryFacts(size=8)),
        ("stored", GeometryFacts(size=9, stride=2)),
        ("inferred", GeometryFacts(groups=3, stride=3)),
    ]
    for sources in (said, said[::-1]):
        g = resolve((3,), sources)
        assert (g.size, g.stride, g.groups) == ((8,), (2,), 3)
        assert (g.origin["size"], g.origin["stride"], g.origin["groups"]) == ("option", "stored", "inferred")


def test_later_of_two_equal_sources_wins() -> None:
    g = resolve((3,), [("sidecar", GeometryFacts(size=8)), ("sidecar", GeometryFacts(size=9))])
    assert g.size == (9,)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (1, ((1, 1), (1, 1))),
        ((1, 2), ((1, 1), (2, 2))),
        (((1, 2), (3, 4)), ((1, 2), (3, 4))),
        ("valid", ((0, 0), (0, 0))),
    ],
)
def test_padding_may_be_said_in_several_ways(spec: Any, expected: tuple[tuple[int, int], ...]) -> None:
    assert resolve((3, 3), [("option", GeometryFacts(padding=spec))]).padding == expected


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_same_padding_makes_one_output_a_stride(n: int, k: int, stride: int, dilation: int) -> None:
    facts = GeometryFacts(size=n, stride=stride, dilation=dilation, padding="same")
    g = resolve((k,), [("option", facts)])
    assert g.output_size((k,)) == (-(-n // stride),)


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3))
def test_same_padding_of_a_transposed_layer_multiplies_the_size(n: int, k: int, stride: int) -> None:
    facts = GeometryFacts(size=n, stride=stride, padding="same", transposed=True)
    g = resolve((max(k, stride),), [("option", facts)])
    assert g.output_size((max(k, stride),)) == (n * stride,)


@pytest.mark.parametrize("said", [{"size": (8, 8, 8)}, {"stride": (2,)}, {"padding": (1, 2, 3)}], ids=str)
def test_wrong_number_of_axes_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(GeometryError, match="an integer or 2 integers"):
        resolve((3, 3), [("option", GeometryFacts(**said))])


def test_guesses_are_what_was_inferred_or_assumed() -> None:
    g = resolve((3,), [("option", GeometryFacts(size=8)), ("inferred", GeometryFacts(groups=2))])
    assert g.guessed("size", "groups", "stride") == ("groups", "stride")
    assert NAMED["patchify"].geometry.guessed("size", "stride") == ()

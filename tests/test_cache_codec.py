"""What is kept comes back exactly, and what is not such a value is refused, whatever it is."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsv.cache import Finished
from convsv.cache._codec import decoded, encoded
from convsv.geometry import ORIGINS, PADDINGS, Geometry
from convsv.results import (
    Bound,
    Check,
    CheckpointReport,
    Clipping,
    Density,
    Finding,
    Histogram,
    Interval,
    LayerReport,
    Reached,
    Spectrum,
)

TEXT = st.text(max_size=8) | st.sampled_from(["\x00", "ö|\n", ""])
NUMBER = st.floats() | st.integers(-(2**53), 2**53) | st.floats(0, 10).map(np.float64)
NAMES = st.lists(TEXT, max_size=3).map(tuple)
GUARANTEE = st.sampled_from(["certified", "probabilistic", "estimate"])
NUMBERS = st.lists(st.floats(), max_size=4)
COUNT = st.integers(0, 2**64 - 1)


def texts(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(TEXT, values, max_size=3)


INTERVAL = st.builds(
    Interval, NUMBER, NUMBER, TEXT, GUARANTEE, st.fixed_dictionaries({"lower": NAMES, "upper": NAMES}), COUNT
)
ARRAY = st.none() | NUMBERS.map(lambda values: np.array(values, dtype=np.float64))
BOUND = st.builds(Bound, TEXT, NUMBER, st.sampled_from(["upper", "lower"]), TEXT, GUARANTEE, st.none() | NUMBER, NUMBER)
DENSITY = st.builds(Density, *[NUMBERS.map(tuple)] * 3, GUARANTEE, NUMBER, COUNT, COUNT)
SPECTRUM = st.builds(
    Spectrum,
    method=TEXT,
    of=TEXT,
    guarantee=GUARANTEE,
    count=COUNT,
    max=NUMBER,
    min=NUMBER,
    frobenius=NUMBER,
    stable_rank=st.none() | NUMBER,
    effective_rank=st.none() | NUMBER,
    condition=st.none() | NUMBER,
    quantiles=texts(NUMBER),
    error=st.none() | NUMBER,
    kind=TEXT,
    assumes=NAMES,
    residuals=st.none() | NUMBERS.map(tuple),
    values=ARRAY,
    lower_values=ARRAY,
    histogram=st.none() | st.builds(Histogram, NUMBER, st.lists(COUNT, max_size=3).map(tuple)),
    quantile_error=NUMBER,
    upper=st.none() | NUMBER,
    trailing=COUNT,
    density=st.none() | DENSITY,
    notes=NAMES,
)
REACHED = st.builds(Reached, TEXT, NUMBER, NUMBER, NUMBER, st.none() | NUMBER, st.just((8, 8)), NAMES)
CLIPPING = st.builds(
    Clipping, st.none() | NUMBER, TEXT, INTERVAL, INTERVAL, NUMBER, COUNT, NUMBER, st.booleans(), NAMES, REACHED
)
FINDING = st.builds(
    Finding,
    TEXT,
    NUMBER,
    st.sampled_from(["PASS", "FAIL", "UNDECIDED"]),
    st.none() | INTERVAL,
    TEXT,
    st.booleans(),
)
CHECK = st.builds(Check, st.sampled_from(["off", "warn", "error"]), st.lists(FINDING, max_size=2).map(tuple))
GEOMETRY = st.builds(
    Geometry,
    size=st.just((8, 9)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.just(((0, 1), (2, 3))),
    padding_mode=st.sampled_from([*PADDINGS]),
    groups=st.integers(1, 4),
    transposed=st.booleans(),
    origin=st.dictionaries(st.sampled_from(["size", "stride"]), st.sampled_from(ORIGINS)),
    is_same=st.booleans(),
)
LAYER = st.builds(
    LayerReport,
    name=TEXT,
    weight=TEXT,
    kind=TEXT,
    shape=st.lists(COUNT, max_size=5).map(tuple),
    dtype=TEXT,
    geometry=GEOMETRY,
    norm=st.none() | INTERVAL,
    norm_at_size=st.none() | INTERVAL,
    symbol_min=st.none() | INTERVAL,
    results=texts(SPECTRUM | texts(BOUND)),
    unavailable=texts(TEXT),
    notes=NAMES,
    failures=NAMES,
    unread=st.none() | TEXT,
    folded=st.none() | TEXT,
    clip=st.none() | CLIPPING,
    check=st.none() | CHECK,
)
CHECKPOINT = st.builds(
    CheckpointReport,
    TEXT,
    TEXT,
    st.none() | TEXT,
    NAMES,
    st.lists(LAYER, max_size=2).map(tuple),
    st.none() | CHECK,
    st.booleans(),
)


def same(one: Any, other: Any) -> bool:
    """Equality that takes NaN for NaN, tells zeros and integers apart, and looks into arrays and hidden fields."""
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
        )
    if isinstance(one, dict):
        return [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return type(other) is tuple and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes() and other.flags.writeable)
    if isinstance(one, float):
        return isinstance(other, float) and ((math.isnan(one) and math.isnan(other)) or repr(float(one)) == repr(other))
    return type(one) is type(other) and one == other


@given(LAYER)
def test_a_layer_comes_back_exactly(layer: LayerReport) -> None:
    text = encoded(layer)
    back = decoded(LayerReport, text)
    assert same(layer, back)
    assert encoded(back) == text


@given(CHECKPOINT, st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=2).map(tuple))
def test_a_checkpoint_comes_back_exactly(report: CheckpointReport, skipped: tuple[tuple[str, str, str], ...]) -> None:
    finished = Finished(report, skipped)
    assert same(finished, decoded(Finished, encoded(finished)))


# ------------------------------------------------------------------------------------------------------------- refused

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
    lambda items: st.lists(items, max_size=3) | st.dictionaries(st.text(max_size=5), items, max_size=3),
    max_leaves=8,
)
packed, unpacked = msgspec.msgpack.encode, msgspec.msgpack.decode


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a value of lists and mappings."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in inside for place in places(item, (*here, key)))]


def put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    value[place[0]] = put(value[place[0]], place[1:], new)
    return value


@given(LAYER, st.data(), PLAIN)
def test_another_value_anywhere_is_refused_or_meant(layer: LayerReport, data: st.DataObject, new: Any) -> None:
    value = unpacked(encoded(layer))
    content = packed(put(value, data.draw(st.sampled_from(places(value))), new))
    try:
        back = decoded(LayerReport, content)
    except ValueError:
        return
    assert encoded(back) == content
    assert [type(getattr(back, name)) for name in ("name", "shape", "results")] == [str, tuple, dict]


@given(LAYER, st.data())
def test_what_is_cut_off_or_has_another_byte_is_refused_or_meant(layer: LayerReport, data: st.DataObject) -> None:
    content = bytearray(encoded(layer))
    place = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong with it
        decoded(LayerReport, bytes(content[:place]))
    content[place] = data.draw(st.integers(0, 255))
    try:
        back = decoded(LayerReport, bytes(content))
    except ValueError:
        return
    assert encoded(back) == content


@given(st.binary(max_size=60) | PLAIN.map(packed))
def test_what_is_no_layer_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decoded(LayerReport, content)


SOUND = {"top": 1.0, "counts": [2]}


def test_what_is_sound_is_read() -> None:
    assert same(Histogram(1.0, (2,)), decoded(Histogram, packed(SOUND)))
    assert same(Histogram(1, (2,)), decoded(Histogram, packed({**SOUND, "top": 1})))
    assert decoded(Histogram(1.0, ()), packed({"counts": [2]}), own=("top",)) == Histogram(1.0, (2,))


@pytest.mark.parametrize(
    "content",
    [
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million entries, that are not there
        packed({"top": True, "counts": []}),
        packed({"top": 1.0, "counts": [1.0]}),
        packed({"top": 1.0, "counts": {}}),
        packed({"top": 1.0}),
        packed({**SOUND, "more": 1}),
        packed(SOUND) + b"\x00",
        packed(SOUND).replace(b"counts", b"count\xff"),
        packed(SOUND).replace(b"\x82", b"\xde\x00\x02"),  # its length in more bytes than it takes
        packed({"top": 0.0, "to_": 1.0, "counts": [2]}).replace(b"to_", b"top"),  # twice
    ],
)
def test_hostile_content_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decoded(Histogram, content)


@pytest.mark.parametrize("content", [packed(SOUND), packed({}), packed({"counts": [2], "more": 1}), b"\xc0"])
def test_fields_that_were_left_out_and_others_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decoded(Histogram(1.0, ()), content, own=("top",))


BLANK = Spectrum("x", "x", "estimate", 0, 0.0, 0.0, 0.0, None, None, None, {}, values=np.zeros(1))


@pytest.mark.parametrize("array", [b"123", b"123456789", "12345678", 1, [1.0], {}])
def test_an_array_of_another_form_is_refused(array: Any) -> None:
    value = unpacked(encoded(BLANK))
    assert same(BLANK, decoded(Spectrum, packed(value)))
    with pytest.raises(ValueError):  # noqa: PT011
        decoded(Spectrum, packed({**value, "values": array}))


def test_an_impossible_geometry_is_refused() -> None:
    value = unpacked(encoded(Geometry((8,), (1,), ((1, 1),))))
    assert decoded(Geometry, packed(value)) == Geometry((8,), (1,), ((1, 1),))
    for name, other in {"size": [0], "stride": [1, 1], "padding_mode": "none", "origin": {"size": "heard"}}.items():
        with pytest.raises(ValueError):  # noqa: PT011
            decoded(Geometry, packed({**value, name: other}))


def test_any_mapping_is_written() -> None:
    quantiles = types.MappingProxyType({"0.5": 1.0})
    back = decoded(Spectrum, encoded(dataclasses.replace(BLANK, quantiles=quantiles)))
    assert back.quantiles == {"0.5": 1.0}


@pytest.mark.parametrize(
    "value", [np.float32(1), np.zeros((2, 2)), np.zeros(2, dtype=np.float32), np.int64(1), object()]
)
def test_what_has_no_bytes_is_refused_when_it_is_written(value: Any) -> None:
    with pytest.raises(TypeError):
        encoded(Histogram(value, ()))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\udcff"])
def test_large_integers_and_text_that_is_no_unicode_are_not_kept(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        encoded(Histogram(value, ()))

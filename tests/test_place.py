"""Places of tensors in files, against numpy's own strided views; and which of them meet."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convsv.checkpoints import _overlaps, _strided
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._overlaps import Claim, refuse_overlaps
from convsv.checkpoints._place import Place
from convsv.checkpoints._strided import DTYPES, StridedView
from convsv.errors import CheckpointError

SIZE = 8192


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> RegularFile:
    path = tmp_path_factory.mktemp("place") / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return RegularFile(path)


@st.composite
def views(draw: st.DrawFn, dtypes: Sequence[str] = ("uint8", "float16", "float32", "complex64")) -> StridedView:
    """Any view without overlap: the axes, in any order, each step over what the smaller ones reach."""
    shape = draw(st.lists(st.integers(1, 4), max_size=4))
    strides, reach = [0] * len(shape), 0
    for axis in draw(st.permutations(range(len(shape)))):
        if shape[axis] > 1:
            strides[axis] = reach + draw(st.integers(1, 3))
            reach += strides[axis] * (shape[axis] - 1)
    return StridedView(draw(st.sampled_from(dtypes)), draw(st.integers(0, 9)), tuple(shape), tuple(strides))


def bytes_of(place: Place) -> set[int]:
    """The same by definition: element by element, byte by byte."""
    view, item = place.view, DTYPES[place.view.dtype].itemsize
    elements = itertools.product(*(range(n) for n in view.shape))
    starts = [view.offset + sum(i * s for i, s in zip(index, view.strides, strict=True)) for index in elements]
    return {place.start + start * item + byte for start in starts for byte in range(item)}


@given(view=views(), start=st.integers(0, 50))
def test_a_place_knows_its_bytes(file: RegularFile, view: StridedView, start: int) -> None:
    place = Place(file, start, view)
    wanted = bytes_of(place)
    assert (place.first, place.end, place.byte_count) == (min(wanted), max(wanted) + 1, len(wanted))
    assert place.is_dense == (wanted == set(range(min(wanted), max(wanted) + 1)))
    everywhere = np.arange(SIZE)
    assert set(everywhere[place.holds(everywhere)].tolist()) == wanted
    found = [int(at) for part in place.positions(place.item_size) for at in part]
    assert len(found) == len(wanted)
    assert set(found) == wanted


@given(view=views(), start=st.integers(0, 50), big_endian=st.booleans(), seed=st.integers(0, 99))
def test_values_are_written_into_their_bytes_only(
    file: RegularFile, view: StridedView, start: int, big_endian: bool, seed: int
) -> None:
    place = Place(file, start, view, big_endian)
    values: NDArray[Any] = np.empty(view.shape, DTYPES[view.dtype])
    values.reshape(-1).view(np.uint8)[:] = np.random.default_rng(seed).integers(0, 256, values.nbytes)
    before = file.read(0, SIZE)
    after = written(place, values)
    where = bytes_of(place)
    assert all(before[at] == after[at] for at in range(SIZE) if at not in where)
    order = ">" if big_endian else "<"
    dtype = values.dtype.newbyteorder(order)  # type: ignore[call-overload]
    strides = [s * values.itemsize for s in view.strides]
    read = np.ndarray(view.shape, dtype, after, place.first, strides)
    assert read.astype(values.dtype).tobytes() == values.tobytes()


def written(place: Place, values: NDArray[Any]) -> bytes:
    """The content of a copy of the file after the values were written into it."""
    descriptor = os.memfd_create("copy") if hasattr(os, "memfd_create") else pytest.skip("needs memfd")
    try:
        os.write(descriptor, place.file.read(0, place.file.size))
        place.write(descriptor, values)
        return os.pread(descriptor, place.file.size + 1, 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)], ids=["conj", "neg", "conj and neg"])
def test_views_that_change_what_is_stored_are_written_through_it(file: RegularFile, flags: tuple[bool, bool]) -> None:
    view = StridedView("complex64", 1, (3,), (2,), *flags)
    values = np.array([1 + 2j, -3j, 4], np.complex64)
    stored = np.ndarray((3,), np.complex64, written(Place(file, 8, view), values), 16, (16,))
    through = np.conj(stored) if flags[0] else stored
    assert ((-through if flags[1] else through) == values).all()


def test_far_apart_elements_are_written_block_by_block(file: RegularFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_strided, "_BLOCK", 64)
    view = StridedView("uint8", 3, (2, 3, 2), (7, 600, 100))
    values = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    place = Place(file, 1, view)
    after = written(place, values)
    assert np.ndarray(view.shape, np.uint8, after, 4, view.strides).tolist() == values.tolist()
    assert {at for at in range(SIZE) if after[at] != file.read(at, 1)[0]} <= bytes_of(place)


# ----------------------------------------------------------------------------------------------------------- overlaps


@given(one=views(), other=views(), starts=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_places_meet_when_they_have_a_byte_in_common(
    file: RegularFile, one: StridedView, other: StridedView, starts: tuple[int, int]
) -> None:
    places = [Place(file, start, view) for start, view in zip(starts, (one, other), strict=True)]
    common = bytes_of(places[0]) & bytes_of(places[1])
    for edited in ((True, False), (False, True), (True, True)):
        claims = [Claim("ab"[i], place, edited[i]) for i, place in enumerate(places)]
        if common:
            with pytest.raises(CheckpointError, match="shares some of its bytes"):
                refuse_overlaps(claims)
        else:
            refuse_overlaps(claims)
    refuse_overlaps([Claim("ab"[i], place) for i, place in enumerate(places)])


def test_an_overlap_is_found_among_many_views(file: RegularFile) -> None:
    def claim(name: str, start: int, count: int, edited: bool) -> Claim:
        return Claim(name, Place.contiguous(file, start, "uint8", (count,)), edited)

    apart = [claim(f"t{i}", 10 * i, 10, i % 3 == 0) for i in range(300)]
    refuse_overlaps(apart)
    refuse_overlaps([*apart, claim("unedited", 11, 9, False)])
    with pytest.raises(CheckpointError, match=r"^t297: .*storage, late"):
        refuse_overlaps([*apart, claim("late", 2979, 3, False)])
    with pytest.raises(CheckpointError, match=r"storage, whole"):
        refuse_overlaps([*apart, claim("whole", 0, SIZE, False)])


def test_places_in_different_files_never_meet(file: RegularFile, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(SIZE))
    other = RegularFile(tmp_path / "other")
    refuse_overlaps([Claim(str(i), Place.contiguous(f, 0, "uint8", (9,)), True) for i, f in enumerate((file, other))])


def test_a_crowd_of_interleaved_views_is_refused_in_bounded_work(
    file: RegularFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_overlaps, "MAX_PAIRS", 50)
    views = [Place(file, 0, StridedView("uint8", i, (3,), (100,))) for i in range(60)]
    with pytest.raises(CheckpointError, match="too many views"):
        refuse_overlaps([Claim(str(i), place, i == 59) for i, place in enumerate(views)])


def test_the_place_of_an_array_in_c_order(file: RegularFile) -> None:
    place = Place.contiguous(file, 100, "float32", (2, 1, 3), big_endian=sys.byteorder == "little")
    assert place.view.strides == (3, 0, 1)
    assert place.is_dense
    assert place.byte_count == 4 * math.prod((2, 1, 3)) == place.end - place.first

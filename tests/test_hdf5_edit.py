"""Edited HDF5 files: the edited values are there and nothing else is different; what cannot be so is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convsv.checkpoints import _hdf5_edit, open_checkpoint
from convsv.checkpoints.writing import Edit, save_edited
from convsv.errors import CheckpointError, ConvsvError, CorruptCheckpointError, OutputError
from hdf5files import (
    KERNEL,
    LAYOUTS,
    OTHER,
    RNG,
    Values,
    add,
    build,
    check_content,
    crowd,
    differing,
    edited,
    extent,
    named,
)

pytestmark = pytest.mark.timeout(200)

IN_PLACE = ("contiguous", "big endian", "half precision", "chunked", "resizable", "compact")


# --------------------------------------------------------------------------------------------------------- what changes


@pytest.mark.parametrize(
    ("libver", "user_block"), [("earliest", 0), ("earliest", 512), ("latest", 0), ("latest", 4096)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_values_of_the_edited_dataset_change(
    tmp_path: Path, layout: str, libver: str, user_block: int
) -> None:
    path = build(tmp_path / "m.h5", layout, libver=libver, userblock_size=user_block)
    if user_block:
        with path.open("r+b") as file:
            file.write(b"a user block" * 40)
    copy = edited(path, {"conv/conv/kernel:0": OTHER}, tmp_path / "copy.h5")
    check_content(path, copy, {"conv/conv/kernel:0": OTHER, "alias": OTHER})
    before, after = path.read_bytes(), copy.read_bytes()
    assert before[:user_block] == after[:user_block]
    if layout in IN_PLACE:
        # A compact dataset lies in an object header, which the newer format closes with a checksum.
        item = 2 if layout == "half precision" else 4
        assert len(differing(before, after)) <= KERNEL.size * item + 4 * (layout == "compact")


@pytest.mark.parametrize("user_block", [0, 1024])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_contiguous_values_are_overwritten_where_they_stand(tmp_path: Path, dtype: str, user_block: int) -> None:
    path, copy = tmp_path / "m.h5", tmp_path / "copy.h5"
    with h5py.File(path, "w", userblock_size=user_block, track_order=True) as file:
        crowd(file)
        file.create_dataset("k", data=KERNEL.astype(dtype), track_times=True)
        file.create_dataset("behind", data=KERNEL, track_times=True)
    edited(path, {"k": OTHER}, copy)
    inside = extent(path, "k")
    assert set(differing(path.read_bytes(), copy.read_bytes())) <= set(inside)
    assert copy.read_bytes()[inside.start : inside.stop] == OTHER.astype(dtype).tobytes()


def test_bfloat16_is_written_as_keras_stores_it(tmp_path: Path) -> None:
    path, copy = tmp_path / "m.h5", tmp_path / "copy.h5"
    with h5py.File(path, "w") as file:
        for name, options in (("k", {}), ("z", {"compression": "gzip"})):
            dataset = file.create_dataset(name, data=KERNEL.astype(ml_dtypes.bfloat16), **options)
            dataset.attrs["dtype"] = "bfloat16"
    edited(path, {"k": OTHER, "z": -OTHER}, copy)
    found = open_checkpoint(copy)
    for name, value in (("k", OTHER), ("z", -OTHER)):
        np.testing.assert_array_equal(named(found, name).read(), value.astype(ml_dtypes.bfloat16))


def test_several_datasets_of_all_layouts_are_edited_at_once(tmp_path: Path) -> None:
    path = build(tmp_path / "m.h5", "gzip")
    values = {f"others/{layout}": OTHER * number for number, layout in enumerate(LAYOUTS)}
    copy = edited(path, values, tmp_path / "copy.h5")
    check_content(path, copy, {**values, "others/tied": values["others/gzip"]})


@pytest.mark.parametrize("name", ["unwritten", "chunks unwritten"])
def test_a_dataset_without_values_so_far_gets_some(tmp_path: Path, name: str) -> None:
    path, values = build(tmp_path / "m.h5", "gzip"), {f"others/{name}": OTHER[:2, :2].reshape(-1)[:16].reshape(4, 4)}
    check_content(path, edited(path, values, tmp_path / "copy.h5"), values)


def test_the_same_values_again_change_no_byte_of_the_next_copy(tmp_path: Path) -> None:
    values = {f"others/{layout}": OTHER for layout in LAYOUTS}
    first = edited(build(tmp_path / "m.h5", "contiguous"), values, tmp_path / "first")
    second = edited(first, values, tmp_path / "second")
    assert first.read_bytes() == second.read_bytes()


def test_odd_names_are_edited(tmp_path: Path) -> None:
    path, raw = tmp_path / "m.h5", b"not utf-8 \xff"
    names = ["é/ü", "new\nline", "\x1b[31m"]
    with h5py.File(path, "w") as file:
        for name in (*names, raw):
            file.create_dataset(name, data=KERNEL, compression="gzip")
    shown = [*names, "not utf-8 \\xff"]
    copy = edited(path, {name: OTHER * n for n, name in enumerate(shown)}, tmp_path / "copy")
    with h5py.File(copy) as file:
        for number, name in enumerate((*names, raw)):
            np.testing.assert_array_equal(file[name][()], OTHER * number)


def test_names_that_look_the_same_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file[b"a \xff"], file["a \\xff"] = KERNEL, KERNEL
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match="several datasets have this name"):
        save_edited(checkpoint, [Edit(checkpoint.tensors[0], OTHER)], tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@given(data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
def test_any_layout_keeps_everything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("h5")
    libver = data.draw(st.sampled_from(["earliest", "v110", "latest"]))
    user_block = data.draw(st.sampled_from([0, 512]))
    order, chosen = data.draw(st.booleans()), {}
    with h5py.File(folder / "m.h5", "w", libver=libver, userblock_size=user_block, track_order=order) as file:
        for number in range(data.draw(st.integers(1, 4))):
            shape = tuple(data.draw(st.lists(st.integers(1, 6), max_size=4)))
            values = RNG.standard_normal(shape)
            options: dict[str, Any] = {"dtype": data.draw(st.sampled_from(["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"]))}
            if shape and data.draw(st.booleans()):
                options["chunks"] = tuple(data.draw(st.integers(1, n)) for n in shape)
                options["compression"] = data.draw(st.sampled_from([None, "gzip", "lzf"]))
                options["shuffle"], options["fletcher32"] = data.draw(st.booleans()), data.draw(st.booleans())
            name = data.draw(st.sampled_from(["a", "b/c", "layers/conv2d/vars"])) + f"/{number}"
            file.create_dataset(name, data=values, track_times=False, **options).attrs["n"] = number
            if data.draw(st.booleans()):
                chosen[name] = RNG.standard_normal(shape)
    copy = edited(folder / "m.h5", chosen, folder / "copy")
    check_content(folder / "m.h5", copy, chosen)


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(path: Path, name: str, *, values: Values = OTHER) -> ConvsvError:
    """Edit what cannot be edited: an error of one line, and no file."""
    target = path.with_name("target")
    with pytest.raises(ConvsvError) as caught:
        edited(path, {name: values}, target)
    assert str(caught.value).isprintable()
    assert not target.exists()
    assert not list(path.parent.glob(".target*"))
    return caught.value


@pytest.mark.parametrize("name", ["z", "k"], ids=["rewritten", "overwritten"])
def test_values_that_are_also_those_of_another_dataset_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["first"], file["k"] = KERNEL, KERNEL  # the second offset is an odd one, which occurs once
        file.create_dataset("z", data=KERNEL, chunks=KERNEL.shape)
        places = file["k"].id.get_offset(), file["z"].id.get_chunk_info(0).byte_offset
    whole = path.read_bytes()
    old, new = (struct.pack("<Q", place) for place in places)
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    error = refused(path, name)
    assert error.tensor == {"z": "k", "k": "z"}[name]
    assert "the edit would also change its values" in str(error)


def test_values_that_are_also_an_attribute_are_refused(tmp_path: Path) -> None:
    path, note = tmp_path / "m.h5", np.arange(40.0)
    with h5py.File(path, "w") as file:
        file["first"], file["k"] = KERNEL, np.zeros(8)
        file.create_group("g").attrs["note"] = note
        old = struct.pack("<Q", file["k"].id.get_offset())
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, struct.pack("<Q", whole.index(note.tobytes()) + 64)))
    error = refused(path, "k", values=np.ones(8))
    assert "the edit would also change its attributes" in str(error)


def test_a_compact_dataset_that_records_its_time_of_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        add(file, "k", KERNEL, compact=True, track_times=True)
        changed = h5py.h5o.get_info(file["k"].id).ctime
    whole = path.read_bytes()
    assert whole.count(struct.pack("<L", changed)) == 1
    path.write_bytes(whole.replace(struct.pack("<L", changed), struct.pack("<L", 1_000_000_000)))
    error = refused(path, "k")
    assert "recorded time of change" in str(error)
    assert error.tensor == "k"


def test_what_follows_the_end_of_a_file_is_not_cut_off(tmp_path: Path) -> None:
    path = build(tmp_path / "m.h5", "gzip")
    path.write_bytes(path.read_bytes() + b"more")
    assert "4 bytes" in str(refused(path, "conv/conv/kernel:0"))
    copy = edited(path, {"conv/conv/bias:0": OTHER[0, 0, 0]}, tmp_path / "copy")
    assert copy.read_bytes().endswith(b"more")


def test_the_input_is_not_touched(tmp_path: Path) -> None:
    for layout in ("contiguous", "gzip", "compact"):
        path = build(tmp_path / f"{layout}.h5", layout)
        before, status = path.read_bytes(), path.stat()
        edited(path, {"conv/conv/kernel:0": OTHER}, tmp_path / f"{layout} copy")
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, status.st_mtime_ns)


def test_a_child_that_may_not_write_any_further_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("zeros", data=np.zeros((64, 64)), compression="gzip")
    start = _hdf5_edit._Editor.__init__

    def limited(self: Any, *args: Any) -> None:
        start(self, *args)
        self._largest = path.stat().st_size

    monkeypatch.setattr(_hdf5_edit._Editor, "__init__", limited)
    error = refused(path, "zeros", values=RNG.standard_normal((64, 64)))
    assert isinstance(error, OutputError)
    assert "too large" in str(error)


FAILING = {
    "crashes": ("os.kill(os.getpid(), 11)", "signal 11"),
    "ends": ("sys.exit(0)", "it ended"),
    "loops": ("while True: pass", "does not end"),
    "answers too much": ("send(b'E', b'x')", "other values"),
    "says no": (r"send(b'X', json.dumps({'kind': 'refused', 'what': 'no\x1b', 'where': 'k\n'}).encode())", "no"),
    "lies": ("send(b'E', b'')", "other values than were written"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_child_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    code, message = FAILING[case]
    child = tmp_path / "child.py"
    child.write_text(
        "import json, os, struct, sys\n"
        "def send(kind, payload): os.write(1, kind + struct.pack('>Q', len(payload)) + payload)\n"
        f"sys.stdin.readline()\n{code}\n"
    )
    path = build(tmp_path / "m.h5", "gzip")
    monkeypatch.setattr(_hdf5_edit, "_CHILD", child)
    monkeypatch.setattr("convsv.checkpoints._hdf5.SECONDS", 0.5)
    assert message in str(refused(path, "conv/conv/kernel:0"))


def test_damaged_files_end_in_an_error_or_in_a_copy_that_differs_in_the_edit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convsv.checkpoints._hdf5.SECONDS", 1.0)
    with h5py.File(tmp_path / "whole", "w") as file:
        file.create_dataset("conv/k", data=KERNEL[:, :, :2, :2], chunks=(1, 3, 2, 2), compression="gzip")
        file["conv/b"] = KERNEL[0, 0, 0]
        file.create_dataset("dense/k", data=KERNEL[:2, :2], chunks=(1, 2, 5, 7))
    whole, rng = (tmp_path / "whole").read_bytes(), np.random.default_rng(3)
    used = np.flatnonzero(np.frombuffer(whole, "u1"))
    path, errors = tmp_path / "m.h5", []
    for number in range(20):
        content = bytearray(whole)
        for at in rng.choice(used, 3):
            content[at] = rng.integers(256)
        path.write_bytes(content)
        target = tmp_path / f"copy {number}"
        try:
            tensor = named(open_checkpoint(path), "conv/k" if number % 2 else "dense/k")
            edited(path, {"/".join((*tensor.container, tensor.key)): np.ones(tensor.shape)}, target)
        except (ConvsvError, ValueError) as error:  # ValueError: the damage took the tensor away, or its dtype
            errors.append((error, target.exists()))
    assert 2 < len(errors) < 20
    assert all(str(error).isprintable() and not there for error, there in errors)


def test_a_file_that_was_damaged_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = build(tmp_path / "m.h5", "gzip")
    checkpoint = open_checkpoint(path)
    os.truncate(path, 1000)
    with pytest.raises(CheckpointError):
        save_edited(checkpoint, [Edit(named(checkpoint, "conv/conv/kernel:0"), OTHER.astype("f4"))], tmp_path / "copy")
    with pytest.raises(CorruptCheckpointError):
        open_checkpoint(path)

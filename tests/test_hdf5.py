"""HDF5 through a child process: values as h5py reads them, and no file can crash, hang or lead anywhere."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from convsv.checkpoints import Checkpoint, RegularFile, StoredTensor, _child, _hdf5, open_checkpoint
from convsv.checkpoints._hdf5 import Hdf5File, find_superblock
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from hdf5files import mortal

pytestmark = pytest.mark.timeout(60)

KERNEL = np.random.default_rng(0).standard_normal((3, 3, 5, 7))
REAL = ["mlperf-vww96.h5", "ssrnet-imdb.h5", "snake-dqn.weights.h5"]


def build(path: Path, fill: Callable[[h5py.File], object], **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


def tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    return {"/".join((*tensor.container, tensor.key)): tensor for tensor in checkpoint.tensors}


def only(path: Path) -> StoredTensor:
    (tensor,) = open_checkpoint(path).tensors
    return tensor


# ------------------------------------------------------------------------------------------------------------ values

STORAGE: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (2, 3, 5, 4)},
    "chunked in one piece": {"chunks": (3, 3, 5, 7)},
    "gzip": {"chunks": (1, 3, 5, 7), "compression": "gzip"},
    "gzip, shuffle and fletcher32": {"chunks": True, "compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"chunks": True, "compression": "lzf"},
    "resizable": {"maxshape": (None, 3, 5, 7)},
}


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2", "<i4", ">i8", "u1"])
def test_values_do_not_depend_on_how_they_are_stored(tmp_path: Path, storage: str, dtype: str) -> None:
    values = (KERNEL * 40).astype(dtype)
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=values, **STORAGE[storage]))
    tensor = only(path)
    assert (tensor.shape, tensor.dtype) == (KERNEL.shape, values.dtype.name)
    found = tensor.read()
    assert found.dtype == values.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("user_block", [512, 1024, 65536])
@pytest.mark.parametrize("storage", ["contiguous", "gzip"])
def test_a_user_block_before_the_superblock_is_skipped(tmp_path: Path, user_block: int, storage: str) -> None:
    path = build(
        tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL, **STORAGE[storage]), userblock_size=user_block
    )
    assert find_superblock(RegularFile(path)) == user_block
    np.testing.assert_array_equal(only(path).read(), KERNEL)


def test_an_hdf5_file_inside_another_file_is_read_where_it_stands(tmp_path: Path) -> None:
    inner = build(
        tmp_path / "m.h5",
        lambda f: (f.create_dataset("k", data=KERNEL), f.create_dataset("z", data=KERNEL, compression="gzip")),
    )
    outer = tmp_path / "outer"
    outer.write_bytes(b"x" * 77 + inner.read_bytes() + b"y" * 5)
    hdf5 = Hdf5File(RegularFile(outer), 77, inner.stat().st_size)
    assert len(hdf5.datasets) == 2
    for dataset in hdf5.datasets:
        np.testing.assert_array_equal(hdf5.read(dataset), KERNEL)


@pytest.mark.parametrize("libver", ["earliest", "v110", "latest"])
def test_every_file_format_version_is_read(tmp_path: Path, libver: str) -> None:
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("a/b/k", data=KERNEL), libver=libver)
    np.testing.assert_array_equal(only(path).read(), KERNEL)


def test_scalars_empty_and_unwritten_datasets_are_read(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["scalar"] = np.float32(3)
        file["empty"] = np.zeros((0, 3))
        file.create_dataset("unwritten", (4, 4), "f4", fillvalue=2.5)
        file.create_dataset("chunks unwritten", (4, 4), "f4", chunks=(2, 2), fillvalue=1.5)

    found = tensors(open_checkpoint(build(tmp_path / "m.h5", fill)))
    assert found["scalar"].read() == 3
    assert found["empty"].read().shape == (0, 3)
    np.testing.assert_array_equal(found["unwritten"].read(), np.full((4, 4), 2.5))
    np.testing.assert_array_equal(found["chunks unwritten"].read(), np.full((4, 4), 1.5))


def test_bfloat16_is_read_as_keras_stores_it(tmp_path: Path) -> None:
    values = KERNEL.astype(ml_dtypes.bfloat16)

    def fill(file: h5py.File) -> None:
        file.create_dataset("k", data=values).attrs["dtype"] = "bfloat16"
        file.create_dataset("untold", data=values)

    found = tensors(open_checkpoint(build(tmp_path / "m.h5", fill)))
    assert found["k"].dtype == "bfloat16"
    np.testing.assert_array_equal(found["k"].read().astype("f4"), values.astype("f4"))
    assert found["untold"].problem is not None


@pytest.mark.parametrize("name", ["m.keras", "m.pth", "m.safetensors", "m", "-m.h5"])
def test_the_suffix_does_not_matter(tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(build(tmp_path / name, lambda f: f.create_dataset("k", data=KERNEL)))
    assert checkpoint.format == "keras"
    np.testing.assert_array_equal(checkpoint.tensors[0].read(), KERNEL)


def test_odd_names_come_through_and_can_be_read(tmp_path: Path) -> None:
    names = ["é/ü", "new\nline", "a b\u202ec", "\x1b[31m"]
    raw = b"not utf-8 \xff"

    def fill(file: h5py.File) -> None:
        for storage in ("contiguous", "gzip"):
            for name in names:
                file.create_dataset(f"{storage}/{name}", data=KERNEL, **STORAGE[storage])
            file[storage].create_dataset(raw, data=KERNEL, **STORAGE[storage])

    found = tensors(open_checkpoint(build(tmp_path / "m.h5", fill)))
    assert len(found) == 10
    for key, tensor in found.items():
        key.encode("utf-8")
        np.testing.assert_array_equal(tensor.read(), KERNEL)
    assert {f"gzip/{name}" for name in names} < found.keys()


def test_two_names_of_one_dataset_share_an_identity(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a"], file["b"] = KERNEL, KERNEL
        file["tied"] = file["a"]
        file.create_dataset("z", data=KERNEL, compression="gzip")
        file["tied z"] = file["z"]

    found = {key: tensor.identity for key, tensor in tensors(open_checkpoint(build(tmp_path / "m.h5", fill))).items()}
    assert found["a"] == found["tied"]
    assert found["z"] == found["tied z"]
    assert len(set(found.values())) == 3


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.array(["a", "b"], "S1"), "string"),
        (np.array(["a"], h5py.string_dtype()), "vlen|string"),
        (np.zeros(2, [("x", "f4"), ("y", "f4")]), "compound"),
        (np.zeros(2, "c8"), "compound"),
        (np.zeros(2, "V3"), "type"),
    ],
    ids=["fixed strings", "strings", "records", "complex", "opaque"],
)
def test_values_that_are_no_real_numbers_are_a_problem_of_their_tensor(tmp_path: Path, value: Any, what: str) -> None:
    path = build(tmp_path / "m.h5", lambda f: (f.create_dataset("odd", data=value), f.create_dataset("k", data=KERNEL)))
    found = tensors(open_checkpoint(path))
    assert found["k"].problem is None
    assert found["odd"].problem is not None
    with pytest.raises(CheckpointError, match=what):
        found["odd"].read()


@pytest.mark.parametrize("name", REAL)
def test_real_files_read_as_h5py_reads_them(shared_checkpoints: Path, name: str) -> None:
    found, expected = tensors(open_checkpoint(shared_checkpoints / name)), {}
    with h5py.File(shared_checkpoints / name) as file:
        file.visititems(
            lambda path, item: expected.update({path: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype.name
        np.testing.assert_array_equal(found[key].read(), value)


def test_ten_thousand_small_datasets_are_indexed(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        for n in range(10_000):
            file.create_dataset(f"g{n % 100}/k{n}", data=np.float32([n]))

    checkpoint = open_checkpoint(build(tmp_path / "m.h5", fill, libver="latest"))
    assert len(checkpoint.tensors) == 10_000
    assert all(t.read()[0] == int(t.key.split("k")[1]) for t in checkpoint.tensors[::997])


# ----------------------------------------------------------------------------------------------------------- hostile


def soft(file: h5py.File) -> None:
    file["k"] = h5py.SoftLink("/other")


def soft_loop(file: h5py.File) -> None:
    file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


def external_link(file: h5py.File) -> None:
    file["k"] = h5py.ExternalLink("secret.h5", "/k")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("k", (3,), "f4", external=[("secret.bin", 0, 12)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "k", (3,))
    file.create_virtual_dataset("k", layout)


def deep(file: h5py.File) -> None:
    file.create_group("/".join("g" * 70))


LEADING_OUT = [soft, soft_loop, external_link, external_storage, virtual, deep]


@pytest.mark.parametrize("fill", LEADING_OUT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("inside", ["", "model_weights/layer"])
def test_what_leads_out_of_the_file_is_refused(
    tmp_path: Path, fill: Callable[[h5py.File], object], inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "secret.h5", lambda f: f.create_dataset("k", data=np.float32([1, 2, 3])))
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    path = build(tmp_path / "m.h5", lambda f: fill(f.create_group(inside) if inside else f))
    with pytest.raises(UnsafeCheckpointError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_group_that_holds_itself_is_not_followed(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a/k"] = KERNEL
        file["a/again"] = file["a"]
        file["a/root"] = file["/"]

    checkpoint = open_checkpoint(build(tmp_path / "m.h5", fill))
    assert [tensor.key for tensor in checkpoint.tensors] == ["a/k"]
    assert len(checkpoint.problems) == 2


def test_many_names_for_the_same_groups_cost_no_more_than_the_groups(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        group = file.create_group("g")
        for _ in range(40):  # 2 ** 40 paths
            below = group.create_group("left")
            group["right"] = below
            group = below
        group["k"] = KERNEL

    assert len(open_checkpoint(build(tmp_path / "m.h5", fill)).tensors) == 1


def test_a_compression_bomb_is_not_decoded(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("terabytes", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")
        file.create_dataset("unwritten", (1 << 20,), "f4", chunks=(1 << 10,))
        file.create_dataset("zeros", data=np.zeros((300, 1 << 20), "f4"), chunks=(1, 1 << 20), compression="gzip")
        file["k"] = KERNEL

    path = build(tmp_path / "m.h5", fill)
    found = tensors(open_checkpoint(path))
    assert found["k"].problem is None
    for name in ("terabytes", "unwritten", "zeros"):
        assert found[name].problem is not None
        with pytest.raises(CheckpointError):
            found[name].read()


def test_highly_compressible_weights_are_still_read(tmp_path: Path) -> None:
    zeros = np.zeros((3, 3, 512, 512), "f4")
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=zeros, compression="gzip"))
    np.testing.assert_array_equal(only(path).read(), zeros)


def test_an_unknown_filter_is_a_problem_of_its_tensor(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("scaled", data=np.arange(9), chunks=(3,), scaleoffset=4)
        file["k"] = KERNEL

    found = tensors(open_checkpoint(build(tmp_path / "m.h5", fill)))
    assert "filter" in (found["scaled"].problem or "")
    np.testing.assert_array_equal(found["k"].read(), KERNEL)


def test_plugins_of_the_environment_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    popen = subprocess.Popen

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options["env"])
        return popen(*args, **options)

    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "h5py.py").write_text("raise SystemExit(7)")
    monkeypatch.setattr(_child.subprocess, "Popen", spy)
    np.testing.assert_array_equal(
        only(build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL))).read(), KERNEL
    )
    assert [env["HDF5_PLUGIN_PRELOAD"] for env in seen] == ["::"]
    assert not any("PLUGIN_PATH" in name or name.startswith("PYTHON") for env in seen for name in env)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    whole = build(
        tmp_path / "whole", lambda f: [f.create_dataset(f"g/k{n}", data=KERNEL) for n in range(20)]
    ).read_bytes()
    path = tmp_path / "m.h5"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptCheckpointError):
        open_checkpoint(path)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = build(
        tmp_path / "m.h5",
        lambda f: (f.create_dataset("k", data=KERNEL), f.create_dataset("z", data=KERNEL, compression="gzip")),
    )
    found = tensors(open_checkpoint(path))
    os.truncate(path, 1000)
    for tensor in found.values():
        with pytest.raises(CorruptCheckpointError):
            tensor.read()


def read_convolutions(path: Path) -> CheckpointError | None:
    try:
        for tensor in open_checkpoint(path).tensors:
            if tensor.problem is None and tensor.key.startswith("conv"):
                assert tensor.read().shape == tensor.shape
    except CheckpointError as error:
        return error
    return None


@pytest.mark.parametrize("part", range(4))
def test_mutated_files_end_in_a_checkpoint_error_or_in_tensors(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hdf5, "SECONDS", 2.0)  # what loops forever does so for less

    def fill(file: h5py.File) -> None:
        file.attrs["layer_names"] = [b"conv", b"dense"]
        for name, storage in (("conv", "gzip, shuffle and fletcher32"), ("dense", "contiguous")):
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/kernel:0".encode()]
            group.create_dataset(f"{name}/kernel:0", data=KERNEL[:, :, :2, :2], **STORAGE[storage])

    whole, rng = build(tmp_path / "whole", fill).read_bytes(), random.Random(1)
    used = [at for at, byte in enumerate(whole) if byte]
    path, refused = tmp_path / "m.h5", []
    for number in range(200):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 2, 4, 8))):
            content[rng.choice(used)] = rng.choice((0, 255, rng.randrange(256)))
        if number % 4 == part:
            path.write_bytes(content)
            refused.append(read_convolutions(path))
    messages = [str(error) for error in refused if error]
    assert 5 < len(messages) < 45
    assert all(message.isprintable() for message in messages)


# --------------------------------------------------------------------------------------------------------- the child

FAKE = """
import json, os, signal, struct, sys, time
def send(kind, payload): os.write(1, kind + struct.pack(">Q", len(payload)) + payload)
item = {"path": "k", "shape": [2], "dtype": "float32", "order": "<", "offset": 0, "address": 1, "problem": None}
def index(**changes): send(b"J", json.dumps({"datasets": [{**item, **changes}], "groups": {}, "problems": []}).encode())
sys.stdin.readline()
"""
BAD_CHILDREN = {
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    "ends without an answer": ("sys.exit(0)", "ended"),
    "loops": ("while True: pass", "does not end"),
    "sleeps": ("time.sleep(100)", "does not end"),
    "stops within a frame": ("os.write(1, b'J' + struct.pack('>Q', 99) + b'{'); sys.exit()", "ended"),
    "answers too much": ("send(b'J', b''); os.write(1, b'J' + struct.pack('>Q', 1 << 60))", "."),
    "announces an exabyte": ("os.write(1, b'J' + struct.pack('>Q', 1 << 60))", "more than was asked"),
    "answers no JSON": ("send(b'J', b'{')", "something else"),
    "answers a list": ("send(b'J', b'[]')", "makes no sense"),
    "answers bytes": ("send(b'E', b'')", "something else"),
    "names an object dtype": ("index(dtype='O')", "makes no sense"),
    "names a negative offset": ("index(offset=-8)", "beyond the end"),
    "names an offset beyond the end": ("index(offset=1 << 40)", "beyond the end"),
    "names values that reach beyond the end": ("index(shape=[1 << 20])", "beyond the end"),
    "names a number where names belong": (
        "send(b'J', json.dumps({'datasets': [], 'groups': {'': {'layer_names': ['a', 3]}}, 'problems': []}).encode())",
        "makes no sense",
    ),
    "names a negative length": ("index(shape=[-1])", "makes no sense"),
    "names a boolean length": ("index(shape=[True])", "makes no sense"),
    "drips": (
        "os.write(1, b'J' + struct.pack('>Q', 1 << 20))\nfor _ in range(9000): os.write(1, b' '); time.sleep(0.01)",
        "does not end",
    ),
    "sends empty frames": ("while True: send(b'D', b'')", "does not end"),
    "complains in no JSON": ("send(b'X', b'{')", "libhdf5 cannot read it"),
    "complains of nothing": ("send(b'X', b'{}')", "libhdf5 cannot read it"),
    "complains in a list": ("send(b'X', b'[]')", "libhdf5 cannot read it"),
    "complains in lists of lists": ("send(b'X', b'[' * 60000)", "libhdf5 cannot read it"),
    "complains of a disk that it does not write to": (
        "send(b'X', json.dumps({'kind': 'output', 'what': 'No space left'}).encode())",
        "No space left",
    ),
    "complains with control characters": (
        r"send(b'X', json.dumps({'kind': 'unsafe', 'what': 'a\x1b\nb'}).encode())",
        ".",
    ),
}


@pytest.mark.parametrize("case", BAD_CHILDREN)
def test_a_child_that_fails_or_lies_is_one_line_of_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    code, message = BAD_CHILDREN[case]
    child = tmp_path / "child.py"
    child.write_text(FAKE + code + "\n")
    monkeypatch.setattr(_hdf5, "_CHILD", child)
    monkeypatch.setattr(_hdf5, "SECONDS", 1.0)
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL))
    with pytest.raises((CorruptCheckpointError, UnsafeCheckpointError), match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "shape", ["[1 << 63] * 20", "[0, 1 << 62, 1 << 62]", "[0] + [(1 << 64) - 1] * 3", "[1 << 62, 2]"]
)
def test_a_dataset_with_a_shape_that_no_array_has_is_a_problem_of_its_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"{FAKE}index(shape={shape}, offset=None)\n")
    monkeypatch.setattr(_hdf5, "_CHILD", child)
    tensor = only(build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL)))
    assert tensor.problem == "its shape is too large"
    with pytest.raises(CheckpointError, match="its shape is too large"):
        tensor.read()


def test_a_child_on_a_busy_machine_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(FAKE + "time.sleep(0.7); index(); time.sleep(9)\n")  # much of the clock, hardly any processor time
    monkeypatch.setattr(_hdf5, "_CHILD", child)
    monkeypatch.setattr(_hdf5, "SECONDS", 0.5)
    monkeypatch.setattr(_child, "PATIENCE", 60.0)
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL))
    assert [tensor.key for tensor in open_checkpoint(path).tensors] == ["k"]


DEATHS = {
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
    "does not end": ("while True: pass", "does not end|ended by signal"),
    "is ended": ("os.kill(os.getpid(), signal.SIGKILL)", "ended by signal 9"),
    "lies": ("os.write(1, b'D' + struct.pack('>Q', 5) + bytes(5) + b'E' + bytes(8))", "other values"),
}


@pytest.mark.parametrize("case", DEATHS)
def test_a_dataset_that_ends_the_child_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    how, message = DEATHS[case]
    starts = mortal(monkeypatch, tmp_path, {b"b"}, how)
    monkeypatch.setattr(_hdf5, "VALUE_SECONDS", 1.0)
    path = build(tmp_path / "m.h5", lambda f: [f.create_dataset(n, data=KERNEL, compression="gzip") for n in "abc"])
    found = tensors(open_checkpoint(path))
    for _ in range(2):
        with pytest.raises(CorruptCheckpointError, match=message):
            found["b"].read()
    assert len(starts) == 2  # once for the index, and once for the values: what failed is not asked for again
    for name in "ac":
        np.testing.assert_array_equal(found[name].read(), KERNEL)


def test_a_file_ends_only_so_many_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"k{n}" for n in range(40)]
    starts = mortal(monkeypatch, tmp_path, {name.encode() for name in names}, "os.abort()")
    path = build(tmp_path / "m.h5", lambda f: [f.create_dataset(n, data=KERNEL, compression="gzip") for n in names])
    messages = []
    for tensor in open_checkpoint(path).tensors:
        with pytest.raises(CorruptCheckpointError) as caught:
            tensor.read()
        messages.append(str(caught.value))
    assert 2 <= len(starts) <= 1 + _hdf5.SECONDS / _child.FAILURE
    assert "ended by signal 6" in messages[0]
    assert "the time for this file is used up" in messages[-1]


def test_a_child_that_cannot_be_started_is_one_line_of_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL))

    def no_process(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(_child.subprocess, "Popen", no_process)
    with pytest.raises(CheckpointError, match=r"cannot be started \(found Resource temporarily unavailable\)"):
        open_checkpoint(path)


def test_a_child_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(FAKE + "send(b'X', json.dumps({'kind': 'missing', 'what': 'No module named h5py'}).encode())\n")
    monkeypatch.setattr(_hdf5, "_CHILD", child)
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL))
    with pytest.raises(CheckpointError, match=r"h5py cannot be imported .*install h5py"):
        open_checkpoint(path)


def test_a_child_that_decodes_other_values_than_announced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = only(build(tmp_path / "m.h5", lambda f: f.create_dataset("z", data=KERNEL, compression="gzip")))
    child = tmp_path / "child.py"
    child.write_text(FAKE + "send(b'D', bytes(5)); send(b'E', b''); time.sleep(100)\n")
    monkeypatch.setattr(_hdf5, "_CHILD", child)
    with pytest.raises(CorruptCheckpointError, match="other values"):
        tensor.read()


def test_the_child_has_limits_and_can_open_nothing_more(tmp_path: Path) -> None:
    source = Path(_hdf5.__file__).with_name("_hdf5_child.py").read_text()
    probe = tmp_path / "probe.py"
    probe.write_text(
        source.replace('if __name__ == "__main__":', "if False:") + "\nimport resource, json\n"
        "limit_resources(); limit_time(2.0); import h5py; close_the_door()\n"
        "try:\n    open('/dev/null'); opened = True\nexcept OSError:\n    opened = False\n"
        "names = ('RLIMIT_AS', 'RLIMIT_FSIZE', 'RLIMIT_CORE', 'RLIMIT_CPU')\n"
        "found = [resource.getrlimit(getattr(resource, n))[0] for n in names]\n"
        "print(json.dumps([opened, found, sorted(sys.modules)]))\n"
    )
    done = subprocess.run([sys.executable, "-I", str(probe)], capture_output=True, text=True, check=True)
    opened, (memory, written, core, seconds), modules = json.loads(done.stdout)
    assert not opened
    assert 0 < memory <= 2 << 30
    assert (written, core) == (0, 0)
    assert 2 <= seconds <= 5
    assert not {"torch", "convsv"} & set(modules)


def test_a_decoding_child_ends_with_its_checkpoint(tmp_path: Path) -> None:
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("z", data=KERNEL, compression="gzip"))
    tensor = only(path)
    tensor.read()
    process = tensor.read.func.__self__.hdf5._worker._process  # type: ignore[attr-defined]
    assert process.poll() is None
    del tensor
    gc.collect()
    assert process.wait(10) == -signal.SIGKILL


def test_indexing_leaves_no_child_behind(tmp_path: Path) -> None:
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL))
    tensor = only(path)
    tensor.read()
    assert tensor.read.func.__self__.hdf5._worker._process is None  # type: ignore[attr-defined]


def test_several_threads_may_decode_at_once(tmp_path: Path) -> None:
    arrays = {f"k{n}": KERNEL + n for n in range(24)}
    path = build(
        tmp_path / "m.h5", lambda f: [f.create_dataset(k, data=v, compression="gzip") for k, v in arrays.items()]
    )
    found = tensors(open_checkpoint(path))
    with ThreadPoolExecutor(4) as pool:
        for key, value in zip(found, pool.map(lambda t: t.read(), found.values()), strict=True):
            np.testing.assert_array_equal(value, arrays[key])


def test_the_parent_never_imports_h5py_or_torch(tmp_path: Path) -> None:
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("k", data=KERNEL, compression="gzip"))
    code = (
        "import sys; from convsv.checkpoints import open_checkpoint; c = open_checkpoint(sys.argv[1]);"
        "print(c.tensors[0].read().shape, sorted({'h5py', 'torch', 'keras', 'tensorflow'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "(3, 3, 5, 7) []"


def test_time_is_counted_over_all_requests_of_a_file(tmp_path: Path) -> None:
    path = build(tmp_path / "m.h5", lambda f: f.create_dataset("z", data=KERNEL, compression="gzip"))
    started = time.monotonic()
    hdf5 = Hdf5File(RegularFile(path))
    after_index = hdf5._worker._seconds_left
    hdf5.read(hdf5.datasets[0])
    allowed = _hdf5.SECONDS + path.stat().st_size / _hdf5.BYTES_A_SECOND
    assert allowed > after_index > hdf5._worker._seconds_left >= allowed - (time.monotonic() - started)

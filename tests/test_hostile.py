"""Files from strangers, through the whole program: the documented code, one line, and nothing else happens.

Each file is made here and read by a process of its own, which the system ends after 10 seconds of processor time and
gives 2 GiB of address space, and in which every opening of a file, every import and every program is noted.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import pickle
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import cases
from convsv.analysis import BOUNDS_METHOD, SYMBOL_MIN, AnalysisOptions, analyze_layer
from convsv.geometry import Geometry
from convsv.spectra import SPECTRA
from oddfiles import FILES
from reportcases import HOSTILE_NAMES
from watching import Ended, watched

FULL_VIEW = np.ones((4, 3, 3, 3), np.float32)


@pytest.fixture
def convsv(tmp_path: Path) -> Callable[..., Ended]:
    """Runs the program in a folder where a module called ``stranger`` waits to be imported."""
    room = tmp_path / "room"
    room.mkdir()
    (room / "stranger.py").write_text("open('ran', 'w').close()\nclass Net: pass\ndef build(*a): pass\n")
    return functools.partial(watched, room, tmp_path / "log")


# ------------------------------------------------------------------------------------------------------------ gallery


class Bomb:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def state() -> dict[str, Any]:
    return {"conv.weight": torch.ones(2, 1, 3, 3)}


def with_pickle(path: Path, content: bytes) -> Path:
    """An archive of PyTorch with another pickle."""
    out = io.BytesIO()
    torch.save(state(), out)
    with zipfile.ZipFile(out) as whole, zipfile.ZipFile(path, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, content if name.endswith("data.pkl") else whole.read(name))
    return path


def call(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


def system(path: Path) -> Path:
    torch.save({**state(), "x": Bomb(os.system, "touch ran")}, path)
    return path


def legacy_system(path: Path) -> Path:
    torch.save({**state(), "x": Bomb(os.system, "touch ran")}, path, _use_new_zipfile_serialization=False)
    return path


def plain_system(path: Path) -> Path:
    path.write_bytes(pickle.dumps({"x": Bomb(os.system, "touch ran")}))
    return path


def safetensors(path: Path, header: object, size: int, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text) if length is None else length) + text)
        file.truncate(8 + len(text) + size)
    return path


def entry(shape: list[int], size: int, start: int = 0) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}


def index_to(target: str, path: Path) -> Path:
    save_file({"w": FULL_VIEW}, path.parent / "secret.safetensors")
    folder = path.parent / "inside"
    folder.mkdir()
    os.mkfifo(folder / "fifo.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": target}}))
    return index


def zip_bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 28))
        archive.writestr("a/version", b"3")
    return path


def keras_bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b"[" * (1 << 27))
        archive.writestr("model.weights.h5", bytes(1 << 28))
    return path


def keras(path: Path, fill: Callable[[h5py.File], object] = lambda _: None) -> Path:
    """Write an archive as Keras does."""
    weights = hdf5(path.with_suffix(".h5"), fill)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"{}")
        archive.write(weights, "model.weights.h5")
    weights.unlink()
    return path


def twice(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/data.pkl", "a/data.pkx", "a/version"):
            archive.writestr(name, pickle.dumps({}, 2))
    path.write_bytes(path.read_bytes().replace(b"a/data.pkx", b"a/data.pkl"))
    return path


def claims_more(path: Path) -> Path:
    torch.save(state(), path)
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<LL", 72, 72), struct.pack("<LL", 0xFFFFFFF0, 0xFFFFFFF0)))
    return path


def hdf5(path: Path, fill: Callable[[h5py.File], object]) -> Path:
    with h5py.File(path, "w") as file:
        file["conv/kernel:0"] = FULL_VIEW
        fill(file)
    return path


def other_file(path: Path) -> str:
    other = path.parent / "other.h5"
    with h5py.File(other, "w") as file:
        file["x"] = FULL_VIEW
    return str(other)


def virtual(file: h5py.File, path: Path) -> None:
    layout = h5py.VirtualLayout(shape=FULL_VIEW.shape, dtype="f4")
    layout[...] = h5py.VirtualSource(other_file(path), "x", shape=FULL_VIEW.shape)
    file.create_virtual_dataset("v", layout)


def truncated_weights(path: Path) -> Path:
    """Write a Keras archive that is whole, but for what is in its weights."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"{}")
        archive.writestr("model.weights.h5", hdf5(path.with_suffix(".h5"), lambda _: None).read_bytes()[:1500])
    path.with_suffix(".h5").unlink()
    return path


def onnx_beside(path: Path, location: str) -> Path:
    onnx = pytest.importorskip("onnx")
    weight = onnx.TensorProto(name="w", dims=[1, 1, 3, 3], data_type=1, data_location=1)
    weight.external_data.add(key="location", value=location)
    (path.parent.parent / "outside.bin").write_bytes(bytes(36))
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def truncated(save: Callable[[Path], object], path: Path) -> Path:
    save(path)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def bound_socket(path: Path) -> Path:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{folder}/s")
        (Path(folder) / "s").rename(path)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


DOUBLING = b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(100)) + b"."
REFUSED: dict[str, Callable[[Path], Path]] = {
    "a pipe without a writer": fifo,
    "an endless device": lambda path: Path("/dev/zero"),
    "a socket": bound_socket,
    "an empty file": lambda path: path.touch() or path,
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)) and path,
    "a command in an archive": system,
    "a command in the old format": legacy_system,
    "a command in a plain pickle": plain_system,
    "code to evaluate": lambda path: with_pickle(path, call("builtins", "eval", b"X\x06\x00\x00\x00quit()\x85")),
    "a pickle that never ends its marks": lambda path: with_pickle(path, b"\x80\x02" + b"(" * 4_000_000 + b"."),
    "a text of 4 GiB that is not there": lambda path: with_pickle(path, b"\x80\x02X\xff\xff\xff\xffabc."),
    "a deflate bomb": zip_bomb,
    "a deflate bomb for Keras": keras_bomb,
    "an entry twice": twice,
    "entries larger than the file": claims_more,
    "a truncated archive": lambda path: truncated(lambda p: torch.save(state(), p), path),
    "a truncated old file": lambda path: truncated(
        lambda p: torch.save(state(), p, _use_new_zipfile_serialization=False), path
    ),
    "a header of 2^63 bytes": lambda path: safetensors(path.with_suffix(".safetensors"), {}, 0, 1 << 63),
    "a header of 99 million brackets": lambda path: safetensors(path, b'{"a":' + b"[" * 99_000_000, 0),
    "a shape of 2^64 elements": lambda path: safetensors(path, {"w": entry([1 << 32, 1 << 32, 1, 1], 0)}, 0),
    "a name of 90 million characters": lambda path: safetensors(path, {"w" * 90_000_000: entry([9], 36)}, 36),
    "names of 20 million characters together": lambda path: safetensors(
        path, {f"{number}{'w' * 8000}": entry([0], 0) for number in range(2500)}, 0
    ),
    "values beyond the end": lambda path: safetensors(path, {"w": entry([1 << 20, 1 << 10, 3, 3], 36 << 30)}, 36),
    "a key twice": lambda path: safetensors(path, b'{"w":%b,"w":%b}' % ((json.dumps(entry([1], 4)).encode(),) * 2), 4),
    "tensors that overlap": lambda path: safetensors(path, {"v": entry([9], 36), "w": entry([9], 36, 4)}, 40),
    "an index out of its folder": lambda path: index_to("../secret.safetensors", path),
    "an index to any place": lambda path: index_to("/etc/passwd", path),
    "an index to a pipe": lambda path: index_to("fifo.safetensors", path),
    "a link to another HDF5 file": lambda path: hdf5(
        path, lambda f: f.__setitem__("x", h5py.ExternalLink(other_file(path), "x"))
    ),
    "a soft link": lambda path: hdf5(path, lambda f: f.__setitem__("x", h5py.SoftLink("/conv"))),
    "values in another HDF5 file": lambda path: hdf5(path, lambda f: virtual(f, path)),
    "values in a raw file": lambda path: hdf5(
        path, lambda f: f.create_dataset("x", (4, 3, 3, 3), "f4", external=[("/etc/passwd", 0, 432)])
    ),
    "a Keras archive with a link to another HDF5 file": lambda path: keras(
        path, lambda f: f.__setitem__("x", h5py.ExternalLink(other_file(path), "x"))
    ),
    "a Keras archive with values in a raw file": lambda path: keras(
        path, lambda f: f.create_dataset("x", (4, 3, 3, 3), "f4", external=[("/etc/passwd", 0, 432)])
    ),
    "a Keras archive of which the weights are cut": lambda path: truncated(keras, path),
    "a Keras archive whose weights are no HDF5": truncated_weights,
    "a truncated HDF5 file": lambda path: truncated(lambda p: hdf5(p, lambda _: None), path),
    "an ONNX model with weights elsewhere": lambda path: onnx_beside(path, "../outside.bin"),
    "an ONNX model with weights anywhere": lambda path: onnx_beside(path, "/etc/passwd"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_file_is_code_3_and_one_line_and_nothing_else_happens(
    case: str, convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    path = REFUSED[case](folder / "m.pt")
    ended = convsv("layers", path)
    assert ended.code == 3, ended.err
    assert len(ended.errors) == 1
    assert ended.err.splitlines() == ended.errors
    assert f"{path.parent}/" in ended.errors[0]
    assert len(ended.errors[0]) < 1000
    ended.check_quiet(path, path.parent / "fifo.safetensors")


BY_VERB: dict[str, tuple[str, ...]] = {
    "analyze": (),
    "asymptotic": (),
    "bounds": (),
    "check": ("--max-norm", "1"),
    "circulant": (),
    "clip": ("--max-norm", "1", "-o", "out.pt"),
    "compare": (),
    "exact": (),
    "layers": (),
    "lipschitz": (),
    "plot": ("-o", "out.svg"),
    "report": ("-o", "out.html"),
}
FOR_EVERY_VERB = ("a command in an archive", "entries larger than the file", "a key twice", "a deflate bomb for Keras")


@pytest.mark.parametrize("verb", BY_VERB)
def test_to_every_verb_a_hostile_file_is_code_3_and_one_line(
    verb: str, convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    paths = []
    for number, case in enumerate(FOR_EVERY_VERB):
        (tmp_path / f"{number}").mkdir()
        paths.append(REFUSED[case](tmp_path / f"{number}" / "m.pt"))
    calls = {"clip": [[path] for path in paths], "compare": [paths[:2], paths[2:]]}.get(verb, [paths])
    for given in calls:
        ended = convsv(verb, *given, *BY_VERB[verb], files=len(given))
        assert ended.code == 3, ended.err
        assert [error.split(":")[1].strip() for error in ended.errors] == [str(path) for path in given]
        assert not any(Path(name).suffix == ".pt" for name in ended.written)
        assert not ended.others
        assert "stranger" not in ended.imported
    assert not [path for path in tmp_path.rglob("out*") if path.suffix == ".pt"]


def test_every_verb_is_tried_on_hostile_files() -> None:
    assert sorted(BY_VERB) == VERBS


def test_hostile_files_do_not_keep_others_from_being_analysed(convsv: Callable[..., Ended], tmp_path: Path) -> None:
    """All of them in one call, which has 10 seconds and 2 GiB for everything."""
    paths = []
    for number, make in enumerate(REFUSED.values()):
        (tmp_path / f"{number}").mkdir()
        paths.append(make(tmp_path / f"{number}" / "m.pt"))
    good = tmp_path / "good.safetensors"
    save_file({"conv.weight": FULL_VIEW}, good)
    ended = convsv(
        "analyze", *paths[::2], good, *paths[1::2], "--format", "json", "--size", "8", "--quiet", files=len(paths)
    )
    assert ended.code == 3
    assert len(ended.errors) == len(paths)
    checkpoints = json.loads(ended.out)["checkpoints"]
    assert [len(c["layers"]) for c in checkpoints if c["path"] == str(good)] == [1]
    assert all(c["problems"] and not c["layers"] for c in checkpoints if c["path"] != str(good))


# ------------------------------------------------------------------------------------------- many that point at one


def words(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def calls_of_a_long_name(path: Path) -> Path:
    return with_pickle(path, b"\x80\x02c" + b"a" * 1_000_000 + b"\nb\n" + b"2)R0" * 900_000 + b"0N.")


def arrays_of_one_text(path: Path) -> Path:
    size, unset = 60_000_000, b"J\xff\xff\xff\xff"
    encoded = b"c_codecs\nencode\n" + words("a" * size) + words("latin1") + b"\x86Rq\x000"
    dtype = b"cnumpy\ndtype\n" + words("u1") + b"\x85R(K\x03" + words("|") + b"NNN" + unset * 2 + b"K\x00tbq\x010"
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01J" + struct.pack("<i", size) + b"\x85h\x01\x89h\x00tb"
    named = b"".join(words(f"a{i}") + array for i in range(60))
    return with_pickle(path, b"\x80\x02" + encoded + dtype + b"}(" + named + b"u.")


def headers_within_headers(path: Path) -> Path:
    """Extra fields of 64 KiB reach over the headers behind, to one row of small fields that all of them are to read."""
    local, directory, count = bytearray(), bytearray(), 0

    def add(name: bytes, size: int, extra: int, crc: int = 0) -> None:
        nonlocal count
        known = struct.pack("<3L2H", crc, size, size, len(name), extra)
        stated = struct.pack("<3L2H", crc, size % 0xFFFFFFFF, size % 0xFFFFFFFF, len(name), 0)
        directory.extend(b"PK\x01\x02" + struct.pack("<6H", 20, 20, 0, 0, 0, 0) + stated)
        directory.extend(struct.pack("<3H2L", 0, 0, 0, 0, len(local)) + name)
        local.extend(b"PK\x03\x04" + struct.pack("<5H", 20, 0, 0, 0, 0) + known + name)
        count += 1

    empty = b"\x80\x02}."
    add(b"a/data.pkl", len(empty), 0, zlib.crc32(empty))
    local.extend(empty)
    for _ in range(40):
        places = []
        for _ in range(700):
            add(b"a/data/%07d" % count, 0xFFFFFFFF, 65535)
            places.append(len(local))
            local.extend(bytes(4))
        for place in places:
            local[place : place + 4] = struct.pack("<2H", 9, len(local) - place - 4)
        local.extend(bytes((65495 - len(local) + places[0]) // 4 * 4) + struct.pack("<2H2Q", 1, 16, 0, 0))
    local.extend(bytes(70_000))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(local), 0)
    path.write_bytes(local + directory + end)
    return path


def shards_of_one_long_index(path: Path) -> Path:
    def shard(name: str) -> None:
        header = json.dumps({name: entry([0], 0)}).encode()
        (path.parent / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)

    names = [*(f"s{i}" for i in range(511)), "z"]
    for name in names:
        shard(name)
    weight_map = {name: f"{name}.safetensors" for name in names} | {f"a{i}": "z.safetensors" for i in range(1_000_000)}
    index = path.parent / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def script(path: Path, code: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02c__torch__.m\nM\n)\x81}" + words("weight") + b"K\x01sb.")
        archive.writestr("a/constants.pkl", b"\x80\x02).")
        archive.writestr("a/code/__torch__/m.py", code, zipfile.ZIP_DEFLATED)
    return path


def method(own: str, body: str) -> str:
    return f"class M(Module):\n  def forward({own}: x) -> T:\n{body}"


def nested_calls() -> str:
    return "".join(f"class M{i}(Module):\n  def f(s: x) -> T:\n    {'torch.conv2d(' * 4096}\n" for i in range(500))


def convolutions(path: Path, given: str, *others: dict[str, Any], **sizes: Any) -> Path:
    """An exported program of 60,000 convolutions of the same two values."""
    inputs = [{"name": name, "arg": {"as_tensor": {"name": name}}} for name in ("input", "weight")]
    inputs[0] = {"name": "input", "arg": {"as_tensor": {"name": given}}}
    nodes = [{"target": "torch.ops.aten.conv2d.default", "inputs": inputs}] * 60_000
    values = {"weight": {"sizes": [{"as_int": 3}] * 4}} | sizes
    program = {"graph_module": {"graph": {"nodes": [*others, *nodes], "tensor_values": values}}}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/weights/model_weights_config.json", '{"config": {}}')
        archive.writestr("a/models/model.json", json.dumps(program))
    return path


def made(target: object, **more: Any) -> dict[str, Any]:
    return {"target": target, "outputs": [{"as_tensor": {"name": "p"}}], **more}


PAD = "torch.ops.aten.pad.default"
MANY_AT_ONE: dict[str, Callable[[Path], Path]] = {
    "calls of a long name": calls_of_a_long_name,
    "arrays of one text": arrays_of_one_text,
    "headers within headers": headers_within_headers,
    "shards of one long index": shards_of_one_long_index,
    "calls in a function whose argument has a long name": lambda path: script(
        path, method("s" * 10_000_000, "    _0 = torch.conv2d(x, self.weight, None)\n")
    ),
    "calls with one long variable": lambda path: script(
        path,
        method(
            "s",
            f"    a = [{'1, ' * 3_000_000}1]\n" + "    _0 = torch.conv2d(x, s.weight, None, a, a, a, 1)\n" * 4000,
        ),
    ),
    "calls in calls": lambda path: script(path, nested_calls()),
    "convolutions of one long shape": lambda path: convolutions(path, "x", x={"sizes": [{"as_int": 1}] * 500_000}),
    "convolutions behind one long pad": lambda path: convolutions(
        path, "p", made(PAD, inputs=[{"name": "pad", "arg": {"as_ints": [0] * 3_000_000}}])
    ),
    "convolutions behind one pad in a long module": lambda path: convolutions(
        path, "p", made(PAD, metadata={"nn_module_stack": "z" * 20_000_000 + ",,"})
    ),
    "convolutions behind one pad of many arguments": lambda path: convolutions(
        path, "p", made(PAD, inputs=[{"name": "pad"}] * 500_000)
    ),
    "convolutions behind one long operator": lambda path: convolutions(path, "p", made(["z"] * 1_000_000)),
}


@pytest.mark.parametrize("case", MANY_AT_ONE)
def test_what_many_parts_of_a_file_point_at_is_not_gone_through_for_each(
    case: str, convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    """Small files, and products of two numbers in them: none takes 10 seconds or 2 GiB."""
    path = MANY_AT_ONE[case](tmp_path / "m.pt")
    ended = convsv("layers", path)
    assert ended.code in (0, 3), ended.err
    assert len(ended.errors) == (ended.code == 3)


def test_hostile_objects_in_a_pickle_are_read_and_never_made(convsv: Callable[..., Ended], tmp_path: Path) -> None:
    """Nested without end, doubled a hundred times, calls of a class that waits beside, and 8 GB of zeros on request."""
    text = b"X\x08\x00\x00\x00stranger"
    contents = {
        "deep": b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        "doubling": DOUBLING,
        "stranger": call("stranger", "build", b"(" + text + b"t"),
        "class": b"\x80\x02cstranger\nNet\n)\x81}(" + text + b"K\x01ub.",
        "zeros": call("builtins", "bytearray", b"\x8a\x05" + (8_600_000_000).to_bytes(5, "little") + b"\x85"),
        "names": b"\x80\x02}(" + b"".join(b"X\x04\x00\x00\x00%04dK\x01" % i for i in range(10_000)) + b"u.",
    }
    for name, content in contents.items():
        path = with_pickle(tmp_path / f"{name}.pt", content)
        ended = convsv("layers", path)
        assert ended.code in (0, 3), (name, ended.err)
        assert len(ended.errors) == (ended.code == 3)
        ended.check_quiet(path)


# --------------------------------------------------------------------------------------- what is dropped, what is large


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::UserWarning:test_hostile", "ignore:.*quantize")
def test_every_convolution_that_is_left_out_is_in_the_report_and_on_standard_error(
    convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    weight = torch.ones(4, 3, 3, 3)
    odd = {
        "expanded": torch.ones(1, 3, 3, 3).expand(4, 3, 3, 3),
        "sparse": weight.to_sparse(),
        "quantised": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "meta": torch.ones(4, 3, 3, 3, device="meta"),
        "nan": weight * float("nan"),
        "infinite": weight * float("inf"),
    }
    path = tmp_path / "odd.pt"
    torch.save({f"{name}.weight": value for name, value in odd.items()} | {"good.weight": weight}, path)
    ended = convsv("analyze", path, "--format", "json")
    assert ended.code == 0, ended.err
    (checkpoint,) = json.loads(ended.out)["checkpoints"]
    layers = {layer["name"]: layer for layer in checkpoint["layers"]}
    assert layers.pop("good")["norm"]["upper"] >= 9 * 12**0.5 / 1.0001
    for name in odd:
        assert layers[name]["norm"] is None
        assert layers[name]["unavailable"]["norm"] in ended.err
        assert f"for {name}:" in ended.err or f"{name}, " in ended.err or f", {name}" in ended.err, ended.err


def odd_safetensors(path: Path) -> tuple[Path, set[str]]:
    odd = {"nan": FULL_VIEW * np.nan, "infinite": FULL_VIEW * np.inf, "nothing": FULL_VIEW[:0], "good": FULL_VIEW}
    save_file({f"{name}.weight": value for name, value in odd.items()}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, dtype, size in (("coarse", "F4", 54), ("whole", "I8", 108)):
        begin = len(data) - 8 - length
        header[f"{name}.weight"] = {"dtype": dtype, "shape": [4, 3, 3, 3], "data_offsets": [begin, begin + size]}
        data += bytes(size)
    safetensors(path, header, 0)
    with path.open("ab") as file:
        file.write(data[8 + length :])
    return path, {"nan", "infinite", "nothing", "coarse", "whole"}


def odd_keras(path: Path) -> tuple[Path, set[str]]:
    with h5py.File(path, "w") as file:
        values = {"nan": FULL_VIEW * np.nan, "infinite": FULL_VIEW * np.inf, "whole": FULL_VIEW.astype("i1")}
        for name, value in {**values, "good": FULL_VIEW}.items():
            file[f"{name}/kernel:0"] = value
        file.create_dataset("scaled/kernel:0", data=FULL_VIEW, chunks=True, scaleoffset=2)
        file["records/kernel:0"] = np.ones((4, 3, 3, 3), [("re", "f4"), ("im", "f4"), ("name", "S3")])
        file.create_dataset("never written/kernel:0", (3, 3, 4, 4), "f4", chunks=(1, 1, 1, 1))
    return path, {"nan", "infinite", "whole", "scaled", "records"}


def odd_onnx(path: Path) -> tuple[Path, set[str]]:
    onnx = pytest.importorskip("onnx")
    values = {"nan": FULL_VIEW * np.nan, "infinite": FULL_VIEW * np.inf, "good": FULL_VIEW, "flat": FULL_VIEW[..., 0]}
    names = [*values, "computed", "missing", "given"]
    kernels = [onnx.numpy_helper.from_array(np.float32(v), name) for name, v in values.items()]
    nodes = [onnx.helper.make_node("Conv", ["x", name], [f"y of {name}"], name=name) for name in names]
    nodes.insert(0, onnx.helper.make_node("Sigmoid", ["x"], ["computed"]))
    inputs = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "given")]
    outputs = [onnx.helper.make_tensor_value_info(f"y of {name}", 1, None) for name in names]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, kernels)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path, {"nan", "infinite", "computed", "missing", "given"}


@pytest.mark.parametrize("make", [odd_safetensors, odd_keras, odd_onnx])
def test_in_every_format_what_is_left_out_is_in_the_report_and_on_standard_error(
    make: Callable[[Path], tuple[Path, set[str]]], convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    path, odd = make(tmp_path / "m")
    ended = convsv("analyze", path, "--format", "json")
    assert ended.code == 0, ended.err
    (checkpoint,) = json.loads(ended.out)["checkpoints"]
    layers = {layer["name"]: layer for layer in checkpoint["layers"]}
    assert layers["good"]["norm"]["lower"] > 0
    for name in sorted(odd):
        told = re.compile(rf"(^|[\s,.:'/]){re.escape(name)}($|[\s,.:'/;])", re.MULTILINE)
        assert told.search(ended.err), (name, ended.err)
        if name in layers:
            assert layers[name]["norm"] is None
            assert layers[name]["unavailable"]["norm"]
        else:
            assert any(told.search(problem) for problem in checkpoint["problems"]), (name, checkpoint["problems"])


def test_a_layer_over_the_memory_budget_is_unavailable_and_its_file_is_not_even_hashed(
    convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    outs = (64 << 30) // (4 * 9 * 1024)
    size = outs * 1024 * 9 * 4
    header = {"huge.weight": entry([outs, 1024, 3, 3], size), "small.weight": entry([2, 1, 3, 3], 72, size)}
    path = safetensors(tmp_path / "m.safetensors", header, size + 72)
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no holes")
    ended = convsv("analyze", path, "--method", "circulant", "--method", "bounds", "--size", "4", "--format", "json")
    assert ended.code == 0, ended.err
    (checkpoint,) = json.loads(ended.out)["checkpoints"]
    huge, small = checkpoint["layers"]
    reason = f"its {size // 4} weights do not fit into the memory budget of 1073741824 bytes"
    assert set(huge["unavailable"].values()) == {reason}
    assert set(huge["unavailable"]) >= {"norm", "circulant", "bounds"}
    assert (small["norm"]["lower"], small["norm"]["upper"]) == (0, 0)
    assert checkpoint["sha256"] is None
    assert any("holes" in problem for problem in checkpoint["problems"])


def test_the_memory_budget_holds_for_reading(convsv: Callable[..., Ended], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a.weight": np.ones((600, 300, 1, 1), np.float32), "b.weight": FULL_VIEW}, path)
    ended = convsv("analyze", path, "--memory", "1MiB", "--format", "json")
    first, second = json.loads(ended.out)["checkpoints"][0]["layers"]
    assert first["unavailable"]["norm"] == "its 180000 weights do not fit into the memory budget of 1048576 bytes"
    assert second["norm"] is not None


HOSTILE_SIDECARS: dict[str, str] = {
    "nested without end": "a = " + "[" * 100_000 + "]" * 100_000,
    "a key of 50 000 parts": "[" + ".".join("a" * 50_000) + "]",
    "a number of 6000 digits": "[defaults]\nsize = " + "9" * 6000,
    "larger than 4 MiB": "#" * (1 << 23),
    "control characters": '[layers."\\u001b[31m"]\nbogus = 1',
    "a value that is huge": "[defaults]\nstride = 1000000000000",
}


@pytest.mark.parametrize("case", HOSTILE_SIDECARS)
def test_a_hostile_geometry_file_is_code_2_and_one_line(
    case: str, convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    model, sidecar = tmp_path / "m.safetensors", tmp_path / "g.toml"
    save_file({"conv.weight": FULL_VIEW}, model)
    sidecar.write_text(HOSTILE_SIDECARS[case])
    ended = convsv("layers", model, "--geometry", sidecar)
    assert ended.code == 2
    assert ended.err.splitlines() == ended.errors
    assert len(ended.errors) == 1
    assert len(ended.errors[0]) < 1000


def test_globs_that_backtrack_take_no_time(convsv: Callable[..., Ended], tmp_path: Path) -> None:
    model, sidecar = tmp_path / "m.safetensors", tmp_path / "g.toml"
    save_file({"a" * 200 + ".weight": FULL_VIEW}, model)
    sidecar.write_text("".join(f'[layers."{"*a" * 60}b{i}"]\nstride = 2\n' for i in range(200)))
    ended = convsv("layers", model, "--geometry", sidecar, "--exclude", "*a" * 60 + "b", "--quiet")
    assert ended.code == 0, ended.err


# ----------------------------------------------------------------------------------------------------- odd and honest


def module_with_codes(path: Path) -> Path:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 1, 1))
    torch.save({"model": {"state_dict": model.state_dict()}, "epoch": 1}, path)
    return path


def tied(path: Path) -> Path:
    weight = torch.ones(2, 2, 3, 3)
    torch.save(
        {
            "a.weight": weight,
            "b.weight": weight,
            "c.weight": torch.ones(4, 3, 3, 3).to(memory_format=torch.channels_last),
        },
        path,
    )
    return path


def saved(path: Path, **tensors: Any) -> Path:
    save_file({name.replace("_", "."): value for name, value in tensors.items()}, path)
    return path


def float8(path: Path) -> Path:
    kinds = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64)
    torch.save({f"l{n}.weight": torch.ones(2, 1, 3, 3).to(kind) for n, kind in enumerate(kinds)}, path)
    return path


ODD: dict[str, tuple[Callable[[Path], Path], int]] = {
    "no convolution at all": (lambda p: saved(p, fc_weight=np.ones((3, 4), np.float32)), 0),
    "no tensor at all": (saved, 0),
    "tensors without elements": (lambda p: saved(p, a_weight=np.ones((0, 3, 3, 3), np.float32), b_weight=FULL_VIEW), 2),
    "every dtype": (float8, 5),
    "tied and channels_last": (tied, 3),
    "a state dict in a dict in a dict": (module_with_codes, 2),
    "one pixel": (lambda p: saved(p, a_weight=np.ones((4, 3, 1, 1), np.float32)), 1),
    "kernels larger than the input": (lambda p: saved(p, a_weight=np.ones((2, 1, 9, 9), np.float32)), 1),
    "one channel": (lambda p: saved(p, a_weight=np.ones((1, 1, 3, 3), np.float32)), 1),
    "no checksums": (lambda p: FILES["pt without checksums"](p.parent), 2),
    "big endian": (lambda p: FILES["big-endian pt"](p.parent), 2),
    "a user block": (lambda p: FILES["HDF5 with a user block"](p.parent), 2),
    "HDF5 called .keras": (lambda p: hdf5(p.with_suffix(".keras"), lambda _: None), 1),
    "safetensors called .pth": (lambda p: saved(p.with_suffix(".pth"), a_weight=FULL_VIEW), 1),
    "a leading dash": (lambda p: saved(p.with_name("-o.pt"), a_weight=FULL_VIEW), 1),
}


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one call says about all of them."""
    folder = tmp_path_factory.mktemp("odd")
    paths = {}
    for number, (case, (make, _)) in enumerate(ODD.items()):
        (folder / f"{number}").mkdir()
        paths[case] = make(folder / f"{number}" / "m.pt")
    dash = paths["a leading dash"]
    (folder / dash.name).hardlink_to(dash)
    paths["a leading dash"] = Path(dash.name)
    options = ("--size", "5", "--method", "circulant", "--no-cache", "--format", "json")
    ended = watched(folder, folder / "log", "analyze", *options, "--", *paths.values(), files=len(paths))
    assert ended.code == 0, ended.err
    assert not ended.errors
    assert not ended.written
    checkpoints = {checkpoint["path"]: checkpoint for checkpoint in json.loads(ended.out)["checkpoints"]}
    return {case: checkpoints[str(path)] for case, path in paths.items()}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_but_honest_file_works(case: str, analysed: dict[str, Any]) -> None:
    layers = analysed[case]["layers"]
    assert len(layers) == ODD[case][1]
    for layer in layers:
        if 0 in layer["shape"]:
            assert layer["unavailable"]["norm"] == layer["unavailable"]["circulant"]
        else:
            assert layer["norm"]["upper"] >= layer["norm"]["lower"] > 0
            assert layer["results"]["circulant"]["max"] <= layer["norm"]["upper"]


def test_ten_thousand_tiny_layers_are_listed(convsv: Callable[..., Ended], tmp_path: Path) -> None:
    header = {f"blocks.{i}.conv.weight": entry([1, 1, 3, 3], 36, 36 * i) for i in range(10_000)}
    ended = convsv("layers", safetensors(tmp_path / "m.pt", header, 360_000), "--format", "jsonl", "--quiet")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 10_001


def test_hostile_names_come_through_every_format(convsv: Callable[..., Ended], tmp_path: Path) -> None:
    """A name is data everywhere: no control character on a terminal, no formula in a table, every name given back."""
    names = [name for name in HOSTILE_NAMES.values() if name.isprintable() or name.isascii()] + [
        "a/b",
        "../x",
        "$(touch ran)",
    ]
    path = tmp_path / "m.safetensors"
    start = [36 * i for i in range(len(names))]
    safetensors(
        path, {f"{n}.weight": entry([1, 1, 3, 3], 36, s) for n, s in zip(names, start, strict=True)}, 36 * len(names)
    )
    outputs = [tmp_path / f"r.{suffix}" for suffix in ("json", "jsonl", "csv", "tsv", "md")]
    ended = convsv("layers", path, *(f"-o{output}" for output in outputs))
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == len(names) + 1
    assert set(ended.written) - {str(Path("/dev/null"))} <= {p for p in ended.written if Path(p).parent == tmp_path}
    weights = [layer["weight"] for layer in json.loads(outputs[0].read_text())["checkpoints"][0]["layers"]]
    assert sorted(weights) == sorted(f"{name}.weight" for name in names)
    for cell in (cell for line in outputs[3].read_text().splitlines() for cell in line.split("\t")):
        assert not cell.startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "=cmd|' /C calc'!A", "-2+3+", "@SUM(1)*"])
def test_what_a_spreadsheet_would_take_for_a_formula_gets_an_apostrophe(
    start: str, convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    """The documented policy, in what the program writes; JSON needs none."""
    name = f"{start}conv"
    path = safetensors(tmp_path / "m.safetensors", {f"{name}.weight": entry([1, 1, 3, 3], 36)}, 36)
    outputs = {suffix: tmp_path / f"r.{suffix}" for suffix in ("csv", "tsv", "json")}
    ended = convsv("analyze", path, "--quiet", *(f"-o{output}" for output in outputs.values()))
    assert ended.code == 0, ended.err
    with outputs["csv"].open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["name"], row["weight"]) == (f"'{name}", f"'{name}.weight")
    header, line = outputs["tsv"].read_text(encoding="utf-8").split("\n")[:2]
    cells = dict(zip(header.split("\t"), line.split("\t"), strict=True))
    assert cells["name"].startswith(("'", "\\t", "\\r", "\\n"))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in (*row.values(), *cells.values()))
    (layer,) = json.loads(outputs["json"].read_text(encoding="utf-8"))["checkpoints"][0]["layers"]
    assert (layer["name"], layer["weight"]) == (name, f"{name}.weight")


# ------------------------------------------------------------------------------------------------------------- numbers

SMALL = np.random.default_rng(1).standard_normal((3, 2, 3, 3))
TINY, HUGE = 2.0**-1070, 2.0**1010
NUMBERS: dict[str, Any] = {
    "plain": SMALL,
    "zero": SMALL * 0,
    "denormal": np.round(SMALL * 8) * TINY,
    "huge": SMALL * HUGE,
    "mixed": SMALL * np.logspace(-300, 300, 18).reshape(3, 2, 3, 1),
    "nan": np.where(SMALL > 2, np.nan, SMALL) * [1, 1, np.nan],
    "infinite": SMALL * [1, 1, np.inf],
    "largest": np.full((3, 2, 3, 3), np.finfo(np.float64).max),
    "single": (SMALL * 1e-42).astype(np.float32),
    "half": (SMALL * 6e-8).astype(np.float16),
}
METHODS = (*SPECTRA, BOUNDS_METHOD)


def numbers_in(value: object) -> Iterator[float]:
    """Every number in a report that is about values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("geometry", "shape", "histogram"):
                yield from numbers_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_odd_numbers_concern_their_own_layer_and_no_result_is_nan(convsv: Callable[..., Ended], tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", **{f"{name}_weight": value for name, value in NUMBERS.items()})
    methods = [f"--method={name}" for name in (*METHODS, SYMBOL_MIN)]
    ended = convsv(
        "analyze", path, "--size", "5", "--padding-mode", "circular", *methods, "--format", "json", "--quiet"
    )
    assert ended.code == 0, ended.err
    assert "NaN" not in re.sub('"[^"]*"', "", ended.out)
    layers = {layer["name"]: layer for layer in json.loads(ended.out)["checkpoints"][0]["layers"]}
    assert set(layers) == set(NUMBERS)
    for name in ("nan", "infinite"):
        assert layers[name]["norm"] is None
        assert not layers[name]["results"]
        assert all("NaN or infinite" in reason for reason in layers[name]["unavailable"].values())
    plain, huge, denormal = (layers[name]["norm"] for name in ("plain", "huge", "denormal"))
    assert (huge["lower"], huge["upper"]) == (plain["lower"] * HUGE, plain["upper"] * HUGE)
    assert 0 < denormal["lower"] <= denormal["upper"] < 1e-300
    assert (layers["zero"]["norm"]["lower"], layers["zero"]["norm"]["upper"]) == (0, 0)
    for name, layer in layers.items():
        assert all(number >= -1e-9 for number in numbers_in(layer["results"])), name
        assert set(METHODS) <= {*layer["results"], *layer["unavailable"]}


@pytest.mark.parametrize("method", METHODS)
def test_a_lapack_that_never_converges_makes_results_unavailable_and_none_nan(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise torch.linalg.LinAlgError("did not converge")

    for name in ("svdvals", "svd", "lstsq", "eigvalsh", "eigh", "cholesky"):
        monkeypatch.setattr(torch.linalg, name, fail)
        if hasattr(np.linalg, name):
            monkeypatch.setattr(np.linalg, name, fail)
    known = Geometry(size=(6, 6), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1))
    report = analyze_layer(cases.make_layer(SMALL, known), AnalysisOptions(methods=(method,)))
    if report.norm is not None:
        assert 0 < report.norm.lower <= report.norm.upper
    assert report.unavailable or method in report.results
    assert "nan" not in repr(report.results)


# -------------------------------------------------------------------------------------- nothing is kept, nothing runs


def test_nothing_is_written_but_the_cache_and_without_it_nothing_at_all(
    convsv: Callable[..., Ended], tmp_path: Path, own_cache: Path
) -> None:
    path = saved(tmp_path / "m.safetensors", a_weight=FULL_VIEW)
    for options, kept in ((["--no-cache"], False), ([], True), ([], True)):
        ended = convsv("analyze", path, "--method", "circulant", "--method", "bounds", "--size", "8", *options)
        assert ended.code == 0
        assert set(ended.opened) <= {str(path)}
        assert not ended.written
        assert not ended.changed
        assert not ended.programs
        assert own_cache.exists() == kept


def test_a_lambda_and_an_unknown_class_are_named_and_never_resolved(
    convsv: Callable[..., Ended], tmp_path: Path
) -> None:
    code = ["4wEAAAAAAAAAAAAAAAEAAAACAAAA", None, None]
    config = {
        "class_name": "stranger>Net",
        "module": "stranger",
        "registered_name": "stranger>Net",
        "config": {
            "layers": [
                {"class_name": "Lambda", "module": "stranger", "config": {"name": "l", "function": code}},
                {"class_name": "Conv2D", "config": {"name": "conv", "strides": [2, 2], "padding": "same"}},
            ]
        },
    }

    def fill(file: h5py.File) -> None:
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["layer_names"] = [b"conv"]
        file["conv"].attrs["weight_names"] = [b"kernel:0"]

    path = hdf5(tmp_path / "m.h5", fill)
    ended = convsv("layers", path, "--format", "json")
    assert ended.code == 0, ended.err
    (layer,) = json.loads(ended.out)["checkpoints"][0]["layers"]
    assert layer["geometry"]["stride"] == [2, 2]
    ended.check_quiet(path)


# -------------------------------------------------------------------------------------------------------- interruption


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """Hundreds of layers: more than anyone waits for."""
    kernels = np.random.default_rng(0).standard_normal((400, 24, 24, 5, 5)).astype(np.float32)
    path = tmp_path / "m.safetensors"
    save_file({f"l{i:03}.weight": kernel for i, kernel in enumerate(kernels)}, path)
    return path


@pytest.mark.parametrize("by", [signal.SIGINT])
def test_an_interrupt_leaves_every_report_valid_and_partial(endless: Path, tmp_path: Path, by: signal.Signals) -> None:
    outputs = {form: tmp_path / f"r.{form}" for form in ("json", "jsonl", "csv", "tsv", "md")}
    command = [sys.executable, "-m", "convsv", "analyze", str(endless), "--format", "jsonl"]
    for output in outputs.values():
        command += ["-o", str(output)]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(by)
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert [line for line in err.splitlines() if line.startswith("error:")] == [
        "error: interrupted; the report is partial"
    ]
    assert "Traceback" not in err
    rows = [json.loads(line) for line in [first, *rest.splitlines()]]
    assert rows[-1]["summary"]["partial"] is True
    whole = json.loads(outputs["json"].read_text())
    assert whole["partial"] is True
    names = [layer["name"] for layer in whole["checkpoints"][0]["layers"]]
    assert names == [row["name"] for row in rows[:-1]]
    assert 0 < len(names) < 400
    assert json.loads(outputs["jsonl"].read_text().splitlines()[-1])["summary"]["partial"] is True
    assert (
        len(outputs["csv"].read_text().splitlines()) == len(outputs["tsv"].read_text().splitlines()) == len(names) + 1
    )
    assert "interrupted" in outputs["md"].read_text()
    assert sorted(tmp_path.iterdir()) == sorted([endless, *outputs.values()])


PLACE = Path(__file__).resolve().parent.parent / "convsv" / "cli"
VERBS = sorted(path.stem for path in PLACE.glob("[!_]*.py") if path.stem != "options")


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_a_closed_pipe_is_silent_for_every_help(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "convsv", *args], stdout=writer, stderr=-1, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_values_that_libhdf5_cannot_decode_are_an_error_of_their_layer(tmp_path: Path) -> None:
    """One line that names the layer, and the code of the file."""
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        noise = np.random.default_rng(0).standard_normal((3, 3, 4, 8)).astype("f4")
        file.create_dataset("conv/kernel", data=noise, chunks=True, compression="gzip", fletcher32=True)
        at = file["conv/kernel"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[at + 20 : at + 60] = bytes(40)
    path.write_bytes(data)
    command = [sys.executable, "-m", "convsv", "analyze", str(path), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {path}: conv: weights cannot be read: libhdf5 cannot read it")
    (layer,) = json.loads(done.stdout)["checkpoints"][0]["layers"]
    assert layer["unavailable"]["norm"] == layer["unread"]


@pytest.fixture(autouse=True)
def _unreadable(tmp_path: Path) -> Iterator[None]:
    """Nothing that a test made keeps its folder from being removed."""
    yield
    for path in tmp_path.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(stat.S_IRWXU)

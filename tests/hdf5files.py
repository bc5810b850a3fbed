"""HDF5 files with everything that an edit must leave alone, and what h5py finds in them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from convsv.checkpoints import Checkpoint, StoredTensor, _child, _hdf5, open_checkpoint
from convsv.checkpoints.writing import Edit, save_edited

RNG = np.random.default_rng(5)
KERNEL = RNG.standard_normal((3, 3, 5, 7))
OTHER = RNG.standard_normal((3, 3, 5, 7))
Values = NDArray[Any]

LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (2, 3, 5, 4)},
    "gzip": {"chunks": (1, 3, 5, 7), "compression": "gzip", "compression_opts": 9},
    "gzip, shuffle and fletcher32": {
        "chunks": (3, 2, 4, 7),
        "compression": "gzip",
        "shuffle": True,
        "fletcher32": True,
    },
    "lzf": {"chunks": True, "compression": "lzf"},
    "szip": {"chunks": (3, 3, 5, 7), "compression": "szip"},
    "resizable": {"maxshape": (None, 3, 5, 7)},
    "compact": {"compact": True},
    "big endian": {"dtype": ">f4"},
    "big endian, gzip": {"dtype": ">f8", "chunks": (1, 3, 5, 7), "compression": "gzip"},
    "half precision": {"dtype": "<f2"},
}


def add(group: h5py.Group, name: str, values: Values, *, compact: bool = False, **options: Any) -> h5py.Dataset:
    if not compact:
        return group.create_dataset(name, data=values, **{"dtype": "<f4", **options})
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    properties.set_obj_track_times(options.get("track_times", False))
    kind, space = h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(values.shape)
    parent, _, last = name.rpartition("/")
    group = group.require_group(parent) if parent else group
    dataset = h5py.h5d.create(group.id, last.encode(), kind, space, properties)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, values.astype("<f4"))
    return h5py.Dataset(dataset)


def crowd(file: h5py.File) -> None:
    """Everything that an edit must leave alone: other layouts, attributes, strings, references, ties, empty things."""
    file.attrs["layer_names"], file.attrs["é"] = [b"conv", b"dense"], "ü"
    file.attrs["numbers"], file.attrs["many"] = np.arange(12).reshape(3, 4), np.array(["a", "bc"], h5py.string_dtype())
    file.attrs["nothing"] = h5py.Empty("f4")
    for layout, options in LAYOUTS.items():
        add(file, f"others/{layout}", KERNEL, **options)
    others = file["others"]
    others["strings"] = np.array(["one", "two"], h5py.string_dtype())
    others["records"] = np.array([(1, b"x"), (2, b"yy")], [("n", "f4"), ("s", h5py.string_dtype())])
    others["type"], others["nothing"], others["tied"] = np.dtype("f8"), h5py.Empty("f4"), others["gzip"]
    others["references"] = np.array([others.ref, others["gzip"].ref], h5py.ref_dtype)
    others["regions"] = np.array([others["gzip"].regionref[:1]], h5py.regionref_dtype)
    others["compressed strings"] = h5py.Empty("S3")
    others.create_dataset("scaled", data=np.arange(9), chunks=(3,), scaleoffset=4)
    others.create_dataset("unwritten", (4, 4), "f4", fillvalue=2.5)
    others.create_dataset("chunks unwritten", (4, 4), "f4", chunks=(2, 2), fillvalue=1.5)


def build(path: Path, layout: str, **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        crowd(file)
        kernel = add(file, "conv/conv/kernel:0", KERNEL, **LAYOUTS[layout])
        kernel.attrs["note"], kernel.attrs["itself"] = "keep", kernel.ref
        file["alias"] = file["conv/conv/kernel:0"]
        add(file, "conv/conv/bias:0", KERNEL[0, 0, 0])
    return path


def named(checkpoint: Checkpoint, path: str) -> StoredTensor:
    (found,) = (tensor for tensor in checkpoint.tensors if "/".join((*tensor.container, tensor.key)) == path)
    return found


def edited(path: Path, values: Mapping[str, Values], target: Path) -> Path:
    checkpoint = open_checkpoint(path)
    edits = []
    for name, value in values.items():
        tensor = named(checkpoint, name)
        dtype = ml_dtypes.bfloat16 if tensor.dtype == "bfloat16" else tensor.dtype
        edits.append(Edit(tensor, value.astype(dtype)))
    save_edited(checkpoint, edits, target)
    return target


# --------------------------------------------------------------------------------------------------------------- oracle


def plain(value: Any) -> object:
    if isinstance(value, h5py.Empty):
        return "empty", value.dtype.str
    array = np.asarray(value)
    if array.dtype.hasobject:
        flat = [repr(v) if isinstance(v, (h5py.Reference, h5py.RegionReference)) else v for v in array.ravel().tolist()]
        return array.shape, [repr(v) for v in flat if not isinstance(v, str) or not v.startswith("<HDF5")]
    return array.shape, array.dtype.str, array.tobytes()


def chunks(dataset: h5py.Dataset) -> list[object]:
    where = [dataset.id.get_chunk_info(i).chunk_offset for i in range(dataset.id.get_num_chunks())]
    return [(offset, dataset.id.read_direct_chunk(offset)) for offset in where]


def facts(item: Any) -> list[object]:
    found: list[object] = [type(item).__name__, [(name, plain(value)) for name, value in item.attrs.items()]]
    if isinstance(item, h5py.Group):
        found.append(list(item))
    if isinstance(item, h5py.Dataset):
        properties = item.id.get_create_plist()
        filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
        found += [item.id.get_type().encode(), item.shape, item.maxshape, item.chunks, filters]
        found += [properties.get_layout(), properties.get_fill_time(), item.fillvalue]
    return found


def everything(path: Path, values_of: Callable[[str], bool]) -> dict[str, list[object]]:
    """All that h5py finds in a file by object; values, and compressed chunks as stored, where wanted."""
    found: dict[str, list[object]] = {}
    with h5py.File(path) as file:
        # visititems would name an object with several names once only.
        waiting: list[tuple[str, Any]] = [("/", file["/"])]
        while waiting:
            name, item = waiting.pop()
            found[name] = facts(item)
            if isinstance(item, h5py.Group):
                waiting += [(f"{name}/{part}".lstrip("/"), item[part]) for part in item]
            elif isinstance(item, h5py.Dataset) and values_of(name):
                found[name].append(None if name.endswith("/scaled") else plain(item[()]))
                found[name].append(chunks(item) if item.chunks else item.id.get_offset())
    return found


def check_content(before: Path, after: Path, changed: Mapping[str, Values]) -> None:
    """Assert that two HDF5 files differ in the values of some datasets only."""
    assert everything(before, lambda name: name not in changed) == everything(after, lambda name: name not in changed)
    with h5py.File(after) as file:
        for name, expected in changed.items():
            np.testing.assert_array_equal(file[name][()], expected.astype(file[name].dtype))
        for name in changed:
            assert name not in file.attrs
        if "conv/conv/kernel:0" in changed:
            assert file[file["conv/conv/kernel:0"].attrs["itself"]] == file["conv/conv/kernel:0"]


def differing(before: bytes, after: bytes) -> list[int]:
    assert len(before) == len(after)
    return np.flatnonzero(np.frombuffer(before, "u1") != np.frombuffer(after, "u1")).tolist()


def extent(path: Path, name: str) -> range:
    with h5py.File(path) as file:
        dataset = file[name]
        return range(dataset.id.get_offset(), dataset.id.get_offset() + dataset.nbytes)


def mortal(monkeypatch: pytest.MonkeyPatch, folder: Path, deadly: set[bytes], how: str) -> list[object]:
    """A child that works but for some datasets, whose reading ends it; returns a list that gets an item a start."""
    source = Path(_hdf5.__file__).with_name("_hdf5_child.py").read_text()
    before = "            request = json.loads(line)\n"
    assert before in source
    dies = f"            if bytes.fromhex(request.get('path', '')) in {deadly!r}:\n                {how}\n"
    child = folder / "child.py"
    child.write_text(source.replace(before, before + dies).replace("import sys\n", "import signal\nimport sys\n"))
    monkeypatch.setattr(_hdf5, "_CHILD", child)
    starts: list[object] = []
    popen = subprocess.Popen
    monkeypatch.setattr(_child.subprocess, "Popen", lambda *a, **o: starts.append(a) or popen(*a, **o))
    return starts

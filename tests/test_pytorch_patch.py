"""Edited PyTorch files: the edited storages' elements and their checksums change, and not one byte besides."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.storage import TypedStorage

from convsv.checkpoints import Checkpoint, open_checkpoint
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._zip import StoredZip
from convsv.checkpoints.writing import Edit, save_edited
from convsv.errors import CheckpointError
from edits import differences, edit, element_bytes, names, random_values, tensor

Save = Callable[..., Path]
FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
FLOATS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip
NEEDS_ZIP = {dtype for dtype in FLOATS if dtype.itemsize == 1}
SHAPE = (4, 3, 2, 2)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 3, stride=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.anything = {"free": Path("anywhere")}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.norm(self.stem(x)))
        return y


class Unknown:
    """A class that nobody who reads the file has."""

    def __init__(self, value: object) -> None:
        self.value = value


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(obj: object, **options: Any) -> Path:
        path = tmp_path / "model.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(obj, path, **options)
        return path

    return saved


def written(path: Path, *keys: str, seed: int = 0) -> tuple[Checkpoint, Path]:
    """Give random values to some tensors; return the source and the new file."""
    source = open_checkpoint(path)
    out = path.with_name("out.pt")
    save_edited(source, [edit(tensor(source, key), seed) for key in keys], out)
    assert names(path.parent) == sorted({path.name, out.name})
    return source, out


def as_torch(values: np.ndarray[Any, Any]) -> torch.Tensor:
    dtype = getattr(torch, values.dtype.name)
    flat = torch.from_numpy(np.ascontiguousarray(values).reshape(-1).view(np.uint8).copy())
    return flat.view(dtype).reshape(values.shape)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    # clone: a tensor of one element is contiguous whatever its stride
    first, second = (t.detach().clone(memory_format=torch.contiguous_format) for t in (one, other))
    first, second = (t.as_strided((t.numel(),), (1,)).view(torch.uint8) for t in (first, second))
    return torch.equal(first, second)


def checksum_bytes(path: Path, *entries: str) -> set[int]:
    archive = StoredZip(RegularFile(path))
    return {at + i for name in entries for at in archive.entries[name].crc_offsets for i in range(4)}


# --------------------------------------------------------------------------------------------- every format and dtype


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_torch_loads_the_new_values_and_the_old_rest(save: Save, options: dict[str, Any], dtype: torch.dtype) -> None:
    if options and dtype in NEEDS_ZIP:
        pytest.skip("the older format knows no such dtype")
    state = OrderedDict((f"{i}.weight", torch.randn(SHAPE).to(dtype)) for i in range(3))
    source, out = written(save(state, **options), "1.weight")
    loaded = torch.load(out, weights_only=True)
    assert list(loaded) == list(state)
    wanted = {**state, "1.weight": as_torch(random_values(tensor(source, "1.weight")))}
    for key, value in wanted.items():
        assert same_bits(loaded[key], value), key


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_only_the_elements_and_their_checksums_change(save: Save, options: dict[str, Any]) -> None:
    state = {f"{i}.weight": torch.randn(SHAPE) for i in range(3)}
    path = save(state, **options)
    source, out = written(path, "1.weight")
    place = tensor(source, "1.weight").place
    assert place is not None
    elements = element_bytes(place.first, 4, SHAPE, state["1.weight"].stride())
    content = path.read_bytes()
    assert content[place.first : place.first + 4 * 48] == state["1.weight"].numpy().tobytes()
    changed = differences(path, out)
    sums = set() if options else checksum_bytes(path, "model/data/1")
    assert changed & elements
    assert changed <= elements | sums
    if not options:
        with zipfile.ZipFile(out) as archive:
            assert archive.testzip() is None
            data = archive.read("model/data/1")
            assert zlib.crc32(data) == archive.getinfo("model/data/1").CRC
        assert changed & sums


VIEWS: dict[str, Callable[[], torch.Tensor]] = {
    "channels_last": lambda: torch.randn(SHAPE).contiguous(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(3, 4, 2, 2).transpose(0, 1),
    "an offset into a larger storage": lambda: torch.randn(9, *SHAPE)[5],
    "every second channel": lambda: torch.randn(8, 3, 2, 2)[::2],
    "a window": lambda: torch.randn(6, 5, 4, 4)[1:5, 1:4, 1:3, 2:4],
    "one element an axis": lambda: torch.randn(1, 3, 1, 1).expand(1, 3, 1, 1)[:, 1:2],
    "a scalar": lambda: torch.tensor(3.0),
}


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_of_a_strided_view_only_the_elements_change(
    save: Save, options: dict[str, Any], make: Callable[[], torch.Tensor]
) -> None:
    view = make()
    path = save({"a.weight": torch.randn(SHAPE), "b.weight": view}, **options)
    source, out = written(path, "b.weight")
    loaded = torch.load(out, weights_only=True)["b.weight"]
    assert same_bits(loaded, as_torch(random_values(tensor(source, "b.weight"))))
    assert (loaded.stride(), loaded.storage_offset()) == (view.stride(), view.storage_offset())
    whole, before = torch.tensor(()).set_(loaded.untyped_storage()), torch.tensor(()).set_(view.untyped_storage())
    inside = element_bytes(view.storage_offset(), 1, view.shape, view.stride())
    others = [i for i in range(len(before)) if i not in inside]
    assert same_bits(whole[others], before[others])


def test_ties_change_together_and_are_edited_once(save: Save) -> None:
    shared = nn.Parameter(torch.randn(SHAPE))
    path = save({"a.weight": shared, "b.weight": shared, "c.weight": shared.detach()})
    source = open_checkpoint(path)
    save_edited(source, [edit(tensor(source, key)) for key in ("c.weight", "a.weight")], path.with_name("out.pt"))
    loaded = torch.load(path.with_name("out.pt"), weights_only=True)
    wanted = as_torch(random_values(source.tensors[0]))
    assert all(same_bits(loaded[key], wanted) for key in loaded)
    assert loaded["a.weight"].data_ptr() == loaded["b.weight"].data_ptr()


def test_edits_that_disagree_about_a_tie_are_an_error(save: Save) -> None:
    shared = torch.randn(SHAPE)
    source = open_checkpoint(save({"a.weight": shared, "b.weight": shared}))
    with pytest.raises(ValueError, match=r"a\.weight and b\.weight are the same bytes"):
        save_edited(source, [edit(t, seed) for seed, t in enumerate(source.tensors)], "unused")


def test_a_second_edit_to_the_same_values_changes_nothing(save: Save) -> None:
    _, out = written(save({"a.weight": torch.randn(SHAPE)}), "a.weight")
    again = open_checkpoint(out)
    save_edited(again, [Edit(again.tensors[0], again.tensors[0].read())], out.with_name("again.pt"))
    assert out.read_bytes() == out.with_name("again.pt").read_bytes()


# ------------------------------------------------------------------------------------------------------ whole pickles


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_a_whole_module_with_its_optimizer_and_unknown_classes_survives(save: Save, options: dict[str, Any]) -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(1, 3, 9, 9)).sum().backward()
    optimizer.step()
    path = save({"net": net, "optimizer": optimizer.state_dict(), "what": Unknown({"x": torch.ones(3)})}, **options)
    source, out = written(path, "stem.weight", "last.weight", seed=3)
    loaded = torch.load(out, weights_only=False)
    state, before = loaded["net"].state_dict(), net.state_dict()
    for key, value in before.items():
        changed = key in ("stem.weight", "last.weight")
        assert same_bits(state[key], as_torch(random_values(tensor(source, key), 3)) if changed else value), key
    moments = loaded["optimizer"]["state"]
    for number, entry in optimizer.state_dict()["state"].items():
        assert all(same_bits(moments[number][name], value) for name, value in entry.items())
    assert loaded["what"].value["x"].tolist() == [1, 1, 1]


def test_nothing_of_the_pickle_is_run(save: Save, tmp_path: Path) -> None:
    class Touches:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    source, _ = written(save({"a.weight": torch.randn(SHAPE), "note": Touches()}), "a.weight")
    assert not (tmp_path / "ran").exists()
    assert source.tensors[0].shape == SHAPE


@pytest.mark.parametrize("protocol", [2, 4], ids=["text", "bytes"])
def test_an_array_inside_the_pickle_is_refused_by_name(save: Save, protocol: int) -> None:
    path = save({"a.weight": np.ones(SHAPE, np.float32), "b.weight": torch.ones(SHAPE)}, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"model\.pt: a\.weight: cannot be edited: it is a numpy array"):
        written(path, "b.weight", "a.weight")
    assert names(path.parent) == ["model.pt"]
    source, out = written(path, "b.weight")
    assert same_bits(torch.load(out, weights_only=False)["b.weight"], as_torch(random_values(source.tensors[1])))


# ------------------------------------------------------------------------------------------------------------ archives


def rewritten(path: Path, **options: Any) -> Path:
    """The same entries in an archive by Python's zipfile."""
    out = path.with_name("rewritten.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(options.get("stream", out), "w") as new:
        for info in old.infolist():
            with new.open(info.filename, "w", force_zip64=options.get("zip64", False)) as entry:
                entry.write(old.read(info.filename))
    if "stream" in options:
        out.write_bytes(options["stream"].getvalue())
    path.unlink()
    return out


class Unseekable(io.BytesIO):
    """Makes zipfile write data descriptors."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


ARCHIVES: dict[str, Callable[[], dict[str, Any]]] = {
    "checksums in the headers": dict,
    "data descriptors": lambda: {"stream": Unseekable()},
    "64-bit sizes in the headers": lambda: {"zip64": True},
    "64-bit sizes in the descriptors": lambda: {"stream": Unseekable(), "zip64": True},
}


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_every_copy_of_a_checksum_is_renewed(save: Save, make: Callable[[], dict[str, Any]]) -> None:
    state = {"a.weight": torch.randn(SHAPE), "b.weight": torch.randn(SHAPE)}
    path = rewritten(save(state), **make())
    source, out = written(path, "b.weight")
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
    place = tensor(source, "b.weight").place
    assert place is not None
    sums = checksum_bytes(path, "model/data/1")
    assert len(sums) == 8
    changed = differences(path, out)
    assert changed <= sums | set(range(place.first, place.end))
    loaded = torch.load(out, weights_only=True)
    assert same_bits(loaded["a.weight"], state["a.weight"])
    assert same_bits(loaded["b.weight"], as_torch(random_values(source.tensors[1])))
    assert not any(tensor.problem for tensor in open_checkpoint(out).tensors)


def test_an_archive_without_checksums_stays_without(save: Save) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a.weight": torch.randn(SHAPE)})
    finally:
        torch.serialization.set_crc32_options(True)
    # What torch writes then are checksums that nobody computed; all zeros is the legal way to say so.
    content = bytearray(path.read_bytes())
    for entry in StoredZip(RegularFile(path)).entries.values():
        for at in entry.crc_offsets:
            content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    source, out = written(path, "a.weight")
    place = source.tensors[0].place
    assert place is not None
    assert differences(path, out) <= set(range(place.first, place.end))
    assert not StoredZip(RegularFile(out)).has_checksums


def test_a_big_endian_file_stays_big_endian(save: Save) -> None:
    state = {"a.weight": torch.randn(SHAPE), "b.weight": torch.randn(SHAPE, dtype=torch.float16)}
    path = save(state)
    with zipfile.ZipFile(path) as old:
        entries = {info.filename: old.read(info.filename) for info in old.infolist()}
    for number, value in enumerate(state.values()):
        entries[f"model/data/{number}"] = value.numpy().byteswap().tobytes()
    entries["model/byteorder"] = b"big"
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            new.writestr(name, data)
    source, out = written(path, "a.weight", "b.weight")
    for key, dtype in (("a.weight", ">f4"), ("b.weight", ">f2")):
        with zipfile.ZipFile(out) as archive:
            stored = np.frombuffer(archive.read(f"model/data/{int(key == 'b.weight')}"), dtype).reshape(SHAPE)
        assert (stored == random_values(tensor(source, key))).all()


def test_a_torchscript_archive_is_edited_as_data(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), tmp_path / "model.pt")
    source, out = written(tmp_path / "model.pt", "0.weight")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(out).state_dict()
    assert same_bits(loaded["0.weight"], as_torch(random_values(tensor(source, "0.weight"))))


def test_the_tar_of_the_first_releases_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "old.pt").write_bytes(b"sys_info".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"))
    with pytest.raises(CheckpointError, match=r"is a tar checkpoint of PyTorch 0\.1\.1 or older, which is not read"):
        open_checkpoint(tmp_path / "old.pt")


# ------------------------------------------------------------------------------------------------- views that overlap


BASE = torch.arange(96.0)
OVERLAPS: dict[str, dict[str, torch.Tensor]] = {
    "partly": {"a.weight": BASE[:48].view(SHAPE), "b.weight": BASE[24:72].view(SHAPE)},
    "the whole storage": {"flat": BASE, "a.weight": BASE[:48].view(SHAPE)},
    "the same bytes in another arrangement": {"a.weight": BASE.view(8, 12), "b.weight": BASE.view(8, 12).t()},
    "one element": {"a.weight": BASE[::5], "b.weight": BASE[3::7]},
}


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("state", OVERLAPS.values(), ids=OVERLAPS)
def test_views_that_share_bytes_are_refused_by_name(
    save: Save, options: dict[str, Any], state: dict[str, torch.Tensor]
) -> None:
    path = save(state, **options)
    (other,) = state.keys() - {"a.weight"}
    with pytest.raises(CheckpointError, match=rf"a\.weight: cannot be edited: it shares some .*, {other}\)"):
        written(path, "a.weight")
    assert names(path.parent) == ["model.pt"]


def test_interleaved_views_without_a_common_byte_may_be_edited(save: Save) -> None:
    path = save({"a.weight": BASE[::2], "b.weight": BASE[1::2]})
    source, out = written(path, "a.weight")
    loaded = torch.load(out, weights_only=True)
    assert same_bits(loaded["a.weight"], as_torch(random_values(source.tensors[0])))
    assert same_bits(loaded["b.weight"], BASE[1::2])


class Holder(nn.Module):
    """Holds tensors where no state dict shows them."""

    def __init__(self, weight: torch.Tensor, hidden: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.conv.weight = nn.Parameter(weight)
        self.conv._cache = hidden


def sparse(values: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.arange(len(values))[None], values, check_invariants=True)


HIDDEN: dict[str, Callable[[torch.Tensor], object]] = {
    "a private attribute": lambda base: base[40:60],
    "the values of a sparse tensor": lambda base: sparse(base[:48]),
    "a bare storage": lambda base: TypedStorage(wrap_storage=base.untyped_storage(), dtype=base.dtype, _internal=True),
    "an expanded view": lambda base: base[3].expand(5),
    "overlapping windows": lambda base: base.unfold(0, 4, 2),
}


@pytest.mark.parametrize("make", HIDDEN.values(), ids=HIDDEN)
def test_what_no_state_dict_shows_is_not_changed_either(save: Save, make: Callable[[torch.Tensor], object]) -> None:
    base = torch.randn(96)
    path = save(Holder(base[:48].view(SHAPE), make(base)))
    with pytest.raises(CheckpointError, match=r"conv\.weight: cannot be edited: it shares some .*outside every state"):
        written(path, "conv.weight")


def test_a_hidden_tie_changes_with_its_tensor(save: Save) -> None:
    weight = torch.randn(SHAPE)
    source, out = written(save(Holder(weight, weight)), "conv.weight")
    loaded = torch.load(out, weights_only=False)
    wanted = as_torch(random_values(tensor(source, "conv.weight")))
    assert same_bits(loaded.conv.weight, wanted)
    assert same_bits(loaded.conv._cache, wanted)


def test_what_lies_elsewhere_in_the_storage_is_no_reason_to_refuse(save: Save) -> None:
    base = torch.randn(96)
    _, out = written(save(Holder(base[:48].view(SHAPE), base[48:])), "conv.weight")
    assert same_bits(torch.load(out, weights_only=False).conv._cache, base[48:])


def test_parts_of_storages_in_the_oldest_files_are_patched_in_their_place(tmp_path: Path) -> None:
    # Before 0.4, a storage could be named as a part of another: (root key, offset, size) after the element count.
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return obj.parts if isinstance(obj, Part) else None

    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, stream, 2)
    parts = [Part(("storage", torch.FloatStorage, "7", "cpu", 96, ("v", at, 48))) for at in (0, 48)]
    Pickler(stream, 2).dump({f"{i}.weight": Rebuilt(part) for i, part in enumerate(parts)})
    pickle.dump(["7"], stream, 2)
    at = stream.tell() + 8
    values = np.arange(96, dtype="<f4")
    path = tmp_path / "model.pt"
    path.write_bytes(stream.getvalue() + struct.pack("<Q", 96) + values.tobytes())
    source, out = written(path, "1.weight")
    after = np.frombuffer(out.read_bytes()[at:], "<f4")
    assert out.read_bytes()[:at] == path.read_bytes()[:at]
    assert (after[:48] == values[:48]).all()
    assert (after[48:].reshape(SHAPE) == random_values(tensor(source, "1.weight"))).all()


class Part:
    def __init__(self, parts: tuple[object, ...]) -> None:
        self.parts = parts


class Rebuilt:
    def __init__(self, part: Part) -> None:
        self.part = part

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor, (self.part, 0, SHAPE, (12, 4, 2, 1))


# ------------------------------------------------------------------------------------------------------------ any file


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Views of a few storages that never share a byte, ties, and every memory format."""
    state: dict[str, torch.Tensor] = {}
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
        shape = draw(st.lists(st.integers(1, 3), min_size=0, max_size=4))
        kind = draw(st.sampled_from(["plain", "channels last", "permuted", "pieces", "strided", "tied"]))
        values = torch.randn(shape).to(dtype)
        if kind == "channels last" and len(shape) == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        elif kind == "permuted" and shape:
            values = values.permute(*draw(st.permutations(range(len(shape)))))
        elif kind == "strided":
            values = torch.randn([2 * n for n in shape] + [2]).to(dtype)[tuple(slice(1, None, 2) for _ in shape)][
                ..., 0
            ]
        elif kind == "pieces":
            first, values = torch.randn([2, *shape]).to(dtype)
            state[f"{number}.first"] = first
        elif kind == "tied":
            state[f"{number}.tie"] = values
        state[f"{number}.weight"] = values
    return state


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@settings(max_examples=60)
@given(state=state_dicts(), data=st.data())
def test_any_edit_of_any_state_dict_is_exact(
    tmp_path_factory: pytest.TempPathFactory,
    options: dict[str, Any],
    state: dict[str, torch.Tensor],
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.pt"
    torch.save(state, path, **options)
    keys = data.draw(st.lists(st.sampled_from(sorted(state)), unique=True))
    keys = [key for key in keys if key.replace(".tie", ".weight") not in keys or key.endswith(".weight")]
    source, out = written(path, *keys, seed=1)
    loaded = torch.load(out, weights_only=True)
    wanted = dict(state)
    for key in keys:
        new = as_torch(random_values(tensor(source, key), 1))
        tied = key.replace(".weight", ".tie") if key.endswith(".weight") else key.replace(".tie", ".weight")
        wanted.update({name: new for name in (key, tied) if name == key or (name in state and ".tie" in key + tied)})
    for key, value in wanted.items():
        assert same_bits(loaded[key], value), key
        assert loaded[key].stride() == state[key].stride()
    places = [place for key in keys if (place := tensor(source, key).place)]
    allowed = set().union(*(element_bytes(p.first, p.item_size, p.view.shape, p.view.strides) for p in places))
    if not options:
        archive = StoredZip(RegularFile(path))
        touched = [n for n, e in archive.entries.items() if any(e.offset <= p.first < e.end for p in places)]
        allowed |= checksum_bytes(path, *touched)
    assert differences(path, out) <= allowed

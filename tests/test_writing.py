"""Edited checkpoints: what is promised of the copy, of the target, and of the source, in every format."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convsv.checkpoints import FORMATS, Checkpoint, _copying, open_checkpoint, writing
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._place import Place
from convsv.checkpoints.safetensors import Safetensors
from convsv.checkpoints.writing import Edit, save_edited
from convsv.errors import CheckpointError, OutputError, UsageError
from convsv.files import write_all
from edits import differences, edit, element_bytes, names, random_values, tensor

SHAPE = (4, 3, 2, 2)
FLOATS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"{name}.weight": torch.randn(SHAPE) for name in "abcd"}


def save_sharded(folder: Path) -> Path:
    folder.mkdir()
    state = list(weights().items())
    shards = {f"model-0000{i}-of-00002.safetensors": dict(state[2 * i - 2 : 2 * i]) for i in (1, 2)}
    for name, part in shards.items():
        save_file(part, folder / name, {"format": "pt"})
    index = {"metadata": {"total_size": 768.0}, "weight_map": {key: name for name in shards for key in shards[name]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text("{}")
    return folder


def save_torch(path: Path, **options: Any) -> Path:
    torch.save(weights(), path, **options)
    return path


def save_safetensors(path: Path) -> Path:
    save_file(weights(), path, {"format": "pt", "note": "kept"})
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "zip": save_torch,
    "legacy": lambda path: save_torch(path, _use_new_zipfile_serialization=False),
    "safetensors": save_safetensors,
    "sharded": save_sharded,
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of four convolutions."""
    path: Path = request.param(tmp_path / "model")
    return path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A checkpoint of one file."""
    return save_safetensors(tmp_path / "model")


def edits_of(checkpoint: Checkpoint, *names: str) -> list[Edit]:
    return [edit(tensor(checkpoint, f"{name}.weight")) for name in names]


def files(path: Path) -> dict[str, bytes]:
    """Name and content of what a path stands for: a file or a folder."""
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    return {p.name if path.is_dir() else "": p.read_bytes() for p in paths}


# ------------------------------------------------------------------------------------------------------------ the copy


def test_the_copy_reads_as_edited_and_else_as_before(model: Path, tmp_path: Path) -> None:
    source = open_checkpoint(model)
    wanted = edits_of(source, "d", "b")
    before = files(model)
    save_edited(source, wanted, tmp_path / "out")
    copy = open_checkpoint(tmp_path / "out")
    assert [(t.key, t.shape, t.dtype) for t in copy.tensors] == [(t.key, t.shape, t.dtype) for t in source.tensors]
    for before_it, after in zip(source.tensors, copy.tensors, strict=True):
        new = {e.tensor.key: e.values for e in wanted}.get(after.key, before_it.read())
        assert after.read().tobytes() == new.tobytes()
    assert files(model) == before
    assert names(tmp_path) == ["model", "out"]


def test_without_edits_the_copy_is_the_same(model: Path, tmp_path: Path) -> None:
    save_edited(open_checkpoint(model), [], tmp_path / "out")
    before = files(model)
    before.pop("config.json", None)
    assert files(tmp_path / "out") == before


def test_a_relative_target_is_written_where_the_program_runs(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_edited(open_checkpoint(single), [], "-out")
    assert names(tmp_path / "here") == ["-out"]


def test_verify_sees_the_finished_copy_under_the_name_it_will_have(model: Path, tmp_path: Path) -> None:
    source = open_checkpoint(model)
    wanted = edits_of(source, "a")
    seen = []

    def verify(copy: Checkpoint) -> None:
        assert not (tmp_path / "out").exists()
        assert copy.path == str(tmp_path / "out")
        assert copy.format == source.format
        seen.append(tensor(copy, "a.weight").read().tobytes())

    save_edited(source, wanted, tmp_path / "out", verify=verify)
    assert seen == [wanted[0].values.tobytes()]


@pytest.mark.parametrize("error", [RuntimeError, UsageError, KeyboardInterrupt])
def test_what_verify_raises_keeps_the_copy_from_its_name(
    model: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    def verify(copy: Checkpoint) -> None:
        raise error("not good enough")

    source = open_checkpoint(model)
    with pytest.raises(error, match="not good enough"):
        save_edited(source, edits_of(source, "a"), tmp_path / "out", verify=verify)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_safetensors_of_every_dtype_change_in_the_payload_only(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in weights().items()}
    save_file(state, tmp_path / "model", {"format": "pt"})
    source = open_checkpoint(tmp_path / "model")
    save_edited(source, edits_of(source, "b"), tmp_path / "out")
    loaded = load_file(tmp_path / "out")
    assert all(torch.equal(loaded[k].view(torch.uint8), v.view(torch.uint8)) for k, v in state.items() if k[0] != "b")
    place = tensor(source, "b.weight").place
    assert place is not None
    item = dtype.itemsize
    assert loaded["b.weight"].view(torch.uint8).numpy().tobytes() == random_values(tensor(source, "b.weight")).tobytes()
    assert differences(tmp_path / "model", tmp_path / "out") <= element_bytes(place.first, item, (48,), (1,))


def test_a_scalar_and_an_empty_tensor_are_edited(tmp_path: Path) -> None:
    save_file({"empty": torch.ones(0, 3), "scalar": torch.tensor(1.5)}, tmp_path / "model")
    source = open_checkpoint(tmp_path / "model")
    values = {"empty": np.ones((0, 3), np.float32), "scalar": np.float32(-2.5).reshape(())}
    save_edited(source, [Edit(t, values[t.key]) for t in source.tensors], tmp_path / "out")
    assert load_file(tmp_path / "out")["scalar"] == -2.5


def test_a_value_that_is_not_a_number_is_written_bit_for_bit(single: Path, tmp_path: Path) -> None:
    source = open_checkpoint(single)
    values = np.full(SHAPE, np.uint32(0x7FC12345)).view(np.float32)
    values[0] = -0.0
    save_edited(source, [Edit(source.tensors[0], values)], tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").tensors[0].read().tobytes() == values.tobytes()


def test_values_of_the_other_byte_order_are_understood(single: Path, tmp_path: Path) -> None:
    source = open_checkpoint(single)
    values = random_values(source.tensors[0])
    save_edited(source, [Edit(source.tensors[0], values.astype(">f4"))], tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").tensors[0].read().tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("a.weight", np.zeros((4, 3, 2), np.float32), r"float32 \(4, 3, 2\) for float32 \(4, 3, 2, 2\)"),
        ("a.weight", np.zeros(SHAPE), "float64"),
        ("elsewhere", np.zeros(SHAPE, np.float32), "not a tensor of"),
    ],
    ids=["shape", "dtype", "tensor"],
)
def test_an_edit_that_does_not_fit_is_an_error(
    single: Path, tmp_path: Path, key: str, values: np.ndarray[Any, Any], message: str
) -> None:
    source = open_checkpoint(single)
    chosen = open_checkpoint(single).tensors[0] if key == "elsewhere" else source.tensors[0]
    with pytest.raises(ValueError, match=message):
        save_edited(source, [Edit(chosen, values)], tmp_path / "out")
    assert names(tmp_path) == ["model"]


# ---------------------------------------------------------------------------------------------------------- the target


def test_what_is_there_is_kept_without_force(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "out") if model.is_dir() else (tmp_path / "out").write_text("old")
    before = files(tmp_path / "out")
    source = open_checkpoint(model)
    with pytest.raises(UsageError, match=r"out: is already there; .*--force"):
        save_edited(source, edits_of(source, "a"), tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_force_replaces_what_is_there(model: Path, tmp_path: Path) -> None:
    source = open_checkpoint(model)
    save_edited(source, [], tmp_path / "out")
    save_edited(source, edits_of(source, "a"), tmp_path / "out", force=True)
    assert (
        tensor(open_checkpoint(tmp_path / "out"), "a.weight").read()[0, 0, 0, 0]
        == edits_of(source, "a")[0].values[0, 0, 0, 0]
    )
    assert names(tmp_path) == ["model", "out"]


@pytest.mark.parametrize("force", [False, True], ids=["new", "replaced"])
def test_a_file_is_flushed_before_it_takes_its_name_and_its_folder_afterwards(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    target = tmp_path / "copy"
    if force:
        target.write_bytes(b"old")
    flushed: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        flushed.append((kind, target.exists() and target.read_bytes() != b"old"))

    monkeypatch.setattr(os, "fsync", fsync)
    source = open_checkpoint(single)
    save_edited(source, edits_of(source, "a"), target, force=force)
    assert ("file", False) in flushed
    assert ("file", True) not in flushed
    assert flushed[-1] == ("folder", True)


@pytest.mark.parametrize("kind", ["itself", "hard link", "symbolic link"])
def test_the_source_is_not_replaced_without_force(single: Path, tmp_path: Path, kind: str) -> None:
    target = single if kind == "itself" else tmp_path / "link"
    if kind == "hard link":
        target.hardlink_to(single)
    elif kind == "symbolic link":
        target.symlink_to(single)
    before = single.read_bytes()
    source = open_checkpoint(single)
    with pytest.raises(UsageError, match="is the checkpoint itself"):
        save_edited(source, edits_of(source, "a"), target)
    assert single.read_bytes() == before


def test_with_force_another_name_of_the_source_keeps_the_old_content(single: Path, tmp_path: Path) -> None:
    (tmp_path / "link").hardlink_to(single)
    before = single.read_bytes()
    source = open_checkpoint(single)
    save_edited(source, edits_of(source, "a"), single, force=True)
    assert (tmp_path / "link").read_bytes() == before
    assert single.read_bytes() != before
    assert tensor(open_checkpoint(single), "a.weight").read().tobytes() == edits_of(source, "a")[0].values.tobytes()


def test_a_sharded_checkpoint_can_replace_itself_if_nothing_else_is_in_its_folder(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "model")
    source = open_checkpoint(model)
    with pytest.raises(UsageError, match=r"holds other files, which would be lost \(found config.json\)"):
        save_edited(source, edits_of(source, "a"), model, force=True)
    (model / "config.json").unlink()
    save_edited(source, edits_of(source, "a"), model, force=True)
    assert len(names(model)) == 3
    assert tensor(open_checkpoint(model), "a.weight").read().tobytes() == edits_of(source, "a")[0].values.tobytes()


def test_a_symbolic_link_stays_one(single: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    (tmp_path / "link").symlink_to("out")
    save_edited(open_checkpoint(single), [], tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out").read_bytes() == single.read_bytes()


def test_a_target_that_appears_meanwhile_is_kept(model: Path, tmp_path: Path) -> None:
    def verify(copy: Checkpoint) -> None:
        (tmp_path / "out").mkdir() if model.is_dir() else None
        (tmp_path / "out" / "theirs" if model.is_dir() else tmp_path / "out").write_text("theirs")

    source = open_checkpoint(model)
    with pytest.raises(UsageError, match="is already there"):
        save_edited(source, edits_of(source, "a"), tmp_path / "out", verify=verify)
    assert list(files(tmp_path / "out").values()) == [b"theirs"]
    assert names(tmp_path) == ["model", "out"]


@pytest.mark.parametrize("kind", ["folder", "fifo", "no folder", "a file for a folder", "link to itself"])
def test_a_target_that_cannot_be_is_one_clear_error(single: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "link to itself":
        target.symlink_to(target)
    elif kind == "no folder":
        target = tmp_path / "missing" / "out"
    else:
        target = single / "out"
    before = names(tmp_path)
    with pytest.raises((UsageError, OutputError), match=r"out: .*\(found [^)]*\)"):
        save_edited(open_checkpoint(single), [], target, force=True)
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["out.safetensors", "out.index.json"])
def test_several_files_are_not_written_to_the_name_of_one(tmp_path: Path, name: str) -> None:
    source = open_checkpoint(save_sharded(tmp_path / "model"))
    with pytest.raises(UsageError, match="is written as a folder"):
        save_edited(source, [], tmp_path / name)


def test_several_files_do_not_replace_one_even_with_force(tmp_path: Path) -> None:
    source = open_checkpoint(save_sharded(tmp_path / "model"))
    (tmp_path / "out").write_text("old")
    with pytest.raises(UsageError, match=r"is to be a folder \(found a file\)"):
        save_edited(source, [], tmp_path / "out", force=True)
    assert (tmp_path / "out").read_text() == "old"


def test_an_empty_folder_may_become_the_output(tmp_path: Path) -> None:
    source = open_checkpoint(save_sharded(tmp_path / "model"))
    (tmp_path / "out").mkdir()
    save_edited(source, [], tmp_path / "out")
    assert names(tmp_path / "out") == [name for name in names(tmp_path / "model") if name != "config.json"]


def test_shards_are_opened_by_the_index_too(tmp_path: Path) -> None:
    source = open_checkpoint(save_sharded(tmp_path / "model") / "model.safetensors.index.json")
    save_edited(source, edits_of(source, "d"), tmp_path / "out")
    assert (
        tensor(open_checkpoint(tmp_path / "out"), "d.weight").read().tobytes()
        == edits_of(source, "d")[0].values.tobytes()
    )


def test_shards_that_are_links_become_files(tmp_path: Path) -> None:
    model = save_sharded(tmp_path / "model")
    (tmp_path / "blobs").mkdir()
    for number, shard in enumerate(sorted(model.glob("*.safetensors"))):
        shard.rename(tmp_path / "blobs" / str(number))
        shard.symlink_to(tmp_path / "blobs" / str(number))
    before = files(tmp_path / "blobs")
    source = open_checkpoint(model)
    save_edited(source, edits_of(source, "a", "d"), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert files(tmp_path / "blobs") == before


# ----------------------------------------------------------------------------------------------------------- the modes


@pytest.fixture
def _mask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_mask")
@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o666, 0o640), (0o444, 0o440), (0o4755, 0o750)])
def test_a_new_file_has_the_permissions_of_its_source_less_the_mask(
    single: Path, tmp_path: Path, before: int, after: int
) -> None:
    single.chmod(before)
    save_edited(open_checkpoint(single), [], tmp_path / "out")
    assert mode(tmp_path / "out") == after


@pytest.mark.usefixtures("_mask")
def test_a_replaced_file_keeps_its_permissions(single: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o604)
    save_edited(open_checkpoint(single), [], tmp_path / "out", force=True)
    assert mode(tmp_path / "out") == 0o604


@pytest.mark.usefixtures("_mask")
def test_a_new_folder_and_its_files_have_ordinary_permissions(tmp_path: Path) -> None:
    source = open_checkpoint(save_sharded(tmp_path / "model"))
    for path in (tmp_path / "model").iterdir():
        path.chmod(0o644)
    save_edited(source, [], tmp_path / "out")
    assert mode(tmp_path / "out") == 0o750
    assert {mode(path) for path in (tmp_path / "out").iterdir()} == {0o640}


def test_nobody_else_can_read_the_copy_before_it_is_finished(model: Path, tmp_path: Path) -> None:
    found = []

    def verify(copy: Checkpoint) -> None:
        (hidden,) = (path for path in tmp_path.iterdir() if path.name.startswith("."))
        found.append(mode(hidden) & 0o077)

    save_edited(open_checkpoint(model), [], tmp_path / "out", verify=verify)
    assert found == [0]


# -------------------------------------------------------------------------------------------- the source and the judge


@pytest.mark.parametrize("how", ["longer", "shorter", "other bytes"])
def test_a_source_that_changed_since_it_was_opened_is_refused(model: Path, tmp_path: Path, how: str) -> None:
    source = open_checkpoint(model)
    wanted = edits_of(source, "a")
    path = source.files[-1].path
    content = path.read_bytes()
    other = {"longer": content + b"x", "shorter": content[:-9], "other bytes": content[:-9] + bytes(9)}[how]
    path.write_bytes(other)
    os.utime(path, (1, 1))
    with pytest.raises(CheckpointError, match="changed since it was opened"):
        save_edited(source, wanted, tmp_path / "out")
    assert names(tmp_path) == ["model"]


def test_a_source_that_changes_while_it_is_copied_is_refused(single: Path, tmp_path: Path) -> None:
    source = open_checkpoint(single)

    def verify(copy: Checkpoint) -> None:
        single.write_bytes(single.read_bytes()[:-1] + b"!")
        os.utime(single, (1, 1))

    with pytest.raises(CheckpointError, match="changed since it was opened"):
        save_edited(source, edits_of(source, "a"), tmp_path / "out", verify=verify)
    assert names(tmp_path) == ["model"]


def test_a_source_that_was_replaced_is_copied_as_it_was_opened(single: Path, tmp_path: Path) -> None:
    source = open_checkpoint(single)
    before = single.read_bytes()
    single.unlink()
    single.write_text("something else")
    save_edited(source, [], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == before


class Careless(Safetensors):
    """A format that does something else than it was asked for."""

    def __init__(self, how: str) -> None:
        self.how = how

    def patch(self, source: Checkpoint, edits: Sequence[Edit], copy: Path) -> Sequence[Place] | None:
        places = super().patch(source, edits, copy)
        descriptor = os.open(copy, os.O_RDWR)
        size = os.fstat(descriptor).st_size
        other, own = tensor(source, "d.weight").place, tensor(source, "a.weight").place
        assert other is not None
        assert own is not None
        if self.how in ("another tensor", "another tensor, by a library"):
            write_all(descriptor, b"\x01\x02", other.first + 17)
        elif self.how == "the edited tensor":
            write_all(descriptor, b"\x01\x02", own.first + 17)
        elif self.how == "metadata":
            at = os.pread(descriptor, size, 0).index(b"kept")
            write_all(descriptor, b"lost", at)
        elif self.how == "a name":
            at = os.pread(descriptor, size, 0).index(b"c.weight")
            write_all(descriptor, b"x", at)
        elif self.how == "the header":
            write_all(descriptor, b"\xff", 9)
        elif self.how == "the length":
            os.ftruncate(descriptor, size - 4)
        os.close(descriptor)
        return None if self.how.endswith("library") else places


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("another tensor", r"the copy is wrong.*byte \d+ of model changed"),
        ("another tensor, by a library", r"d\.weight: the copy is wrong.*other values"),
        ("the edited tensor", r"a\.weight: the copy is wrong.*other values"),
        ("metadata", r"the copy is wrong.*byte \d+ of model changed"),
        ("a name", "the copy is wrong.*other tensors"),
        ("the header", "the copy cannot be read back"),
        ("the length", "the copy cannot be read back"),
    ],
)
def test_a_copy_that_breaks_a_promise_does_not_take_its_name(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, message: str
) -> None:
    source = open_checkpoint(single)
    monkeypatch.setitem(FORMATS._entries, "safetensors", Careless(how))
    with pytest.raises(OutputError, match=message):
        save_edited(source, edits_of(source, "a"), tmp_path / "out")
    assert names(tmp_path) == ["model"]


def test_the_careless_format_is_accepted_when_it_takes_care(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(single)
    for number, how in enumerate(("nothing", "nothing, by a library")):
        monkeypatch.setitem(FORMATS._entries, "safetensors", Careless(how))
        save_edited(source, edits_of(source, "a"), tmp_path / str(number))


def test_a_format_that_cannot_be_edited_says_so(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader:
        name, suffixes = "safetensors", (".safetensors",)
        recognises, open = Safetensors().recognises, Safetensors().open

    source = open_checkpoint(single)
    monkeypatch.setitem(FORMATS._entries, "safetensors", Reader())
    with pytest.raises(CheckpointError, match=r"model: cannot be edited \(found format safetensors\); convert"):
        save_edited(source, edits_of(source, "a"), tmp_path / "out")


# --------------------------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("errno", [0, *_copying._REFUSALS])
def test_a_copy_is_exact_whatever_the_kernel_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errno: int
) -> None:
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "a").write_bytes(content)

    def refuse(*_: object) -> int:
        if errno:
            raise OSError(errno, "refused")
        return 0

    monkeypatch.setattr(_copying.os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(_copying, "_CHUNK", 1 << 12)
    _copying.copy_file(RegularFile(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_a_kernel_that_copies_a_little_at_a_time_copies_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "copy_file_range"):
        pytest.skip("this system has no copy_file_range")
    copy = os.copy_file_range
    monkeypatch.setattr(_copying.os, "copy_file_range", lambda a, b, n, i, j: copy(a, b, min(n, 777), i, j))
    content = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "a").write_bytes(content)
    _copying.copy_file(RegularFile(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content


def test_holes_stay_holes(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        for at in (0, 40 << 20):
            file.seek(at)
            file.write(b"data")
        file.truncate(80 << 20)
    if (tmp_path / "a").stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system keeps no holes")
    _copying.copy_file(RegularFile(tmp_path / "a"), tmp_path / "b")
    after = (tmp_path / "b").stat()
    assert after.st_size == 80 << 20
    assert after.st_blocks * 512 <= 1 << 20
    with (tmp_path / "b").open("rb") as file:
        file.seek(40 << 20)
        assert file.read(5) == b"data\0"


def test_reading_back_reads_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"big": torch.zeros(1 << 22), "a.weight": torch.ones(SHAPE)}, tmp_path / "model")
    source = open_checkpoint(tmp_path / "model")
    largest = []
    read = RegularFile.read

    def watched(self: RegularFile, offset: int, count: int) -> bytes:
        largest.append(count)
        return read(self, offset, count)

    monkeypatch.setattr(RegularFile, "read", watched)
    save_edited(source, edits_of(source, "a"), tmp_path / "out")
    assert max(largest) <= 1 << 20


def test_the_door_says_what_it_offers() -> None:
    assert writing.__all__ == ["Edit", "EditableFormat", "refuse_target", "save_edited", "write_values"]
    editable = {name for name, reader in FORMATS.items() if isinstance(reader, writing.EditableFormat)}
    assert {"pytorch", "safetensors"} <= editable

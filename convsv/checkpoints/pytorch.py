"""PyTorch checkpoints: the zip format, the older pickle format, and what is refused by name.

``torch.save`` writes a zip archive of ``data.pkl`` and one entry a storage; before PyTorch 1.6 it wrote five pickles
(magic number, protocol, system, object, storage keys) followed by the storages
(https://github.com/pytorch/pytorch/blob/main/torch/serialization.py). Both pickles are interpreted inertly:
nothing of the file is imported or called, torch is not imported either, and a tensor is read when it is asked for.
An edit patches the bytes of a tensor where they stand in a copy, and the checksum of the entry that holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from convsv.checkpoints import FORMATS, Checkpoint, RegularFile, StoredTensor
from convsv.checkpoints._content import printable
from convsv.checkpoints._pickle import MAX_PICKLE_BYTES, Pickle, interpret
from convsv.checkpoints._place import Place
from convsv.checkpoints._strided import Storage
from convsv.checkpoints._torch_alike import Indexed, indexed_alike, read_by
from convsv.checkpoints._torch_export import export_prefix, read_export
from convsv.checkpoints._torch_frozen import add_constants
from convsv.checkpoints._torch_objects import index_objects
from convsv.checkpoints._torch_patch import refuse_hidden_views
from convsv.checkpoints._torch_script import ScriptCode
from convsv.checkpoints._torch_tensors import FindStorage, StorageId, parse_storage_id
from convsv.checkpoints._zip import LOCAL_MAGIC, STORED, StoredZip
from convsv.checkpoints._zip_patch import renew_checksums
from convsv.checkpoints.writing import Edit, write_values
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, error_context

__all__ = ["PyTorch"]

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_HEAD = 64
_SMALL = 1 << 20
_RESAVE = "save model.state_dict() with torch.save"
_PACKED = "the constants of its code are compressed: weights among them are not listed"
_TAR_MEMBERS = ("sys_info", "pickle", "storages", "tensors")
_EXPORTED = ("archive_format", "models/model.json", "serialized_exported_program.json", "serialized_state_dict.pt")
_PACKAGED = ".data/extern_modules"
_FIRST_NAMES = ("/data.pkl", "/constants.pkl", "/version", "/byteorder", "/archive_format")
_FIRST_FOLDERS = ("/data/", "/.data/", "/code/", "/constants/")


class PyTorch:
    """The reader of ``torch.save`` files, and of TorchScript and ``torch.export`` archives as data."""

    name = "pytorch"
    suffixes: tuple[str, ...] = (".pt", ".pth", ".th", ".ckpt", ".pt2")

    def recognises(self, file: RegularFile) -> bool:
        """Tell a PyTorch archive, the magic number of the pickle format, or the tar of its first releases.

        Raises:
            CorruptCheckpointError: the file shrank while it was read.
        """
        head = file.read(0, min(file.size, 512))
        return _has_magic(head) or _is_torch_tar(head) or (head[:4] == LOCAL_MAGIC and _is_torch_zip(file, head))

    def open(self, file: RegularFile) -> Checkpoint:
        """Index the file. No tensor is read.

        Raises:
            CorruptCheckpointError: truncated, wrong checksums, or it contradicts itself.
            UnsafeCheckpointError: compressed, duplicated, overlapping or enormous parts.
            CheckpointError: a format that is not read: torch.package, early torch.export, the tar of 2016.
        """
        path = str(file.path)
        with error_context(path=path):
            found = _indexed(file)
        return Checkpoint(
            path,
            self.name,
            found.tensors,
            tuple(found.modules),
            tuple(found.problems),
            (file,),
            likeness=found.likeness,
        )

    def patch(self, source: Checkpoint, edits: Sequence[Edit], copy: Path) -> Sequence[Place]:
        """Put values into a copy of the file, storage by storage; the pickle is not touched.

        Args:
            source: the checkpoint.
            edits: new values, one or more, of tensors with a storage.
            copy: the copy.

        Returns:
            The places of the checksums.

        Raises:
            CheckpointError: a tensor stands inside the pickle, or shares bytes with something else in the file.
            OSError: the copy cannot be written.
        """
        (file,) = source.files
        exported = _export_archive(file)
        if exported:
            write_values(edits, copy)
            return renew_checksums(exported[0], edits, copy)
        contents = _contents(file)
        refuse_hidden_views(source, edits, contents.pickle, contents.find)
        write_values(edits, copy)
        return renew_checksums(contents.archive, edits, copy) if contents.archive else ()


def _indexed(file: RegularFile) -> Indexed:
    found = _export_archive(file)
    if found is None:
        return _pickled(file)
    archive, prefix = found
    export = read_export(archive, prefix, big_endian=_is_big_endian(archive, f"{prefix}byteorder"))
    return Indexed(_told(export.tensors, file), export.modules, export.problems)


def _export_archive(file: RegularFile) -> tuple[StoredZip, str] | None:
    if file.read(0, min(file.size, 4)) != LOCAL_MAGIC:
        return None
    archive = StoredZip(file, allow_deflate=True)
    prefix = export_prefix(archive)
    return None if prefix is None else (archive, prefix)


def _pickled(file: RegularFile) -> Indexed:
    contents = _contents(file)
    code = contents.code
    if code is None:
        skeleton = contents.archive.skeleton if contents.archive else None
        return indexed_alike(contents.pickle, contents.find, skeleton, partial(_read, str(file.path)))
    found = index_objects(contents.pickle.value, contents.find, code.constants)
    if contents.frozen:
        add_constants(found, contents.frozen[0], contents.frozen[1], code)
    return Indexed(_told(found.tensors, file), found.modules, [*found.problems, *contents.problems])


def _told(tensors: Sequence[StoredTensor], file: RegularFile) -> Sequence[StoredTensor]:
    """Return tensors whose errors say where they happened."""
    return [read_by(partial(_read, str(file.path)), tensor) for tensor in tensors]


@dataclass(frozen=True)
class _Contents:
    """What either format consists of: a pickle, and the way to the storages that it names."""

    pickle: Pickle
    find: FindStorage
    archive: StoredZip | None = None
    problems: tuple[str, ...] = ()
    code: ScriptCode | None = None
    frozen: tuple[Pickle, FindStorage] | None = None


def _contents(file: RegularFile) -> _Contents:
    head = file.read(0, min(file.size, 512))
    if head[:4] == LOCAL_MAGIC:
        return _open_zip(file)
    if _has_magic(head):
        return _open_pickles(file)
    if _is_torch_tar(head):
        raise CheckpointError("is a tar checkpoint of PyTorch 0.1.1 or older, which is not read", advice=_RESAVE)
    raise CheckpointError("is not a PyTorch checkpoint")


def _read(path: str, key: str, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    with error_context(path=path, tensor=key):
        return read()


FORMATS.add(PyTorch.name, PyTorch())


def _harmless(pickle: Pickle) -> Pickle:
    """Return a pickle, unless it is an attack on those who load it: such a file is not to be trusted in anything.

    Raises:
        UnsafeCheckpointError: it would run commands or code.
    """
    if pickle.payload:
        raise UnsafeCheckpointError(
            "carries a payload that would run when it is loaded",
            found=f"a call of {printable(pickle.payload)}",
            advice="nothing of it was run; do not load it elsewhere",
        )
    return pickle


# -------------------------------------------------------------------------------------------------------- recognition


def _has_magic(head: bytes) -> bool:
    binary = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
    return binary in head[:_HEAD] or head.startswith(
        (f"L{MAGIC}L\n.".encode(), f"\x80\x02L{MAGIC}L\n.".encode("latin-1"))
    )


def _is_torch_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" and head[:100].rstrip(b"\0").decode("latin-1").removeprefix("./") in _TAR_MEMBERS


def _is_torch_zip(file: RegularFile, head: bytes) -> bool:
    # By the first entry where it tells (a truncated file has no directory), else by the directory.
    first = "/" + head[30 : 30 + int.from_bytes(head[26:28], "little")].decode("latin-1")
    if first.endswith(_FIRST_NAMES) or any(folder in first for folder in _FIRST_FOLDERS):
        return True
    try:
        names = StoredZip(file, allow_deflate=True).entries
    except CheckpointError:
        return False
    return any(name.rsplit("/", 1)[-1] == "data.pkl" or name.endswith(_PACKAGED) for name in names)


# --------------------------------------------------------------------------------------------------------- zip format


def _open_zip(file: RegularFile) -> _Contents:
    archive = StoredZip(file, allow_deflate=True)
    prefix = _archive_prefix(archive)
    entry = archive.entries[f"{prefix}data.pkl"]
    is_script = f"{prefix}constants.pkl" in archive.entries
    compressed = archive.compressed
    if compressed and not is_script:
        raise UnsafeCheckpointError(
            f"entry {compressed[:80]!r} of the zip archive is compressed, which torch.save never does", advice=_RESAVE
        )
    if entry.size > MAX_PICKLE_BYTES:
        raise UnsafeCheckpointError("its pickle is too large", found=f"{entry.size} bytes, limit {MAX_PICKLE_BYTES}")
    archive.verify(entry.name)
    big_endian = _is_big_endian(archive, f"{prefix}byteorder")

    def finder(folder: str) -> FindStorage:
        def find(wanted: StorageId) -> Storage:
            held = archive.entries.get(f"{prefix}{folder}/{wanted.key}")
            _check_size(wanted, None if held is None else held.size)
            assert held is not None
            read = partial(archive.read_range, held.name)
            stands = file if held.method == STORED else None
            return Storage(wanted.key, wanted.numel * wanted.item_size, read, big_endian, stands, held.offset)

        return find

    pickle = _harmless(interpret(file, entry.offset, entry.size))
    if not is_script:
        return _Contents(pickle, finder("data"), archive)
    code, constants = ScriptCode(archive, prefix), archive.entries[f"{prefix}constants.pkl"]
    if constants.method != STORED or constants.size > MAX_PICKLE_BYTES:
        return _Contents(pickle, finder("data"), archive, (_PACKED,), code)
    archive.verify(constants.name)
    frozen = _harmless(interpret(file, constants.offset, constants.size)), finder("constants")
    return _Contents(pickle, finder("data"), archive, (), code, frozen)


def _archive_prefix(archive: StoredZip) -> str:
    names = archive.entries
    first = next(iter(names))
    folders = [first.split("/", 1)[0] + "/" if "/" in first else "", ""]
    folders += sorted({name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")})
    for folder in folders:
        if f"{folder}data.pkl" in names:
            return folder
        if any(folder + name in names for name in _EXPORTED):
            raise CheckpointError("is a torch.export archive of PyTorch before 2.8, which is not read", advice=_RESAVE)
        if folder + _PACKAGED in names:
            raise CheckpointError("is a torch.package archive, which is not read", advice=_RESAVE)
    raise CorruptCheckpointError("is a zip archive without data.pkl: no file of torch.save", advice=_RESAVE)


def _is_big_endian(archive: StoredZip, name: str) -> bool:
    # Without the entry it is little endian, whatever machine reads it: torch's rule.
    order = archive.read(name, _SMALL) if name in archive.entries else b"little"
    if order not in (b"little", b"big"):
        raise CorruptCheckpointError("its byte order is neither little nor big")
    return order == b"big"


def _check_size(wanted: StorageId, size: int | None) -> None:
    declared = wanted.numel * wanted.item_size
    if size is None or declared > size:
        found = "none" if size is None else f"{size} bytes, {declared} declared"
        raise CorruptCheckpointError(f"lacks the data of storage {wanted.key[:40]!r}", found=found)


# ------------------------------------------------------------------------------------------------------ pickle format


def _open_pickles(file: RegularFile) -> _Contents:
    at = 0
    for expected, what in ((MAGIC, "magic number"), (PROTOCOL, "protocol")):
        value, at, *_ = interpret(file, at)
        if type(value) is not int or value != expected:
            raise CorruptCheckpointError(f"has the wrong {what} for a PyTorch checkpoint")
    at = _harmless(
        interpret(file, at)
    ).end  # facts about the machine that wrote it: its storages are little endian all the same
    main = _harmless(interpret(file, at))
    keys = _harmless(interpret(file, main.end))
    storages = _storage_extents(file, keys, _first_ids(main))

    def find(wanted: StorageId) -> Storage:
        start, size = storages.get(wanted.key, (0, None))
        _check_size(wanted, size)

        def read(offset: int, count: int) -> bytes:
            return file.read(start + offset, count)

        return Storage(wanted.key, wanted.numel * wanted.item_size, read, False, file, start)

    return _Contents(main, find)


def _first_ids(pickle: Pickle) -> dict[str, StorageId]:
    ids: dict[str, StorageId] = {}
    for persistent in pickle.persistent_ids:
        storage_id = parse_storage_id(persistent)
        if storage_id is not None:
            ids.setdefault(storage_id.key, storage_id)
    return ids


def _storage_extents(file: RegularFile, keys: Pickle, ids: dict[str, StorageId]) -> dict[str, tuple[int, int]]:
    # Position and size in bytes of each storage: 8 bytes that count its elements, then the elements.
    if not isinstance(keys.value, list):
        raise CorruptCheckpointError("lacks the list of its storages")
    extents: dict[str, tuple[int, int]] = {}
    at = keys.end
    for key in keys.value:
        name = key if isinstance(key, str) else str(key) if type(key) is int and abs(key) < 1 << 64 else ""
        if name not in ids or name in extents or not ids[name].item_size:
            raise CorruptCheckpointError("lists a storage that no tensor describes, or twice")
        count = int.from_bytes(file.read(at, 8), "little")
        size = count * ids[name].item_size
        if at + 8 + size > file.size:
            raise CorruptCheckpointError(
                "ends before its own data", found=f"{size} bytes of a storage at {at + 8} of {file.size}"
            )
        extents[name] = (at + 8, size)
        at += 8 + size
    return extents

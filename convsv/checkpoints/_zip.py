"""A strict index of a zip archive, read with ``pread``, that knows where every byte stands.

Python's ``zipfile`` neither tells where the data and the checksums stand nor refuses overlaps, duplicates or an
archive whose two directories disagree, and it insists on checksums that PyTorch may legally leave out.
So the directory is parsed here (APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3). What is accepted:

- one archive that starts at the first byte and ends, comment included, at the last byte of the file; nothing before,
  nothing after. Unused gaps between entries are harmless and allowed;
- entries that are stored, or deflated where the caller allows it; not encrypted, not on several disks;
- names that occur once; extents that neither overlap nor reach into the directory; local headers and data
  descriptors that say what the directory says.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._zip_alike import Directory, Skeleton, ZipEntry
from convsv.errors import CorruptCheckpointError, UnsafeCheckpointError

__all__ = ["DEFLATED", "LOCAL_MAGIC", "Directory", "StoredZip", "ZipEntry"]

LOCAL_MAGIC = b"PK\x03\x04"
"""The first bytes of an archive that holds at least one entry."""

STORED, DEFLATED = 0, 8
MAX_ENTRIES = 1 << 18
MAX_DIRECTORY_BYTES = 1 << 27
READ_LIMIT = 1 << 28

_ENCRYPTED, _DESCRIPTOR, _STRONG_ENCRYPTED, _UTF8, _MASKED = 1 << 0, 1 << 3, 1 << 6, 1 << 11, 1 << 13
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_CHUNK = 1 << 22
_USUAL_EXTRA = 96
"""Bytes: more than PyTorch adds to a local header to align the data."""
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIPTORS = struct.Struct("<3L"), struct.Struct("<L2Q")


class _Record(NamedTuple):
    """An entry as the central directory tells it."""

    name: bytes
    flags: int
    method: int
    crc: int
    size: int
    compressed_size: int
    header_offset: int
    crc_offset: int

    def text(self) -> str:
        try:
            return self.name.decode("utf-8" if self.flags & _UTF8 else "cp437")
        except UnicodeDecodeError:
            raise CorruptCheckpointError("the zip archive has an entry whose name is not UTF-8") from None


class StoredZip:
    """The index of an archive; entries are read one by one on demand.

    Args:
        file: the file; it must be an archive from its first byte to its last.
        allow_deflate: whether deflated entries may occur.

    Attributes:
        file: the file.
        entries: all entries by name, in the order of the directory.
        directory: where the directory stands.
        skeleton: the same object for small archives alike, which differ in checksums, the name of the folder and the
            data of entries; None where it is not known.
        compressed: name of the first deflated entry, if any.
        has_checksums: false when every CRC of the archive is 0 (a legal option of PyTorch): none is checked then.

    Raises:
        CorruptCheckpointError: truncated, or the directories contradict each other.
        UnsafeCheckpointError: encrypted, compressed, duplicated or overlapping entries, or too many.
    """

    def __init__(self, file: RegularFile, allow_deflate: bool = False) -> None:
        self.file = file
        known = _INDICES.get(file)
        if known is None or known.allow_deflate != allow_deflate:
            known = _INDICES[file] = _index(file, allow_deflate)
        self.directory, self.entries, self.compressed, self.skeleton = known[1:]
        self.has_checksums = any(entry.crc for entry in self.entries.values())
        self._crcs: dict[str, int] = {}

    def read(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """Return the whole uncompressed content of an entry, checked against its CRC.

        Args:
            name: an entry's name.
            limit: largest size in bytes that is read.

        Raises:
            CorruptCheckpointError: there is no such entry, its data end early, or the CRC differs.
            UnsafeCheckpointError: the entry is larger than ``limit``.
        """
        entry = self._entry(name)
        if max(entry.size, entry.compressed_size) > limit:
            raise UnsafeCheckpointError(
                f"entry {name[:80]!r} of the zip archive is too large", found=f"{entry.size} bytes, limit {limit}"
            )
        data = self.file.read(entry.offset, entry.compressed_size)
        if entry.method == DEFLATED:
            data = _inflate(data, entry)
        self._check(entry, zlib.crc32(data))
        return data

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """Return ``count`` bytes of a stored entry from ``start``; the first time, the whole entry's CRC is checked.

        Raises:
            CorruptCheckpointError: no such entry, a range beyond it, or the CRC differs.
            UnsafeCheckpointError: the entry is compressed.
        """
        entry = self._entry(name)
        if start < 0 or count < 0 or start + count > entry.size:
            raise CorruptCheckpointError(
                f"entry {name[:80]!r} of the zip archive is too short",
                found=f"{count} bytes wanted at {start} of {entry.size}",
            )
        if count < entry.size:
            self.verify(name)
        data = self.file.read(self._stored(entry).offset + start, count)
        if count == entry.size:
            self._check(entry, zlib.crc32(data))
        return data

    def verify(self, name: str) -> None:
        """Check the CRC of a stored entry, in chunks, once.

        Raises:
            CorruptCheckpointError: no such entry, or the CRC differs.
            UnsafeCheckpointError: the entry is compressed.
        """
        entry = self._stored(self._entry(name))
        if not self.has_checksums:
            return
        crc, end = self._crcs.get(name), entry.offset + entry.size
        if crc is None:
            crc = 0
            for position in range(entry.offset, end, _CHUNK):
                crc = zlib.crc32(self.file.read(position, min(_CHUNK, end - position)), crc)
        self._check(entry, crc)

    def _entry(self, name: str) -> ZipEntry:
        if name not in self.entries:
            raise CorruptCheckpointError(f"the zip archive has no entry {name[:80]!r}")
        return self.entries[name]

    def _stored(self, entry: ZipEntry) -> ZipEntry:
        if entry.method != STORED:
            raise UnsafeCheckpointError(f"entry {entry.name[:80]!r} of the zip archive is compressed")
        return entry

    def _check(self, entry: ZipEntry, crc: int) -> None:
        self._crcs[entry.name] = crc  # also of what is damaged: a thousand layers in it do not read it again
        if self.has_checksums and crc != entry.crc:
            raise CorruptCheckpointError(
                f"wrong checksum of entry {entry.name[:80]!r} of the zip archive",
                found=f"CRC {crc:08x}, stored {entry.crc:08x}",
                advice="the file is damaged: fetch it again",
            )


# ------------------------------------------------------------------------------------------------------- directory


class _Index(NamedTuple):
    """What is in an archive."""

    allow_deflate: bool
    directory: Directory
    entries: Mapping[str, ZipEntry]
    compressed: str | None
    skeleton: Skeleton | None = None


_INDICES: WeakKeyDictionary[RegularFile, _Index] = WeakKeyDictionary()
"""The index of each open file: several readers ask what is in it."""


_LAST: deque[tuple[bool, Directory, Skeleton]] = deque(maxlen=1)
"""What the index of the last small archive depends on, and whether deflated entries were allowed there."""


class _Readable(Protocol):
    """A file, or one that was read whole."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, count: int) -> bytes: ...


class _Whole:
    """A file that was read in one go: what is checked in it is what is remembered of it."""

    def __init__(self, content: bytes) -> None:
        self.content, self.size = content, len(content)

    def read(self, offset: int, count: int) -> bytes:
        if offset < 0 or count < 0 or offset + count > self.size:
            raise CorruptCheckpointError(
                "ends before its own data", found=f"{count} bytes wanted at {offset} of {self.size}"
            )
        return self.content[offset : offset + count]


def _index(file: RegularFile, allow_deflate: bool) -> _Index:
    content = file.at_hand()
    if content is None:
        return _Index(allow_deflate, *_checked_index(file, allow_deflate))
    for allowed, directory, skeleton in tuple(_LAST):
        alike = skeleton.index(content) if (allowed, skeleton.size) == (allow_deflate, file.size) else None
        if alike is not None:
            return _Index(allow_deflate, directory, alike, next(alike.compressed(), None), skeleton)
    directory, entries, compressed = _checked_index(_Whole(content), allow_deflate)
    made = Skeleton.of(content, directory, entries)
    if made:
        _LAST.append((allow_deflate, directory, made))
    return _Index(allow_deflate, directory, entries, compressed, made)


def _checked_index(file: _Readable, allow_deflate: bool) -> tuple[Directory, dict[str, ZipEntry], str | None]:
    directory = _find_directory(file)
    entries: dict[str, ZipEntry] = {}
    records = _parse_directory(file, directory)
    starts = sorted(record.header_offset for record in records)
    for record in records:
        name = record.text()
        if name in entries:
            raise UnsafeCheckpointError("the zip archive holds two entries of one name", found=repr(name[:80]))
        _check_kind(name, record, allow_deflate)
        following = bisect_right(starts, record.header_offset)
        entries[name] = _locate(file, name, record, starts[following] if following < len(starts) else directory.start)
    _check_extents(entries, directory.start)
    return directory, entries, next((entry.name for entry in entries.values() if entry.method != STORED), None)


def _find_directory(file: _Readable) -> Directory:
    if file.size < _END.size or file.read(0, 4) != LOCAL_MAGIC:
        raise CorruptCheckpointError("is not a zip archive from its first byte on, or is truncated")
    tail_start = max(0, file.size - _END.size - _FULL16)
    tail = file.read(tail_start, file.size - tail_start)
    at = len(tail)
    while (at := tail.rfind(b"PK\x05\x06", 0, at)) >= 0:
        # The comment must reach exactly to the end of the file: bytes of the data that look like a record do not.
        if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[7] == len(tail):
            break
    if at < 0:
        raise CorruptCheckpointError(
            "the zip archive has no directory at its end", advice="the file is truncated: fetch it again"
        )
    _, disk, first_disk, here, count, size, start, _ = _END.unpack_from(tail, at)
    end, disks = tail_start + at, {disk, first_disk}
    end_record, end_record64 = end, None
    if end >= _LOCATOR64.size and file.read(end - _LOCATOR64.size, 4) == b"PK\x06\x07":
        end, disks, wide = _read_end64(file, end - _LOCATOR64.size)
        narrow = ((here, _FULL16), (count, _FULL16), (size, _FULL32), (start, _FULL32))
        if any(said not in (full, true) for (said, full), true in zip(narrow, wide, strict=True)):
            raise CorruptCheckpointError("the two end records of the zip archive disagree")
        here, count, size, start = wide
        end_record64 = end
    if disks != {0} or here != count:
        raise UnsafeCheckpointError("the zip archive is one of several parts")
    if start + size > end:
        raise CorruptCheckpointError("the directory of the zip archive lies beyond its end")
    return Directory(start, size, count, end_record, end_record64)


def _read_end64(file: _Readable, locator_at: int) -> tuple[int, set[int], tuple[int, int, int, int]]:
    # Where the zip64 end record starts, its disk numbers, and (here, count, size, start).
    _, disk, at, disks = _LOCATOR64.unpack(file.read(locator_at, _LOCATOR64.size))
    if at + _END64.size > locator_at:
        raise CorruptCheckpointError("the zip64 end record lies beyond its locator")
    magic, _, _, _, this_disk, first_disk, here, count, size, start = _END64.unpack(file.read(at, _END64.size))
    if magic != b"PK\x06\x06":
        raise CorruptCheckpointError("the zip64 end record is missing")
    return at, {disk, this_disk, first_disk, max(disks, 1) - 1}, (here, count, size, start)


def _parse_directory(file: _Readable, directory: Directory) -> list[_Record]:
    start, size, count = directory.start, directory.size, directory.count
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise UnsafeCheckpointError("the directory of the zip archive is too large", found=f"{count} entries")
    data, at, records = file.read(start, size), 0, []
    for _ in range(count):
        if at + _CENTRAL.size > size or data[at : at + 4] != b"PK\x01\x02":
            raise CorruptCheckpointError("the directory of the zip archive is damaged")
        fields = _CENTRAL.unpack_from(data, at)
        flags, method, crc, packed, full, name_size, extra_size, comment_size, disk = (*fields[3:5], *fields[7:14])[:9]
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_size
        following = extra_at + extra_size + comment_size
        if following > size:
            raise CorruptCheckpointError("the directory of the zip archive is damaged")
        wide = _widen((full, packed, fields[16]), data[extra_at : extra_at + extra_size])
        if disk not in (0, _FULL16):
            raise UnsafeCheckpointError("the zip archive is one of several parts")
        records.append(_Record(data[name_at:extra_at], flags, method, crc, *wide, start + at + 16))
        at = following
    if at != size:
        raise CorruptCheckpointError("the directory of the zip archive holds more than its entries")
    return records


def _widen(fields: tuple[int, int, int], extra: bytes) -> tuple[int, int, int]:
    # (size, compressed size, header offset), with those that need 64 bits taken from the extra field.
    if _FULL32 not in fields:
        return fields
    values = iter(_zip64_values(extra))
    try:
        size, packed, offset = (next(values) if field == _FULL32 else field for field in fields)
    except (StopIteration, RuntimeError):  # a generator turns StopIteration into RuntimeError
        raise CorruptCheckpointError("the zip archive lacks a 64-bit size") from None
    return size, packed, offset


def _zip64_values(extra: bytes) -> tuple[int, ...]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 : at + 4 + length]
        if kind == 1:
            return struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8])
        at += 4 + length
    return ()


# --------------------------------------------------------------------------------------------------------- entries


def _check_kind(name: str, record: _Record, allow_deflate: bool) -> None:
    if record.flags & (_ENCRYPTED | _STRONG_ENCRYPTED | _MASKED):
        raise UnsafeCheckpointError(f"entry {name[:80]!r} of the zip archive is encrypted")
    if record.method not in (STORED, DEFLATED):
        raise UnsafeCheckpointError(
            f"entry {name[:80]!r} of the zip archive is compressed in an unknown way", found=f"method {record.method}"
        )
    if record.method == DEFLATED and not allow_deflate:
        raise UnsafeCheckpointError(f"entry {name[:80]!r} of the zip archive is compressed")
    if record.method == STORED and record.size != record.compressed_size:
        raise CorruptCheckpointError(f"entry {name[:80]!r} of the zip archive has two sizes")


def _locate(file: _Readable, name: str, record: _Record, limit: int) -> ZipEntry:
    # Check the local header against the directory and find the data. The header must end before the next entry: what
    # many headers hold in common would be read once for each.
    try:
        at = record.header_offset
        head = file.read(at, max(_LOCAL.size, min(_LOCAL.size + len(record.name) + _USUAL_EXTRA, file.size - at)))
        magic, _, flags, method, _, _, crc, packed, full, name_size, extra_size = _LOCAL.unpack_from(head)
        length = name_size + extra_size
        if at + _LOCAL.size + length > limit and magic == LOCAL_MAGIC:
            raise UnsafeCheckpointError(f"the header of entry {name[:80]!r} of the zip archive overlaps what follows")
        rest = head[_LOCAL.size : _LOCAL.size + length]
        if len(rest) < length:
            rest = file.read(at + _LOCAL.size, length)
    except CorruptCheckpointError:
        raise CorruptCheckpointError(f"entry {name[:80]!r} of the zip archive lies beyond the file") from None
    described = bool(flags & _DESCRIPTOR)
    sizes = _widen((full, packed, 0), rest[name_size:])[:2]
    told = (*sizes, crc) if not described or crc or any(sizes) else None
    if (
        (magic, rest[:name_size], method) != (LOCAL_MAGIC, record.name, record.method)
        or (flags ^ record.flags) & (_ENCRYPTED | _DESCRIPTOR | _UTF8)
        or told not in (None, (record.size, record.compressed_size, record.crc))
    ):
        raise CorruptCheckpointError(f"the header of entry {name[:80]!r} contradicts the zip archive's directory")
    offset = record.header_offset + _LOCAL.size + name_size + extra_size
    end = offset + record.compressed_size
    if end > file.size:
        raise CorruptCheckpointError(
            f"entry {name[:80]!r} of the zip archive reaches beyond the file", found=f"{record.compressed_size} bytes"
        )
    crc_offsets = [record.crc_offset] + ([record.header_offset + 14] if told else [])
    if described:
        crc_at, end = _descriptor(file, name, record, end)
        crc_offsets += [crc_at] if crc_at is not None else []
    return ZipEntry(
        name,
        record.method,
        record.crc,
        record.size,
        record.compressed_size,
        record.header_offset,
        offset,
        end,
        tuple(crc_offsets),
    )


def _descriptor(file: _Readable, name: str, record: _Record, at: int) -> tuple[int | None, int]:
    # Where the CRC of the data descriptor stands and where the descriptor ends.
    found = file.read(at, min(24, file.size - at))
    for signature in (b"PK\x07\x08", b""):
        for layout in _DESCRIPTORS:
            try:
                body = layout.pack(record.crc, record.compressed_size, record.size)
            except struct.error:  # the size needs 64 bits
                continue
            if found.startswith(signature + body):
                return at + len(signature), at + len(signature) + len(body)
    if record.compressed_size == 0:
        return None, at  # PyTorch's writer leaves it out after an empty entry
    raise CorruptCheckpointError(f"the data descriptor of entry {name[:80]!r} contradicts the zip archive's directory")


def _check_extents(entries: dict[str, ZipEntry], directory_start: int) -> None:
    position, last = 0, ""
    for entry in sorted(entries.values(), key=lambda entry: (entry.header_offset, entry.end)):
        if entry.header_offset < position:
            raise UnsafeCheckpointError(
                "two entries of the zip archive overlap", found=f"{last[:80]!r} and {entry.name[:80]!r}"
            )
        position, last = entry.end, entry.name
    if min((entry.header_offset for entry in entries.values()), default=0) > 0:
        raise UnsafeCheckpointError("the zip archive holds data before its first entry")
    if position > directory_start:
        raise UnsafeCheckpointError(f"entry {last[:80]!r} of the zip archive overlaps the directory")


def _inflate(data: bytes, entry: ZipEntry) -> bytes:
    # The size is known: never produce more than one byte beyond it.
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(data, entry.size + 1)
    except zlib.error as error:
        raise CorruptCheckpointError(f"entry {entry.name[:80]!r} cannot be inflated", found=str(error)) from None
    if len(content) != entry.size or not inflater.eof or inflater.unused_data:
        raise CorruptCheckpointError(f"entry {entry.name[:80]!r} does not inflate to its size", found=f"{entry.size}")
    return content

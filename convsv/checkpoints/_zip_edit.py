"""One entry of a zip archive replaced in a copy; every byte that does not speak of it stays.

Other entries keep their bytes, compressed or not, their order, dates, flags, extra fields and comments, and so does the
archive. Where the entry changes its size, what follows moves; the numbers that say so (sizes, positions, checksums) are
overwritten where they stand, in their width: a number that would need 64 bits where there are 32 is refused.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from convsv.checkpoints._zip import DEFLATED, StoredZip, ZipEntry
from convsv.errors import CheckpointError
from convsv.files import write_all

__all__ = ["replace_entry"]

_CHUNK = 1 << 24
_FULL32 = 0xFFFFFFFF
_FORMATS = {2: "<H", 4: "<L", 8: "<Q"}
_LEVELS = (6, 9, 3, 1)
"""zlib's levels for what two bits of the flags say of the compressor: normal, maximum, fast, super fast."""


@dataclass(frozen=True)
class _Number:
    """A number of the archive: its position, its width in bytes, and what it is to become."""

    position: int
    width: int
    value: int


def replace_entry(archive: StoredZip, name: str, content: bytes, descriptor: int) -> None:
    """Give an entry another content, compressed with the same method.

    Args:
        archive: the archive as it is; it is only read.
        name: an entry's name.
        content: the new, uncompressed content.
        descriptor: of a copy of the archive's file, open for writing.

    Raises:
        CheckpointError: a size or a position would no longer fit.
        CorruptCheckpointError: the archive shrank since it was opened.
        OSError: the copy cannot be written.
    """
    entry, file = archive.entries[name], archive.file
    layout = _Layout(archive, entry)
    data = layout.pack(content)
    grown, behind = len(data) - entry.compressed_size, entry.offset + entry.compressed_size
    crc = zlib.crc32(content) if archive.has_checksums else 0
    numbers = [*layout.sizes(len(data), len(content)), *layout.positions(grown)]
    if any(number.width == 4 and number.value >= _FULL32 for number in numbers):
        raise CheckpointError("the zip archive would become too large for its numbers of 32 bits")
    for position in range(behind, file.size, _CHUNK):
        write_all(descriptor, file.read(position, min(_CHUNK, file.size - position)), position + grown)
    write_all(descriptor, data, entry.offset)
    os.ftruncate(descriptor, file.size + grown)
    for number in (*numbers, *(_Number(position, 4, crc) for position in entry.crc_offsets)):
        moved = number.position + (grown if number.position >= behind else 0)
        write_all(descriptor, struct.pack(_FORMATS[number.width], number.value), moved)


class _Layout:
    """Where an archive speaks of the size and the end of one entry (APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3).

    What these numbers say was checked when the archive was opened.
    """

    def __init__(self, archive: StoredZip, entry: ZipEntry) -> None:
        self._archive, self._entry = archive, entry

    def pack(self, content: bytes) -> bytes:
        """Return content as the entry stores it."""
        if self._entry.method != DEFLATED:
            return content
        flags = self._number(_record(self._entry) + 8, 2)
        packer = zlib.compressobj(_LEVELS[flags >> 1 & 3], zlib.DEFLATED, -zlib.MAX_WBITS)
        return packer.compress(content) + packer.flush()

    def sizes(self, packed: int, full: int) -> Iterator[_Number]:
        """Yield the entry's sizes in the directory, in its header if it tells them, and in its data descriptor."""
        record, header = _record(self._entry), self._entry.header_offset
        told = [(record + 24, record + 20, record + 46, record + 28)]
        if header + 14 in self._entry.crc_offsets:
            told.append((header + 22, header + 18, header + 30, header + 26))
        for full_at, packed_at, names_at, lengths_at in told:
            places = self._widened((full_at, packed_at), names_at, lengths_at)
            yield from (_Number(*place, value) for place, value in zip(places, (full, packed), strict=True))
        behind = self._entry.offset + self._entry.compressed_size
        for at in (position + 4 for position in self._entry.crc_offsets if behind <= position < self._entry.end):
            width = (self._entry.end - at) // 2
            yield from (_Number(at, width, packed), _Number(at + width, width, full))

    def positions(self, grown: int) -> Iterator[_Number]:
        """Yield the positions of what follows the entry."""
        for entry in self._archive.entries.values():
            if entry.header_offset > self._entry.header_offset:
                record = _record(entry)
                place = self._widened((record + 24, record + 20, record + 42), record + 46, record + 28)[2]
                yield _Number(*place, entry.header_offset + grown)
        directory = self._archive.directory
        if self._number(directory.end_record + 16, 4) != _FULL32:
            yield _Number(directory.end_record + 16, 4, directory.start + grown)
        if directory.end_record64 is not None:
            yield _Number(directory.end_record64 + 48, 8, directory.start + grown)
            yield _Number(directory.end_record - 12, 8, directory.end_record64 + grown)

    def _widened(self, fields: Sequence[int], names_at: int, lengths_at: int) -> list[tuple[int, int]]:
        """Return position and width of numbers, those that need 64 bits where the extra field has them."""
        name_size, extra_size = self._number(lengths_at, 2), self._number(lengths_at + 2, 2)
        wide = self._zip64(names_at + name_size, extra_size)
        places = []
        for field in fields:
            if self._number(field, 4) == _FULL32:
                places.append((wide, 8))
                wide += 8
            else:
                places.append((field, 4))
        return places

    def _zip64(self, at: int, size: int) -> int:
        """Return where the 64-bit numbers stand in an extra field; meaningless if it has none."""
        end = at + size
        while at + 4 <= end and self._number(at, 2) != 1:
            at += 4 + self._number(at + 2, 2)
        return at + 4

    def _number(self, position: int, width: int) -> int:
        return int.from_bytes(self._archive.file.read(position, width), "little")


def _record(entry: ZipEntry) -> int:
    """Return the position of an entry's record in the directory: its checksum is 16 bytes from there."""
    return entry.crc_offsets[0] - 16

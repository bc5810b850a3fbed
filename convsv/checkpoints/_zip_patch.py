"""The checksums of a zip archive after the data of stored entries were patched in a copy."""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._place import Place
from convsv.checkpoints._zip import StoredZip, ZipEntry
from convsv.checkpoints.writing import Edit
from convsv.files import write_all

__all__ = ["renew_checksums"]

_CHUNK = 1 << 22


def renew_checksums(archive: StoredZip, edits: Sequence[Edit], copy: Path) -> list[Place]:
    """Put right the CRC of each entry that holds an edited tensor, wherever the archive states it.

    An archive without checksums (all 0, a legal option of PyTorch) stays so.

    Args:
        archive: the index of the source.
        edits: what was patched; tensors without a place are passed over.
        copy: the copy of the archive's file, patched.

    Returns:
        The places of the checksums, in the source.

    Raises:
        CorruptCheckpointError: the copy shrank.
        OSError: the copy cannot be written.
    """
    if not archive.has_checksums:
        return []
    entries = sorted(archive.entries.values(), key=lambda entry: entry.offset)
    starts = [entry.offset for entry in entries]
    firsts = {edit.tensor.place.first for edit in edits if edit.tensor.place}
    patched = [entries[number] for number in sorted({bisect_right(starts, first) - 1 for first in firsts})]
    file = RegularFile(copy)
    descriptor = os.open(copy, os.O_WRONLY)
    try:
        for entry in patched:
            checksum = _checksum(file, entry).to_bytes(4, "little")
            for position in entry.crc_offsets:
                write_all(descriptor, checksum, position)
    finally:
        os.close(descriptor)
    return [Place.contiguous(archive.file, at, "uint8", (4,)) for entry in patched for at in entry.crc_offsets]


def _checksum(file: RegularFile, entry: ZipEntry) -> int:
    crc, end = 0, entry.offset + entry.size
    for position in range(entry.offset, end, _CHUNK):
        crc = zlib.crc32(file.read(position, min(_CHUNK, end - position)), crc)
    return crc

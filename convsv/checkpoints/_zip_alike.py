"""The index of a zip archive, and that of an archive alike: of the same network's next checkpoint.

``torch.save`` writes a network's checkpoints alike: the same entries at the same places, but for checksums and for the
folder that all names begin with, which is named after the file. So every byte on which the index depends is compared
with that of the last archive, whose index was made with all checks: where they are equal, so are the indices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Alike", "Directory", "Skeleton", "ZipEntry"]

_NAME = 30
"""Bytes from the beginning of a local header, and from the checksum in the directory, to the name."""
_FLAGS, _DESCRIBED = 6, 1 << 3
_SIGNED = (16, 24)
"""Bytes of a data descriptor with its signature."""

_Positions = NDArray[np.int64]


class ZipEntry(NamedTuple):
    """One entry of the archive.

    Attributes:
        name: as stored.
        method: 0 stored, 8 deflated.
        crc: CRC-32 of the uncompressed data, as the directory tells it.
        size: uncompressed size in bytes.
        compressed_size: size of the data in the file; equals ``size`` when stored.
        header_offset: absolute position of the local header.
        offset: absolute position of the data.
        end: absolute position after the data and its descriptor.
        crc_offsets: absolute positions of every copy of the CRC (4 bytes, little endian): the directory's, then
            the local header's or the data descriptor's.
    """

    name: str
    method: int
    crc: int
    size: int
    compressed_size: int
    header_offset: int
    offset: int
    end: int
    crc_offsets: tuple[int, ...]


@dataclass(frozen=True)
class Directory:
    """Where the central directory of an archive stands.

    Attributes:
        start: its absolute position.
        size: its size in bytes.
        count: number of entries.
        end_record: absolute position of the end record.
        end_record64: absolute position of the zip64 end record, if there is one; its locator stands right before the
            end record.
    """

    start: int
    size: int
    count: int
    end_record: int
    end_record64: int | None = None


@dataclass(frozen=True, eq=False)
class Skeleton:
    """All of an archive but the data of its entries; no file stays open for it.

    Attributes:
        size: of the archive, in bytes.
        fixed: positions of what the index of one alike has in common with this: headers, descriptors, directory.
        known: the bytes there.
        roots: positions of the name of the folder, a row for each copy of each name.
        sums: positions of the checksums in the directory, a row an entry.
        owners: positions of checksums in the directory, a row for each other copy ...
        copies: ... and those of the copies.
        rests: of each entry, by its name after that of the folder: its number, its method, and the fields behind the
            checksum.
    """

    size: int
    fixed: _Positions
    known: NDArray[np.uint8]
    roots: _Positions
    sums: _Positions
    owners: _Positions
    copies: _Positions
    rests: Mapping[str, tuple[int, int, tuple[Any, ...]]]

    @staticmethod
    def of(content: bytes, directory: Directory, entries: Mapping[str, ZipEntry]) -> Skeleton | None:
        """Return the skeleton of an archive.

        Args:
            content: the whole archive.
            directory: where its directory stands, which reaches to its end.
            entries: its index.

        Returns:
            The skeleton; None where names have no folder in common, or where a checksum or a descriptor is left out:
            there the index may depend on more.
        """
        root, slash, _ = next(iter(entries), "").partition("/")
        if not slash or not root.isascii() or not all(map(_is_told_twice, entries.values(), [content] * len(entries))):
            return None
        if not all(name.startswith(root + slash) for name in entries):
            return None
        listed = entries.values()
        bytes_here = np.frombuffer(content, np.uint8)
        fixed = np.zeros(len(content), np.bool_)
        fixed[directory.start :] = True
        for entry in listed:
            fixed[entry.header_offset : entry.offset] = True
            fixed[entry.offset + entry.compressed_size : entry.end] = True
        roots = _rows([at + _NAME for e in listed for at in (e.header_offset, e.crc_offsets[0])], len(root))
        sums = _rows([entry.crc_offsets[0] for entry in listed], 4)
        owners = _rows([entry.crc_offsets[0] for entry in listed for _ in entry.crc_offsets[1:]], 4)
        copies = _rows([at for entry in listed for at in entry.crc_offsets[1:]], 4)
        for changing in (roots, sums, copies):
            fixed[changing] = False
        positions = np.flatnonzero(fixed)
        rests = {entry.name[len(root) :]: (number, entry.method, entry[3:]) for number, entry in enumerate(listed)}
        return Skeleton(len(content), positions, bytes_here[positions], roots, sums, owners, copies, rests)

    def index(self, content: bytes) -> Alike | None:
        """Return the index of another archive; None where it is not alike.

        Args:
            content: the whole archive, of the same size.
        """
        here = np.frombuffer(content, np.uint8)
        roots = here[self.roots]
        is_alike = (
            np.array_equal(here[self.fixed], self.known)
            and bool((roots == roots[0]).all())
            and np.array_equal(here[self.copies], here[self.owners])
        )
        root = roots[0].tobytes()
        if not is_alike or not root.isascii():
            return None
        return Alike(root.decode("ascii"), self.rests, here[self.sums].view("<u4").ravel().tolist())


class Alike(Mapping[str, ZipEntry]):
    """The entries of an archive alike, each made when it is asked for.

    Args:
        folder: that all names begin with.
        rests: as in :class:`Skeleton`.
        sums: checksums in the order of the directory.
    """

    def __init__(self, folder: str, rests: Mapping[str, tuple[int, int, tuple[Any, ...]]], sums: list[int]) -> None:
        self._folder, self._rests, self._sums = folder, rests, sums
        self._made: dict[str, ZipEntry] = {}

    def __getitem__(self, name: str) -> ZipEntry:
        made = self._made.get(name)
        if made is None:
            if not name.startswith(self._folder):
                raise KeyError(name)
            number, method, more = self._rests[name[len(self._folder) :]]
            made = self._made[name] = ZipEntry(name, method, self._sums[number], *more)
        return made

    def __iter__(self) -> Iterator[str]:
        return (self._folder + rest for rest in self._rests)

    def __len__(self) -> int:
        return len(self._rests)

    def compressed(self) -> Iterator[str]:
        """Yield the names of deflated entries."""
        return (self._folder + rest for rest, (_, method, _) in self._rests.items() if method)


def _is_told_twice(entry: ZipEntry, content: bytes) -> bool:
    """Tell whether an entry has its checksum in the directory and elsewhere, and a signed descriptor if any."""
    described = bool(content[entry.header_offset + _FLAGS] & _DESCRIBED)
    length = entry.end - entry.offset - entry.compressed_size
    return len(entry.crc_offsets) > 1 and (length in _SIGNED if described else not length)


def _rows(starts: list[int], length: int) -> _Positions:
    return np.array(starts, np.int64)[:, None] + np.arange(length)

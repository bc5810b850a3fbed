"""A file elsewhere, read like one that is here: a part at a time, as far as the server sends parts."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

from convsv.checkpoints._address import WEB, RemotePath, check_address, neighbour, scheme_of
from convsv.checkpoints._file import RegularFile
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, error_context
from convsv.files import write_all

__all__ = ["MOST_FETCHED", "RemoteFile"]

BLOCK = 1 << 16
"""Reads of at most this size fetch whole blocks of it, which are kept for a while; longer ones what they need."""
_BLOCKS_KEPT = 64
_LONGEST_KEPT = 1 << 27
_latest: dict[str, tuple[tuple[object, int, int], bytes]] = {}
"""The latest longer read of all files, of at most that size: a weight is read to be hashed, then to be analysed."""
_PIECE = 1 << 23
_AHEAD = 1 << 23

MOST_FETCHED = 8 << 30
"""Bytes of a file that is fetched whole, into a temporary file: where the server sends no parts, and for HDF5."""


class Source(Protocol):
    """A server's side of a file."""

    size: int | None
    ranges: bool
    version: str

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes at ``start``, within the size; raises ``CheckpointError``."""
        ...

    def stream(self) -> Iterator[bytes]:
        """Yield the whole file piece by piece, once; raises ``CheckpointError``."""
        ...


class RemoteFile(RegularFile):
    """A file elsewhere.

    It is read by parts. Only what needs a descriptor (HDF5 in its child process), and what a server without parts
    sends, goes into a temporary file without a name, as far as it is needed and up to :data:`MOST_FETCHED`.

    Attributes:
        version: what the server calls the state that is read (an ETag, a time), ``""`` where it says nothing.

    Args:
        address: where it is.

    Raises:
        UsageError: there is no such file, or it is no address.
        CheckpointError: the server does not answer, or a package is missing.
    """

    is_local = False

    def __init__(self, address: str) -> None:
        self.path = cast("Path", RemotePath.of(address))
        self._address = address
        self._lock = threading.RLock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._spool: _Spool | None = None
        with error_context(path=address):
            check_address(address)
            self._source = _source(address)
            if not self._source.ranges:
                self._spool = _Spool(self._source.stream(), self._source.size)
            size = self._source.size
            self.size = self.stored = self._spool.fill(None) if size is None and self._spool else size or 0
        self.version = self._source.version

    @property
    def reach(self) -> int:
        """How far into the file it is worth looking for what it might be."""
        return min(self.size, BLOCK)

    def sibling(self, name: str) -> RegularFile:
        """Return the file with a plain name in the same folder.

        Args:
            name: without any separator; whatever else is in it, it names no other place.

        Raises:
            UsageError: there is no such file.
            CheckpointError: it cannot be opened.
        """
        return RemoteFile(neighbour(self._address, name))

    def fileno(self) -> int:
        """Return the descriptor of a copy without a name, fetched whole.

        Raises:
            CheckpointError: it is too large for that, or cannot be fetched.
        """
        with self._lock, error_context(path=self._address):
            if self._spool is None:
                self._spool = _Spool(self._pieces(), self.size)
            self._spool.fill(None)
            return self._spool.descriptor

    def is_unchanged(self) -> bool:
        """Tell what every read has seen to: it is the file that was opened."""
        return True

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes at ``offset``.

        Raises:
            CorruptCheckpointError: the file ends before, changed, or the server contradicts itself.
            CheckpointError: the server does not answer.
        """
        with self._lock, error_context(path=self._address):
            if offset < 0 or count < 0 or offset + count > self.size:
                found = f"{count} bytes wanted at {offset} of {self.size}"
                raise CorruptCheckpointError("ends before its own data", found=found)
            if self._spool is not None:
                return self._spool.read(offset, count)
            return self._exactly(offset, count) if count > BLOCK else self._from_blocks(offset, count)

    def _exactly(self, offset: int, count: int) -> bytes:
        which = (self._lock, offset, count)
        latest = _latest.get("read")
        if latest is not None and latest[0] == which:
            return latest[1]
        _latest.clear()
        data = self._fetched(offset, count)
        if count <= _LONGEST_KEPT:
            _latest["read"] = which, data
        return data

    def _fetched(self, offset: int, count: int) -> bytes:
        at, end, parts = offset, offset + count, []
        while at < end and at // BLOCK in self._blocks:
            parts.append(self._blocks[at // BLOCK][at % BLOCK :][: end - at])
            at += len(parts[-1])
        while at < end:
            parts.append(self._source.read(at, min(_PIECE, end - at)))
            at += len(parts[-1])
        return b"".join(parts)

    def _from_blocks(self, offset: int, count: int) -> bytes:
        first, last = offset // BLOCK, max(offset, offset + count - 1) // BLOCK
        wanted = range(first, last + 1)
        missing = [number for number in wanted if number not in self._blocks]
        if missing and count:
            start, end = missing[0] * BLOCK, min((missing[-1] + 1) * BLOCK, self.size)
            data = self._source.read(start, end - start)
            for at in range(0, len(data), BLOCK):
                self._blocks[(start + at) // BLOCK] = data[at : at + BLOCK]
        for number in wanted:
            if number in self._blocks:
                self._blocks.move_to_end(number)
        joined = b"".join(self._blocks.get(number, b"") for number in wanted)
        while len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return joined[offset - first * BLOCK :][:count]

    def _pieces(self) -> Iterator[bytes]:
        for at in range(0, self.size, _PIECE):
            yield self._source.read(at, min(_PIECE, self.size - at))


class _Spool:
    """What was fetched so far of a file that is fetched from its start on, in a temporary file without a name."""

    def __init__(self, pieces: Iterator[bytes], size: int | None) -> None:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if size is not None and size > MOST_FETCHED:
            raise UnsafeCheckpointError("is too large to be fetched whole", found=f"{size} bytes", advice=_ADVICE)
        if size is not None and size > free:
            found = f"{size} bytes, {free} free in {tempfile.gettempdir()}"
            raise CheckpointError("does not fit on the disk", found=found, advice="set TMPDIR to a place with room")
        with tempfile.TemporaryFile() as temporary:
            self.descriptor = os.dup(temporary.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        self._pieces, self._size, self._have = pieces, size, 0

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes, fetched as far as they reach; if that is far, whole, before the server loses patience.

        Raises:
            CorruptCheckpointError: the temporary file is shorter than it was.
            CheckpointError: they cannot be fetched.
        """
        end = offset + count
        self.fill(end if end <= _AHEAD else None)
        parts = []
        while offset < end:
            part = os.pread(self.descriptor, min(end - offset, 1 << 30), offset)
            if not part:
                raise CorruptCheckpointError("a temporary file lost what was in it")
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def fill(self, end: int | None) -> int:
        """Fetch up to a position, or everything; return how much there is."""
        while (self._have < end if end is not None else self._have != self._size) and (
            piece := next(self._pieces, b"")
        ):
            self._keep(piece)
        return self._have

    def _keep(self, piece: bytes) -> None:
        if self._have + len(piece) > MOST_FETCHED:
            raise UnsafeCheckpointError("is too large to be fetched whole", found="no end", advice=_ADVICE)
        try:
            write_all(self.descriptor, piece, self._have)
        except OSError as error:
            why = error.strerror or str(error)
            raise CheckpointError("cannot be kept in a temporary file", found=why, advice="set TMPDIR") from None
        self._have += len(piece)


_ADVICE = f"at most {MOST_FETCHED >> 30} GiB are: fetch it yourself, or as .safetensors from a server that sends parts"


def _source(address: str) -> Source:
    if scheme_of(address) in WEB:
        from convsv.checkpoints._http import HttpSource

        return HttpSource(address)
    from convsv.checkpoints._fsspec import FsspecSource

    return FsspecSource(address)

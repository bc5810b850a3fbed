"""Files opened for reading: regular files only, by ``pread`` only."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
import weakref
from collections import deque
from pathlib import Path

from convsv.errors import CheckpointError, CorruptCheckpointError, UsageError, error_context

__all__ = ["AnonymousFile", "RegularFile"]

_HASH_CHUNK = 1 << 22
_SMALL = 1 << 22
"""Bytes of a file that is read in one go: less than what many reads of its parts would cost."""
_LAST: deque[weakref.ref[RegularFile]] = deque(maxlen=1)
"""Which file is at hand: one of all."""


class RegularFile:
    """A regular file read with ``pread`` only: no mmap (a file that shrinks would kill us), no FIFO, no device.

    The descriptor stays open as long as the object lives, so that an index and its tensors come from one file.

    Attributes:
        size: its size.
        stored: how many bytes of that are on the disk, less than the size where the file has holes.

    Args:
        path: the file.

    Raises:
        UsageError: it is not there.
        CheckpointError: it is not a regular file, or cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with error_context(path=str(path)):
            try:
                # Non-blocking: opening a FIFO without a writer would hang.
                self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
            except FileNotFoundError:
                raise UsageError("no such file") from None
            except ValueError:
                raise UsageError("is not a file name", found="a NUL byte in it") from None
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise UsageError("no such file", found="a name that is too long") from None
                raise CheckpointError("cannot be opened", found=error.strerror or str(error)) from None
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(self._fd)
                raise CheckpointError("is not a regular file", found=stat.filemode(status.st_mode))
            self.size = status.st_size
            self.stored = status.st_blocks * 512
            self.version = str(status.st_mtime_ns)
            weakref.finalize(self, os.close, self._fd)

    is_local = True
    """Whether it lies on this machine."""
    version = ""
    """What tells the state that is read from later ones: when it was modified, or what a server elsewhere calls it."""
    known_sha256: str | None = None
    """Hash of its content, where it was asked for already."""
    _content: bytes | None = None

    @property
    def reach(self) -> int:
        """How far into the file it is worth looking for what it might be."""
        return self.size

    def sibling(self, name: str) -> RegularFile:
        """Return the file with a plain name in the same folder.

        Args:
            name: without any separator.

        Raises:
            UsageError: there is no such file.
            CheckpointError: it cannot be opened.
        """
        return RegularFile(self.path.parent / name)

    def fileno(self) -> int:
        """Return the open descriptor."""
        return self._fd

    def is_unchanged(self) -> bool:
        """Tell whether it still has the size and the time of modification that it had when it was opened."""
        status = os.fstat(self._fd)
        return (status.st_size, str(status.st_mtime_ns)) == (self.size, self.version)

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes at ``offset``.

        Raises:
            CorruptCheckpointError: the file ends before.
            CheckpointError: the system cannot read it.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise CorruptCheckpointError(
                "ends before its own data",
                path=str(self.path),
                found=f"{count} bytes wanted at {offset} of {self.size}",
            )
        content = self._content
        if content is not None:
            return content[offset : offset + count]
        part = self._part(offset, count)
        if len(part) == count:
            return part
        parts, position = [part], offset + len(part)
        while position < offset + count:
            part = self._part(position, offset + count - position)
            if not part:
                raise CorruptCheckpointError("shrank while it was read", path=str(self.path))
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def at_hand(self) -> bytes | None:
        """Return the whole content of a small file of this machine, None of another.

        It stays in memory, and is what is read from then on, until another file's does.

        Raises:
            CheckpointError: it cannot be read, or shrank.
        """
        if self._content is None and self.is_local and self.size <= _SMALL:
            content = self.read(0, self.size)
            for last in tuple(_LAST):
                file = last()
                if file is not None:
                    file._content = None
            self._content = content
            _LAST.append(weakref.ref(self))
        return self._content

    def _part(self, position: int, count: int) -> bytes:
        try:
            return os.pread(self._fd, min(count, 1 << 30), position)
        except OSError as error:
            found = error.strerror or str(error)
            raise CheckpointError("cannot be read", path=str(self.path), found=found) from None

    def sha256(self) -> str:
        """Return the SHA-256 of the whole content, in hexadecimal."""
        self.at_hand()
        digest = hashlib.sha256()
        for offset in range(0, self.size, _HASH_CHUNK):
            digest.update(self.read(offset, min(_HASH_CHUNK, self.size - offset)))
        self.known_sha256 = digest.hexdigest()
        return self.known_sha256


class AnonymousFile(RegularFile):
    """A copy of some bytes in a file without a name, for what needs a descriptor: an unpacked archive member.

    Args:
        label: what messages call it.
        content: its bytes.
    """

    def __init__(self, label: str | os.PathLike[str], content: bytes) -> None:
        self.path = Path(label)
        self.size = self.stored = len(content)
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("convsv", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as temporary:
                self._fd = os.dup(temporary.fileno())
        weakref.finalize(self, os.close, self._fd)
        view = memoryview(content)
        while view:
            view = view[os.write(self._fd, view) :]
        self.version = str(os.fstat(self._fd).st_mtime_ns)

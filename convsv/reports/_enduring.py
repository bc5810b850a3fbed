"""A file for libraries that a failing write upsets: libhdf5 crashes, and zipfile complains when it is collected."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from convsv.files import write_all

__all__ = ["EnduringFile"]


class EnduringFile(io.RawIOBase):
    """A file that keeps what the system refuses first, and from then on only seems to be written.

    Args:
        path: a file that is there; it is emptied.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_RDWR | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0))
        self._at = self._size = 0
        self._refusal: OSError | None = None

    def check(self) -> None:
        """Say what went wrong so far.

        Raises:
            OSError: something could not be written, or read again.
        """
        if self._refusal is not None:
            raise self._refusal

    def close(self) -> None:
        """Close it, once; what that refuses is kept."""
        if not self.closed:
            super().close()
            try:
                os.close(self._descriptor)
            except OSError as error:
                self._refused(error)

    def readable(self) -> bool:
        """Say yes."""
        return True

    def writable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return where the next byte is read or written."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move there."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the file goes, with zeros where nothing could be written."""
        view = memoryview(buffer).cast("B")
        count = max(min(len(view), self._size - self._at), 0)
        data = b""
        try:
            data = os.pread(self._descriptor, count, self._at)
        except OSError as error:
            self._refused(error)
        view[:count] = data.ljust(count, b"\0")
        self._at += count
        return count

    def write(self, data: Any) -> int:
        """Write all of it, or seem to."""
        whole = memoryview(data).cast("B")
        try:
            if self._refusal is None:
                write_all(self._descriptor, whole, self._at)
        except OSError as error:
            self._refused(error)
        self._at += len(whole)
        self._size = max(self._size, self._at)
        return len(whole)

    def truncate(self, size: int | None = None) -> int:
        """Let it end there, or seem to."""
        self._size = self._at if size is None else size
        try:
            if self._refusal is None:
                os.ftruncate(self._descriptor, self._size)
        except OSError as error:
            self._refused(error)
        return self._size

    def _refused(self, error: OSError) -> None:
        self._refusal = self._refusal or error

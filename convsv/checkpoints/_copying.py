"""Exact copies of the files of a checkpoint, holes included."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from convsv.checkpoints import Checkpoint
from convsv.checkpoints._file import RegularFile
from convsv.files import write_all

__all__ = ["copy_file", "counterpart"]

_CHUNK = 1 << 24
_REFUSALS = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY)


def counterpart(file: RegularFile, checkpoint: Checkpoint, copy: Path) -> Path:
    """Return where the copy of one file of a checkpoint is.

    Args:
        file: a file of the checkpoint.
        checkpoint: the checkpoint.
        copy: the copy: a file, or a folder for a checkpoint of several files.
    """
    return copy / file.path.name if len(checkpoint.files) > 1 else copy


def copy_file(file: RegularFile, path: Path) -> None:
    """Make a new file with the same bytes, readable by its owner only.

    What was opened is copied, whatever has its name now. Holes of a sparse file stay holes, and a file system that can
    share blocks shares them.

    Args:
        file: the file.
        path: the new file; nothing is there.

    Raises:
        CorruptCheckpointError: the file shrank.
        OSError: the copy cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        os.ftruncate(descriptor, file.size)
        for start, end in _extents(file):
            reached = _copy_in_kernel(file, descriptor, start, end)
            for position in range(reached, end, _CHUNK):
                write_all(descriptor, file.read(position, min(_CHUNK, end - position)), position)
    finally:
        os.close(descriptor)


def _extents(file: RegularFile) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that hold data."""
    source = file.fileno()
    if not hasattr(os, "SEEK_DATA") or os.fstat(source).st_blocks * 512 >= file.size:
        yield 0, file.size
        return
    position = 0
    while position < file.size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no hole is known there
                yield position, file.size
            return
        position = min(os.lseek(source, start, os.SEEK_HOLE), file.size)
        yield start, position


def _copy_in_kernel(file: RegularFile, descriptor: int, start: int, end: int) -> int:
    """Copy as far as the system copies without our reading; return how far that was.

    Raises:
        OSError: the copy cannot be written.
    """
    if not hasattr(os, "copy_file_range"):
        return start
    while start < end:
        try:
            copied = os.copy_file_range(file.fileno(), descriptor, min(end - start, 1 << 30), start, start)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            return start
        if copied == 0:
            return start
        start += copied
    return start

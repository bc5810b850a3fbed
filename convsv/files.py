"""Files and folders that appear whole or not at all; and small files, read without trust in their names.

What is written goes to a hidden neighbour first, ``.<name>.<8 hexadecimal digits>.part``, is flushed to the disk, and
then takes the name in one step. At every moment there is either what was there before or what is new, each whole. The
neighbour is removed when anything goes wrong, also on Ctrl-C, SIGTERM and SIGHUP; ``kill -9`` and a power cut may
leave it behind, and it can then be deleted.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from convsv.errors import OutputError, UsageError

__all__ = ["beginning", "beside", "output_errors", "put_in_place", "replacing", "settle", "sync_folder", "write_all"]

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_NON_BLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)

_unfinished: dict[Path, int] = {}
"""What is to be removed if a signal ends the process: name -> the process that made it."""


@contextmanager
def replacing(path: str) -> Iterator[Path]:
    """Give a temporary file to write to, which takes the place of ``path`` when the block ends without an error.

    It lies in the same folder, is flushed to the disk before it takes the name, and has the mode that an ordinary
    new file would have, or that of the file it replaces. A link is followed, so that it stays a link. On an error
    it is removed and what was at ``path`` stays.

    Args:
        path: the file to write.

    Raises:
        OutputError: it cannot be written there.
    """
    target = Path(os.path.realpath(path))
    with output_errors(path):
        if target.exists() and not target.is_file():
            raise OutputError("cannot be written", path=path, found="something that is not a regular file")
        with beside(target) as temporary:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            yield temporary
            settle(temporary, _mode_at(target, 0o666))
            temporary.replace(target)
            sync_folder(target.parent)


@contextmanager
def output_errors(path: str) -> Iterator[None]:
    """Turn what the system refuses within the block into an error about the output.

    Args:
        path: the output.

    Raises:
        OutputError: the system refused something.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise OutputError("cannot be written", path=path, found=why, advice="give another place") from error


def beginning(path: str | os.PathLike[str], most: int) -> bytes:
    """Return up to ``most`` bytes from the beginning of a regular file.

    It is opened first and looked at then, so that nothing can take its place between; a FIFO or a device neither
    blocks nor is read.

    Args:
        path: the file.
        most: how many bytes.

    Raises:
        UsageError: it is not there, not a regular file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _NON_BLOCKING)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError("is not a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(min(most, status.st_size))
        finally:
            os.close(descriptor)
    except (FileNotFoundError, ValueError):  # a NUL byte is in no name
        raise UsageError("no such file") from None
    except OSError as error:
        raise UsageError("cannot be read", found=error.strerror or str(error)) from None


# --------------------------------------------------------------------------------------------------------- neighbours


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Give a hidden name in the folder of ``target``, free to make a file or a folder of.

    Whatever has that name when the block ends is removed, and also when a signal ends the process.

    Args:
        target: what the temporary thing will become.
    """
    temporary = _hidden(target)
    _unfinished[temporary] = os.getpid()
    try:
        _watch_signals()
        yield temporary
    finally:
        _remove(temporary)
        _unfinished.pop(temporary, None)
        _unwatch_signals()


def _hidden(target: Path) -> Path:
    stem = os.fsencode(target.name)[:200].decode(errors="ignore")
    while True:
        name = target.parent / f".{stem}.{secrets.token_hex(4)}.part"
        if not os.path.lexists(name):
            return name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _watch_signals() -> None:
    # Only where nobody else has a say: a program with handlers of its own ends in an exception, which cleans up too.
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _sweep)


def _unwatch_signals() -> None:
    if not _unfinished and threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            if signal.getsignal(number) is _sweep:
                signal.signal(number, signal.SIG_DFL)


def _sweep(number: int, frame: FrameType | None) -> None:
    # A forked process inherits the table, but what is in it belongs to its parent.
    for path, owner in list(_unfinished.items()):
        if owner == os.getpid():
            _remove(path)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


# ------------------------------------------------------------------------------------------------------ taking a name


def write_all(descriptor: int, data: bytes | bytearray | memoryview, position: int) -> None:
    """Write all of ``data`` at a position.

    Raises:
        OSError: it cannot be written.
    """
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest[: 1 << 30], position)
        rest, position = rest[written:], position + written


def settle(path: Path, mode: int | None = None) -> None:
    """Flush a file or folder to the disk, after giving it a mode.

    Args:
        path: the file or folder.
        mode: its permissions; left alone when None.

    Raises:
        OSError: the system refuses, for instance because the disk is full.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the file system can."""
    with suppress(OSError):
        settle(folder)


def put_in_place(temporary: Path, target: Path, *, force: bool) -> None:
    """Let a finished file or folder take its name, in one step.

    A file replaces a file at once. A folder replaces a folder at once where the system can exchange two names (Linux);
    elsewhere the old one is moved to a hidden name first, so that for an instant neither has the name.

    Args:
        temporary: what is finished and flushed.
        target: the name, in the same folder.
        force: whether something that has the name may be replaced; without it nothing is, not even what appeared since
            the caller looked.

    Raises:
        UsageError: something has the name, and ``force`` is false.
        OSError: the system refuses.
    """
    try:
        if temporary.is_dir():
            _put_folder(temporary, target, force=force)
        else:
            _put_file(temporary, target, force=force)
    except (FileExistsError, NotADirectoryError):
        raise UsageError("is already there", path=str(target), advice="give another name, or --force") from None
    sync_folder(target.parent)


def _put_file(temporary: Path, target: Path, *, force: bool) -> None:
    if not force:
        try:
            os.link(temporary, target)  # unlike a rename, this never replaces
            temporary.unlink()
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        if os.path.lexists(target):
            raise FileExistsError
    temporary.replace(target)


def _put_folder(temporary: Path, target: Path, *, force: bool) -> None:
    try:
        temporary.rename(target)  # replaces an empty folder only
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if not force:
        raise FileExistsError
    if _exchange(temporary, target):
        return  # the old folder now has the temporary name, and is removed with it
    # From here on a signal must remove neither: the old folder has lost its name, the new one has none yet.
    old, _ = _hidden(target), _unfinished.pop(temporary, None)
    target.rename(old)
    try:
        temporary.rename(target)
    finally:
        if target.exists():
            _remove(old)
        else:
            old.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    rename: Any = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _mode_at(target: Path, otherwise: int) -> int:
    """Return the permissions of what has a name, or else those a new thing gets there."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return otherwise & ~mask

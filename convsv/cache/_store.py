"""A folder of entries by name: bounded, safe with any number of processes and machines, and believed in nothing.

An entry is a file. It is written under a name of its own and then takes its place in one step, so that nobody ever
sees half of one, on network file systems too; a data base with locks would not hold that there. Its first line has
the hash of its name and its content: what was damaged, cut off, renamed or made by something else is no entry.

Whatever goes wrong with the folder is no error: then there is no entry. ``trouble`` says what it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Folder", "Memory", "Usage"]

_MAGIC = b"convsv cache 1 "
_HEAD = len(_MAGIC) + 64 + 1
_BLOCK = 4096
_MOST_AT_ONCE = 1 << 24
_NAME = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HALF_WRITTEN = "part-"
_TAG = "CACHEDIR.TAG"
_LEDGER = "written"
_TAG_TEXT = b"Signature: 8a477f597d28d172789f06886806bc55\n# Results of convsv: backups may leave them out.\n"
_SHARE = 16
"""One entry may take up to this part of the whole, and so much may be written before old ones are looked for."""
_USED_AGAIN = 3600.0
"""Seconds after which a use is noted anew."""
_ABANDONED = 3600.0
"""Seconds after which a half-written file belongs to nobody."""
_TRIES = 8
"""How often a group's folder is made for an entry, while others delete it."""


@dataclass(frozen=True)
class Usage:
    """What a folder holds.

    Attributes:
        entries: number of results.
        size: bytes they take on the disk.
    """

    entries: int
    size: int


class Folder:
    """Entries in a folder of the disk.

    Args:
        path: the folder; made when the first entry is kept.
        limit: most bytes that all entries take on the disk; the least recently used ones go first.

    Attributes:
        trouble: why it is not used, or not any more; None while it is.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self._folder = str(path)
        self.trouble: str | None = None
        self._ledger: int | None = None
        if limit <= 0:
            self.trouble = "its size is set to 0"
        elif path.exists():
            self.trouble = _untrusted(path)

    def get(self, key: str) -> bytes | None:
        """Return an entry, and note that it was used; None where there is no sound one."""
        if self.trouble:
            return None
        path = self._place(key)
        try:
            content, used = _read(path, self.limit // _SHARE + _HEAD)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self._forget(path)
            return None
        body = content[_HEAD:]
        if content[:_HEAD] != _head(key, body):
            self._forget(path)
            return None
        if time.time() - used > _USED_AGAIN:
            with suppress(OSError):
                os.utime(path)
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keep an entry; nothing is done for one that is too large."""
        if self.trouble or len(body) > self.limit // _SHARE:
            return
        place = self._place(key)
        temporary = f"{self._folder}/{_HALF_WRITTEN}{secrets.token_hex(8)}"
        try:
            self._set_up()
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write(descriptor, _head(key, body) + body)
            finally:
                os.close(descriptor)
            if _named(temporary, place):
                self._note_written(len(body))
        except BaseException as error:
            self._forget(temporary)
            if not isinstance(error, OSError):
                raise
            self.trouble = f"cannot be written: {error.strerror or error}"

    def drop(self, key: str) -> None:
        """Let an entry go that turned out not to be one."""
        self._forget(self._place(key))

    def usage(self) -> Usage:
        """Return what there is."""
        sizes = [size for _, size, _ in self._entries()]
        return Usage(len(sizes), sum(sizes))

    def clear(self) -> Usage:
        """Delete every entry, and nothing else that may lie in the folder; return what was deleted."""
        entries = size = 0
        for path, taken, _ in self._entries():
            with suppress(OSError):
                path.unlink()
                entries, size = entries + 1, size + taken
        for path in self._half_written(0):
            with suppress(OSError):
                path.unlink()
        for path in self._groups():
            with suppress(OSError):
                path.rmdir()
        return Usage(entries, size)

    # -------------------------------------------------------------------------------------------------------- the bound

    def _note_written(self, size: int) -> None:
        """Count what all processes write; look for old entries when it is enough.

        The count is the length of a file, which grows in one step whoever else appends to it.
        """
        if self._ledger is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._ledger = os.open(self.path / _LEDGER, flags, 0o600)
        os.write(self._ledger, bytes(-(-(size + _HEAD) // _BLOCK)))
        if os.fstat(self._ledger).st_size * _BLOCK > self.limit // _SHARE:
            os.ftruncate(self._ledger, 0)
            self._sweep()

    def _sweep(self) -> None:
        """Delete the least recently used entries until there is room for what is written before the next time."""
        entries = sorted(self._entries(), key=lambda entry: entry[2])
        excess = sum(size for _, size, _ in entries) - (self.limit - self.limit // _SHARE)
        for path, size, _ in entries:
            if excess <= 0:
                break
            self._forget(path)
            excess -= size
        for path in self._half_written(_ABANDONED):
            self._forget(path)

    # ----------------------------------------------------------------------------------------------------------- places

    def _place(self, key: str) -> str:
        # Text, here and in what follows: a Path costs more than the system calls on it.
        return f"{self._folder}/{key[:2]}/{key}"

    def _set_up(self) -> None:
        if self._ledger is not None:
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        untrusted = _untrusted(self.path)
        if untrusted:
            raise OSError(untrusted)
        tag = self.path / _TAG
        if not tag.exists():
            tag.write_bytes(_TAG_TEXT)

    def _forget(self, path: str | Path) -> None:
        with suppress(OSError):
            os.unlink(path)

    def _groups(self) -> Iterator[Path]:
        for entry in _listed(self.path):
            if len(entry.name) == 2 and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)

    def _entries(self) -> Iterator[tuple[Path, int, float]]:
        """Yield each entry with the bytes it takes on the disk and when it was last used."""
        for group in self._groups():
            named = [entry for entry in _listed(group) if _NAME.fullmatch(entry.name) and entry.name[:2] == group.name]
            for path, size, used in map(_measured, named):
                yield path, -(-size // _BLOCK) * _BLOCK, used

    def _half_written(self, age: float) -> Iterator[Path]:
        named = [entry for entry in _listed(self.path) if entry.name.startswith(_HALF_WRITTEN)]
        for path, _, made in map(_measured, named):
            if time.time() - made >= age:
                yield path


class Memory:
    """Entries of this process alone, in front of a folder or without one.

    Args:
        behind: where entries are kept for later, if anywhere.
        limit: most bytes to hold; the least recently used ones go first.

    Attributes:
        recalled: how many entries came from the folder.
    """

    def __init__(self, behind: Folder | None = None, limit: int = 64 << 20) -> None:
        self.behind, self.recalled = behind, 0
        self._limit, self._size = limit, 0
        self._held: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """Return an entry; None where there is none."""
        body = self._held.get(key)
        if body is not None:
            self._held.move_to_end(key)
            return body
        body = self.behind.get(key) if self.behind else None
        self.recalled += body is not None
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keep an entry."""
        if self.behind:
            self.behind.put(key, body)
        self._size += len(body) - len(self._held.pop(key, b""))
        self._held[key] = body
        while self._size > self._limit:
            _, oldest = self._held.popitem(last=False)
            self._size -= len(oldest)

    def drop(self, key: str) -> None:
        """Let an entry go that turned out not to be one."""
        self._size -= len(self._held.pop(key, b""))
        if self.behind:
            self.behind.drop(key)


# --------------------------------------------------------------------------------------------------------------- files


def _head(key: str, body: bytes) -> bytes:
    whole = hashlib.sha256(key.encode("ascii"))
    whole.update(body)
    return _MAGIC + whole.hexdigest().encode("ascii") + b"\n"


def _read(path: str, limit: int) -> tuple[bytes, float]:
    """Return the content of a regular file and the time of its last use.

    Raises:
        OSError: it cannot be read; links are not followed.
        ValueError: it is no regular file, or a large one.
    """
    # Non-blocking: opening a FIFO without a writer would hang.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise ValueError("no entry")
        return _whole(descriptor, limit + 1), status.st_mtime
    finally:
        os.close(descriptor)


def _whole(descriptor: int, limit: int) -> bytes:
    """Return what a file holds, up to so many bytes."""
    parts, size = [os.read(descriptor, min(limit, _BLOCK))], 0
    while parts[-1] and (size := size + len(parts[-1])) < limit:
        parts.append(os.read(descriptor, min(limit - size, _MOST_AT_ONCE)))
    return b"".join(parts)


def _named(temporary: str, place: str) -> bool:
    """Give an entry its name; return whether it has it: not where the folder is being cleared meanwhile."""
    for _ in range(_TRIES):
        try:
            os.replace(temporary, place)
        except FileNotFoundError:
            if not os.path.exists(temporary):
                return False
            # The first of its group, or somebody has just deleted the empty group.
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(place), mode=0o700)
        else:
            return True
    return False


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _measured(entry: os.DirEntry[str]) -> tuple[Path, int, float]:
    """Return the path, the size and the time of a file; nothing and now where somebody has just deleted it."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return Path(entry.path), 0, time.time()
    return Path(entry.path), status.st_size, status.st_mtime


def _untrusted(folder: Path) -> str | None:
    """Say why results in a folder may be anybody's; None where only this user can have put them there."""
    try:
        status = folder.stat()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a folder"
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return "belongs to another user"
    return "others may write to it" if status.st_mode & 0o022 else None

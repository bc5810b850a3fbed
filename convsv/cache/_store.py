"""A folder of entries by name: bounded, safe with any number of processes and machines, and believed in nothing.

An entry's name leads to a file that holds it, among others: the name is a hard link. To make a file costs many times
what it costs to add to one, so a process adds small entries to a file of its own, until that is large enough. An entry
is named when it is written, in one step, so that nobody ever sees half of one, on network file systems too; a data
base with locks would not hold that there. Where there are no hard links, each entry is a file.

The head of an entry has its name, its length and the hash of its name and content: what was damaged, cut off, renamed
or made by something else is no entry.

Whatever goes wrong with the folder is no error: then there is no entry. ``trouble`` says what it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Folder", "Memory", "Usage"]

_MAGIC = b"convsv cache 2\n\0"
_HEAD = struct.Struct("<16s64s32sQ")
"""What stands before the content: magic, name, hash of name and content, length of the content."""
_BLOCK = 4096
_FILE = 1 << 16
"""Bytes after which a file of several entries is large enough: it is read whole for one of them, and goes as one."""
_NAME = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HALF_WRITTEN = "part-"
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Links are not followed, and a FIFO without a writer does not hang."""
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


@dataclass
class _File:
    """A file of entries.

    Attributes:
        size: bytes it takes on the disk.
        used: when one of its entries was used last.
        names: the paths of its entries.
    """

    size: int
    used: float
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Begun:
    """The file to which this process adds.

    Attributes:
        path: its latest name.
        inode: tells whether that still is its name.
        size: its length; another one means that somebody else has a hand in it.
    """

    path: str
    inode: int
    size: int


@dataclass(frozen=True)
class _Read:
    """A file that was read.

    Attributes:
        state: which file it is, and in which state.
        content: its bytes.
        entries: hash as stated, first byte and length of each entry's content, by name.
    """

    state: tuple[int, ...]
    content: bytes
    entries: Mapping[bytes, tuple[bytes, int, int]]

    @staticmethod
    def of(state: tuple[int, ...], content: bytes) -> _Read:
        """Walk from one entry to the next: what resembles one within another's content is none."""
        entries, at = {}, 0
        while at + _HEAD.size <= len(content):
            magic, name, stated, size = _HEAD.unpack_from(content, at)
            if magic != _MAGIC:
                break
            entries[name] = stated, at + _HEAD.size, size
            at += _HEAD.size + size
        return _Read(state, content, entries)


class Folder:
    """Entries in a folder of the disk.

    Args:
        path: the folder; made when the first entry is kept.
        limit: most bytes that all entries take on the disk; the least recently used files of them go first.

    Attributes:
        trouble: why it is not used, or not any more; None while it is.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self._folder = str(path)
        self.trouble: str | None = None
        self._ledger: int | None = None
        self._begun: _Begun | None = None
        self._latest: _Read | None = None
        self._enough = max(_BLOCK, min(_FILE, limit // 256))
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
            file, used = self._read(path)
            body = _body(key, file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self._forget(path)
            return None
        if time.time() - used > _USED_AGAIN:
            with suppress(OSError):
                os.utime(path)
        return body

    def _read(self, path: str) -> tuple[_Read, float]:
        """Return what is in a regular file, read anew unless it is the last one again, and the time of its last use.

        Raises:
            OSError: it cannot be read; links are not followed.
            ValueError: it is no regular file, or a large one.
        """
        descriptor = os.open(path, os.O_RDONLY | _CAREFULLY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > max(
                self.limit // _SHARE + _HEAD.size, self._enough
            ):
                raise ValueError("no entry")
            state = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            file = self._latest
            if file is None or file.state != state:
                file = _Read.of(state, _whole(descriptor, status.st_size))
                self._latest = file if status.st_size <= _FILE else None
            return file, status.st_mtime
        finally:
            os.close(descriptor)

    def put(self, key: str, body: bytes) -> None:
        """Keep an entry; nothing is done for one that is too large."""
        if self.trouble or len(body) > self.limit // _SHARE:
            return
        entry, place = _entry(key, body), self._place(key)
        try:
            self._set_up()
            blocks = self._added(entry, place)
            if blocks is None:
                blocks = self._alone(entry, place)
            self._note_written(blocks)
        except OSError as error:
            self.trouble = f"cannot be written: {error.strerror or error}"

    def _added(self, entry: bytes, place: str) -> int | None:
        """Add an entry to the file begun before, and name it.

        Returns:
            How many blocks the file has grown; None where there is no such file, or the name is taken.
        """
        begun, self._begun = self._begun, None  # what is interrupted here is not added to
        if begun is None or begun.size + len(entry) > self._enough:
            self._begun = begun
            return None
        try:
            # Closed before it is named: on network file systems others see what was written from then on.
            descriptor = os.open(begun.path, os.O_WRONLY | os.O_APPEND | _CAREFULLY)
            try:
                status = os.fstat(descriptor)
                if (status.st_ino, status.st_size) != (begun.inode, begun.size):
                    return None
                _write(descriptor, entry)
            finally:
                os.close(descriptor)
            if not _named(os.link, begun.path, place):
                return None
        except (FileNotFoundError, FileExistsError):
            return None
        except OSError:
            self._enough = 0  # a full disk, or no hard links here
            return None
        self._begun = _Begun(place, begun.inode, begun.size + len(entry))
        return _blocks(self._begun.size) - _blocks(begun.size)

    def _alone(self, entry: bytes, place: str) -> int:
        """Write an entry into a file of its own, and name it; if there is room, that is begun with it.

        Returns:
            How many blocks it has.

        Raises:
            OSError: it cannot be written.
        """
        temporary = f"{self._folder}/{_HALF_WRITTEN}{secrets.token_hex(8)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write(descriptor, entry)
                inode = os.fstat(descriptor).st_ino
            finally:
                os.close(descriptor)
            if not _named(os.replace, temporary, place):
                return 0
        except BaseException:
            self._forget(temporary)
            raise
        if len(entry) < self._enough:
            self._begun = _Begun(place, inode, len(entry))
        return _blocks(len(entry))

    def drop(self, key: str) -> None:
        """Let an entry go that turned out not to be one."""
        self._forget(self._place(key))

    def usage(self) -> Usage:
        """Return what there is."""
        files = self._files()
        return Usage(sum(len(file.names) for file in files), sum(file.size for file in files))

    def clear(self) -> Usage:
        """Delete every entry, and nothing else that may lie in the folder; return what was deleted."""
        entries = size = 0
        for file in self._files():
            gone = sum(map(self._forget, file.names))
            entries, size = entries + gone, size + (file.size if gone == len(file.names) else 0)
        for path in self._half_written(0):
            with suppress(OSError):
                path.unlink()
        for path in self._groups():
            with suppress(OSError):
                path.rmdir()
        return Usage(entries, size)

    # -------------------------------------------------------------------------------------------------------- the bound

    def _note_written(self, blocks: int) -> None:
        """Count what all processes write; look for old entries when it is enough.

        The count is the length of a file, which grows in one step whoever else appends to it.
        """
        if self._ledger is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._ledger = os.open(self.path / _LEDGER, flags, 0o600)
        if not blocks:
            return
        os.write(self._ledger, bytes(blocks))
        if os.fstat(self._ledger).st_size * _BLOCK > self.limit // _SHARE:
            os.ftruncate(self._ledger, 0)
            self._sweep()

    def _sweep(self) -> None:
        """Delete the least recently used files until there is room for what is written before the next time."""
        files = sorted(self._files(), key=lambda file: file.used)
        excess = sum(file.size for file in files) - (self.limit - self.limit // _SHARE)
        for file in files:
            if excess <= 0:
                break
            for name in file.names:
                self._forget(name)
            excess -= file.size
        for path in self._half_written(_ABANDONED):
            self._forget(path)

    # ----------------------------------------------------------------------------------------------------------- places

    def _place(self, key: str) -> str:
        # Text, here and in what follows: a Path costs more than the system calls on it.
        return f"{self._folder}/{key[0]}/{key}"

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

    def _forget(self, path: str | Path) -> bool:
        """Delete a name; return whether it was there to be deleted."""
        try:
            os.unlink(path)
        except OSError:
            return False
        return True

    def _groups(self) -> Iterator[Path]:
        for entry in _listed(self.path):
            if len(entry.name) == 1 and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)

    def _files(self) -> list[_File]:
        """Return the files of all entries."""
        files: dict[int, _File] = {}
        for group in self._groups():
            named = [entry for entry in _listed(group) if _NAME.fullmatch(entry.name) and entry.name[0] == group.name]
            for entry in named:
                file = files.get(entry.inode())
                if file is None:
                    size, used = _measured(entry)
                    file = files[entry.inode()] = _File(_blocks(size) * _BLOCK, used)
                file.names.append(entry.path)
        return list(files.values())

    def _half_written(self, age: float) -> Iterator[Path]:
        named = [entry for entry in _listed(self.path) if entry.name.startswith(_HALF_WRITTEN)]
        for entry in named:
            if time.time() - _measured(entry)[1] >= age:
                yield Path(entry.path)


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


def _entry(key: str, body: bytes) -> bytes:
    name = key.encode("ascii")
    return _HEAD.pack(_MAGIC, name, _hash(name, body), len(body)) + body


def _hash(name: bytes, body: bytes) -> bytes:
    whole = hashlib.sha256(name)
    whole.update(body)
    return whole.digest()


def _body(key: str, file: _Read) -> bytes:
    """Return what a file holds under a name: its last entry of that name, if it is sound.

    Raises:
        ValueError: there is none.
    """
    name = key.encode("ascii")
    stated, start, size = file.entries.get(name, (b"", 0, 0))
    body = file.content[start : start + size]
    if len(body) != size or _hash(name, body) != stated:
        raise ValueError("no entry")
    return body


def _whole(descriptor: int, size: int) -> bytes:
    """Return the first bytes of a file: fewer where it ends before."""
    parts = [os.read(descriptor, size)]
    while parts[-1] and (size := size - len(parts[-1])):
        parts.append(os.read(descriptor, size))
    return b"".join(parts)


def _named(name: Callable[[str, str], None], path: str, place: str) -> bool:
    """Give what lies at a path its place; return whether it has it: not where the folder is being cleared meanwhile.

    Raises:
        OSError: it cannot be put there.
    """
    for _ in range(_TRIES):
        try:
            name(path, place)
        except FileNotFoundError:
            if not os.path.exists(path):
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


def _measured(entry: os.DirEntry[str]) -> tuple[int, float]:
    """Return the size and the time of a file; nothing and now where somebody has just deleted it."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return 0, time.time()
    return status.st_size, status.st_mtime


def _blocks(size: int) -> int:
    return -(-size // _BLOCK)


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

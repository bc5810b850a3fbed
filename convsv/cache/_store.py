"""A folder of entries by name: bounded, safe with any number of processes and machines, and believed in nothing.

An entry's name leads to a file that holds it, among others: the name is a hard link. To make a file costs many times
what it costs to add to one, so a process adds small entries to a file of its own, until that is large enough. An entry
is named once it is written, in one step, so that nobody ever sees half of one, on network file systems too; a data
base with locks would not hold that there. Where there are no hard links, each entry is a file.

Names of entries that follow each other quickly are given together: right after a computation, with the processor's
caches full of other things, a name costs several times what it costs after another one. Should the process be killed
meanwhile, the next one finds what has no name yet in the files that are on their way into the folder.

The head of an entry has its name, its length and a checksum of its name and content: what was damaged, cut off, renamed
or made by something else is no entry. It guards against accidents; against others, that the folder is the user's.

Whatever goes wrong with the folder is no error: then there is no entry. ``trouble`` says what it was.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

__all__ = ["Folder", "Memory", "Usage"]

_MAGIC = b"convsv cache 3\n\0"
_HEAD = struct.Struct("<16s64sLQ")
"""What stands before the content: magic, name, CRC-32 of name and content, length of the content."""
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
_UNNAMED = 0.1
"""Seconds for which an entry may have no name yet."""
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


class _Begun:
    """The file to which this process adds.

    Args:
        path: its name on its way into the folder, which it keeps as long as entries are added.

    Attributes:
        size: its length.
        blocks: those of them that are counted.
        waiting: entries without a name yet.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: str) -> None:
        self.path, self.size, self.blocks = path, 0, 0
        self.waiting: dict[str, bytes] = {}
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor: int | None = os.open(path, flags, 0o600)
        self._inode = os.fstat(self._descriptor).st_ino

    def add(self, key: str, entry: bytes) -> bool:
        """Write an entry; return whether it is written: not where somebody else has a hand in the file.

        Raises:
            OSError: it cannot be written.
        """
        if self._descriptor is None:
            try:
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | _CAREFULLY)
            except FileNotFoundError:
                return False
        status = os.fstat(self._descriptor)
        if (status.st_ino, status.st_size) != (self._inode, self.size) or not status.st_nlink:
            return False
        try:
            _write(self._descriptor, entry)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self.size)
            raise
        self.size += len(entry)
        self.waiting[key] = entry
        return True

    def close(self) -> None:
        """Let others see what was written: on network file systems they do from then on."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


@dataclass(frozen=True)
class _Read:
    """A file that was read.

    Attributes:
        state: which file it is, and in which state.
        content: its bytes.
        entries: checksum as stated, first byte and length of each entry's content, by name.
    """

    state: tuple[int, ...]
    content: bytes
    entries: Mapping[bytes, tuple[int, int, int]]

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
        self._settled = 0.0
        self._lock = RLock()
        self._enough = max(_BLOCK, min(_FILE, limit // 256))
        if limit <= 0:
            self.trouble = "its size is set to 0"
        elif path.exists():
            self.trouble = _untrusted(path)
            for left in [] if self.trouble else self._half_written(0):
                self._name_left_behind(str(left))

    def get(self, key: str) -> bytes | None:
        """Return an entry, and note that it was used; None where there is no sound one."""
        if self.trouble:
            return None
        begun = self._begun
        waiting = begun.waiting.get(key) if begun else None
        if waiting is not None:
            return waiting[_HEAD.size :]
        path = self._place(key)
        if not os.access(path, os.F_OK):  # which costs half of an attempt to open it
            return None
        try:
            file, used = self._read(path)
            body = _body(key, file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            self.close()  # nothing more is added to what may be this file
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
        entry = _entry(key, body)
        with self._lock:
            try:
                self._set_up()
                if not self._added(key, entry):
                    self._alone(entry, self._place(key))
                elif time.monotonic() - self._settled > _UNNAMED:
                    self.settle()
            except OSError as error:
                self.close()
                self.trouble = f"cannot be written: {error.strerror or error}"

    def _added(self, key: str, entry: bytes) -> bool:
        """Add an entry to the file of this process; return whether it is there: not where it is too large.

        Raises:
            OSError: it cannot be written.
        """
        if len(entry) > self._enough:
            return False
        if self._begun and self._begun.size + len(entry) <= self._enough and self._begun.add(key, entry):
            return True
        self.close()
        self._begun = _Begun(self._new())
        return self._begun.add(key, entry)

    def settle(self) -> None:
        """Give every entry its name. For one thread at a time.

        Raises:
            OSError: one cannot be given.
        """
        begun, self._settled = self._begun, time.monotonic()
        if begun is None:
            return
        begun.close()
        while begun.waiting:
            key = next(iter(begun.waiting))
            self._name(begun, key)
            begun.waiting.pop(key, None)
        blocks, begun.blocks = _blocks(begun.size) - begun.blocks, _blocks(begun.size)
        self._note_written(blocks)

    def close(self) -> None:
        """Give every entry its name, and leave nothing on its way."""
        with self._lock:
            try:
                self.settle()
            except OSError as error:
                self.trouble = f"cannot be written: {error.strerror or error}"
            if self._begun:
                self._forget(self._begun.path)
            self._begun = None

    def _name(self, begun: _Begun, key: str) -> None:
        """Give an entry its name.

        Raises:
            OSError: it cannot be given one.
        """
        place = self._place(key)
        try:
            _named(os.link, begun.path, place)
        except FileExistsError:
            # It leads to an older entry, or to another one in the same file.
            other = self._new()
            with suppress(FileNotFoundError):  # the folder is being cleared
                os.link(begun.path, other)
                _named(os.replace, other, place)
            self._forget(other)  # still there where both are the same file
        except OSError:
            self._enough = 0  # no hard links here
            self._alone(begun.waiting[key], place)

    def _alone(self, entry: bytes, place: str) -> None:
        """Write an entry into a file of its own, and name it.

        Raises:
            OSError: it cannot be written.
        """
        temporary = self._new()
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _write(descriptor, entry)
            finally:
                os.close(descriptor)
            if _named(os.replace, temporary, place):
                self._note_written(_blocks(len(entry)))
        except BaseException:
            self._forget(temporary)
            raise

    def _new(self) -> str:
        return f"{self._folder}/{_HALF_WRITTEN}{secrets.token_hex(8)}"

    def _name_left_behind(self, path: str) -> None:
        """Give names to the entries that a process which was killed left without one in its file."""
        with suppress(OSError, ValueError):
            file, _ = self._read(path)
            for key in [name.decode("ascii") for name in file.entries if _is_sound(name, file)]:
                with suppress(FileExistsError):
                    _named(os.link, path, self._place(key))

    def drop(self, key: str) -> None:
        """Let an entry go that turned out not to be one."""
        with self._lock:
            if self._begun:
                self._begun.waiting.pop(key, None)
        self._forget(self._place(key))

    def usage(self) -> Usage:
        """Return what there is."""
        self.close()
        files = self._files()
        return Usage(sum(len(file.names) for file in files), sum(file.size for file in files))

    def clear(self) -> Usage:
        """Delete every entry, and nothing else that may lie in the folder; return what was deleted."""
        self.close()
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
    return _HEAD.pack(_MAGIC, name, _checksum(name, body), len(body)) + body


def _checksum(name: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(name))


def _is_sound(name: bytes, file: _Read) -> bool:
    stated, start, size = file.entries[name]
    body = file.content[start : start + size]
    return bool(_NAME.fullmatch(name.decode("latin-1"))) and len(body) == size and _checksum(name, body) == stated


def _body(key: str, file: _Read) -> bytes:
    """Return what a file holds under a name: its last entry of that name, if it is sound.

    Raises:
        ValueError: there is none.
    """
    name = key.encode("ascii")
    if name not in file.entries or not _is_sound(name, file):
        raise ValueError("no entry")
    _, start, size = file.entries[name]
    return file.content[start : start + size]


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
    written = os.write(descriptor, content)
    while written < len(content):
        written += os.write(descriptor, memoryview(content)[written:])


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

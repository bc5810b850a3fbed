"""Files in stores that fsspec knows: S3, Google Cloud, Azure, the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from convsv.checkpoints._address import PACKAGES, scheme_of
from convsv.checkpoints._content import printable
from convsv.checkpoints._natural import natural_key
from convsv.checkpoints._patience import within
from convsv.errors import CheckpointError, ConvsvError, CorruptCheckpointError, UsageError

__all__ = ["FsspecSource", "list_folder", "list_pattern"]

_T = TypeVar("_T")

_VERSIONS = (
    "ETag",
    "etag",
    "content_md5",
    "md5Hash",
    "generation",
    "blob_id",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)
"""Where file systems say which state of a file there is, the best first."""


class FsspecSource:
    """A file in a store.

    Attributes:
        size: its size.
        ranges: a store sends parts.
        version: what it calls the state that is read.

    Args:
        address: an address that was checked.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the store refuses, or a package is missing.
    """

    ranges = True

    def __init__(self, address: str) -> None:
        self._system, self._path = _system(address)
        info, self._version = self._info()
        if info.get("type") == "directory":
            raise CheckpointError("is a folder", advice="name a file in it")
        if type(info.get("size")) is not int or info["size"] < 0:
            raise CheckpointError("the store does not tell the size")
        self.size: int | None = info["size"]
        self.version = printable(self._version)
        self._other: str | None = None

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes at ``start``, within the size.

        Raises:
            CorruptCheckpointError: the store sends fewer or more, or the file is another one now.
            CheckpointError: the store does not answer.
        """
        data: bytes = _ask(count, lambda: self._system.cat_file(self._path, start=start, end=start + count))
        info, version = self._info()
        if self._other is None and (info.get("size"), version) != (self.size, self._version):
            self._other = printable(version)
        if self._other is not None:
            # For good: a file that goes back to what it was may have been another one in between.
            raise CorruptCheckpointError(
                "changed while it was read", found=f"version {self._other}, not {self.version}"
            )
        if len(data) != count:
            found = f"{len(data)} bytes, where {count} were asked for"
            raise CorruptCheckpointError("the store contradicts itself", found=found)
        return data

    def stream(self) -> Iterator[bytes]:
        """Never asked for: a store sends parts.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError

    def _info(self) -> tuple[dict[str, Any], str]:
        """Return what the store says about the file, and what it calls its state."""

        def ask() -> tuple[dict[str, Any], str]:
            self._system.invalidate_cache(self._path)
            info = dict(self._system.info(self._path))
            return info, _version(info)

        return _ask(0, ask)


def list_folder(address: str) -> list[str] | None:
    """Return the addresses of the files in a folder; None of what is no folder.

    Raises:
        CheckpointError: the store does not answer, refuses, or a package is missing.
    """
    system, path = _system(address)
    if not _ask(0, lambda: system.isdir(path)):
        return None
    entries = _ask(0, lambda: system.ls(path, detail=True))
    return _addresses(address, [entry["name"] for entry in entries if entry.get("type") == "file"])


def list_pattern(address: str) -> list[str]:
    """Return the addresses of the files that match a pattern, as fsspec understands it.

    Raises:
        CheckpointError: the store does not answer, refuses, or a package is missing.
    """
    system, path = _system(address)
    if _ask(0, lambda: system.exists(path)):
        return [address]
    found = _ask(0, lambda: system.glob(path, detail=True))
    return _addresses(address, [name for name, entry in found.items() if entry.get("type") == "file"])


def _addresses(address: str, names: list[str]) -> list[str]:
    visible = [name for name in names if not name.rpartition("/")[2].startswith(".")]
    return sorted((f"{address.partition('://')[0]}://{name.lstrip('/')}" for name in visible), key=natural_key)


def _system(address: str) -> tuple[Any, str]:
    """Return the file system and the path in it.

    Raises:
        CheckpointError: a package is missing.
    """
    scheme = scheme_of(address)
    if importlib.util.find_spec("fsspec") is None:
        raise CheckpointError("is elsewhere, and fsspec is not installed", advice="pip install 'convsv[remote]'")
    package = PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise CheckpointError(f"{scheme}:// needs {package}, which is not installed", advice=f"pip install {package}")
    from fsspec.core import url_to_fs

    system, path = _ask(0, lambda: url_to_fs(address))
    return system, str(path)


def _ask(byte_count: int, work: Callable[[], _T]) -> _T:
    """Ask a store, and turn whatever it raises into an error of ours.

    Raises:
        ConvsvError: what happened: there is no such file, or the store refuses or does not answer.
        UsageError: there is no such file.
        CheckpointError: it refuses, or fails in another way.
    """
    try:
        return within(byte_count, work)
    except ConvsvError:
        raise
    except FileNotFoundError:
        raise UsageError("no such file") from None
    except PermissionError:
        raise CheckpointError("the store refuses access", advice="log in as its package says") from None
    except Exception as error:  # each store has errors of its own
        found = printable(f"{type(error).__name__}: {error}".replace("\n", " "), 160)
        raise CheckpointError("the store does not send it", found=found) from error


def _version(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _VERSIONS if info.get(key)), "")

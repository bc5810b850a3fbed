"""Addresses of files elsewhere, as the user gives them: ``https://``, ``s3://`` and their like.

An address comes from the user alone. Nothing found in a file is ever one: a name in an index is a plain name, which
:func:`neighbour` puts into the folder of the index.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from urllib.parse import quote, urlsplit

from convsv.errors import UsageError

__all__ = ["PACKAGES", "WEB", "RemotePath", "check_address", "is_address", "neighbour", "scheme_of"]

WEB = ("http", "https")
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "memory": "fsspec",
}
"""What each scheme needs beside fsspec."""

# Two letters at least: one is a drive of Windows.
_ADDRESS = re.compile("([A-Za-z][A-Za-z0-9+.-]+)://")


class RemotePath(PurePosixPath):
    """The name and the folder of a file elsewhere; as a text its address, and a path to nothing on this machine."""

    address: str | None = None

    @classmethod
    def of(cls, address: str) -> RemotePath:
        """Return that of an address."""
        path = cls(_split(address)[0] if scheme_of(address) in WEB else address)
        path.address = address
        return path

    def __str__(self) -> str:
        """Return the address."""
        return self.address or super().__str__()


def is_address(name: str) -> bool:
    """Tell whether a name is an address; a file that is here and is called so is a file."""
    return bool(_ADDRESS.match(name)) and "\0" not in name and not os.path.lexists(name)


def scheme_of(address: str) -> str:
    """Return the scheme, in lower case."""
    return address.partition("://")[0].lower()


def check_address(address: str) -> None:
    """Refuse what is not read.

    Args:
        address: the address.

    Raises:
        UsageError: an unknown scheme, a chain of file systems, or a password that reports would show.
    """
    scheme = scheme_of(address)
    if scheme not in (*WEB, *PACKAGES) or "::" in address:
        known = ", ".join(f"{name}://" for name in (*WEB, *PACKAGES) if name != "memory")
        advice = "give the plain path" if scheme == "file" else f"use one of {known}"
        found = "a chain of file systems" if "::" in address else f"{scheme}://"
        raise UsageError("no such file, and no address that is read", path=address, found=found, advice=advice)
    if scheme in WEB:
        _check_web(address)


def _check_web(address: str) -> None:
    """Refuse an address on the web that is none.

    Raises:
        UsageError: it is not an address, or holds a password.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError("is not an address", path=address, found=str(error)) from None
    if not host or not address.isprintable() or " " in address:
        raise UsageError(
            "is not an address", path=address, found="no host" if not host else "a character of no address"
        )
    if parts.username is not None or parts.password is not None:
        shown = f"{scheme_of(address)}://...@{host}{parts.path}"
        raise UsageError("holds a password, which reports would show", path=shown, advice="use another way to log in")


def neighbour(address: str, name: str) -> str:
    """Return the address of a file in the folder of another one.

    Args:
        address: the other one; what follows its path (a signature, for instance) is kept.
        name: a plain name, whatever characters it has.
    """
    if scheme_of(address) not in WEB:
        return f"{address.rpartition('/')[0]}/{name}"
    path, rest = _split(address)
    return f"{path.rpartition('/')[0]}/{quote(name, safe='')}{rest}"


def _split(address: str) -> tuple[str, str]:
    """Return an address up to its path, and its query and fragment."""
    at = min((address.index(mark) for mark in "?#" if mark in address), default=len(address))
    return address[:at], address[at:]

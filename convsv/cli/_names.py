"""A list of names on standard input, taken as it comes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

from convsv.errors import UsageError

__all__ = ["listed_names", "standard_input"]

LONGEST = 1 << 16
"""Bytes of the longest name; the systems we know stop at 4096."""
_CHUNK = 1 << 16
_BINARY = (b"PK\x03\x04", b"\x89HDF\r\n", b"\x80\x02", b"\x80\x03", b"\x80\x04")


def standard_input() -> BinaryIO | None:
    """Return standard input as bytes, None where there is none."""
    return None if sys.stdin is None else sys.stdin.buffer


def listed_names(stream: BinaryIO) -> Iterator[str]:
    """Yield the names of a list as soon as each is complete.

    Names end with a line end, or with a NUL byte if the first piece of the list holds one (``find -print0``). Nothing
    else in them means anything: not a blank, a dash, a quote or a star. Empty ones are left out.

    Args:
        stream: the list, read piece by piece as it comes.

    Raises:
        UsageError: this is no list of names: one of them is too long, or it starts like a checkpoint.
    """
    rest = stream.read1(_CHUNK)  # type: ignore[attr-defined]  # every buffered reader has it
    if rest.startswith(_BINARY) or rest[8:10] == b'{"':
        found = "what looks like a checkpoint itself"
        raise UsageError("standard input is no list of names", found=found, advice="give the file's name instead of -")
    end = b"\0" if b"\0" in rest else b"\n"
    while rest:
        *names, rest = rest.split(end)
        yield from (os.fsdecode(name) for name in names if name)
        if len(rest) > LONGEST:
            raise UsageError("standard input is no list of names", found=f"{len(rest)} bytes without a line end")
        more = stream.read1(_CHUNK)  # type: ignore[attr-defined]  # likewise
        if not more:
            break
        rest += more
    if rest:
        yield os.fsdecode(rest)

"""Reading a TOML file that a user names: what can be wrong with it, each with a line of its own."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from convsv.errors import UsageError
from convsv.files import beginning

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["near_miss", "read_toml", "shown"]

_MAX_BYTES = 1 << 22
_MAX_DOTS = 200
"""In one line: the parser takes time quadratic in the parts of a key."""
_SHOWN = 60


def read_toml(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Return what a TOML file of at most 4 MiB holds.

    Args:
        path: the file.
        what: what it is, for messages: ``"a geometry file"``.

    Raises:
        UsageError: it is not there, not a regular file, too large, not UTF-8 or not TOML.
    """
    text = _text(path, what)
    try:
        return dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise UsageError("is not a TOML file", found=str(error) or "too deeply nested") from None


def _text(path: str | os.PathLike[str], what: str) -> str:
    content = beginning(path, _MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UsageError(f"{what} may have at most {_MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("is not UTF-8 text") from None
    if any(line.count(".") > _MAX_DOTS for line in text.split("\n")):
        raise UsageError(f"{what} may have at most {_MAX_DOTS} dots in a line")
    return text


def near_miss(key: str, known: Sequence[str] | Iterable[str]) -> str:
    """Return what to say to somebody who wrote a key that is not known."""
    listed = tuple(known)
    near = difflib.get_close_matches(key, listed, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(listed)}"


def shown(value: object) -> str:
    """Return a value from a file, short enough for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

"""The order of numbered names: ``epoch_2`` before ``epoch_10``, as a run wrote them."""

from __future__ import annotations

import re
from typing import TypeAlias

__all__ = ["natural_key"]

_Part: TypeAlias = "tuple[str | tuple[int, str], ...]"

_NUMBER = re.compile("([0-9]+)")


def natural_key(path: str) -> tuple[tuple[_Part, ...], str]:
    """Return what to sort paths by, so that numbers in them count as numbers, folder by folder.

    A number is compared by its length without leading zeros and then by its digits: of any length, and never made an
    integer. What is equal so far (``01`` and ``1``) is in the order of its characters.
    """
    return tuple(_parts(name) for name in path.split("/")), path


def _parts(name: str) -> _Part:
    # Texts and numbers take turns, starting with a text, so that a number only ever meets a number.
    pieces = _NUMBER.split(name)
    return tuple(_number(piece) if at % 2 else piece for at, piece in enumerate(pieces))


def _number(digits: str) -> tuple[int, str]:
    stripped = digits.lstrip("0")
    return len(stripped), stripped

"""Keys and names: where a tensor lives in a network, and what its layer is called.

A layer's name is the module path: the weight's key less its last part, less a leading ``module.`` (DataParallel) and
``_orig_mod.`` (torch.compile). Keras keys repeat themselves and carry the words of the file format; their layer is
called what the user called it: ``conv2d/conv2d/kernel:0`` is ``conv2d``, ``block/conv2d/kernel:0`` is
``block/conv2d``, ``layers/conv2d/vars/0`` is ``conv2d``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Names", "Place", "locate", "natural", "strip_wrappers"]

_WRAPPERS = ("module", "_orig_mod")
_KERAS_WORDS = frozenset({"layers", "vars", "_layer_checkpoint_dependencies", "model_weights"})


@dataclass(frozen=True)
class Place:
    """A key taken apart.

    Attributes:
        owner: path of the owning module as parts; empty for a tensor at the top.
        leaf: last part of the key, without TensorFlow's ``:0``.
        separator: ``"."`` or ``"/"``.
    """

    owner: tuple[str, ...]
    leaf: str
    separator: str

    @property
    def path(self) -> str:
        """The owner in the notation of the keys."""
        return self.separator.join(self.owner)

    @property
    def parent(self) -> str:
        """The owner's last part, ``""`` at the top."""
        return self.owner[-1] if self.owner else ""

    @property
    def layer(self) -> str:
        """What the layer with this weight is called inside its container."""
        if not self.owner:
            return self.leaf
        parts = _keras_owner(self.owner) if self.separator == "/" else strip_wrappers(self.owner)
        return self.separator.join(parts) or self.leaf

    @property
    def full(self) -> str:
        """The whole path less wrappers: the name of a layer that shares its module with another."""
        if self.separator == "/":
            return self.separator.join((*_keras_owner(self.owner), self.leaf))
        return self.separator.join(strip_wrappers((*self.owner, self.leaf)))


def locate(key: str, *, slashes: bool) -> Place:
    """Take a key apart.

    Args:
        key: the key as stored.
        slashes: whether the file's format writes paths with slashes; elsewhere they do only in keys without a dot.
    """
    separator = "/" if slashes or ("/" in key and "." not in key) else "."
    *owner, leaf = key.split(separator)
    return Place(tuple(owner), re.sub(r":\d+$", "", leaf), separator)


def strip_wrappers(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path without the leading parts that DataParallel and torch.compile add, each at most once."""
    left = set(_WRAPPERS)
    while len(parts) > 1 and parts[0] in left:
        left.remove(parts[0])
        parts = parts[1:]
    return parts


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key by which ``features.2`` comes before ``features.10``."""
    pieces = re.findall(r"[0-9]+|[^0-9]+", text)
    # Numbers by length first: int() of a very long number is slow.
    return tuple((len(p.lstrip("0")), 0, p.lstrip("0")) if p[0] in "0123456789" else (-1, 0, p) for p in pieces)


def _keras_owner(owner: tuple[str, ...]) -> tuple[str, ...]:
    """Drop the words of the format, and what comes before the last repetition of the layer's own group."""
    parts = tuple(part for part in owner if part not in _KERAS_WORDS)
    if not parts:
        return owner
    # A graph that builds a layer twice renames the second scope: conv2d_1/conv2d_1_1/kernel:0.
    if len(parts) == 2 and re.fullmatch(re.escape(parts[0]) + r"_\d+", parts[1]):
        return parts[:1]
    return parts[len(parts) - 1 - parts[::-1].index(parts[0]) :]


class Names:
    """Names that are taken.

    Args:
        taken: some that are.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._tried: dict[str, int] = {}

    def unused(self, name: str) -> str:
        """Return a name, or the first of ``name#2``, ``name#3`` ... that is not taken; it is, from now on."""
        candidate, number = name, self._tried.get(name, 1)
        while candidate in self._taken:
            number += 1
            candidate = f"{name}#{number}"
        self._tried[name] = number  # thousands of one name do not try all numbers again
        self._taken.add(candidate)
        return candidate

"""A sidecar for the user to complete: what is known as facts, what is guessed as comments.

Read again, the text says what was known and is silent about the rest: a guess stays a guess until the user takes its
``#`` away. Layer names are globs in that file, so what would be a wildcard stands in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convsv.geometry import Geometry

__all__ = ["Described", "literal_glob", "sidecar_text"]

_GUESSES = ("inferred", "assumed")
_HEAD = """\
# The geometry of each layer, as convsv found it. Behind each value stands where it was learned.
# What is not known for certain is a comment: correct it, and take the # away where it is true.
# Tables are globs on layer names, and later tables win, field by field. Every table may also hold max_norm.

[defaults]
# size = [32, 32]    # an integer, or one a spatial axis: the input size of layers whose table does not say it
"""


@dataclass(frozen=True)
class Described:
    """A layer, as far as a sidecar speaks of it.

    Attributes:
        name: what a table must match: the layer's name, without what tells several calls of one layer apart.
        kind: conv1d ... conv_transpose3d.
        shape: stored shape.
        geometry: complete, with origins.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    geometry: Geometry


def sidecar_text(layers: Iterable[Described]) -> str:
    """Return a geometry file that states what is known of each layer.

    Args:
        layers: in the order of the tables. Several of one name are calls of one layer: what they disagree about
            becomes a comment a call, because a table holds one value.

    Returns:
        TOML, as :func:`convsv.checkpoints.sidecar.read_sidecar` reads it.
    """
    calls: dict[str, list[Described]] = {}
    for layer in layers:
        calls.setdefault(layer.name, []).append(layer)
    return "\n".join([_HEAD, *map(_table, calls.values())])


def literal_glob(name: str) -> str:
    """Return the glob that matches this name only: what ``fnmatch`` takes for a wildcard, in brackets."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _table(calls: Sequence[Described]) -> str:
    first = calls[0]
    shape = "x".join(map(str, first.shape))
    lines = [(f"[layers.{_quoted(literal_glob(first.name))}]", f"{first.kind} {shape}")]
    stated = [_values(call.geometry) for call in calls]
    for key in stated[0]:
        texts = list(dict.fromkeys(values[key] for values in stated))
        origins = [call.geometry.origin.get(key, "option") for call in calls]
        known = len(texts) == 1 and not set(origins) & set(_GUESSES)
        differ = "" if len(texts) == 1 else ", which differs from call to call"
        lines += [(f"{'' if known else '# '}{key} = {text}", f"{origins[0]}{differ}") for text in texts]
    width = max(len(line) for line, _ in lines[1:])
    return "\n".join(f"{line:{width}}  # {comment}" for line, comment in lines) + "\n"


def _values(geometry: Geometry) -> Mapping[str, str]:
    """Return every field as TOML; nobody completes the extra output of a forward layer."""
    values: dict[str, str] = {
        "size": _list(geometry.size),
        "stride": _axes(geometry.stride),
        "padding": _padding(geometry),
        "padding_mode": f'"{geometry.padding_mode}"',
        "dilation": _axes(geometry.dilation),
        "groups": str(geometry.groups),
        "transposed": "true" if geometry.transposed else "false",
    }
    has_extra = geometry.transposed or any(geometry.output_padding)
    return values | {"output_padding": _axes(geometry.output_padding)} if has_extra else values


def _padding(geometry: Geometry) -> str:
    # The amounts of "same" are those of one size; the word is true at every size.
    if geometry.is_same:
        return '"same"'
    if all(before == after for before, after in geometry.padding):
        return _axes([before for before, _ in geometry.padding])
    return "[" + ", ".join(map(_list, geometry.padding)) + "]"


def _axes(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(set(numbers)) == 1 else _list(numbers)


def _list(numbers: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, numbers)) + "]"


def _quoted(text: str) -> str:
    """Return a TOML basic string; a lone surrogate, which TOML cannot hold, as the wildcard of one character."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        return "?"
    if character in '"\\':
        return "\\" + character
    # Control, C1, line and bidirectional characters would be legal, but not what an editor shows.
    plain = character.isprintable() or character == " "
    return character if plain else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"

"""Mutations of bytes, drawn by hypothesis: what differs from a valid file can be made small again."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
WORDS = (
    *(struct.pack("<Q", number)[:width] for number in NUMBERS for width in (1, 2, 4, 8)),
    *(b"-1", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"[[", b"99999999999999999999", b"1.5", b"'"),
    *(b"\x1b[31m", b"\xe2\x80\xae", b"\n", b"\r", b"\x00", b"\xff", b"\\ud800", b"../", b"[/x]", b"=1+1", b"|"),
    *(b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"\x89HDF\r\n\x1a\n", b"cos\nsystem\n", b"\x93", b"\x81", b"R"),
)
TOKEN = re.compile(rb"-?\d+|\w+|\W")
MOST_TOKENS = 4000

ARGUMENT = re.compile(rb"[KhqX](.)|M(..)|J(....)|[\x80\x8c\x94](.)", re.DOTALL)
"""What looks like an opcode of pickle with a number behind it."""
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        "",
        [],
        {},
        [[]],
        {"a": {}},
        -1,
        0,
        1,
        2,
        3,
        4,
        255,
        1 << 31,
        1 << 53,
        1 << 63,
        1 << 64,
        1e400,
    ),
    *(
        -0.5,
        1e-300,
        "same",
        "valid",
        "conv",
        "Conv2D",
        "F32",
        "BF16",
        "a" * 3000,
        "\x1b[31m",
        "../x",
        "a/b",
        "\ud800",
        [2, 2],
    ),
    *([1, -1], [1, 2, 3, 4], [1 << 40] * 4, ["x"], {"class_name": "Conv2D", "config": {}}, [[["conv", 0, 0, {}]]]),
)
"""Values that are put into JSON."""
SAFETENSORS_HEAD = 8

_operation = st.tuples(
    st.sampled_from(("tree", "tree", "set", "argument", "word", "cut", "copy", "token", "token", "insert", "end")),
    st.integers(0, (1 << 20) - 1),
    st.integers(0, (1 << 20) - 1),
    st.integers(0, 255),
)
operations = st.one_of(st.lists(_operation, min_size=1, max_size=1), st.lists(_operation, min_size=2, max_size=5))
"""What :func:`mutated` takes."""


def mutated(data: bytes, todo: list[tuple[str, int, int, int]]) -> bytes:
    """Return the bytes with some operations done to them, one after the other."""
    for kind, where, other, value in todo:
        data = _one(data, kind, where, other, value)
    return data


def _one(data: bytes, kind: str, where: int, other: int, value: int) -> bytes:
    at, to = (where * len(data)) >> 20, (other * len(data)) >> 20
    word = WORDS[(value + other) % len(WORDS)]
    if kind == "set":
        return data[:at] + bytes([value]) + data[at + 1 :]
    if kind in ("word", "insert"):
        return data[:at] + word + data[at + len(word) * (kind == "word") :]
    if kind == "cut":
        return data[:at] + data[at + 1 + value % 40 :]
    if kind == "copy":
        return data[:at] + data[to : to + 1 + value] + data[at:]
    if kind == "tree":
        return _tree(data, where, other, value)
    if kind == "argument":
        found = list(ARGUMENT.finditer(data))
        spot = found[where % len(found)].end() if found else at + 1
        return data[: spot - 1] + bytes([value]) + data[spot:]
    if kind == "token":
        return _token(data, where, other, word, swap=bool(value % 2))
    return data[:at]


def _tree(data: bytes, where: int, other: int, value: int) -> bytes:
    # JSON stays JSON, with one value odd, gone, doubled or swapped; other data are left as they are.
    head = data[:SAFETENSORS_HEAD] if data[SAFETENSORS_HEAD : SAFETENSORS_HEAD + 1] == b"{" else b""
    end = len(head) + int.from_bytes(head, "little") if head else len(data)
    try:
        root = json.loads(data[len(head) : end])
    except (ValueError, RecursionError):
        return data
    places = list(_places(root))
    if not places:
        return data
    holder, key = places[where % len(places)]
    theirs, from_key = places[other % len(places)]
    if value % 4 == 0 and isinstance(holder, dict):
        del holder[key]
    elif value % 4 == 1:
        holder[key] = json.loads(json.dumps(theirs[from_key]))
    elif value % 4 == 2 and isinstance(holder, dict):
        holder[f"{ODD[other % len(ODD)]}"] = holder.pop(key)
    else:
        holder[key] = ODD[(value // 4 + other) % len(ODD)]
    text = json.dumps(root).encode()
    return (len(text).to_bytes(SAFETENSORS_HEAD, "little") if head else b"") + text + data[end:]


def _places(value: Any) -> list[tuple[Any, Any]]:
    places, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        inside = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, child in inside:
            places.append((holder, key))
            waiting.append(child)
    return places


def _token(data: bytes, where: int, other: int, word: bytes, *, swap: bool) -> bytes:
    # A number, a name or a mark, replaced by another one of the same text or by an odd word.
    start = (where * max(len(data) - MOST_TOKENS, 1)) >> 20
    tokens = list(TOKEN.finditer(data, start, start + MOST_TOKENS))
    if not tokens:
        return data + word
    one, two = tokens[where % len(tokens)], tokens[other % len(tokens)]
    return data[: one.start()] + (two[0] if swap else word) + data[one.end() :]

"""The wire format of protocol buffers: a walk over the fields of a message that lies in a file.

A message is a row of fields ``key (varint), payload``; the key holds the field's number and how long its payload is
(https://protobuf.dev/programming-guides/encoding/). What a number means only the reader of a format knows. Payloads
are not read unless they are asked for, so that gigabytes of weights are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from convsv.checkpoints._file import RegularFile
from convsv.errors import CorruptCheckpointError, UnsafeCheckpointError

__all__ = ["BYTES", "FIXED32", "FIXED64", "VARINT", "Field", "Wire", "field_bytes", "signed"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 1_500_000
_SIZES = {FIXED64: 8, FIXED32: 4}
_LONGEST = 20
"""Bytes of the longest key and the longest varint behind it."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: what it is.
        wire: how it is written: :data:`VARINT`, :data:`BYTES` ...
        value: its value, of a varint; 0 otherwise.
        start: where the field begins in the file, with its key.
        payload: where its payload begins.
        end: where it ends.
    """

    number: int
    wire: int
    value: int
    start: int
    payload: int
    end: int


def signed(value: int) -> int:
    """Return a varint as the signed 64-bit integer it stands for."""
    return value - (1 << 64) if value >> 63 else value


def field_bytes(number: int, payload: bytes) -> bytes:
    """Return a field of bytes: a string, or a message."""
    return _varint_bytes(number << 3 | BYTES) + _varint_bytes(len(payload)) + payload


class Wire:
    """A file of protocol buffers. Damage, and more fields than a budget allows, is an error.

    Args:
        file: the file.
        ahead: how many bytes to read at a time.
    """

    def __init__(self, file: RegularFile, ahead: int = 1 << 20) -> None:
        self.file = file
        self._ahead = ahead
        self._block, self._base = b"", 0
        self._left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of the message that lies between two positions.

        Raises:
            CorruptCheckpointError: it is not a message, or ends within a field.
            UnsafeCheckpointError: the file has too many fields.
        """
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise UnsafeCheckpointError("has too many parts", found=f"more than {MAX_FIELDS} fields")
            block, base = self._window(at, min(_LONGEST, end - at))
            key, payload = _varint(block, at - base, base)
            number, wire = key >> 3, key & 7
            value, stop = 0, payload
            if wire == VARINT:
                value, stop = _varint(block, payload - base, base)
            elif wire == BYTES:
                size, payload = _varint(block, payload - base, base)
                stop = payload + size
            elif wire in _SIZES:
                stop = payload + _SIZES[wire]
            if number == 0 or wire not in (VARINT, FIXED64, BYTES, FIXED32):
                raise CorruptCheckpointError("is damaged: no field of a message", found=f"key {key} at {at}")
            if stop > end:
                raise CorruptCheckpointError(
                    "is truncated, or damaged", found=f"a field at {at} ends at {stop} of {end}"
                )
            yield Field(number, wire, value, at, payload, stop)
            at = stop

    def numbers(self, found: Field, limit: int) -> list[int]:
        """Return the varints of a field that holds one, or several packed.

        Raises:
            CorruptCheckpointError: they are damaged, or more than ``limit``.
        """
        if found.wire == VARINT:
            return [found.value]
        data = self.read(found.payload, min(found.end, found.payload + 10 * limit))
        numbers, at = [], 0
        while at < len(data):
            value, at = _varint(data, at, 0)
            numbers.append(value)
        if len(numbers) > limit or found.end - found.payload > len(data):
            raise CorruptCheckpointError("has too many numbers in one place", found=f"more than {limit}")
        return numbers

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes between two positions."""
        if end - start > self._ahead:
            return self.file.read(start, end - start)
        block, base = self._window(start, end - start)
        return block[start - base : end - base]

    def _window(self, at: int, count: int) -> tuple[bytes, int]:
        """Return a stretch of the file that holds ``count`` bytes from ``at`` on, and where it begins."""
        if not self._base <= at <= at + count <= self._base + len(self._block):
            self._base, self._block = at, self.file.read(at, min(max(self._ahead, count), self.file.size - at))
        return self._block, self._base


def _varint(data: bytes, at: int, base: int) -> tuple[int, int]:
    """Return the varint at a position of a stretch, and the position in the file behind it.

    Raises:
        CorruptCheckpointError: it has no end.
    """
    value = shift = 0
    for position in range(at, min(at + 10, len(data))):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, base + position + 1
        shift += 7
    raise CorruptCheckpointError("is truncated, or damaged", found=f"a number without an end at {base + at}")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)

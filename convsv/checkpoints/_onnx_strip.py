"""An ONNX file without its weights: a small model for shape inference, and where the values of each tensor stand.

Only the fields that say something about geometry are kept. Each tensor keeps its name, type and dimensions, gets its
number for a doc string, and keeps its values if they are few: those may be the shapes, axes and pads that operators
take as inputs. The field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from convsv.checkpoints._content import printable
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Wire, field_bytes
from convsv.errors import CorruptCheckpointError, UnsafeCheckpointError

__all__ = ["MODEL_GRAPH", "Segment", "Stripped", "TensorRecord", "read_tensor", "strip", "text"]

MAX_SKELETON = 1 << 26
MAX_DEPTH = 20
"""Graphs inside graphs; protocol buffers nest at most a hundred messages, three of which are a graph's."""
MAX_RANK = 64
MAX_KEPT = 4096
MAX_STRING = 1 << 16
MAX_NAME = 1 << 12

MODEL_GRAPH = 7
_KEPT: Mapping[str, frozenset[int]] = {
    "model": frozenset({1, 8}),
    "graph": frozenset({2, 11, 12, 13}),
    "node": frozenset({1, 2, 3, 4, 7, 8}),
    "attribute": frozenset({1, 2, 3, 4, 7, 8, 9, 14, 15, 20, 21}),
    "function": frozenset({1, 4, 5, 6, 9, 10, 12, 13}),
    "sparse": frozenset({3}),
}
_NESTED: Mapping[str, Mapping[int, str]] = {
    "model": {MODEL_GRAPH: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Kind of message -> field number -> kind of the message in that field."""

_DIMS, _TYPE, _SEGMENT, _NAME, _DOC, _EXTERNAL, _LOCATION = 1, 2, 3, 8, 12, 13, 14
_VALUES: Mapping[int, int] = {4: FIXED32, 5: VARINT, 6: BYTES, 7: VARINT, 9: BYTES, 10: FIXED64, 11: VARINT}
"""Fields of a tensor that hold values -> how one of them is written."""


@dataclass(frozen=True)
class Segment:
    """Values of a tensor that stand in one piece.

    Attributes:
        number: the field they are in.
        wire: how that is written; packed values are ``BYTES``.
        value: the value, of a single varint.
        start: where they start.
        size: how many bytes they are.
    """

    number: int
    wire: int
    value: int
    start: int
    size: int


@dataclass
class TensorRecord:
    """A tensor as the file describes it; nothing of it is checked yet.

    Attributes:
        file: the file its segments are in.
        name: its name.
        dims: its dimensions.
        code: its data type, as ``TensorProto.DataType`` numbers it.
        segments: its values.
        external: what is said about a file that holds its values; None if they are here.
        number: how the stripped model calls it; None for a tensor that is not from the file.
    """

    file: RegularFile
    name: str = ""
    dims: tuple[int, ...] = ()
    code: int = 0
    segments: list[Segment] = field(default_factory=list)
    external: dict[str, str] | None = None
    number: int | None = None


@dataclass(frozen=True)
class Stripped:
    """A model without its weights.

    Attributes:
        model: a ``ModelProto``.
        tensors: every tensor of the file by its number.
        functions: how many model-local functions it has.
    """

    model: bytes
    tensors: tuple[TensorRecord, ...]
    functions: int


def strip(file: RegularFile) -> Stripped:
    """Read a model but for its weights.

    Args:
        file: an ONNX file.

    Raises:
        CorruptCheckpointError: it is damaged.
        UnsafeCheckpointError: it is enormous even without its weights, or nests too deeply.
    """
    return _Stripper(file).result()


class _Stripper:
    def __init__(self, file: RegularFile) -> None:
        self._wire = Wire(file)
        self._tensors: list[TensorRecord] = []
        self._kept = 0

    def result(self) -> Stripped:
        end = self._wire.file.size
        numbers = [f.number for f in self._wire.fields(0, end)]
        if numbers.count(MODEL_GRAPH) != 1:
            raise CorruptCheckpointError("has not exactly one graph", found=f"{numbers.count(MODEL_GRAPH)}")
        model = self._strip("model", 0, end, 0)
        return Stripped(model, tuple(self._tensors), numbers.count(25))

    def _strip(self, kind: str, start: int, end: int, depth: int) -> bytes:
        """Return a message with the kept fields only, and those of the messages in it.

        Raises:
            UnsafeCheckpointError: graphs nest too deeply.
        """
        if kind == "tensor":
            return self._tensor(start, end)
        if depth > MAX_DEPTH:
            raise UnsafeCheckpointError("nests graphs too deeply", found=f"more than {MAX_DEPTH}")
        kept, nested = _KEPT[kind], _NESTED[kind]
        parts = []
        for found in self._wire.fields(start, end):
            inner = nested.get(found.number)
            if inner and found.wire == BYTES:
                content = self._strip(inner, found.payload, found.end, depth + (inner == "graph"))
                parts.append(field_bytes(found.number, content))
            elif found.number in kept:
                parts.append(self._copy(kind, found))
        return b"".join(parts)

    def _copy(self, kind: str, found: Field) -> bytes:
        # A string among a node's attributes may be a whole program of another runtime.
        if kind == "attribute" and found.number in (4, 9) and found.end - found.payload > MAX_STRING:
            return b""
        self._kept += found.end - found.start
        if self._kept > MAX_SKELETON:
            raise UnsafeCheckpointError(
                "is too large even without its weights", found=f"more than {MAX_SKELETON} bytes of graph"
            )
        return self._wire.read(found.start, found.end)

    def _tensor(self, start: int, end: int) -> bytes:
        tensor = read_tensor(self._wire, start, end)
        tensor.number = len(self._tensors)
        self._tensors.append(tensor)
        values = sum(segment.size for segment in tensor.segments)
        keep = {_DIMS, _TYPE, _NAME} | (set(_VALUES) if values <= MAX_KEPT else set())
        parts = [self._copy("tensor", f) for f in self._wire.fields(start, end) if f.number in keep]
        return b"".join([*parts, field_bytes(_DOC, str(tensor.number).encode())])


def read_tensor(wire: Wire, start: int, end: int) -> TensorRecord:
    """Return what a ``TensorProto`` says about itself.

    Raises:
        CorruptCheckpointError: it contradicts itself.
    """
    tensor, dims = TensorRecord(wire.file), list[int]()
    external: dict[str, str] = {}
    is_external = False
    for f in wire.fields(start, end):
        if f.number == _DIMS and f.wire in (VARINT, BYTES):
            dims += wire.numbers(f, MAX_RANK)
        elif f.number == _TYPE and f.wire == VARINT:
            tensor.code = f.value
        elif f.number == _NAME and f.wire == BYTES:
            tensor.name = text(wire, f)
        elif f.number == _DOC and f.wire == BYTES and (word := text(wire, f)).isdecimal() and word.isascii():
            tensor.number = int(word[:12])
        elif f.number in _VALUES and f.wire in (BYTES, _VALUES[f.number]):
            tensor.segments.append(Segment(f.number, f.wire, f.value, f.payload, f.end - f.payload))
        elif f.number == _EXTERNAL and f.wire == BYTES:
            external |= _entry(wire, f)
        elif f.number == _LOCATION and f.wire == VARINT:
            is_external = f.value == 1
        elif f.number == _SEGMENT:
            raise CorruptCheckpointError(
                "a tensor is stored in segments, which is not read", tensor=printable(tensor.name)
            )
    if len(dims) > MAX_RANK or any(n >> 63 for n in dims):
        raise CorruptCheckpointError("dimensions must be natural numbers, and few", tensor=printable(tensor.name))
    tensor.dims = tuple(dims)
    tensor.external = external if is_external else None
    return tensor


def text(wire: Wire, found: Field) -> str:
    """Return a string; what is not UTF-8 is escaped, what is too long for a name cut."""
    raw = wire.read(found.payload, min(found.end, found.payload + MAX_NAME))
    return raw.decode("utf-8", "backslashreplace")


def _entry(wire: Wire, found: Field) -> dict[str, str]:
    words = {f.number: text(wire, f) for f in wire.fields(found.payload, found.end) if f.wire == BYTES}
    return {words.get(1, ""): words.get(2, "")}

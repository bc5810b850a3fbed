"""The nodes, values and tensors of an ONNX model as plain records; subgraphs (If, Loop) know their outer graph."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from convsv.checkpoints._content import printable
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._onnx_strip import MODEL_GRAPH, TensorRecord, read_tensor, text
from convsv.checkpoints._protobuf import BYTES, FIXED32, VARINT, Field, Wire, signed
from convsv.errors import CorruptCheckpointError

__all__ = ["Dims", "Graph", "Node", "read_graph"]

MAX_NUMBERS = 1024
"""Whole numbers of one attribute; strides and pads are few."""

_KINDS: Mapping[int, str] = {1: "f", 2: "i", 3: "s", 4: "t", 7: "ints"}
"""Types of attributes whose values are read."""

Dims: TypeAlias = tuple[int | None, ...]
"""Dimensions of a value, None where unknown."""


@dataclass
class Node:
    """An operator with the names of its inputs and outputs; "" stands for an input that is left out."""

    op: str = ""
    domain: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    graphs: list[tuple[str, Graph]] = field(default_factory=list)

    def is_a(self, *ops: str) -> bool:
        """Tell whether it is one of ONNX's own operators."""
        return self.domain in ("", "ai.onnx") and self.op in ops

    def input(self, place: int) -> str:
        """Return the name of an input, "" if there is none."""
        return self.inputs[place] if place < len(self.inputs) else ""

    def ints(self, name: str) -> tuple[int, ...] | None:
        """Return an attribute of whole numbers, None where it is not one."""
        value = self.attributes.get(name)
        return tuple(value) if isinstance(value, list) else None

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is one whole number."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def word(self, name: str, default: str = "") -> str:
        """Return an attribute that is a string."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, str) else default


@dataclass
class Graph:
    """A graph.

    Attributes:
        path: where it is in its model: ``()``, or names of the nodes and attributes that lead to it.
        outer: the graph around it, whose values it may use.
        nodes: in stored order.
        tensors: initializers by name.
        sparse: names of sparse initializers.
        inputs: names.
        outputs: names.
        dims: dimensions of values, as declared or inferred.
        types: data types of values, as numbers.
        makers: value -> the node that computes it.
        takers: value -> a node of this graph that takes it.
        uses: value -> how often a node, here or further inside, takes it, or the graph returns it.
    """

    path: tuple[str, ...] = ()
    outer: Graph | None = None
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    sparse: set[str] = field(default_factory=set)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    dims: dict[str, Dims] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    makers: dict[str, Node] = field(default_factory=dict)
    takers: dict[str, Node] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)

    def around(self) -> Iterator[Graph]:
        """Yield this graph and those around it, the innermost first."""
        graph: Graph | None = self
        while graph is not None:
            yield graph
            graph = graph.outer

    def inside(self) -> Iterator[Graph]:
        """Yield this graph and those in it."""
        waiting = [self]
        while waiting:
            graph = waiting.pop()
            yield graph
            waiting += [inner for node in reversed(graph.nodes) for _, inner in reversed(node.graphs)]

    def dims_of(self, value: str) -> Dims | None:
        """Return the dimensions of a value, if they are known."""
        return next((graph.dims[value] for graph in self.around() if value in graph.dims), None)

    def type_of(self, value: str) -> int:
        """Return the data type of a value, 0 if it is not known."""
        return next((graph.types[value] for graph in self.around() if value in graph.types), 0)

    def only_taker(self, value: str) -> Node | None:
        """Return the node of this graph that alone takes a value, if no graph returns it."""
        return self.takers.get(value) if self.uses[value] == 1 else None

    def finish(self) -> None:
        """Index nodes by the values that they make and take."""
        self.uses.update(self.outputs)
        for node in self.nodes:
            self.uses.update(name for name in node.inputs if name)
            self.takers.update((name, node) for name in node.inputs)
            for name in node.outputs:
                self.makers.setdefault(name, node)
            for _, inner in node.graphs:
                self.uses.update(inner.uses)


def read_graph(model: RegularFile, tensors: Sequence[TensorRecord]) -> Graph:
    """Return the graph of a stripped model.

    Args:
        model: the model.
        tensors: what the numbers of its tensors stand for.

    Raises:
        CorruptCheckpointError: it is damaged, or a tensor has a number that none has.
    """
    reader = _Reader(Wire(model), tensors)
    for found in reader.wire.fields(0, model.size):
        if found.number == MODEL_GRAPH and found.wire == BYTES:
            return reader.graph(found, Graph())
    raise CorruptCheckpointError("has no graph")


class _Reader:
    def __init__(self, wire: Wire, tensors: Sequence[TensorRecord]) -> None:
        self.wire, self._tensors = wire, tensors

    def graph(self, at: Field, graph: Graph) -> Graph:
        """Fill a graph.

        Raises:
            CorruptCheckpointError: it contradicts itself.
        """
        for found in self._messages(at):
            if found.number == 1:
                graph.nodes.append(self._node(found, graph, len(graph.nodes)))
            elif found.number == 5:
                tensor = self._tensor(found)
                if tensor.name and graph.tensors.setdefault(tensor.name, tensor) is not tensor:
                    raise CorruptCheckpointError("two initializers have one name", tensor=printable(tensor.name))
            elif found.number == 15:
                graph.sparse.update(self._tensor(f).name for f in self._messages(found) if f.number == 1)
            elif found.number in (11, 12, 13):
                self._value(found, graph)
        graph.finish()
        return graph

    def _messages(self, at: Field) -> Iterator[Field]:
        return (found for found in self.wire.fields(at.payload, at.end) if found.wire == BYTES)

    def _tensor(self, at: Field) -> TensorRecord:
        tensor = read_tensor(self.wire, at.payload, at.end)
        if tensor.number is None:
            return tensor
        if tensor.number >= len(self._tensors):
            raise CorruptCheckpointError("onnx changed the tensors of the model")
        # Functions that were inlined renamed it.
        return replace(self._tensors[tensor.number], name=tensor.name)

    def _value(self, at: Field, graph: Graph) -> None:
        name, code, dims = "", 0, None
        for found in self._messages(at):
            if found.number == 1:
                name = text(self.wire, found)
            elif found.number == 2:
                code, dims = self._type(found)
        if at.number == 11:
            graph.inputs.append(name)
        elif at.number == 12:
            graph.outputs.append(name)
        graph.types.setdefault(name, code)
        if dims is not None:
            graph.dims.setdefault(name, dims)

    def _type(self, at: Field) -> tuple[int, Dims | None]:
        """Return the data type and the dimensions of a tensor: TypeProto.tensor_type.shape.dim.dim_value."""
        code, dims = 0, None
        for tensor in (f for f in self._messages(at) if f.number == 1):
            for found in self.wire.fields(tensor.payload, tensor.end):
                if found.number == 1 and found.wire == VARINT:
                    code = found.value
                elif found.number == 2 and found.wire == BYTES:
                    dims = tuple(self._dim(f) for f in self._messages(found) if f.number == 1)
        return code, dims

    def _dim(self, at: Field) -> int | None:
        fields = self.wire.fields(at.payload, at.end)
        values = [signed(f.value) for f in fields if f.number == 1 and f.wire == VARINT]
        return values[-1] if values and values[-1] >= 0 else None

    def _node(self, at: Field, graph: Graph, index: int) -> Node:
        node = Node()
        attributes = []
        for found in self._messages(at):
            if found.number == 1:
                node.inputs.append(text(self.wire, found))
            elif found.number == 2:
                node.outputs.append(text(self.wire, found))
            elif found.number == 3:
                node.name = text(self.wire, found)
            elif found.number == 4:
                node.op = text(self.wire, found)
            elif found.number == 7:
                node.domain = text(self.wire, found)
            elif found.number == 5:
                attributes.append(found)
        for found in attributes:
            self._attribute(found, node, graph, index)
        return node

    def _attribute(self, at: Field, node: Node, graph: Graph, index: int) -> None:
        name, kind = "", 0
        values: dict[str, Any] = {"i": 0, "ints": []}
        inner: list[Field] = []
        for found in self.wire.fields(at.payload, at.end):
            if found.number == 1 and found.wire == BYTES:
                name = text(self.wire, found)
            elif found.number == 20 and found.wire == VARINT:
                kind = found.value
            elif found.number in (6, 11) and found.wire == BYTES:
                inner.append(found)
            else:
                self._add_value(found, values)
        # Writers before the second version of the format do not say which kind it is.
        told = _KINDS.get(kind) or next(reversed(values))
        if told in values:
            node.attributes[name] = values[told]
        label = node.name or f"{node.op}_{index}"
        for place, found in enumerate(inner):
            part = f"{name}_{place}" if len(inner) > 1 else name
            node.graphs.append((name, self.graph(found, Graph((*graph.path, label, part), graph))))

    def _add_value(self, found: Field, values: dict[str, Any]) -> None:
        """Put a value of an attribute in its place; the last is the one that is meant where none is told."""
        if found.number == 2 and found.wire == FIXED32:
            values["f"] = struct.unpack("<f", self.wire.read(found.payload, found.end))[0]
        elif found.number == 3 and found.wire == VARINT:
            values.pop("i", None)
            values["i"] = signed(found.value)
        elif found.number == 4 and found.wire == BYTES:
            values["s"] = text(self.wire, found)
        elif found.number == 5 and found.wire == BYTES:
            values["t"] = self._tensor(found)
        elif found.number == 8 and found.wire in (VARINT, BYTES) and found.end - found.payload <= MAX_NUMBERS:
            numbers = values.pop("ints") + [signed(n) for n in self.wire.numbers(found, MAX_NUMBERS)]
            values["ints"] = numbers[:MAX_NUMBERS]

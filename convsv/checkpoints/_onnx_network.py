"""The graph of an ONNX model as the rules of a network see it: every operator between its inputs and outputs.

A value depends on the input if a node takes it that does; inputs of whole numbers count as constants that nobody
knows. Everything else is a stored tensor, perhaps seen from another side, or a constant without values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from numpy.typing import NDArray

from convsv.checkpoints._content import printable
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints._onnx_convolutions import own_facts
from convsv.checkpoints._onnx_graph import Graph, Node, read_graph
from convsv.checkpoints._onnx_operations import OPERATORS, Taken, Told
from convsv.checkpoints._onnx_prepare import prepare
from convsv.checkpoints._onnx_strip import strip
from convsv.checkpoints._onnx_tensors import Beside, Values
from convsv.checkpoints._onnx_weights import Weight, find_operand, module_path, read_through
from convsv.checkpoints.naming import Names
from convsv.errors import CorruptCheckpointError, GeometryError, UnavailableError, error_context
from convsv.geometry import resolve
from convsv.graph import Constant, Network, Operation, Shape
from convsv.layer import ConvLayer

__all__ = ["read_network"]

_FLOATS = frozenset({1, 10, 11, 16})
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_WITHOUT_VALUES = ("Shape", "Size")
"""Operators that tell a value's shape only."""


def read_network(file: RegularFile) -> Network:
    """Return the graph of a model. No weight is read.

    Args:
        file: an ONNX file.

    Raises:
        CorruptCheckpointError: it is damaged.
        UnsafeCheckpointError: it is enormous even without its weights, or onnx cannot follow it.
    """
    with error_context(path=str(file.path)):
        stripped = strip(file)
        graph = read_graph(prepare(stripped.model, whole=True), stripped.tensors)
        return _Reader(graph, Beside(file)).network()


class _Reader:
    def __init__(self, graph: Graph, beside: Beside) -> None:
        self._graph, self._beside = graph, beside
        self._values: dict[str, str] = {}
        self._operations: list[Operation] = []
        self._names = Names()

    def network(self) -> Network:
        """Return the graph.

        Raises:
            CorruptCheckpointError: a node stands before one whose output it takes.
        """
        graph, inputs = self._graph, dict[str, Shape | None]()
        for name in graph.inputs:
            if name not in graph.tensors and graph.type_of(name) in _FLOATS:
                self._values[name] = self._unused(name)
                inputs[self._values[name]] = graph.dims_of(name)
        done: set[str] = set()
        for node in graph.nodes:
            early = [name for name in _taken(node) if name in graph.makers and name not in done]
            if early:
                raise CorruptCheckpointError("a node stands before what it depends on", found=printable(early[0]))
            if any(name in self._values for name in _taken(node)) and not node.is_a(*_WITHOUT_VALUES):
                self._add(node)
            done.update(node.outputs)
        outputs = {printable(name): self._values[name] for name in graph.outputs if name in self._values}
        return Network(inputs, tuple(self._operations), outputs)

    def _add(self, node: Node) -> None:
        """Add what a node does: an operation for each of its outputs, as far as it is concerned."""
        taken = tuple(self._values[name] for name in _taken(node) if name in self._values)
        for place, output in enumerate(node.outputs):
            if not output:
                continue
            name = self._unused(self._label(node, output))
            whole = Operation(name, "unknown", taken, self._graph.dims_of(output), called=printable(node.op))
            several = place > 0 and not node.is_a("Split")
            self._operations.append(replace(whole, kind="discrete") if several else self._translated(node, whole))
            self._values[output] = name

    def _translated(self, node: Node, whole: Operation) -> Operation:
        """Return an operation with what the rules need to know, ``unknown`` where the node contradicts itself."""
        own = node.is_a(node.op) and not node.graphs
        try:
            if own and node.is_a(*_CONVOLUTIONS):
                return self._convolution(node, whole)
            if not own or node.op not in OPERATORS:
                return whole
            told = OPERATORS[node.op](self._facts(node, whole.shape))
        except (GeometryError, UnavailableError, ArithmeticError, LookupError, TypeError, ValueError):
            return whole
        return self._told(node, whole, told)

    def _told(self, node: Node, whole: Operation, told: Told) -> Operation:
        places = {key: place for key, place in told.constants.items() if node.input(place)}
        return replace(
            whole,
            kind=told.kind,
            settings=told.settings,
            constants={key: self._constant(node.input(place)) for key, place in places.items()},
        )

    def _facts(self, node: Node, made: Shape | None) -> Taken:
        return Taken(
            node,
            self._graph,
            self._beside,
            tuple(name in self._values for name in node.inputs),
            tuple(self._graph.dims_of(name) for name in node.inputs),
            made,
            lambda place: self._constant(node.input(place)),
        )

    def _convolution(self, node: Node, whole: Operation) -> Operation:
        if any(name in self._values for name in node.inputs[1:]):
            return replace(whole, kind="computed_weight")
        weight = find_operand(self._graph, node.input(1), self._beside)
        if weight.shape is None or len(weight.shape) not in (3, 4, 5):
            return whole
        constant, taps = self._as_constant(weight), weight.shape[2:]
        facts = own_facts(self._graph, node, taps)
        # Without a size there is only the norm for any size: the size is then a guess, and is not looked at.
        geometry = resolve(taps, [("stored", facts)])
        problem = None if constant.read else constant.problem
        read = constant.read or _unread
        layer = ConvLayer(
            whole.name, printable(weight.key), weight.shape, weight.dtype, "OIK", geometry, read, problem=problem
        )
        return replace(whole, kind="conv", constants={"weight": constant}, layer=layer)

    # ----------------------------------------------------------------------------------------- constants and names

    def _constant(self, value: str) -> Constant:
        return self._as_constant(find_operand(self._graph, value, self._beside))

    def _as_constant(self, weight: Weight) -> Constant:
        key = printable(weight.key)
        if weight.tensor is None or weight.shape is None:
            problem = weight.problem or "its values are not in the file"
            return Constant(weight.shape, None, key, problem)
        with error_context(tensor=key):
            values = Values(weight.tensor, self._beside)
        if weight.problem or values.problem:
            return Constant(weight.shape, None, key, weight.problem or values.problem or "")
        read = partial(read_through, values, weight.steps, str(weight.tensor.file.path), key)
        return Constant(weight.shape, read, key)

    def _label(self, node: Node, output: str) -> str:
        return module_path(node.name, node.op) if node.name else output

    def _unused(self, name: str) -> str:
        return self._names.unused(printable(name))


def _taken(node: Node) -> Iterator[str]:
    """Yield the names of all values that a node takes, those of the graphs in it too."""
    yield from (name for name in node.inputs if name)
    for _, inner in node.graphs:
        yield from inner.uses


def _unread() -> NDArray[Any]:
    raise CorruptCheckpointError("a layer without values was read")

"""Where the weight of a convolution in an ONNX graph comes from: a stored tensor, perhaps seen from another side.

Exporters put nodes between an initializer and the convolution: Identity where two layers share it, Transpose and
Reshape where the framework orders axes otherwise, Cast where weights are stored in half precision. Those are followed.
Anything else computes the weight, and its values are not in the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints._content import printable
from convsv.checkpoints._onnx_graph import Graph, Node
from convsv.checkpoints._onnx_strip import MAX_RANK, TensorRecord
from convsv.checkpoints._onnx_tensors import DTYPES, Beside, Values, dtype_name
from convsv.errors import CheckpointError, error_context

__all__ = [
    "Step",
    "Weight",
    "find_operand",
    "find_tensor",
    "find_weight",
    "module_path",
    "read_through",
    "whole_numbers",
]

MAX_STEPS = 32
MAX_NUMBERS = 256
Shape: TypeAlias = tuple[int, ...]
_QUANTISED = {"QLinearConv": 3, "ConvInteger": 1}
"""Operators with a quantised weight -> which input it is."""


@dataclass(frozen=True)
class Step:
    """A node between a stored tensor and the convolution.

    Attributes:
        name: what it does, with its arguments: equal for equal steps.
        shape: the shape that it makes.
        apply: does it.
        dtype: the dtype that it makes, if another.
    """

    name: str
    shape: tuple[int, ...]
    apply: Callable[[NDArray[Any]], NDArray[Any]] = field(compare=False)
    dtype: np.dtype[Any] | None = None


@dataclass(frozen=True)
class Weight:
    """A weight.

    Attributes:
        key: its name: what the tensor is called behind the last step that changes it.
        value: what the convolution calls it.
        shape: its shape, None where nothing tells.
        dtype: its dtype.
        tensor: what is stored, None if nothing is.
        steps: what is done to that, in order.
        problem: why its values are not known, if so.
        path: the graph whose tensor it is.
    """

    key: str
    value: str
    shape: tuple[int, ...] | None
    dtype: str = ""
    tensor: TensorRecord | None = None
    steps: tuple[Step, ...] = ()
    problem: str | None = None
    path: tuple[str, ...] = ()


def find_weight(graph: Graph, node: Node, beside: Beside) -> Weight:
    """Follow the weight of a convolution back to where it is stored.

    Args:
        graph: the graph of the node.
        node: a convolution.
        beside: opens files beside the model.
    """
    place = _QUANTISED.get(node.op, 1)
    value = node.input(place)
    weight = _follow(graph, value, beside)
    if node.op in _QUANTISED and weight.shape is not None:
        return replace(weight, problem=f"its weights are quantised ({weight.dtype}, for {node.op})")
    return weight


def find_operand(graph: Graph, value: str, beside: Beside) -> Weight:
    """Follow whatever an operator takes back to where it is stored.

    Args:
        graph: the graph of the operator.
        value: what the operator calls it.
        beside: opens files beside the model.
    """
    return _follow(graph, value, beside)


def find_tensor(graph: Graph, name: str) -> tuple[TensorRecord, tuple[str, ...]] | None:
    """Return the stored tensor that a value is, and the path of its graph; None if it is none.

    Identity nodes are looked through.
    """
    for _ in range(MAX_STEPS):
        stored = _stored(graph, name)
        node = _maker(graph, name)
        if stored or node is None or not node.is_a("Identity"):
            return stored
        name = node.input(0)
    return None


def whole_numbers(graph: Graph, name: str, beside: Beside) -> tuple[int, ...] | None:
    """Return the values of a stored tensor of few whole numbers, None if it is none."""
    found = find_tensor(graph, name) if name else None
    if found is None or math.prod(found[0].dims) > MAX_NUMBERS:
        return None
    try:
        values = Values(found[0], beside).read()
    except CheckpointError:
        return None
    return tuple(int(n) for n in values.ravel()) if values.dtype.kind in "iu" else None


# ------------------------------------------------------------------------------------------------------- the way back


def _follow(graph: Graph, value: str, beside: Beside) -> Weight:
    """Walk from a value to a stored tensor, collecting the nodes in between; then apply them to its shape."""
    chain: list[Node] = []
    key = name = value
    for _ in range(MAX_STEPS):
        stored, node = _stored(graph, name), _maker(graph, name)
        if stored:
            tensor, path = stored
            weight = Weight(key, value, tensor.dims, dtype_name(tensor.code), tensor, path=path)
            return _with_steps(weight, [(step, graph, beside) for step in reversed(chain)])
        if node is None or not node.is_a("Identity", *_STEPS):
            break
        if not node.is_a("Identity"):
            chain.append(node)
            key = node.input(0)
        name = node.input(0)
    return _unknown(graph, value, name)


def _stored(graph: Graph, name: str) -> tuple[TensorRecord, tuple[str, ...]] | None:
    for scope in graph.around():
        if name in scope.tensors:
            return scope.tensors[name], scope.path
        node = scope.makers.get(name)
        if node is not None:
            tensor = node.attributes.get("value") if node.is_a("Constant") else None
            return (tensor, scope.path) if isinstance(tensor, TensorRecord) else None
    return None


def _maker(graph: Graph, name: str) -> Node | None:
    return next((scope.makers[name] for scope in graph.around() if name in scope.makers), None)


def _unknown(graph: Graph, value: str, name: str) -> Weight:
    """Return a weight whose values are not in the file; ``name`` is where the way back ended."""
    dims, node, dtype = graph.dims_of(value), _maker(graph, name), dtype_name(graph.type_of(value))
    if node is not None and node.is_a("DequantizeLinear"):
        quantised = find_tensor(graph, node.input(0))
        if quantised:
            dims, dtype = quantised[0].dims if value == name else dims, dtype_name(quantised[0].code)
        problem = f"its weights are quantised ({dtype}, with DequantizeLinear)"
    elif node is not None and node.is_a("ConstantOfShape"):
        problem = "its weight is filled with one number by ConstantOfShape: the file holds no values"
    elif node is not None:
        problem = f"its weight is computed by {printable(node.op)}: the file does not hold its values"
    elif any(name in scope.sparse for scope in graph.around()):
        problem = "its weight is a sparse tensor"
    elif any(name in scope.inputs for scope in graph.around()):
        problem = "its weight is an input of the graph: the file does not hold its values"
    else:
        problem = "its weight is defined nowhere in the graph"
    known = None if dims is None or None in dims else tuple(n for n in dims if n is not None)
    return Weight(value, value, known, dtype, problem=problem)


# --------------------------------------------------------------------------------------------------------------- steps


def _with_steps(weight: Weight, chain: Sequence[tuple[Node, Graph, Beside]]) -> Weight:
    for node, graph, beside in chain:
        assert weight.shape is not None
        step = _STEPS[node.op](weight.shape, node, graph, beside)
        if step is None:
            problem = f"its weight is computed by {node.op} in a way that is not read"
            return replace(weight, shape=None, problem=problem)
        weight = replace(
            weight, steps=(*weight.steps, step), shape=step.shape, dtype=step.dtype.name if step.dtype else weight.dtype
        )
    return weight


def _transpose(shape: Shape, node: Node, _: Graph, __: Beside) -> Step | None:
    order = node.ints("perm") or tuple(reversed(range(len(shape))))
    if sorted(order) != list(range(len(shape))):
        return None
    return Step(f"transpose {order}", tuple(shape[axis] for axis in order), lambda values: values.transpose(order))


def _reshape(shape: Shape, node: Node, graph: Graph, beside: Beside) -> Step | None:
    asked = node.ints("shape") or whole_numbers(graph, node.input(1), beside)
    if asked is None or any(n < -1 for n in asked) or asked.count(-1) > 1:
        return None
    keep = not node.integer("allowzero", 0)
    new = [shape[at] if n == 0 and keep and at < len(shape) else n for at, n in enumerate(asked)]
    known = math.prod(n for n in new if n != -1)
    return _reshaped(shape, tuple(math.prod(shape) // max(known, 1) if n == -1 else n for n in new))


def _squeeze(shape: Shape, node: Node, graph: Graph, beside: Beside) -> Step | None:
    axes = node.ints("axes") or whole_numbers(graph, node.input(1), beside)
    if axes is None:
        axes = tuple(axis for axis, n in enumerate(shape) if n == 1)
    gone = {axis % max(len(shape), 1) for axis in axes}
    return _reshaped(shape, tuple(n for axis, n in enumerate(shape) if axis not in gone))


def _unsqueeze(shape: Shape, node: Node, graph: Graph, beside: Beside) -> Step | None:
    axes = node.ints("axes") or whole_numbers(graph, node.input(1), beside) or ()
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes} if rank else set()
    rest = iter(shape)
    if len(new) != len(axes):
        return None
    return _reshaped(shape, tuple(1 if axis in new else next(rest) for axis in range(rank)))


def _reshaped(shape: Shape, new: Shape) -> Step | None:
    if math.prod(new) != math.prod(shape) or len(new) > MAX_RANK:
        return None
    return Step(f"reshape {new}", new, lambda values: values.reshape(new))


def _cast(shape: Shape, node: Node, _: Graph, __: Beside) -> Step | None:
    dtype = DTYPES.get(node.integer("to", 0))
    if dtype is None or dtype.kind in "cb":
        return None
    native = dtype.newbyteorder("=")

    def apply(values: NDArray[Any]) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(native)

    return Step(f"cast {dtype.name}", shape, apply, dtype)


_STEPS: Mapping[str, Callable[[Shape, Node, Graph, Beside], Step | None]] = {
    "Cast": _cast,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Operators that show a weight from another side: shape and node -> what they do, None where that is not read."""


# -------------------------------------------------------------------------------------------------- values and names


def read_through(values: Values, steps: Iterable[Step], path: str, key: str) -> NDArray[Any]:
    """Return a stored tensor, seen through some steps.

    Raises:
        CheckpointError: it could not be read.
    """
    with error_context(path=path, tensor=printable(key)):
        array = values.read()
        for step in steps:
            array = step.apply(array)
        return array


def module_path(name: str, op: str) -> str:
    """Return the module path that PyTorch's exporter writes into a node's name: ``/layer1/layer1.0/conv1/Conv``."""
    *scopes, last = name.strip("/").split("/")
    if not name.startswith("/") or not scopes or not re.fullmatch(re.escape(op) + r"(_\d+)?", last):
        return name
    path: list[str] = []
    for scope in scopes:
        if path and scope.startswith(path[-1] + "."):
            path[-1] = scope  # a child of a Sequential repeats its parent
        else:
            path.append(scope)
    return ".".join(path)

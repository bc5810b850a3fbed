"""The program that runs onnx's C++: it infers the shapes of a model without weights, and can crash or hang doing so.

Started by ``_onnx_prepare.py`` with the stripped model as an inherited descriptor, and with the limits of the child
that reads HDF5. It answers with the model as onnx leaves it: model-local functions inlined, whole numbers that follow
from constants computed (exporters write the amounts of a Pad as a dozen nodes), and the shapes that convolutions see.
"""

from __future__ import annotations

import importlib.util
import io
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any


def load_sibling(name: str) -> ModuleType:
    """Return a module beside this one, without the package that both are part of."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    from convsv.checkpoints import _hdf5_child as process
else:
    process = load_sibling("_hdf5_child")

ROUNDS = 4
MAX_ELEMENTS = 1024
PART = 1 << 20
SIZED = ("ConstantOfShape", "Shape")
FOLDED = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Identity", "Mul", "Neg", "Reshape", "Slice", "Squeeze", "Sub"}
    | {"Transpose", "Unsqueeze"}
)
"""Operators whose output is hardly larger than their inputs."""

Known = dict[str, Any]


def prepare(data: bytes, *, whole: bool = False) -> bytes:
    """Return a model with functions inlined, whole numbers folded and shapes inferred.

    Args:
        data: a ``ModelProto`` without weights.
        whole: keep the shapes of all values, for a batch of one; else only what convolutions take.
    """
    import onnx
    from onnx import inliner, shape_inference

    model = onnx.ModelProto.FromString(data)
    if model.functions:
        model = inliner.inline_local_functions(model)
    if whole:
        take_one(model.graph)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for _ in range(ROUNDS):
        model = shape_inference.infer_shapes(model, data_prop=True)
        if not fold(model.graph, {}, versions):
            break
    if not whole:
        prune(model.graph)
    answer: bytes = model.SerializeToString()
    return answer


def take_one(graph: Any) -> None:
    """Let a first dimension that an input leaves open be 1, and forget what the model says of other shapes."""
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    stored = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in stored and len(dims) > 1 and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1


def prune(graph: Any) -> None:
    """Drop the shapes of values that no convolution, and no Pad before one, takes."""
    wanted = set()
    for node in graph.node:
        if "Conv" in node.op_type or node.op_type == "Pad":
            wanted.update(node.input)
        for inner in subgraphs(node):
            prune(inner)
    kept = [value for value in graph.value_info if value.name in wanted]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def fold(graph: Any, outer: Mapping[str, Any], versions: Mapping[str, int]) -> bool:
    """Replace nodes whose outputs are few whole numbers that follow from constants; tell whether there were any."""
    from onnx import numpy_helper

    known: Known = {**outer, **dict(initial_values(graph))}
    shapes = dict(static_shapes(graph))
    kept, folded = [], False
    for node in graph.node:
        for inner in subgraphs(node):
            folded |= fold(inner, known, versions)
        values = constant_value(node) if node.op_type == "Constant" else computed(node, known, shapes, versions)
        if values is not None:
            known[node.output[0]] = values
        if values is None or node.op_type == "Constant":
            kept.append(node)
            continue
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        folded = True
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)
    return folded


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def initial_values(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield the initializers that are few whole numbers."""
    for tensor in graph.initializer:
        values = whole_numbers(tensor)
        if values is not None:
            yield tensor.name, values


def constant_value(node: Any) -> Any:
    """Return what a Constant node holds, if that is few whole numbers."""
    import numpy

    for attribute in node.attribute:
        if attribute.name == "value":
            return whole_numbers(attribute.t)
        if attribute.name == "value_int":
            return numpy.array(attribute.i, numpy.int64)
        if attribute.name == "value_ints" and len(attribute.ints) <= MAX_ELEMENTS:
            return numpy.array(attribute.ints, numpy.int64)
    return None


def whole_numbers(tensor: Any) -> Any:
    """Return the values of a tensor, if they are few whole numbers or truth values and were not stripped."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
        return None
    if math.prod(tensor.dims) > MAX_ELEMENTS:
        return None
    try:
        return numpy_helper.to_array(tensor)
    except Exception:  # noqa: BLE001 -- stripped, or damaged
        return None


def static_shapes(graph: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the values whose dimensions are all known."""
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        known = value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
        if known and len(dims) <= MAX_ELEMENTS:
            yield value.name, tuple(dim.dim_value for dim in dims)


def computed(node: Any, known: Known, shapes: Mapping[str, Any], versions: Mapping[str, int]) -> Any:
    """Return the output of a node, if that is few whole numbers that follow from constants."""
    import numpy

    wanted = {name for name in node.input if name}
    if node.op_type not in FOLDED.union(SIZED) or node.domain or len(node.output) != 1 or not wanted:
        return None
    if not wanted <= (shapes if node.op_type == "Shape" else known).keys():
        return None
    try:
        values = evaluated(node, known, shapes, versions)
    except Exception:  # noqa: BLE001 -- a node that cannot be computed is left as it is
        return None
    whole = isinstance(values, numpy.ndarray) and values.dtype in ("int64", "int32", "bool")
    return values if whole and values.size <= MAX_ELEMENTS else None


def evaluated(node: Any, known: Known, shapes: Mapping[str, Any], versions: Mapping[str, int]) -> Any:
    """Return the output of a node whose inputs are known."""
    import numpy
    from onnx.reference import ReferenceEvaluator

    feeds: dict[str, Any]
    if node.op_type == "Shape":
        # An array of that shape that takes no memory.
        feeds = {node.input[0]: numpy.broadcast_to(numpy.zeros((), numpy.int8), shapes[node.input[0]])}
    else:
        feeds = {str(name): known[name] for name in node.input if name}
    if node.op_type == "ConstantOfShape" and math.prod(map(int, known[node.input[0]].flat)) > MAX_ELEMENTS:
        return None
    axes = [tuple(attribute.ints) for attribute in node.attribute if attribute.name == "axes"]
    if axes and node.op_type in ("Squeeze", "Unsqueeze"):
        # Before version 13 the axes were an attribute, which onnx's own evaluator does not take.
        change = numpy.squeeze if node.op_type == "Squeeze" else numpy.expand_dims
        return change(known[node.input[0]], axes[0])
    outputs: Any = ReferenceEvaluator(node, opsets=dict(versions)).run(None, feeds)
    return outputs[0]


def main() -> None:
    """Answer."""
    descriptor, size = int(sys.argv[1]), int(sys.argv[2])
    sys.path += [folder for folder in sys.argv[3:] if folder not in sys.path]
    process.limit_resources()

    def handle(request: dict[str, Any]) -> None:
        from onnx import helper, inliner, shape_inference  # noqa: F401 -- imported as long as files can be opened
        from onnx.reference import ReferenceEvaluator

        # What onnx imports late it must have imported before nothing more can be opened.
        ReferenceEvaluator(helper.make_node("Identity", ["a"], ["b"])).run(None, {"a": [0]})
        data = io.BufferedReader(process.Span(descriptor, 0, size)).read()
        process.close_the_door()
        answer = prepare(data, whole=bool(request.get("whole")))
        for start in range(0, len(answer), PART):
            process.send(b"D", answer[start : start + PART])
        process.send(b"E")

    process.serve(handle)


if __name__ == "__main__":
    main()

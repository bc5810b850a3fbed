"""The convolutions of an ONNX graph, with their geometry: attributes, the Pad before them, inferred shapes.

Operators: https://onnx.ai/onnx/operators/onnx__Conv.html and onnx__ConvTranspose.html.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias, cast

from convsv.checkpoints import Normalisation
from convsv.checkpoints._content import printable
from convsv.checkpoints._onnx_graph import Graph, Node
from convsv.checkpoints._onnx_tensors import Beside, Values
from convsv.checkpoints._onnx_weights import Weight, find_tensor, find_weight, whole_numbers
from convsv.errors import CheckpointError
from convsv.geometry import GeometryFacts, PaddingSpec

__all__ = ["Call", "find_calls", "own_facts"]

_FUSED = {"FusedConv": "com.microsoft"}
"""A convolution with its activation, as ONNX Runtime writes it."""
_OPERATORS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")
_UNREAD: Mapping[str, str] = {
    "DeformConv": "a deformable convolution: its taps move with the input",
}
_MODES: Mapping[str, str] = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""Modes of a Pad -> padding modes."""
_AXES = (3, 4, 5)

Pairs: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Call:
    """A node that convolves.

    Attributes:
        node: the node.
        weight: what it convolves with.
        graph: the graph of the node.
        facts: its geometry.
        norm: the batch normalisation that alone takes its output.
        problem: why it is not read, if so.
    """

    node: Node
    weight: Weight
    graph: Graph = field(repr=False)
    facts: GeometryFacts
    norm: Normalisation | None = None
    problem: str | None = None


def find_calls(graph: Graph, beside: Beside) -> tuple[list[Call], list[str]]:
    """Return the convolutions of a graph and of those in it, in stored order.

    Args:
        graph: the outermost graph.
        beside: opens files beside the model.

    Returns:
        The calls whose weights have a known shape, and a line for each that has none.
    """
    calls, problems = [], []
    for scope in graph.inside():
        for node in scope.nodes:
            if "Conv" not in node.op:
                continue
            call = _call(scope, node, beside)
            if call.weight.shape is None or len(call.weight.shape) not in _AXES:
                problems.append(f"{_label(node)}: {_why_not_listed(call)}; this {printable(node.op)} is not listed")
            else:
                calls.append(call)
    return calls, problems


def _why_not_listed(call: Call) -> str:
    if call.weight.shape is not None:
        return f"its weight has shape {call.weight.shape}"
    return call.weight.problem or "the shape of its weight is not known"


def _label(node: Node) -> str:
    return printable(node.name or (node.outputs[0] if node.outputs else "a node without a name"))


def _call(graph: Graph, node: Node, beside: Beside) -> Call:
    known = node.is_a(*_OPERATORS) or _FUSED.get(node.op) == node.domain
    weight = find_weight(graph, node, beside)
    if not known:
        what = _UNREAD.get(node.op, f"an operator that is not read: {printable(node.op)} of {printable(node.domain)!r}")
        return Call(node, weight, graph, GeometryFacts(), problem=what)
    if weight.shape is None or len(weight.shape) not in _AXES:
        return Call(node, weight, graph, GeometryFacts())
    return Call(node, weight, graph, _facts(graph, node, weight.shape[2:], beside), _norm_behind(graph, node))


# ------------------------------------------------------------------------------------------------------------ geometry


def _facts(graph: Graph, node: Node, kernel: tuple[int, ...], beside: Beside) -> GeometryFacts:
    facts = own_facts(graph, node, kernel)
    return facts if facts.transposed else _with_pad_before(graph, node, kernel, facts, beside)


def own_facts(graph: Graph, node: Node, kernel: tuple[int, ...]) -> GeometryFacts:
    """Return the geometry of a node that convolves, without what a Pad before it adds.

    Args:
        graph: the graph of the node.
        node: a Conv or ConvTranspose.
        kernel: its spatial taps.
    """
    transposed = node.op == "ConvTranspose"
    ones = (1,) * len(kernel)
    facts = GeometryFacts(
        size=_size(graph, node.input(0), len(kernel)),
        stride=node.ints("strides") or ones,
        padding_mode="zeros",
        dilation=node.ints("dilations") or ones,
        groups=node.integer("group", 1),
        transposed=transposed,
        output_padding=(node.ints("output_padding") or (0,) * len(kernel)) if transposed else None,
    )
    if transposed:
        return _transposed(node, kernel, facts)
    return replace(facts, padding=_padding(node, kernel, facts))


def _size(graph: Graph, value: str, dims: int) -> tuple[int, ...] | None:
    found = graph.dims_of(value)
    spatial = found[2:] if found else ()
    known = tuple(n for n in spatial if n)
    return known if len(known) == len(spatial) == dims else None


def _padding(node: Node, kernel: tuple[int, ...], facts: GeometryFacts) -> PaddingSpec | None:
    """Return the padding of a forward convolution; None where it depends on a size that is not known."""
    auto = node.word("auto_pad", "NOTSET")
    if auto == "SAME_UPPER":
        return "same"
    if auto == "SAME_LOWER":
        totals = _same_totals(kernel, facts)
        return tuple((total - total // 2, total // 2) for total in totals) if totals else None
    if auto == "VALID":
        return ((0, 0),) * len(kernel)
    return _pairs(node.ints("pads") or (0,) * (2 * len(kernel)))


def _pairs(pads: tuple[int, ...]) -> Pairs:
    """Return ``(before, after)`` an axis of what ONNX writes as all that is before and then all that is after."""
    half = len(pads) // 2
    return tuple(zip(pads[:half], pads[half:], strict=False))


def _same_totals(kernel: tuple[int, ...], facts: GeometryFacts) -> tuple[int, ...] | None:
    """Return how much padding makes ceil(size / stride) outputs; at stride 1 that depends on no size."""
    stride, dilation = _axes(facts.stride), _axes(facts.dilation)
    size = facts.size if isinstance(facts.size, tuple) else None
    if len(stride) != len(kernel) or len(dilation) != len(kernel) or (size is None and max(stride) > 1):
        return None
    totals = []
    for n, k, s, d in zip(size or kernel, kernel, stride, dilation, strict=True):
        totals.append(max((-(-n // max(s, 1)) - 1) * s + d * (k - 1) + 1 - n, 0))
    return tuple(totals)


def _axes(value: object) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else ()


def _transposed(node: Node, kernel: tuple[int, ...], facts: GeometryFacts) -> GeometryFacts:
    """Return the padding of a transposed convolution, which may be told by the size of its output instead.

    An output that is larger than all taps reach is one with more output padding.
    """
    dims = len(kernel)
    auto, asked = node.word("auto_pad", "NOTSET"), node.ints("output_shape")
    stride, dilation, extra = _axes(facts.stride), _axes(facts.dilation), _axes(facts.output_padding)
    if asked is None and not auto.startswith("SAME"):
        pads = (0,) * (2 * dims) if auto == "VALID" else node.ints("pads") or (0,) * (2 * dims)
        return replace(facts, padding=_pairs(pads))
    size = facts.size if isinstance(facts.size, tuple) else None
    if {len(stride), len(dilation), len(extra)} != {dims} or (asked and (len(asked) < dims or size is None)):
        return facts
    padding, more = [], []
    for axis in range(dims):
        # Without an output shape it is size times stride, and the size cancels out.
        n = size[axis] if asked and size else 1
        wanted = asked[len(asked) - dims + axis] if asked else stride[axis]
        total = stride[axis] * (n - 1) + extra[axis] + dilation[axis] * (kernel[axis] - 1) + 1 - wanted
        less = max(total, 0) // 2
        pair = (less, max(total, 0) - less)
        padding.append(pair if auto == "SAME_UPPER" else pair[::-1])
        more.append(extra[axis] + max(-total, 0))
    return replace(facts, padding=tuple(padding), output_padding=tuple(more))


# --------------------------------------------------------------------------------------------------------- neighbours


def _with_pad_before(
    graph: Graph, node: Node, kernel: tuple[int, ...], facts: GeometryFacts, beside: Beside
) -> GeometryFacts:
    """Return the geometry together with the Pad whose output the convolution alone takes, if there is one.

    The size is then that of the Pad's input.
    """
    pad, own = graph.makers.get(node.input(0)), _explicit(kernel, facts)
    if pad is None or not pad.is_a("Pad") or graph.only_taker(node.input(0)) is not node or own is None:
        return facts
    amounts = _pad_amounts(graph, pad, len(kernel), beside)
    mode = _MODES.get(pad.word("mode", "constant"))
    if amounts is None or mode is None or not any(map(any, amounts)):
        return facts
    if not _pads_with_zero(graph, pad, beside) if mode == "zeros" else any(map(any, own)):
        return facts
    size = _size(graph, pad.input(0), len(kernel))
    if size is None and isinstance(facts.size, tuple):
        size = tuple(n - before - after for n, (before, after) in zip(facts.size, amounts, strict=True))
    both = tuple((a + c, b + d) for (a, b), (c, d) in zip(amounts, own, strict=True))
    return replace(facts, size=size, padding=both, padding_mode=mode)


def _explicit(kernel: tuple[int, ...], facts: GeometryFacts) -> Pairs | None:
    """Return the convolution's own padding in numbers; None where they depend on a size that is not known."""
    if facts.padding == "same":
        totals = _same_totals(kernel, facts)
        return tuple((total // 2, total - total // 2) for total in totals) if totals else None
    pairs = facts.padding if isinstance(facts.padding, tuple) and len(facts.padding) == len(kernel) else None
    return cast("Pairs | None", pairs)


def _pad_amounts(graph: Graph, pad: Node, dims: int, beside: Beside) -> Pairs | None:
    """Return what a Pad adds to the spatial axes; None if it is not known, crops, or pads other axes too."""
    numbers = pad.ints("pads") or pad.ints("paddings") or whole_numbers(graph, pad.input(1), beside)
    rank = dims + 2
    axes = tuple(range(rank))
    if pad.input(3):
        chosen = whole_numbers(graph, pad.input(3), beside)
        axes = tuple(axis % rank for axis in chosen) if chosen is not None else ()
    if numbers is None or len(numbers) != 2 * len(axes) or min(numbers, default=0) < 0 or not numbers:
        return None
    by_axis = dict(zip(axes, _pairs(numbers), strict=True))
    if any(any(by_axis.get(axis, (0, 0))) for axis in (0, 1)):
        return None
    return tuple(by_axis.get(axis, (0, 0)) for axis in range(2, rank))


def _pads_with_zero(graph: Graph, pad: Node, beside: Beside) -> bool:
    if pad.attributes.get("value", 0.0) != 0.0:
        return False
    if not pad.input(2):
        return True
    found = find_tensor(graph, pad.input(2))
    try:
        return found is not None and not Values(found[0], beside).read().any()
    except CheckpointError:
        return False


def _norm_behind(graph: Graph, node: Node) -> Normalisation | None:
    """Return the batch normalisation in inference that alone takes a convolution's output."""
    after = graph.only_taker(node.outputs[0]) if node.outputs else None
    if after is None or not after.is_a("BatchNormalization") or after.input(0) != node.outputs[0]:
        return None
    if after.integer("training_mode", 0) or len([name for name in after.outputs if name]) > 1:
        return None
    scale, variance = after.input(1), after.input(4)
    if find_tensor(graph, scale) is None or find_tensor(graph, variance) is None:
        return None
    epsilon = after.attributes.get("epsilon", 1e-5)
    name = re.sub(r"\.running_var$", "", variance) if variance.endswith(".running_var") else after.name or variance
    return Normalisation(name, variance, scale, epsilon if isinstance(epsilon, float) else 1e-5)

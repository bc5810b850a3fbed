"""What ONNX's operators mean to the rules of a network: kind, settings and constants of one node.

An operator is one entry of :data:`OPERATORS`. What has no entry is ``unknown`` to the rules, and the network has no
bound: nothing is guessed. The operators: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from convsv.checkpoints._onnx_graph import Graph, Node
from convsv.checkpoints._onnx_tensors import Beside
from convsv.checkpoints._onnx_weights import whole_numbers
from convsv.graph import Constant, Shape

__all__ = ["OPERATORS", "Taken", "Told"]

_FLOATS = frozenset({1, 10, 11, 16})
"""Data types that a Cast may make without jumping: float, half, double, bfloat16."""


@dataclass(frozen=True)
class Told:
    """What a node means.

    Attributes:
        kind: which rule is about it.
        settings: numbers and words, by the rule's names.
        constants: the rule's name -> which input it is.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, int] = field(default_factory=dict)


UNKNOWN = Told("unknown")


@dataclass(frozen=True)
class Taken:
    """A node, and what is known about what it takes.

    Attributes:
        node: the node.
        graph: its graph.
        beside: opens files beside the model.
        depends: for each input, whether it depends on the network's.
        shapes: for each input its shape.
        made: shape of the first output.
        constant: returns an input that does not depend on the network's.
    """

    node: Node
    graph: Graph
    beside: Beside
    depends: tuple[bool, ...]
    shapes: tuple[Shape | None, ...]
    made: Shape | None
    constant: Callable[[int], Constant]

    @property
    def only_first(self) -> bool:
        """Whether nothing but the first input depends on the network's."""
        return self.depends[:1] == (True,) and not any(self.depends[1:])

    def number(self, name: str, default: float) -> float:
        """Return an attribute that is a number."""
        value = self.node.attributes.get(name, default)
        return float(value) if isinstance(value, (int, float)) else default

    def integers(self, attribute: str, place: int) -> tuple[int, ...] | None:
        """Return whole numbers that are an attribute, or in later versions an input."""
        given = self.node.ints(attribute)
        return whole_numbers(self.graph, self.node.input(place), self.beside) if given is None else given

    def scalar(self, place: int) -> float | None:
        """Return an input that is one number; None where it is not one, or not known."""
        constant = self.constant(place)
        if constant.read is None or constant.size != 1:
            return None
        return float(constant.values().reshape(()))


Translate: TypeAlias = Callable[[Taken], Told]


def _kind(kind: str, **settings: tuple[str, float]) -> Translate:
    """Return a translation of a function of one value, with numbers: the rule's name -> (attribute, default)."""

    def translate(taken: Taken) -> Told:
        if not taken.only_first:
            return UNKNOWN
        return Told(kind, {name: taken.number(*told) for name, told in settings.items()})

    return translate


# ------------------------------------------------------------------------------------------------- weights and scales


def _gemm(taken: Taken) -> Told:
    left, right = (*taken.depends, False)[:2]
    if any(taken.depends[2:]) or left == right:
        return Told("product") if left and right else UNKNOWN
    # Of a batch whose rows are inputs, the weight's rows are outputs: as PyTorch writes it.
    alpha, plain = taken.number("alpha", 1.0), left and taken.node.integer("transB", 0) == 1
    settings = {"factor": alpha, "transposed": not plain or alpha != 1 or bool(taken.node.integer("transA", 0))}
    return Told("linear", settings, {"weight": 1 if left else 0})


def _matmul(taken: Taken) -> Told:
    if all(taken.depends):
        return Told("product")
    return Told("linear", {"transposed": True}, {"weight": 1 if taken.depends[0] else 0})


def _prelu(taken: Taken) -> Told:
    return Told("prelu", {}, {"weight": 1}) if taken.only_first else UNKNOWN


def _selu(taken: Taken) -> Told:
    usual = not {"alpha", "gamma"} & taken.node.attributes.keys()
    near = abs(taken.number("alpha", 1.67326) - 1.67326) < 1e-5 and abs(taken.number("gamma", 1.0507) - 1.0507) < 1e-5
    return Told("selu") if usual or near else UNKNOWN


def _celu(taken: Taken) -> Told:
    return Told("celu") if taken.number("alpha", 1.0) > 0 else UNKNOWN


def _batch_norm(taken: Taken) -> Told:
    node = taken.node
    if not taken.only_first or node.integer("spatial", 1) != 1:
        return UNKNOWN
    if node.integer("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
        return Told("own_statistics")
    return Told("batch_norm", {"epsilon": taken.number("epsilon", 1e-5)}, {"scale": 1, "variance": 4})


def _centred(taken: Taken) -> Told:
    settings = {"epsilon": taken.number("epsilon", 1e-5)}
    return Told("centred_norm", settings, {"scale": 1}) if taken.only_first else UNKNOWN


# ---------------------------------------------------------------------------------------------------- several values


def _add(taken: Taken) -> Told:
    count = sum(taken.depends)
    constants = {"term": taken.depends.index(False)} if len(taken.depends) == 2 and count == 1 else {}
    return Told("add", {"weights": (1.0,) * count}, constants)


def _subtract(taken: Taken) -> Told:
    return Told("add", {"weights": (1.0,) * sum(taken.depends)})


def _multiply(taken: Taken) -> Told:
    if all(taken.depends):
        return Told("product")
    return Told("scale", {}, {"factor": taken.depends.index(False)})


def _divide(taken: Taken) -> Told:
    if taken.depends[1]:
        return Told("product") if taken.depends[0] else UNKNOWN
    return Told("scale", {"divides": True}, {"factor": 1})


def _joined(kind: str) -> Translate:
    return lambda taken: Told(kind)


# ----------------------------------------------------------------------------------------------------------- pooling


def _windows(taken: Taken) -> dict[str, Any] | None:
    kernel = taken.node.ints("kernel_shape")
    if kernel is None or not taken.only_first or min(kernel, default=0) < 1:
        return None
    stride = taken.node.ints("strides") or (1,) * len(kernel)
    dilation = taken.node.ints("dilations") or (1,) * len(kernel)
    fits = len(stride) == len(dilation) == len(kernel) and min((*stride, *dilation)) > 0
    return {"kernel": kernel, "stride": stride, "dilation": dilation} if fits else None


def _max_pool(taken: Taken) -> Told:
    settings = _windows(taken)
    return Told("max_pool", settings) if settings else UNKNOWN


def _average_pool(taken: Taken) -> Told:
    settings, node = _windows(taken), taken.node
    if not settings or max(settings["dilation"]) > 1:
        return UNKNOWN
    kernel, auto = settings["kernel"], node.word("auto_pad", "NOTSET")
    pads = node.ints("pads") or (0,) * (2 * len(kernel))
    if auto not in ("NOTSET", "VALID", "") or len(pads) != 2 * len(kernel) or min(pads) < 0:
        return UNKNOWN
    half = len(kernel)
    return Told(
        "average_pool",
        {
            **settings,
            "padding": tuple(zip(pads[:half], pads[half:], strict=True)) if auto != "VALID" else ((0, 0),) * half,
            "counts_padding": node.integer("count_include_pad", 0) == 1,
            "ceil": node.integer("ceil_mode", 0) == 1,
        },
    )


def _global(kind: str) -> Translate:
    def translate(taken: Taken) -> Told:
        shape = taken.shapes[0]
        return Told(kind, {"axes": tuple(range(2, len(shape)))}) if shape else Told("maximum")

    return translate


def _reduction(kind: str) -> Translate:
    def translate(taken: Taken) -> Told:
        axes, shape = taken.integers("axes", 1), taken.shapes[0]
        if not taken.only_first or (axes is None and taken.node.input(1)):
            return UNKNOWN
        if not axes:
            return Told("identity") if taken.node.integer("noop_with_empty_axes", 0) else Told(kind, {"axes": None})
        if shape is None:
            return Told(kind) if kind in ("maximum", "logsumexp") else UNKNOWN
        return Told(kind, {"axes": tuple(dict.fromkeys(axis % len(shape) for axis in axes))})

    return translate


# ------------------------------------------------------------------------------------------------------------- shapes


def _moved(taken: Taken) -> Told:
    return Told("reshape") if taken.only_first else UNKNOWN


def _cast(taken: Taken) -> Told:
    return Told("identity" if taken.node.integer("to", 0) in _FLOATS else "discrete")


def _dropout(taken: Taken) -> Told:
    if taken.node.input(2) and taken.scalar(2) != 0:
        return Told("random")
    return Told("identity") if taken.only_first else UNKNOWN


def _expand(taken: Taken) -> Told:
    return Told("expand") if taken.only_first else UNKNOWN


def _gather(taken: Taken) -> Told:
    axis, shape = taken.node.integer("axis", 0), taken.shapes[0]
    if not taken.only_first or shape is None:
        return UNKNOWN
    return Told("gather", {"axis": axis % len(shape)}, {"places": 1})


_PAD_MODES: Mapping[str, str] = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(taken: Taken) -> Told:
    numbers = taken.node.ints("pads") or taken.node.ints("paddings") or taken.integers("pads", 1)
    mode, shape = _PAD_MODES.get(taken.node.word("mode", "constant")), taken.shapes[0]
    if numbers is None or mode is None or shape is None or not taken.only_first:
        return UNKNOWN
    axes = tuple(range(len(shape)))
    if taken.node.input(3):
        axes = tuple(axis % len(shape) for axis in whole_numbers(taken.graph, taken.node.input(3), taken.beside) or ())
    half = len(axes)
    if not half or len(numbers) != 2 * half:
        return UNKNOWN
    by_axis = dict(zip(axes, zip(numbers[:half], numbers[half:], strict=True), strict=True))
    return Told("pad", {"mode": mode, "amounts": tuple(by_axis.get(axis, (0, 0)) for axis in range(len(shape)))})


_EXACT_PLACES = frozenset({
    ("asymmetric", "floor"),
    *((mode, f"round_prefer_{side}") for mode in ("half_pixel", "pytorch_half_pixel") for side in ("floor", "ceil")),
})  # fmt: skip
"""(coordinates, rounding) by which every place is copied as often, where the size becomes a multiple."""


def _resize(taken: Taken) -> Told:
    node, given, made = taken.node, taken.shapes[0], taken.made
    word = node.word("mode", "nearest")
    if node.op == "Upsample":
        how = ("asymmetric", "floor")
    else:
        how = (
            node.word("coordinate_transformation_mode", "half_pixel"),
            node.word("nearest_mode", "round_prefer_floor"),
        )
    plain = word == "nearest" and how in _EXACT_PLACES and taken.only_first and not node.integer("antialias", 0)
    if not plain or given is None or made is None or len(given) != len(made) or node.ints("axes"):
        return UNKNOWN
    scales = _scales(taken)
    for n, m, scale in zip(given, made, scales or (None,) * len(given), strict=True):
        if n is None or m is None or m % max(n, 1) or (scale is not None and scale * n != m):
            return UNKNOWN
    return Told("nearest")


def _scales(taken: Taken) -> tuple[float, ...] | None:
    """Return the scales that are given; None where the sizes are."""
    place = 1 if taken.node.op == "Upsample" else 2
    if not taken.node.input(place):
        return None
    constant = taken.constant(place)
    values = tuple(float(scale) for scale in constant.values().ravel()) if (constant.size or 64) < 64 else ()
    return values or None


def _log_softmax(taken: Taken) -> Told:
    shape = taken.shapes[0]
    axis = taken.node.attributes.get("axis")
    if shape is None or not taken.only_first or not (axis is None or isinstance(axis, int)):
        return UNKNOWN
    # Before version 13 it runs over all axes from this one on, which was 1 unless told.
    sizes = shape[(1 if axis is None else axis % len(shape)) :]
    return UNKNOWN if None in sizes else Told("log_softmax", {"count": math.prod(n for n in sizes if n is not None)})


def _gelu(taken: Taken) -> Told:
    return Told("gelu_tanh" if taken.node.word("approximate", "none") == "tanh" else "gelu")


# -------------------------------------------------------------------------------------------------------------- table

_SAME_NAME = (
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Softsign",
    "Sin",
    "Cos",
    "Atan",
    "Erf",
    "Abs",
    "HardSwish",
    "Mish",
)

OPERATORS: Mapping[str, Translate] = {
    **{name: _kind(name.lower()) for name in _SAME_NAME},
    "Neg": _kind("negative"),
    "LeakyRelu": _kind("leaky_relu", negative_slope=("alpha", 0.01)),
    "Elu": _kind("elu", alpha=("alpha", 1.0)),
    "Celu": _celu,
    "Selu": _selu,
    "HardSigmoid": _kind("hardsigmoid", alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "Gelu": _gelu,
    "Clip": _kind("clamp"),
    "PRelu": _prelu,
    "Softmax": _kind("softmax"),
    "LogSoftmax": _log_softmax,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("InstanceNormalization", "LayerNormalization", "GroupNormalization"), _centred),
    "Add": _add,
    "Sum": _subtract,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Max": _joined("extreme"),
    "Min": _joined("extreme"),
    "Concat": _joined("concat"),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("maximum"),
    "ReduceMean": _reduction("mean"),
    "ReduceSum": _reduction("sum"),
    "ReduceMax": _reduction("maximum"),
    "ReduceMin": _reduction("maximum"),
    "ReduceLogSumExp": _reduction("logsumexp"),
    **dict.fromkeys(
        ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth"), _moved
    ),
    "Slice": _moved,
    "Split": _moved,
    "Identity": _kind("identity"),
    "Cast": _cast,
    "Dropout": _dropout,
    "Expand": _expand,
    "Tile": _expand,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    **dict.fromkeys(("LSTM", "GRU", "RNN", "Scan", "Loop"), _joined("recurrence")),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _joined("attention")),
    **dict.fromkeys(("Exp", "Log", "Sqrt", "Reciprocal", "Tan", "Sinh", "Cosh"), _joined("steep")),
    "LpNormalization": _joined("unit_length"),
}
"""Operator -> what translates a node of it."""

"""The shape that comes out of a Keras layer, by its class and its configuration: shape inference without Keras.

A rule is an entry of :data:`RULES`, by class name. It never guesses: what it cannot tell is unknown, a length or the
whole shape, and a class without a rule has outputs of which nothing is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from convsv.checkpoints._keras_layer import LARGEST, MAX_RANK, Length, Shape, first_of, is_channels_first, padding_of
from convsv.checkpoints._keras_spatial import (
    SPATIAL_RULES,
    Call,
    Known,
    UnknownShapeError,
    conv_length,
    extents_of,
    image_of,
    positive_of,
)

__all__ = ["RULES", "output_shapes"]


def output_shapes(call: Call) -> tuple[Shape, ...]:
    """Return the shapes of what a layer returns, as far as they are known.

    Args:
        call: what it is applied to.
    """
    rule = RULES.get(call.class_name)
    try:
        shapes = rule(call) if rule else None
    except UnknownShapeError:
        shapes = None
    return tuple(map(_believed, shapes)) if isinstance(shapes, list) else (_believed(shapes),)


def _believed(shape: Shape) -> Shape:
    if shape is None or len(shape) > MAX_RANK or any(n is not None and n < 1 for n in shape):
        return None
    return tuple(n if n is not None and n < LARGEST else None for n in shape)


# ------------------------------------------------------------------------------------------------------ rearranging


def _product(lengths: Iterable[Length]) -> Length:
    known = list(lengths)
    return None if None in known else math.prod(n for n in known if n is not None)


def _flattened(call: Call) -> Shape:
    return (call.x[0], _product(call.x[1:]))


def _reshaped(call: Call) -> Shape:
    target = call.config.get("target_shape")
    if not isinstance(target, list) or len(target) > MAX_RANK:
        raise UnknownShapeError
    if not all(type(n) is int and (n == -1 or 0 < n < LARGEST) for n in target):
        raise UnknownShapeError
    total, rest, free = _product(call.x[1:]), math.prod(n for n in target if n != -1), target.count(-1)
    if free > 1 or (total is not None and (total % rest or (not free and total != rest))):
        raise UnknownShapeError
    return (call.x[0], *(n if n != -1 else None if total is None else total // rest for n in target))


def _permuted(call: Call) -> Shape:
    order = call.config.get("dims")
    if not isinstance(order, list) or not all(type(n) is int for n in order):
        raise UnknownShapeError
    if sorted(order) != list(range(1, len(call.x))):
        raise UnknownShapeError
    return (call.x[0], *(call.x[n] for n in order))


def _repeated(call: Call) -> Shape:
    if len(call.x) != 2:
        raise UnknownShapeError
    return (call.x[0], positive_of(call.config, "n"), call.x[1])


def _dense(call: Call) -> Shape:
    return (*call.x[:-1], positive_of(call.config, "units", "output_dim"))


def _embedded(call: Call) -> Shape:
    return (*call.x, positive_of(call.config, "output_dim"))


# ---------------------------------------------------------------------------------------------------------- merging


def _same(call: Call) -> Shape:
    return call.x


def _attended(call: Call) -> Shape:
    if call.config.get("output_shape") is not None:
        raise UnknownShapeError
    return call.x


def _added(call: Call) -> Shape:
    # An operation on corresponding entries; inputs of length 1 are repeated.
    shapes = [shape for shape in call.inputs if shape is not None]
    if not shapes or call.arrays or len(shapes) < len(call.inputs) or len({len(shape) for shape in shapes}) > 1:
        raise UnknownShapeError
    return tuple(_broadcast(lengths) for lengths in zip(*shapes, strict=True))


def _broadcast(lengths: Sequence[Length]) -> Length:
    long = {n for n in lengths if n is not None and n > 1}
    if len(long) > 1:
        raise UnknownShapeError
    return long.pop() if long else None if None in lengths else 1


def _averaged(call: Call) -> Shape:
    # An operation of this name has one input, and takes the mean along an axis.
    if len(call.inputs) < 2:
        raise UnknownShapeError
    return _added(call)


def _concatenated(call: Call) -> Shape:
    shapes = [shape for shape in call.inputs if shape is not None]
    axis = first_of(call.config, "axis", "concat_axis")
    axis = -1 if axis is None else axis
    if not shapes or type(axis) is not int or len({len(shape) for shape in shapes}) > 1:
        raise UnknownShapeError
    rank = len(shapes[0])
    if not -rank <= axis < rank or call.arrays:
        raise UnknownShapeError
    columns = [next((n for n in lengths if n is not None), None) for lengths in zip(*shapes, strict=True)]
    lengths = [shape[axis] if shape else None for shape in call.inputs]
    columns[axis] = None if None in lengths else sum(n for n in lengths if n is not None)
    return tuple(columns)


def _merged(call: Call) -> Shape:
    # Keras 1's, whose mode says which.
    mode = call.config.get("mode")
    rules = {"concat": _concatenated, "sum": _added, "mul": _added, "ave": _added, "max": _added}
    rule = rules.get(mode) if isinstance(mode, str) else None
    if rule is None:
        raise UnknownShapeError
    return rule(call)


_ELEMENTWISE = re.compile(
    r"(tf\.|math\.|nn\.|__operators__\.|keras\.activations\.)*"
    r"(add|subtract|sub|multiply|mul|truediv|divide|maximum|minimum|relu6?|leaky_relu|elu|selu|gelu|sigmoid|tanh|swish|silu"
    r"|hard_sigmoid|softplus|abs|square|sqrt|exp|cast|identity)"
)
_NODE = re.compile(r"Add(V2)?|Sub|Mul|RealDiv|Maximum|Minimum|Relu6?|LeakyRelu|Elu|Selu|Sigmoid|Tanh|Abs|Square|Cast")


def _tensorflow(call: Call) -> Shape:
    # TensorFlow's own operations on corresponding entries, as Keras 2 stores them.
    function, node, constants = (call.config.get(key) for key in ("function", "node_def", "constants"))
    name = function if function is not None else node.get("op") if isinstance(node, dict) else None
    known = _NODE if function is None else _ELEMENTWISE
    if not isinstance(name, str) or not known.fullmatch(name):
        raise UnknownShapeError
    if isinstance(constants, dict) and any(isinstance(value, (list, dict)) for value in constants.values()):
        raise UnknownShapeError
    return _added(call)


# --------------------------------------------------------------------------------------------------------- recurrent


def _recurrent(call: Call) -> list[Shape]:
    if len(call.x) != 3:
        raise UnknownShapeError
    return _sequence(call, (positive_of(call.config, "units", "output_dim"),))


def _convolved_recurrent(call: Call) -> list[Shape]:
    image = image_of((call.x[0], *call.x[2:]), call.dims, first=is_channels_first(call.config))
    extents, stride = extents_of(call.config, call.dims)
    axes = zip(image.spatial, extents, stride, strict=True)
    lengths = [conv_length(n, e, s, padding_of(call.config)) for n, e, s in axes]
    return _sequence(call, image.shape(lengths, positive_of(call.config, "filters", "nb_filter"))[1:])


def _sequence(call: Call, one: Known) -> list[Shape]:
    batch, steps, *_ = call.x
    whole = call.config.get("return_sequences") is True
    states = 0 if call.config.get("return_state") is not True else 2 if "LSTM" in call.class_name else 1
    return [(batch, steps, *one) if whole else (batch, *one), *([(batch, *one)] * states)]


Rule: TypeAlias = Callable[[Call], "Shape | list[Shape]"]

_SHAPE_KEEPING = re.findall(
    r"\w+",
    """
    Activation ReLU LeakyReLU PReLU ELU ThresholdedReLU Softmax SReLU ParametricSoftplus Identity Masking
    BatchNormalization LayerNormalization GroupNormalization UnitNormalization RMSNormalization
    InstanceNormalization Normalization Rescaling Dropout GaussianDropout GaussianNoise AlphaDropout
    SpatialDropout1D SpatialDropout2D SpatialDropout3D ActivityRegularization RandomFlip RandomRotation
    RandomTranslation RandomZoom RandomContrast RandomBrightness RandomHue RandomSaturation RandomColorJitter
    RandomColorDegeneration RandomGrayscale RandomPosterization RandomInvert RandomPerspective
    RandomGaussianBlur RandomSharpness RandomElasticTransform RandomShear RandomErasing AutoContrast
    Equalization Solarization
    """,
)

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_SHAPE_KEEPING, _same),
    **SPATIAL_RULES,
    "Flatten": _flattened,
    "Reshape": _reshaped,
    "Permute": _permuted,
    "RepeatVector": _repeated,
    "Dense": _dense,
    "Embedding": _embedded,
    "MultiHeadAttention": _attended,
    **dict.fromkeys(("Add", "Subtract", "Multiply", "Maximum", "Minimum"), _added),
    "Average": _averaged,
    "Concatenate": _concatenated,
    "Merge": _merged,
    **dict.fromkeys(("TFOpLambda", "TensorFlowOpLayer"), _tensorflow),
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU"), _recurrent),
    **{f"ConvLSTM{d}D": _convolved_recurrent for d in (1, 2, 3)},
}
"""What comes out of a layer, by its class: one shape, or a list of several."""

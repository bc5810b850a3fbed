"""The shapes that Keras' layers of images leave: convolutions, pooling, padding, resizing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from convsv.checkpoints._keras_layer import (
    CONVOLUTIONS,
    LARGEST,
    Config,
    Length,
    Shape,
    axes_of,
    dilation_of,
    first_of,
    is_channels_first,
    kernel_size_of,
    padding_of,
    stride_of,
)

__all__ = [
    "SPATIAL_RULES",
    "Call",
    "Image",
    "Known",
    "UnknownShapeError",
    "conv_length",
    "extents_of",
    "image_of",
    "positive_of",
    "spatial_of",
]

Known: TypeAlias = tuple[Length, ...]
"""A shape of which at least the number of axes is known."""


class UnknownShapeError(Exception):
    """The shape cannot be told."""


@dataclass(frozen=True)
class Call:
    """One application of a layer.

    Attributes:
        class_name: last part of its class's name.
        config: its own configuration.
        inputs: shapes of the tensors it is applied to.
        arrays: whether arrays of constants are among its arguments.
    """

    class_name: str
    config: Config
    inputs: tuple[Shape, ...]
    arrays: bool = False

    @property
    def x(self) -> Known:
        """The shape of the first input.

        Raises:
            UnknownShapeError: nothing is known of it.
        """
        shape = self.inputs[0] if self.inputs else None
        if not shape:  # without a batch axis it is none
            raise UnknownShapeError
        return shape

    @property
    def dims(self) -> int:
        """The number of spatial axes, by the name of the class."""
        found = re.search(r"([123])D", self.class_name)
        return int(found[1]) if found else 2

    @property
    def image(self) -> Image:
        """The first input, its channels and spatial axes told apart."""
        return image_of(self.x, self.dims, first=is_channels_first(self.config))


@dataclass(frozen=True)
class Image:
    """The shape of a batch of images: what stands before them, their spatial lengths, their channels."""

    batch: Known
    spatial: Known
    channels: Length
    first: bool

    def shape(self, spatial: Iterable[Length], channels: Length) -> Known:
        """Return the shape with other lengths and channels."""
        if self.first:
            return (*self.batch, channels, *spatial)
        return (*self.batch, *spatial, channels)


def image_of(shape: Known, dims: int, *, first: bool) -> Image:
    """Return a shape taken apart.

    Args:
        shape: shape with the batch.
        dims: number of spatial axes.
        first: whether the channels stand before them.

    Raises:
        UnknownShapeError: it has too few axes.
    """
    if len(shape) < dims + 2 or (first and len(shape) != dims + 2):
        raise UnknownShapeError
    if first:
        return Image(shape[:1], shape[2:], shape[1], first)
    return Image(shape[: -1 - dims], shape[-1 - dims : -1], shape[-1], first)


def spatial_of(shape: Shape, dims: int, config: Config) -> tuple[int, ...] | None:
    """Return the spatial lengths of a layer's input, or None where one is not known.

    Args:
        shape: shape of the input.
        dims: number of spatial axes.
        config: the layer's own configuration, which says where the channels stand.
    """
    try:
        lengths = image_of(shape, dims, first=is_channels_first(config)).spatial if shape else ()
    except UnknownShapeError:
        return None
    known = tuple(n for n in lengths if n is not None)
    return known if len(known) == dims else None


# ----------------------------------------------------------------------------------------- convolutions and pooling


def conv_length(n: Length, extent: int, stride: int, padding: object) -> Length:
    """Return the length that a window leaves of an axis.

    Args:
        n: length of the axis, None where it is not known.
        extent: taps of the window, with the gaps between them.
        stride: its step.
        padding: by Keras' name.

    Raises:
        UnknownShapeError: another kind of padding, or nothing is left.
    """
    if n is None:
        return None
    windows = {"valid": n - extent, "same": n - 1, "causal": n - 1, "full": n + extent - 2}
    last = windows.get(padding) if isinstance(padding, str) else None
    if last is None or last < 0:
        raise UnknownShapeError
    return last // stride + 1


def _transposed_length(n: Length, extent: int, stride: int, padding: object, extra: int | None) -> Length:
    # The rule of Keras' deconv_output_length.
    if n is None:
        return None
    if padding not in ("same", "valid"):
        raise UnknownShapeError
    if extra is not None:
        return (n - 1) * stride + extent - (2 * (extent // 2) if padding == "same" else 0) + extra
    return n * stride + (max(extent - stride, 0) if padding == "valid" else 0)


def extents_of(config: Config, dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the extents of a convolution's taps, with the gaps between them, and its stride.

    Args:
        config: the configuration of a convolution.
        dims: number of spatial axes.

    Raises:
        UnknownShapeError: it does not say both.
    """
    taps, stride = kernel_size_of(config, dims), stride_of(config, dims)
    if taps is None or stride is None:
        raise UnknownShapeError
    return tuple(d * (k - 1) + 1 for k, d in zip(taps, dilation_of(config, dims), strict=True)), stride


def positive_of(config: Config, *names: str) -> Length:
    """Return the first of these entries that is there, None where it is no positive number."""
    value = first_of(config, *names)
    return value if type(value) is int and 0 < value < LARGEST else None


def _convolved(call: Call) -> Shape:
    image, (extents, stride) = call.image, extents_of(call.config, call.dims)
    axes = zip(image.spatial, extents, stride, strict=True)
    lengths = [conv_length(n, e, s, padding_of(call.config)) for n, e, s in axes]
    channels = positive_of(call.config, "filters", "nb_filter")
    if call.class_name.startswith("Depthwise"):
        times = positive_of(call.config, "depth_multiplier")
        channels = image.channels * times if image.channels and times else None
    return image.shape(lengths, channels)


def _transposed(call: Call) -> Shape:
    stated = call.config.get("output_shape")
    if call.class_name.startswith("Deconvolution"):
        if not isinstance(stated, list) or any(n is not None and type(n) is not int for n in stated):
            raise UnknownShapeError
        return (call.x[0], *stated[1:])
    image, (extents, stride) = call.image, extents_of(call.config, call.dims)
    said = call.config.get("output_padding")
    extra = axes_of(said, call.dims, least=0, fill=0) if said is not None else (None,) * call.dims
    if extra is None:
        raise UnknownShapeError
    axes = zip(image.spatial, extents, stride, extra, strict=True)
    lengths = [_transposed_length(n, e, s, padding_of(call.config), more) for n, e, s, more in axes]
    return image.shape(lengths, positive_of(call.config, "filters", "nb_filter"))


def _pooled(call: Call) -> Shape:
    image, config = call.image, call.config
    window = axes_of(first_of(config, "pool_size", "pool_length"), call.dims)
    steps = first_of(config, "strides", "stride")
    stride = window if steps is None else axes_of(steps, call.dims)
    if window is None or stride is None:
        raise UnknownShapeError
    axes = zip(image.spatial, window, stride, strict=True)
    return image.shape([conv_length(n, w, s, padding_of(config)) for n, w, s in axes], image.channels)


def _pooled_to_size(call: Call) -> Shape:
    size = axes_of(call.config.get("output_size"), call.dims)
    return call.image.shape(size or (None,) * call.dims, call.image.channels)


def _pooled_wholly(call: Call) -> Shape:
    if call.config.get("keepdims") is True:
        return call.image.shape((1,) * call.dims, call.image.channels)
    return (*call.image.batch, call.image.channels)


# --------------------------------------------------------------------------------------------- padding and resizing


def _pairs(value: object, dims: int) -> list[tuple[int, int]]:
    # The amounts before and after each axis, in every notation of Keras 1 to 3.
    names = ("left_pad", "right_pad") if dims == 1 else ("top_pad", "bottom_pad", "left_pad", "right_pad")
    if isinstance(value, dict):
        value = [value.get(name, 0) for name in names]
    if isinstance(value, list) and len(value) == 2 * dims != dims and all(type(n) is int for n in value):
        value = [value[at : at + 2] for at in range(0, 2 * dims, 2)]
    amounts = value if isinstance(value, list) else [value] * dims
    pairs = [tuple(item) if isinstance(item, list) else (item, item) for item in amounts]
    if len(pairs) != dims or any(len(pair) != 2 for pair in pairs):
        raise UnknownShapeError
    if not all(type(n) is int and 0 <= n < LARGEST for pair in pairs for n in pair):
        raise UnknownShapeError
    return pairs


def _zero_padded(call: Call) -> Shape:
    axes = zip(call.image.spatial, _pairs(call.config.get("padding"), call.dims), strict=True)
    return call.image.shape([None if n is None else n + a + b for n, (a, b) in axes], call.image.channels)


def _cropped(call: Call) -> Shape:
    axes = zip(call.image.spatial, _pairs(call.config.get("cropping"), call.dims), strict=True)
    return call.image.shape([None if n is None else n - a - b for n, (a, b) in axes], call.image.channels)


def _upsampled(call: Call) -> Shape:
    factors = axes_of(first_of(call.config, "size", "length"), call.dims)
    if factors is None:
        raise UnknownShapeError
    axes = zip(call.image.spatial, factors, strict=True)
    return call.image.shape([None if n is None else n * f for n, f in axes], call.image.channels)


def _resized(call: Call) -> Shape:
    return call.image.shape(
        (positive_of(call.config, "height"), positive_of(call.config, "width")), call.image.channels
    )


def _stretched(call: Call) -> Shape:
    height, width = call.image.spatial
    tall = call.class_name == "RandomHeight"
    return call.image.shape((None, width) if tall else (height, None), call.image.channels)


SPATIAL_RULES: Mapping[str, Callable[[Call], Shape]] = {
    **{name: _transposed if kind.kind == "transposed" else _convolved for name, kind in CONVOLUTIONS.items()},
    **{f"LocallyConnected{d}D": _convolved for d in (1, 2)},
    **{f"{how}Pooling{d}D": _pooled for how in ("Max", "Average") for d in (1, 2, 3)},
    **{f"Global{how}Pooling{d}D": _pooled_wholly for how in ("Max", "Average") for d in (1, 2, 3)},
    **{f"Adaptive{how}Pooling{d}D": _pooled_to_size for how in ("Max", "Average") for d in (1, 2, 3)},
    **{f"ZeroPadding{d}D": _zero_padded for d in (1, 2, 3)},
    **{f"Cropping{d}D": _cropped for d in (1, 2, 3)},
    **{f"UpSampling{d}D": _upsampled for d in (1, 2, 3)},
    **dict.fromkeys(("Resizing", "RandomCrop", "CenterCrop"), _resized),
    **dict.fromkeys(("RandomHeight", "RandomWidth"), _stretched),
}
"""What comes out of a layer of images, by its class."""

"""What a Keras model's configuration says: its layers, how Keras 3 files them, and the geometry of convolutions.

The configuration is data. Nothing it names is looked up anywhere but in the tables of this folder: a class that is not
listed (a Lambda, somebody's own layer) is a name and nothing more.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from convsv.checkpoints._keras_layer import (
    CONVOLUTIONS,
    MAX_DEPTH,
    Config,
    Role,
    axes_of,
    class_name_of,
    config_of,
    dilation_of,
    extended,
    first_of,
    is_operation,
    kernel_size_of,
    layers_of,
    name_of,
    padding_of,
    snake_case,
    stride_of,
)
from convsv.checkpoints._keras_norms import norms_behind
from convsv.checkpoints._keras_spatial import spatial_of
from convsv.checkpoints._keras_walk import InputShapes, follow
from convsv.errors import CorruptCheckpointError, GeometryError
from convsv.geometry import GeometryFacts, resolve

__all__ = ["LayerConfig", "fits", "geometries_of", "parse_layers"]

_MOST_LAYERS = 1 << 17
_MOST_CHARACTERS = 1 << 25


@dataclass(frozen=True)
class LayerConfig:
    """One layer of a configuration: not a model, and never a wrapper but what is wrapped.

    Attributes:
        name: its name, after those of the models and wrappers it stands in, except the outermost.
        class_name: last part of its class's name.
        config: its own configuration.
        saved_as: where Keras 3 saves it: snake-cased class names, counted in each list of layers.
        input_shapes: the distinct shapes of its input with the batch, unknown lengths None, in the order of its calls.
        norm: where Keras 3 saves the batch normalisation that alone takes its output, if there is one.
    """

    name: tuple[str, ...]
    class_name: str
    config: Config
    saved_as: str
    input_shapes: tuple[tuple[int | None, ...], ...] = ()
    norm: str | None = None


def parse_layers(text: str | bytes) -> tuple[list[LayerConfig], tuple[str, ...]]:
    """Return the layers of a model's configuration in their order, and what is wrong with it, a line a kind.

    Args:
        text: ``config.json`` or the attribute ``model_config``.

    Raises:
        CorruptCheckpointError: it is not JSON, is too long, nests too deeply, or has too many layers.
    """
    if len(text) > _MOST_CHARACTERS:
        raise CorruptCheckpointError("the model's configuration is too long")
    try:
        model = json.loads(text)
        listed = list(_Walk().model(model, (), "", 0))
        shapes = follow(model)
        return _with_shapes(_with_norms(model, listed), shapes), shapes.problems
    except RecursionError:
        raise CorruptCheckpointError("the model's configuration nests too deeply") from None
    except (ValueError, UnicodeDecodeError):
        raise CorruptCheckpointError("the model's configuration is not JSON") from None


def _with_norms(model: object, layers: Sequence[tuple[Config, LayerConfig]]) -> list[tuple[Config, LayerConfig]]:
    """Return the layers with the norms that alone take their outputs."""
    saved_as = {id(entry): layer.saved_as for entry, layer in layers}
    norms = {first: saved_as.get(id(second)) for first, second in norms_behind(model).items()}
    # A layer that stands in several models has an entry in each, and is called there too.
    shared = {id(entry): number for entry, _ in layers if type(number := entry.get("shared_object_id")) is int}
    entries = Counter(shared.values())
    alone = (id(entry) for entry, _ in layers if entries[shared.get(id(entry), -1)] < 2)
    norms = {entry: norms.get(entry) for entry in alone}
    return [(entry, replace(layer, norm=norms.get(id(entry)))) for entry, layer in layers]


def _with_shapes(layers: Iterable[tuple[Config, LayerConfig]], shapes: InputShapes) -> list[LayerConfig]:
    """Return the layers with the shapes at which they are applied; entries for one and the same layer share theirs."""
    calls: dict[object, dict[tuple[int | None, ...], None]] = {}
    identities = []
    for entry, layer in layers:
        shared = entry.get("shared_object_id")
        identity = (layer.class_name, shared) if type(shared) is int else id(entry)
        calls.setdefault(identity, {}).update(dict.fromkeys(shapes.by_layer.get(id(entry), ())))
        identities.append((identity, layer))
    return [replace(layer, input_shapes=tuple(calls[identity])) for identity, layer in identities]


class _Walk:
    """Lists the layers of a model and of those within it, each with its entry."""

    def __init__(self) -> None:
        self.count = 0
        self.snakes: dict[str, str] = {}

    def model(
        self, model: object, names: tuple[str, ...], prefix: str, depth: int
    ) -> Iterator[tuple[Config, LayerConfig]]:
        """Yield the layers of a model.

        Raises:
            CorruptCheckpointError: models and wrappers nest too deeply, or are too many.
        """
        layers = layers_of(model)
        self.count += len(layers)
        if depth > MAX_DEPTH:
            raise CorruptCheckpointError("the model's configuration nests too deeply")
        if self.count > _MOST_LAYERS:
            raise CorruptCheckpointError(f"the model's configuration has more than {_MOST_LAYERS} layers")
        used: Counter[str] = Counter()
        for position, layer in enumerate(layers):
            class_name = class_name_of(layer)
            begins = position == 0 and class_name == "InputLayer" and class_name_of(model) == "Sequential"
            if begins or is_operation(layer):
                continue
            snake = self.snakes.get(class_name) or self.snakes.setdefault(class_name, snake_case(class_name))
            saved_as = f"{prefix}layers/{snake}_{used[snake]}" if used[snake] else f"{prefix}layers/{snake}"
            used[snake] += 1
            yield from self.layer(layer, (*names, name_of(layer)), saved_as, depth)

    def layer(
        self, layer: Config, names: tuple[str, ...], saved_as: str, depth: int
    ) -> Iterator[tuple[Config, LayerConfig]]:
        """Yield the layers of one entry: itself, what it wraps, or those of the model that it is."""
        class_name, config = class_name_of(layer), config_of(layer)
        if layers_of(layer):
            yield from self.model(layer, names, saved_as + "/", depth + 1)
            return
        inner = config.get("layer")
        if not isinstance(inner, dict) or depth > MAX_DEPTH:
            yield layer, LayerConfig(names, class_name, config, saved_as)
            return
        attributes = ("forward_layer", "backward_layer") if class_name == "Bidirectional" else ("layer",)
        for attribute in attributes:
            yield from self.layer(inner, (*names, name_of(inner)), f"{saved_as}/{attribute}", depth + 1)


# --------------------------------------------------------------------------------------------------------- geometry


def fits(layer: LayerConfig, role: Role, shape: Sequence[int]) -> bool:
    """Tell whether a stored kernel has the shape that the configuration of its layer announces.

    Args:
        layer: a convolution.
        role: which of its kernels.
        shape: stored shape.
    """
    kind = CONVOLUTIONS[layer.class_name].kind
    taps = shape[2:] if role == "kernel_oik" else shape[:-2]
    announced = kernel_size_of(layer.config, CONVOLUTIONS[layer.class_name].dims)
    if len(shape) < 3 or len(taps) < CONVOLUTIONS[layer.class_name].dims:
        return False
    if role == "pointwise_kernel":
        announced = (1,) * len(taps)
    if announced is not None and extended(announced, len(taps), 1) != tuple(taps):
        return False
    filters = first_of(layer.config, "filters", "nb_filter")
    if type(filters) is not int or role == "depthwise_kernel":
        return True
    return filters in shape[:2] if role == "kernel_oik" else shape[-2 if kind == "transposed" else -1] == filters


def geometries_of(layer: LayerConfig, role: Role, shape: Sequence[int]) -> tuple[GeometryFacts, ...]:
    """Return what the configuration says about the convolution with one of the layer's kernels.

    Args:
        layer: a convolution whose configuration fits the kernel.
        role: which of its kernels; the pointwise one of a separable layer sees what the depthwise one leaves.
        shape: stored shape of the kernel.

    Returns:
        One entry a distinct input size, in the order of the calls; one without a size where none is known.
    """
    facts, axes = _facts_of(layer, role, shape), len(shape) - 2
    sizes = [spatial_of(one, CONVOLUTIONS[layer.class_name].dims, layer.config) for one in layer.input_shapes]
    if role == "pointwise_kernel":
        sizes = [_left_over(layer, size) for size in sizes]
    distinct = dict.fromkeys(extended(size, axes, 1) for size in sizes if size)
    return tuple(replace(facts, size=size) for size in distinct) or (facts,)


def _facts_of(layer: LayerConfig, role: Role, shape: Sequence[int]) -> GeometryFacts:
    if role == "pointwise_kernel":
        return GeometryFacts(stride=1, padding="valid", padding_mode="zeros", dilation=1, groups=1, transposed=False)
    taps = tuple(shape[2:] if role == "kernel_oik" else shape[:-2])
    kind, config = CONVOLUTIONS[layer.class_name].kind, layer.config
    stride, dilation = stride_of(config, len(taps)), dilation_of(config, len(taps))
    padding = padding_of(config)
    explicit = axes_of(config.get("output_padding"), len(taps), least=0, fill=0) if kind == "transposed" else None
    groups = config.get("groups", 1)
    return GeometryFacts(
        stride=stride,
        padding=_padding(padding, taps, dilation, explicit),
        padding_mode="zeros",
        dilation=dilation,
        groups=shape[-2] if role == "depthwise_kernel" else groups if type(groups) is int and groups > 0 else None,
        transposed=kind == "transposed",
        output_padding=_output_padding(padding, taps, stride, dilation, explicit) if kind == "transposed" else None,
    )


def _padding(
    name: object, taps: tuple[int, ...], dilation: tuple[int, ...], explicit: tuple[int, ...] | None
) -> Literal["same", "valid"] | tuple[tuple[int, int], ...] | None:
    reach = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
    if name == "same" and explicit is not None:
        # Keras fixes the output length with k // 2 at both ends; "same" then pads what that length asks for.
        totals = [max(2 * ((r + 1) // 2) - extra, 0) for r, extra in zip(reach, explicit, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    if name == "same":
        return "same"
    if name == "valid":
        return "valid"
    if name == "causal":
        return tuple((r, 0) for r in reach)
    if name == "full":
        return tuple((r, r) for r in reach)
    if name == "half":
        return tuple((k // 2, k // 2) for k in taps)
    return None


def _output_padding(
    name: object,
    taps: tuple[int, ...],
    stride: tuple[int, ...] | None,
    dilation: tuple[int, ...],
    explicit: tuple[int, ...] | None,
) -> tuple[int, ...] | None:
    # With a stride beyond the kernel's extent, Keras keeps output rows that no tap reaches.
    extents = [d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True)]
    if stride is None or name not in ("same", "valid"):
        return None
    if explicit is None:
        return tuple(max(s - e, 0) for s, e in zip(stride, extents, strict=True))
    if name == "valid":
        return explicit
    return tuple(max(extra - 2 * (e // 2), 0) for extra, e in zip(explicit, extents, strict=True))


def _left_over(layer: LayerConfig, size: tuple[int, ...] | None) -> tuple[int, ...] | None:
    taps = kernel_size_of(layer.config, CONVOLUTIONS[layer.class_name].dims)
    if taps is None or size is None:
        return None
    stated = replace(_facts_of(layer, "depthwise_kernel", (*taps, 1, 1)), size=size)
    try:
        return resolve(taps, [("stored", stated)]).output_size(taps)
    except GeometryError:
        return None

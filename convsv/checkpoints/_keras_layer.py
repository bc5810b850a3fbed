"""One layer of a Keras model's configuration: its class, its own configuration and the numbers in it.

The configuration is data. Nothing it names is looked up anywhere but in the tables of this folder: a class that is not
listed (a Lambda, somebody's own layer) is a name and nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = [
    "CONVOLUTIONS",
    "LARGEST",
    "MAX_DEPTH",
    "MAX_RANK",
    "Config",
    "Convolution",
    "Length",
    "Role",
    "Shape",
    "axes_of",
    "class_name_of",
    "class_of_name",
    "config_of",
    "dilation_of",
    "extended",
    "first_of",
    "is_channels_first",
    "is_einsum_dense",
    "is_foreign",
    "is_operation",
    "kernel_size_of",
    "layers_of",
    "name_of",
    "padding_of",
    "snake_case",
    "stride_of",
]

Kind: TypeAlias = Literal["plain", "transposed", "depthwise", "separable"]
Role: TypeAlias = Literal["kernel", "kernel_oik", "depthwise_kernel", "pointwise_kernel", "bias"]
Config: TypeAlias = Mapping[str, Any]
Length: TypeAlias = int | None
Shape: TypeAlias = tuple[Length, ...] | None
"""The shape of a tensor with its batch: unknown lengths are None, and so is a shape of which nothing is known."""

MAX_DEPTH = 40
"""How deep models and wrappers may stand in one another."""
LARGEST = 1 << 31
"""Lengths from here on are not believed."""
MAX_RANK = 16
"""Tensors of more axes are not believed."""


@dataclass(frozen=True)
class Convolution:
    """A class of Keras layers.

    Attributes:
        dims: number of spatial axes.
        kind: what its kernels mean.
    """

    dims: int
    kind: Kind

    @property
    def variables(self) -> tuple[Role, ...]:
        """What Keras 3 saves of such a layer, in its order."""
        if self.kind == "separable":
            return "depthwise_kernel", "pointwise_kernel", "bias"
        return ("depthwise_kernel" if self.kind == "depthwise" else "kernel"), "bias"


CONVOLUTIONS: Mapping[str, Convolution] = {
    **{
        f"{stem}{d}D": Convolution(d, "plain")
        for stem in ("Conv", "Convolution", "AtrousConvolution")
        for d in (1, 2, 3)
    },
    **{f"{stem}{d}DTranspose": Convolution(d, "transposed") for stem in ("Conv", "Convolution") for d in (1, 2, 3)},
    **{f"Deconvolution{d}D": Convolution(d, "transposed") for d in (2, 3)},
    **{f"DepthwiseConv{d}D": Convolution(d, "depthwise") for d in (1, 2)},
    **{
        f"{stem}{d}D": Convolution(d, "separable") for stem in ("SeparableConv", "SeparableConvolution") for d in (1, 2)
    },
}
"""Every convolution layer of Keras 1, 2 and 3 by class name."""


def snake_case(class_name: str) -> str:
    """Return a class name as Keras 3 writes it in paths (the rule of its ``naming.to_snake_case``)."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


_BY_SNAKE = {snake_case(name): name for name in CONVOLUTIONS}


def class_of_name(name: str) -> str:
    """Return the convolution class whose automatic layer name this is (``conv2d_7``), or ``""``."""
    return _BY_SNAKE.get(_without_number(name), "")


_ATTENTION = {"query_dense": "query", "key_dense": "key", "value_dense": "value", "output_dense": "attention_output"}


def is_einsum_dense(path: str, title: str | None) -> bool:
    """Tell a layer whose matrices of three axes Keras 3 saves like kernels: EinsumDense, also inside attention.

    Args:
        path: where it is saved; its last parts follow from class and attribute names.
        title: its name, where the file states it.
    """
    *_, outer, last = ("", *path.split("/"))
    if last in _ATTENTION and (title == _ATTENTION[last] or _without_number(outer).endswith("_attention")):
        return True
    return "einsum_dense" in (_without_number(title or ""), _without_number(last))


def _without_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


# ------------------------------------------------------------------------------------ an entry of the configuration


def class_name_of(layer: object) -> str:
    """Return the last part of the class's name, or ``""``."""
    name = layer.get("class_name") if isinstance(layer, dict) else None
    return name.rpartition(".")[2].rpartition(">")[2] if isinstance(name, str) else ""


def config_of(layer: Config) -> Config:
    """Return the layer's own configuration."""
    config = layer.get("config")
    return config if isinstance(config, dict) else {}


def name_of(layer: Config) -> str:
    """Return the layer's name, or ``""``."""
    name = config_of(layer).get("name", layer.get("name"))
    return name if isinstance(name, str) else ""


def layers_of(model: object) -> list[Config]:
    """Return the layers of a model; none for what is no model."""
    config = model.get("config") if isinstance(model, dict) else None
    layers = config.get("layers") if isinstance(config, dict) else config  # Keras 1: the list itself
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def is_operation(layer: Config) -> bool:
    """Tell an operation like ``keras.ops.add``: it stands in the list, but is no layer, neither counted nor saved."""
    return ".ops." in f"{layer.get('module', '')}."


def is_foreign(layer: Config) -> bool:
    """Tell a class that is not of Keras itself, whatever it is called; TensorFlow Addons count as Keras."""
    name, registered, module = (layer.get(key) for key in ("class_name", "registered_name", "module"))
    package, _, _ = name.rpartition(">") if isinstance(name, str) else ("", "", "")
    if package not in ("", "Addons") or (isinstance(registered, str) and ">" in registered):
        return True
    return isinstance(module, str) and module.split(".")[0] not in ("keras", "tf_keras", "tensorflow")


# ---------------------------------------------------------------------------------------------------- numbers in it


def first_of(config: Config, *names: str) -> Any:
    """Return the first of these entries that is there: generations of Keras call the same thing differently."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def axes_of(value: object, dims: int, least: int = 1, fill: int = 1) -> tuple[int, ...] | None:
    """Return one number an axis, or None where that is not what was stored.

    Args:
        value: an integer for every axis, or a list; a shorter list is completed (Keras 1 stores 1-d kernels with an
            axis of 1).
        dims: number of axes.
        least: smallest number that is believed.
        fill: what completes a list.
    """
    numbers = [value] * dims if type(value) is int else value
    if not isinstance(numbers, (list, tuple)) or not 0 < len(numbers) <= dims:
        return None
    if not all(type(n) is int and least <= n < LARGEST for n in numbers):
        return None
    return extended(tuple(numbers), dims, fill)


def extended(numbers: tuple[int, ...], dims: int, fill: int) -> tuple[int, ...]:
    """Return the numbers, completed to one an axis."""
    return numbers + (fill,) * (dims - len(numbers))


def kernel_size_of(config: Config, dims: int) -> tuple[int, ...] | None:
    """Return the taps that a convolution announces."""
    one_by_one = {1: ("filter_length",), 2: ("nb_row", "nb_col"), 3: ("kernel_dim1", "kernel_dim2", "kernel_dim3")}
    value = config.get("kernel_size")
    if value is None and all(name in config for name in one_by_one[dims]):
        value = [config[name] for name in one_by_one[dims]]
    return axes_of(value, dims)


def stride_of(config: Config, dims: int) -> tuple[int, ...] | None:
    """Return the stride of a convolution."""
    return axes_of(first_of(config, "strides", "subsample", "subsample_length", "stride"), dims)


def dilation_of(config: Config, dims: int) -> tuple[int, ...]:
    """Return the dilation of a convolution, 1 where nothing is said."""
    return axes_of(first_of(config, "dilation_rate", "atrous_rate"), dims) or (1,) * dims


def padding_of(config: Config) -> object:
    """Return what stands for the padding of a convolution or a pooling layer."""
    return first_of(config, "padding", "border_mode")


def is_channels_first(config: Config) -> bool:
    """Tell whether the channels stand before the spatial axes."""
    return config.get("data_format") == "channels_first" or config.get("dim_ordering") == "th"

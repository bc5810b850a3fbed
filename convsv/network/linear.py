"""Convolutions, dense layers and what scales channels: certified matrix norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from convsv.at_size import any_size_copies
from convsv.errors import UnavailableError
from convsv.geometry import Geometry
from convsv.graph import Operation
from convsv.layer import ConvLayer, from_canonical
from convsv.network import Step, Surroundings, rule
from convsv.network._broadcast import copies
from convsv.rounding import DOUBLE, above

__all__ = ["matrix_layer"]


@rule("conv", factor="certified norm", why="the least of those at its own size and at any")
def convolution(operation: Operation, around: Surroundings) -> Step:
    """Bound a convolution; with the padding before it as one layer, where its own adds nothing."""
    assert operation.layer is not None
    layer, wrong, beside = _with_norm(operation, operation.layer)
    factor, of = around.layer_norm(layer)
    padded = _with_padding(operation, layer, around)
    shortcut = padded and (padded[0], _plus(padded[1], wrong), padded[2] + beside)
    return Step((_plus(factor, wrong),), of=of + beside, shortcut=shortcut)


def _plus(factor: float, wrong: float) -> float:
    return above(factor + wrong) if wrong else factor


def _with_padding(operation: Operation, layer: ConvLayer, around: Surroundings) -> tuple[str, float, str] | None:
    """Return the norm of the layer together with the operation that pads its input, from that one's input."""
    pad, own = around.maker(operation.inputs[0]), layer.geometry
    if pad is None or pad.kind != "pad" or own.transposed or any(map(any, own.padding)):
        return None
    amounts, shape = pad.settings["amounts"], around.shape(pad.inputs[0])
    spatial = amounts[-own.dims :]
    known = shape is not None and None not in shape[-own.dims :]
    if pad.settings["mode"] == "zeros" or len(amounts) != own.dims + 2 or any(map(any, amounts[:2])) or not known:
        return None
    if min(min(pair) for pair in spatial) < 0 or shape is None:
        return None
    size = tuple(n or 1 for n in shape[-own.dims :])
    geometry = replace(own, size=size, padding=spatial, padding_mode=pad.settings["mode"])
    factor, of = around.layer_norm(replace(layer, geometry=geometry))
    return pad.inputs[0], factor, f"with {pad.name}: {of}"


def matrix_layer(name: str, weight: Callable[[], NDArray[np.float64]], shape: tuple[int, ...]) -> ConvLayer:
    """Return a matrix as a convolution of one tap on one pixel, which has the same norm.

    Args:
        name: what to call it.
        weight: returns the matrix, ``(m, n)``.
        shape: m and n.
    """
    geometry = Geometry((1,), (1,), ((0, 0),))
    return ConvLayer(name, name, (*shape, 1), "float64", "OIK", geometry, lambda: weight()[..., None])


@rule("linear", factor="certified norm of the matrix", why="it acts on each row by itself")
def linear(operation: Operation, around: Surroundings) -> Step:
    """Bound a product with a matrix along one axis.

    Raises:
        UnavailableError: the weight is no matrix.
    """
    weight = operation.constants["weight"]
    if weight.shape is None or len(weight.shape) not in (1, 2):
        raise UnavailableError("its weight is no matrix", found=f"shape {weight.shape}")
    shape = (1, *weight.shape)[-2:]
    matrix = matrix_layer(operation.name, lambda: weight.values().reshape(shape), shape)
    layer, wrong, beside = _with_norm(operation, matrix)
    factor = _plus(around.layer_norm(layer)[0], wrong)
    times = abs(float(operation.settings.get("factor", 1.0)))
    return Step((factor if times == 1 else above(factor * times),), of=f"{shape[0]}x{shape[1]} matrix{beside}")


# ------------------------------------------------------------------------------------------------- scales of channels


@rule("batch_norm", factor="max |gamma| / sqrt(var + eps)", why="in inference it scales channels")
def batch_norm(operation: Operation, around: Surroundings) -> Step:
    """Bound a batch normalisation in inference that no layer has taken in."""
    return Step((above(float(np.abs(_scales(operation)).max(initial=0.0)), 8),))


def _scales(operation: Operation) -> NDArray[np.float64]:
    """Return ``gamma / sqrt(variance + epsilon)`` a channel, each with a relative error of at most 4 u.

    Raises:
        UnavailableError: a variance is not positive.
    """
    variance, scale = operation.constants["variance"].values(), operation.constants.get("scale")
    total = variance + float(operation.settings["epsilon"])
    if not (total > 0).all():
        raise UnavailableError("a variance plus epsilon is not positive")
    gamma = np.ones_like(total) if scale is None else scale.values()
    scales: NDArray[np.float64] = gamma / np.sqrt(total)
    return scales


def _with_norm(operation: Operation, layer: ConvLayer) -> tuple[ConvLayer, float, str]:
    """Return a layer with the normalisation that it has taken in, what its norm may then be wrong by, and their name.

    Raises:
        UnavailableError: a variance is not positive.
    """
    if "variance" not in operation.constants:
        return layer, 0.0, ""
    kernel, scales = layer.kernel(), _scales(operation)
    channels = (kernel.shape[0], 1, kernel.shape[2]) if layer.geometry.transposed else (*kernel.shape[:2], 1)
    folded = kernel * scales.reshape(*channels, *[1] * (kernel.ndim - 3))
    stored = from_canonical(folded, "OIK")
    made = replace(layer, shape=stored.shape, dtype="float64", layout="OIK", read=lambda: stored)
    return made, _rounding(folded, layer), f", with {operation.settings['norm']}"


def _rounding(folded: NDArray[np.float64], layer: ConvLayer) -> float:
    """Bound the norm of what the folded kernel errs by: entries by 5 u of themselves, and a convolution by its taps.

    Its norm is at most the sum over taps of their Frobenius norms, hence at most sqrt(taps) that of the kernel.
    """
    taps = math.prod(layer.kernel_size)
    length = float(np.sqrt(np.square(folded).sum())) * (1 + 1e-6)
    return above(6 * DOUBLE * math.sqrt(taps) * length * any_size_copies(layer.geometry, layer.kernel_size), 4)


@rule("scale", factor="max |c|, or 1 / min |c|", why="a product with constants, entry by entry")
def scale(operation: Operation, around: Surroundings) -> Step:
    """Bound a product or quotient with numbers or constant tensors.

    Raises:
        UnavailableError: it divides by zero.
    """
    factor = above(abs(float(operation.settings.get("factor", 1.0))))
    constant = operation.constants.get("factor")
    if constant is not None:
        sizes = np.abs(constant.values())
        if operation.settings.get("divides"):
            if not sizes.all():
                raise UnavailableError("it divides by zero")
            sizes = 1 / sizes
        factor = above(factor * above(float(sizes.max(initial=0.0)), 2))
    return Step((above(factor * copies(operation, 0, around)),))


@rule(
    "centred_norm",
    factor="max |gamma| / sqrt(eps)",
    why="its Jacobian at variance v is (P - z z^T / n) / sqrt(v + eps) with ||z||^2 < n: largest where all is equal",
)
def centred_norm(operation: Operation, around: Surroundings) -> Step:
    """Bound a normalisation by the mean and variance of its own input: layer, group and instance norm.

    Raises:
        UnavailableError: it adds nothing to the variance: then it has no Lipschitz constant.
    """
    epsilon = float(operation.settings["epsilon"])
    if not epsilon > 0:
        raise UnavailableError("it divides by the deviation of its input and adds nothing: no constant bounds that")
    gamma = operation.constants.get("scale")
    largest = 1.0 if gamma is None else float(np.abs(gamma.values()).max(initial=0.0))
    return Step((above(largest / math.sqrt(epsilon), 4),))

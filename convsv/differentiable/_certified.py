"""Certified values for training loops: of a bound, of the norm itself, and at once where a cheap bound is enough."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from convsv.at_size import any_size_copies
from convsv.bounds import bounds_of
from convsv.certificate import Budget, certify
from convsv.differentiable._entries import DEFAULT, GRADIENTS, NORM, Gradient
from convsv.differentiable._layers import canonical
from convsv.errors import UnavailableError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer, loosest
from convsv.results import Bound
from convsv.symbol import normal_extent, normal_form

__all__ = ["BUDGET", "certified_upper", "certified_value", "execution_on", "shown_within", "without_borders"]

BUDGET = Budget(evaluations=1_000_000, seconds=None)
"""When to stop certifying: counted in evaluations alone, so that every rank of a group does the same."""
_ROUNDS = 3
"""Steps of power iteration by which a layer outside of a norm is recognised as a rule."""


def certified_upper(kernel: Tensor, geometry: Geometry, tol: float, execution: Execution) -> float:
    """Return a certified upper bound of the layer's norm at every size.

    Args:
        kernel: ``(G, O, I, *K)`` float64.
        geometry: complete but for the size, and meant: nothing in it is questioned.
        tol: wanted relative width of the certified interval.
        execution: where to compute.

    Raises:
        ComputationError: a weight is not finite.
        ContradictionError: two certified statements exclude each other.

    Guarantee:
        Certified, as :func:`convsv.certificate.certify`.
    """
    without, copies = without_borders(geometry, tuple(kernel.shape[3:]))
    form = normal_form(kernel.detach(), without.stride, without.dilation)
    upper = certify(form, tol, execution=execution, budget=BUDGET).upper
    return upper if copies == 1 else math.nextafter(upper * copies, math.inf)


def shown_within(kernel: Tensor, geometry: Geometry, radius: float) -> float | None:
    """Return a certified upper bound of the layer's norm at every size that is at most a radius, if a cheap one is.

    Args:
        kernel: the weight, outside of any graph.
        geometry: complete but for the size, and meant: nothing in it is questioned.
        radius: the norm that is allowed.

    Returns:
        The bound, or None: what has to be certified at more cost.
    """
    if not kernel.numel():
        return 0.0
    without, copies = without_borders(geometry, tuple(kernel.shape[2:]))
    taps = normal_extent(tuple(kernel.shape[2:]), without.stride, without.dilation)
    # What it will be at least, by a few steps of power iteration: where that is too much nothing needs to be certified.
    matrices = canonical(kernel, geometry.groups).flatten(2)
    longest = torch.linalg.vector_norm(matrices, dim=2).argmax(1)
    vectors = matrices[torch.arange(len(matrices)), longest, :, None]
    for _ in range(_ROUNDS):
        vectors = matrices.mT @ (matrices @ (vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)))
    # Each is G x for a unit vector x: no longer than the square of the norm. NaN, of a group of zeros, is no reason.
    least = math.sqrt(float(torch.linalg.vector_norm(vectors, dim=1).nan_to_num(0.0).max()))
    if least * math.sqrt(math.prod(taps)) * copies > radius:
        return None
    try:
        value = certified_value(GRADIENTS[DEFAULT], kernel, without, 0.0)
    except UnavailableError:
        return None
    upper = value if copies == 1 else math.nextafter(value * copies, math.inf)
    return upper if upper <= radius else None


def without_borders(geometry: Geometry, kernel_size: tuple[int, ...]) -> tuple[Geometry, float]:
    """Return a geometry whose size-free norm, times a factor, bounds the layer's with its own padding.

    Args:
        geometry: complete but for the size.
        kernel_size: spatial taps.
    """
    circular = geometry.padding_mode == "circular"
    plain = replace(geometry, stride=(1,) * geometry.dims) if circular else geometry
    return plain, any_size_copies(geometry, kernel_size)


@lru_cache(maxsize=16)
def execution_on(device: str) -> Execution:
    """Return how to compute on a device: on one thread."""
    return Execution(device=device, jobs=1)


def certified_value(entry: Gradient, kernel: Tensor, geometry: Geometry, tol: float) -> float:
    """Return the certified value of a bound.

    Raises:
        UnavailableError: this layer has none, or there is none of this name.
    """
    fixed = kernel.detach()
    execution = execution_on(str(kernel.device))
    if entry.name == NORM:
        loose = loosest(geometry)
        form = normal_form(canonical(fixed, loose.groups), loose.stride, loose.dilation)
        return certify(form, tol, execution=execution, budget=BUDGET).upper
    stored = fixed.to("cpu", torch.float64).numpy()
    layer = ConvLayer("kernel", "kernel", stored.shape, "float64", "OIK", geometry, lambda: stored)
    found = bounds_of(layer, [entry.name], execution=execution)[entry.name]
    if not isinstance(found, Bound):
        raise UnavailableError(found.reason)
    if found.guarantee != "certified":
        raise UnavailableError("this bound is an estimate, and cannot be certified", found=entry.name)
    return found.value

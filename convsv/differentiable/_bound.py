"""A bound of one kernel or layer as a differentiable number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from convsv.at_size import any_size_copies
from convsv.bounds import Problem, bounds_of
from convsv.certificate import Budget, certify
from convsv.differentiable._entries import GRADIENTS, NORM, WITHOUT_GRADIENT, Gradient
from convsv.differentiable._layers import canonical
from convsv.differentiable._maximum import with_slope
from convsv.errors import GeometryError, UnavailableError, UsageError
from convsv.execution import Execution
from convsv.geometry import Geometry, resolve
from convsv.layer import ConvLayer, loosest
from convsv.results import Bound
from convsv.symbol import normal_form

__all__ = ["BUDGET", "DEFAULT", "certified_upper", "eager", "entry_of", "layer_bound", "norm_bound", "without_borders"]

DEFAULT = "singla2021_t"
"""The bound of a penalty unless told: above the norm by at most the root of the number of taps, and a small part of a
training step."""
BUDGET = Budget(evaluations=1_000_000, seconds=None)
"""When to stop certifying: counted in evaluations alone, so that every rank of a group does the same."""


F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """Return a function at which ``torch.compile`` breaks its graph, instead of following it."""
    return cast("F", torch.compiler.disable(function))  # type: ignore[no-untyped-call]


def entry_of(bound: str) -> Gradient:
    """Return a differentiable bound by name.

    Raises:
        UsageError: there is none of that name; says why where the catalogue has it.
    """
    if bound in WITHOUT_GRADIENT:
        raise UsageError("this bound has no gradient", found=bound, advice=WITHOUT_GRADIENT[bound])
    if bound not in GRADIENTS:
        raise UsageError("unknown bound", found=bound, advice=f"use one of {', '.join(GRADIENTS)}")
    return GRADIENTS[bound]


@eager
def norm_bound(
    kernel: Tensor,
    geometry: Geometry | None = None,
    bound: str = DEFAULT,
    *,
    certified: bool = False,
    tol: float = 1e-3,
) -> Tensor:
    """Return a bound of a convolution's norm, differentiable in the kernel.

    The formulas are those of :mod:`convsv.bounds`. Gradients are analytic: maximisers (frequencies, singular vectors)
    are held fixed, by Danskin's theorem; where one is not unique, the result is an element of the subdifferential, and
    zero for a kernel of zeros. Under ``torch.compile`` the graph breaks here; autocast does not reach the arithmetic,
    which is float64.

    Args:
        kernel: ``(c_out, c_in / groups, *K)``, or for a transposed layer ``(c_in, c_out / groups, *K)``; any real
            floating dtype and device.
        geometry: as :func:`convsv.bounds` takes it; None for stride 1 and one group.
        bound: a name in :data:`GRADIENTS`.
        certified: whether the value is to be certified, rounding included, as the catalogue's is; an upper bound of
            ``"norm"`` then. The gradient is that of the value before rounding, at about the cost of both.
        tol: relative width of the certified interval of ``"norm"``.

    Returns:
        A scalar, float64, on the kernel's device; it cannot be differentiated twice.

    Raises:
        UsageError: there is no such bound, or the kernel is not real.
        GeometryError: the geometry does not fit the kernel.
        UnavailableError: this layer has no such bound.
    """
    entry, geometry = entry_of(bound), _complete(kernel, geometry)
    with torch.autocast(kernel.device.type, enabled=False):
        return _detached(entry, kernel, geometry, tol if certified else None)


def layer_bound(kernel: Tensor, geometry: Geometry, bound: str = DEFAULT, *, certified: bool = False) -> Tensor:
    """Return a bound of a layer's norm at every input size, whatever its padding mode; differentiable in the kernel.

    An upper bound is multiplied by what the padding copies (``||pad||``: more than 1 for reflect and replicate), and
    circular padding is read at stride 1, for around a circle that the stride does not divide windows lie nearer.

    Args:
        kernel: as for :func:`norm_bound`.
        geometry: complete but for the size, which does not count.
        bound: a name in :data:`GRADIENTS`, of a bound that needs no size.
        certified: as for :func:`norm_bound`.

    Returns:
        A scalar, float64.

    Raises:
        UsageError: there is no such bound, or it needs a size.
        UnavailableError: this layer has no such bound.
    """
    entry = entry_of(bound)
    if entry.holds_for not in ("any size", "any geometry"):
        raise UsageError("this bound is about one input size", found=bound, advice="use norm_bound with a geometry")
    if entry.side == "lower" and bound != NORM:
        return norm_bound(kernel, geometry, bound, certified=certified)
    without, copies = without_borders(geometry, tuple(kernel.shape[2:]))
    return norm_bound(kernel, without, bound, certified=certified) * copies


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


def without_borders(geometry: Geometry, kernel_size: tuple[int, ...]) -> tuple[Geometry, float]:
    """Return a geometry whose size-free norm, times a factor, bounds the layer's with its own padding.

    Args:
        geometry: complete but for the size.
        kernel_size: spatial taps.
    """
    circular = geometry.padding_mode == "circular"
    plain = replace(geometry, stride=(1,) * geometry.dims) if circular else geometry
    return plain, any_size_copies(geometry, kernel_size)


def _complete(kernel: Tensor, geometry: Geometry | None) -> Geometry:
    """Return the geometry, or that of stride 1.

    Raises:
        UsageError: the kernel is not real.
        GeometryError: the geometry does not fit the kernel.
    """
    if not torch.is_floating_point(kernel):
        raise UsageError("a kernel must be of real floating-point numbers", found=str(kernel.dtype))
    if kernel.ndim < 3:
        raise GeometryError("a kernel has two channel axes and at least one spatial", found=f"shape {kernel.shape}")
    taps = tuple(kernel.shape[2:])
    if geometry is None:
        ones = (1,) * len(taps)
        return replace(resolve(taps, []), stride=ones, origin={})
    if geometry.dims != len(taps):
        raise GeometryError("the geometry has another number of axes", found=f"{geometry.dims} for kernel {taps}")
    if kernel.shape[0] % geometry.groups:
        raise GeometryError("groups must divide the channels", found=f"groups {geometry.groups} for {kernel.shape}")
    return geometry


def _power_of_two(kernel: Tensor) -> float:
    """Return a power of two near the largest entry, 0 for a kernel of zeros.

    Raises:
        UnavailableError: an entry is not finite.
    """
    largest = float(kernel.detach().abs().amax()) if kernel.numel() else 0.0
    if not math.isfinite(largest):
        raise UnavailableError("a weight is NaN or infinite")
    return math.ldexp(1.0, math.frexp(largest)[1]) if largest > 0 else 0.0


def _detached(entry: Gradient, kernel: Tensor, geometry: Geometry, tol: float | None) -> Tensor:
    """Return the bound as a single step of the autograd graph; certified to that width unless None."""
    fixed = kernel.detach().to(torch.float64)
    scale = _power_of_two(fixed)
    wanted = torch.is_grad_enabled() and kernel.requires_grad
    if scale == 0:
        value, slope = fixed.new_zeros(()), torch.zeros_like(fixed)
    else:
        with torch.set_grad_enabled(wanted):
            scaled = (fixed / scale).requires_grad_(wanted)
            value = entry.compute(_problem(scaled, geometry, kernel.device))
        slope = torch.autograd.grad(value, scaled)[0] if wanted else torch.zeros_like(fixed)
        value = value.detach() * scale
    if scale and tol is not None:
        value = torch.full_like(value, _certified(entry, kernel, geometry, tol))
    return with_slope(kernel, value, slope) if wanted else value


def _problem(kernel: Tensor, geometry: Geometry, device: torch.device) -> Problem:
    loose = loosest(geometry)
    form = normal_form(canonical(kernel, loose.groups), loose.stride, loose.dilation)
    return Problem(form, canonical(kernel, geometry.groups), geometry, Execution(device=str(device), jobs=1))


def _certified(entry: Gradient, kernel: Tensor, geometry: Geometry, tol: float) -> float:
    """Return the certified value of a bound.

    Raises:
        UnavailableError: this layer has none, or there is none of this name.
    """
    fixed = kernel.detach()
    execution = Execution(device=str(kernel.device), jobs=1)
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

"""A bound of one kernel or layer as a differentiable number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from convsv.at_size import any_size_copies
from convsv.bounds import Problem, bounds_of
from convsv.certificate import Budget, certify
from convsv.differentiable._entries import GRADIENTS, NORM, WITHOUT_GRADIENT, Gradient
from convsv.differentiable._layers import canonical
from convsv.differentiable._maximum import with_slopes
from convsv.errors import GeometryError, UnavailableError, UsageError
from convsv.execution import Execution
from convsv.geometry import Geometry, resolve
from convsv.layer import ConvLayer, loosest
from convsv.results import Bound
from convsv.rounding import DOUBLE
from convsv.symbol import normal_form

__all__ = [
    "BUDGET",
    "DEFAULT",
    "certified_upper",
    "eager",
    "entry_of",
    "layer_bound",
    "layer_bounds",
    "norm_bound",
    "without_borders",
]

DEFAULT = "singla2021_t"
"""The bound of a penalty unless told: above the norm by at most the root of the number of taps, and a small part of a
training step."""
_NEAR = 20
"""Powers of two by which the largest entry may differ from 1 without a need to scale."""
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
    return _together(entry, [(kernel, geometry)], tol if certified else None)[0]


@eager
def layer_bounds(
    layers: Sequence[tuple[Tensor, Geometry]], bound: str = DEFAULT, *, certified: bool = False, tol: float = 1e-3
) -> Tensor:
    """Return a bound of each layer's norm at every input size, whatever its padding mode; differentiable.

    An upper bound is multiplied by what the padding copies (``||pad||``: more than 1 for reflect and replicate), and
    circular padding is read at stride 1, for around a circle that the stride does not divide windows lie nearer.

    Args:
        layers: kernels as for :func:`norm_bound`, and geometries, complete but for the size, which does not count.
        bound: a name in :data:`GRADIENTS`, of a bound that needs no size.
        certified: as for :func:`norm_bound`.
        tol: as for :func:`norm_bound`.

    Returns:
        ``(N,)``, float64, on the device of the first kernel.

    Raises:
        UsageError: there is no such bound, or it needs a size.
        UnavailableError: a layer has no such bound.
    """
    entry = entry_of(bound)
    if entry.holds_for not in ("any size", "any geometry"):
        raise UsageError("this bound is about one input size", found=bound, advice="use norm_bound with a geometry")
    width = tol if certified else None
    if entry.side == "lower" and bound != NORM:
        return _together(entry, layers, width)
    read = [without_borders(geometry, tuple(kernel.shape[2:])) for kernel, geometry in layers]
    plain = [(kernel, geometry) for (kernel, _), (geometry, _) in zip(layers, read, strict=True)]
    values = _together(entry, plain, width)
    copies = [factor for _, factor in read]
    if all(factor == 1 for factor in copies):
        return values
    product = values * torch.tensor(copies, dtype=values.dtype, device=values.device)
    # Rounding of the product must not take a certified value below the true one.
    return product * (1 + 4 * DOUBLE) if certified else product


def layer_bound(kernel: Tensor, geometry: Geometry, bound: str = DEFAULT, *, certified: bool = False) -> Tensor:
    """Return what :func:`layer_bounds` returns for one layer: a scalar."""
    return layer_bounds([(kernel, geometry)], bound, certified=certified)[0]


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
    """Return what to divide by for no square to overflow or vanish: 1 as a rule, 0 for a kernel of zeros.

    Raises:
        UnavailableError: an entry is not finite.
    """
    largest = float(torch.linalg.vector_norm(kernel.detach(), math.inf)) if kernel.numel() else 0.0
    if not math.isfinite(largest):
        raise UnavailableError("a weight is NaN or infinite")
    exponent = math.frexp(largest)[1]
    return 0.0 if largest == 0 else 1.0 if abs(exponent) <= _NEAR else math.ldexp(1.0, exponent)


def _together(entry: Gradient, layers: Sequence[tuple[Tensor, Geometry]], tol: float | None) -> Tensor:
    """Return bounds ``(N,)`` as a single step of the autograd graph; certified to that width unless None."""
    kernels = [kernel for kernel, _ in layers]
    wanted = torch.is_grad_enabled() and any(kernel.requires_grad for kernel in kernels)
    # A guess makes another layer of the kernel, to which the short cut does not apply.
    direct = wanted and entry.direct is not None and not any(g.guessed("groups", "stride") for _, g in layers)
    with torch.autocast(kernels[0].device.type, enabled=False), torch.set_grad_enabled(wanted and not direct):
        if direct:
            pairs = [_directly(entry, kernel, geometry) for kernel, geometry in layers]
            values, slopes = [value for value, _ in pairs], tuple(slope for _, slope in pairs)
        else:
            sources = [kernel.detach().to(torch.float64, copy=wanted).requires_grad_(wanted) for kernel in kernels]
            values = [_value(entry, source, g) for source, (_, g) in zip(sources, layers, strict=True)]
            slopes = torch.autograd.grad(values, sources) if wanted else ()
    found = [value.detach() for value in values]
    if tol is not None:
        found = [torch.full_like(v, _certified(entry, k, g, tol)) for v, (k, g) in zip(found, layers, strict=True)]
    first = found[0].device
    stacked = torch.stack([value.to(first) for value in found])
    return with_slopes(kernels, stacked, slopes) if wanted else stacked


def _value(entry: Gradient, kernel: Tensor, geometry: Geometry) -> Tensor:
    """Return the bound of a float64 kernel."""
    scale = _power_of_two(kernel)
    if scale == 0:
        # A norm has no gradient at 0, and 0 is in its subdifferential.
        return (kernel * 0.0).sum()
    problem = _problem(kernel if scale == 1 else kernel / scale, geometry)
    leans = entry.side == "lower" and entry.holds_for == "any size" and entry.name != NORM
    value = entry.compute(problem.as_guessed() if leans else problem)
    return value if scale == 1 else value * scale


def _directly(entry: Gradient, kernel: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return the bound of a kernel and its gradient by the short cut, which there must be."""
    assert entry.direct is not None
    fixed = kernel.detach().to(torch.float64)
    scale = _power_of_two(fixed)
    if scale == 0:
        return fixed.new_zeros(()), torch.zeros_like(fixed)
    # Bounds are homogeneous: the gradient is that of the scaled kernel.
    value, slope = entry.direct(_problem(fixed if scale == 1 else fixed / scale, geometry))
    return value if scale == 1 else value * scale, slope.reshape(kernel.shape)


def _problem(kernel: Tensor, geometry: Geometry) -> Problem:
    loose = loosest(geometry)
    form = normal_form(canonical(kernel, loose.groups), loose.stride, loose.dilation)
    return Problem(form, canonical(kernel, geometry.groups), geometry, _execution(str(kernel.device)))


@lru_cache(maxsize=16)
def _execution(device: str) -> Execution:
    return Execution(device=device, jobs=1)


def _certified(entry: Gradient, kernel: Tensor, geometry: Geometry, tol: float) -> float:
    """Return the certified value of a bound.

    Raises:
        UnavailableError: this layer has none, or there is none of this name.
    """
    fixed = kernel.detach()
    execution = _execution(str(kernel.device))
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

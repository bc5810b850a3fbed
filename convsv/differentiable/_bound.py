"""A bound of one kernel or layer as a differentiable number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from convsv.bounds import Problem
from convsv.differentiable._certified import certified_value, execution_on, without_borders
from convsv.differentiable._entries import DEFAULT, GRADIENTS, NORM, WITHOUT_GRADIENT, Gradient, Plain
from convsv.differentiable._layers import canonical
from convsv.differentiable._maximum import with_slopes
from convsv.errors import GeometryError, UnavailableError, UsageError
from convsv.geometry import Geometry, resolve
from convsv.layer import loosest
from convsv.rounding import DOUBLE
from convsv.symbol import normal_form

__all__ = [
    "DEFAULT",
    "eager",
    "entry_of",
    "layer_bound",
    "layer_bounds",
    "norm_bound",
]

_NEAR = 20
"""Powers of two by which the largest entry may differ from 1 without a need to scale."""


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
    largest = max(abs(float(end)) for end in torch.aminmax(kernel.detach())) if kernel.numel() else 0.0
    if not math.isfinite(largest):
        raise UnavailableError("a weight is NaN or infinite")
    exponent = math.frexp(largest)[1]
    return 0.0 if largest == 0 else 1.0 if abs(exponent) <= _NEAR else math.ldexp(1.0, exponent)


def _together(entry: Gradient, layers: Sequence[tuple[Tensor, Geometry]], tol: float | None) -> Tensor:
    """Return bounds ``(N,)`` as a single step of the autograd graph; certified to that width unless None."""
    kernels = [kernel for kernel, _ in layers]
    wanted = torch.is_grad_enabled() and any(kernel.requires_grad for kernel in kernels)
    # A guess makes another layer of the kernel, to which the short cut does not apply.
    guessed = any(geometry.guessed("groups", "stride", "dilation") for _, geometry in layers)
    direct = wanted and entry.direct is not None and not guessed
    with torch.autocast(kernels[0].device.type, enabled=False), torch.set_grad_enabled(wanted and not direct):
        if direct:
            values, slopes = _directly(entry, layers)
        else:
            sources = [kernel.detach().to(torch.float64, copy=wanted).requires_grad_(wanted) for kernel in kernels]
            values = [_value(entry, source, g) for source, (_, g) in zip(sources, layers, strict=True)]
            slopes = list(torch.autograd.grad(values, sources)) if wanted else []
    found = values if direct else [value.detach() for value in values]
    if tol is not None:
        found = [torch.full_like(v, certified_value(entry, k, g, tol)) for v, (k, g) in zip(found, layers, strict=True)]
    first = found[0].device
    stacked = torch.stack([value if value.device == first else value.to(first) for value in found])
    return with_slopes(kernels, stacked, slopes) if wanted else stacked


def _value(entry: Gradient, kernel: Tensor, geometry: Geometry) -> Tensor:
    """Return the bound of a float64 kernel."""
    scale = _power_of_two(kernel)
    if scale == 0:
        # A norm has no gradient at 0, and 0 is in its subdifferential.
        return (kernel * 0.0).sum()
    problem = _problem(kernel if scale == 1 else kernel / scale, geometry)
    # The norm itself is approached from below, but is that of the loosest reading, as its certified upper end is.
    value = entry.compute(problem if entry.name == NORM else problem.read_from(entry.side, entry.holds_for))
    return value if scale == 1 else value * scale


def _directly(entry: Gradient, layers: Sequence[tuple[Tensor, Geometry]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the bounds of kernels and their gradients by the short cut, which there must be."""
    assert entry.direct is not None
    fixed = [(kernel.detach(), geometry) for kernel, geometry in layers]
    scales = [_power_of_two(kernel) for kernel, _ in fixed]
    plain = [_plain(kernel, g, scale) for (kernel, g), scale in zip(fixed, scales, strict=True) if scale]
    found = iter(entry.direct(plain))
    values, slopes = [], []
    for (kernel, _), scale in zip(fixed, scales, strict=True):
        if scale:
            # Bounds are homogeneous: the gradient is that of the scaled kernel.
            value, slope = next(found)
        else:
            # A norm has no gradient at 0, and 0 is in its subdifferential.
            value, slope = kernel.new_zeros((), dtype=torch.float64), torch.zeros_like(kernel)
        values.append(value if scale in (0, 1) else value * scale)
        slopes.append(slope.reshape(kernel.shape))
    return values, slopes


def _plain(kernel: Tensor, geometry: Geometry, scale: float) -> Plain:
    wide = canonical(kernel, geometry.groups)
    dtype = torch.promote_types(kernel.dtype, torch.float32)
    return Plain(wide if scale == 1 else wide / scale, geometry.stride, geometry.dilation, dtype)


def _problem(kernel: Tensor, geometry: Geometry) -> Problem:
    loose = loosest(geometry)
    form = normal_form(canonical(kernel, loose.groups), loose.stride, loose.dilation)
    return Problem(form, canonical(kernel, geometry.groups), geometry, execution_on(str(kernel.device)))

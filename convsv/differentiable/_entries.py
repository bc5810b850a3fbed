"""Which bounds have a gradient: the registry, and why the others have none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from convsv.bounds import BOUNDS, Problem, Scope
from convsv.registry import Registry
from convsv.results import Side
from convsv.symbol import NormalForm, normal_extent, normal_form

__all__ = ["DEFAULT", "GRADIENTS", "NORM", "WITHOUT_GRADIENT", "Compute", "Direct", "Gradient", "Plain", "gradient"]

NORM = "norm"
"""The name of the size-free norm itself, beside those of the bounds."""

DEFAULT = "singla2021_t"
"""The bound of a penalty unless told: above the norm by at most the root of the number of taps, and a small part of a
training step."""

_ITERATE = (
    "what a few rounds of power iteration reach from a random start: the value moves with the start and the number of "
    "rounds, and converged it is the norm, whose gradient `norm` has"
)
WITHOUT_GRADIENT: Mapping[str, str] = {
    "bloch": "its test wave is found by a search that the value does not depend on smoothly; `norm` has the gradient",
    "boroojeny2024": _ITERATE,
    "farnia2019": _ITERATE,
    "gouk2018": _ITERATE,
    "ryu2019": _ITERATE,
}
"""Bounds of the catalogue that are not differentiable, and why."""

Compute: TypeAlias = Callable[[Problem], Tensor]
"""Computes a bound of the scaled kernel as a scalar tensor, with a gradient in ``Problem.kernel`` and ``.form``."""


@dataclass(frozen=True)
class Plain:
    """A layer in whose geometry nothing is a guess, for bounds of many layers together.

    Attributes:
        kernel: ``(G, O, I, *K)`` float64, scaled, nonzero, outside of any graph.
        stride: one integer an axis.
        dilation: one integer an axis.
        dtype: to compute the gradient in, float64 or float32: the layer's weight has no more digits.
    """

    kernel: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    dtype: torch.dtype

    @cached_property
    def form(self) -> NormalForm:
        """The normal form, made when it is first asked for: not every bound reads it."""
        return normal_form(self.kernel, self.stride, self.dilation)

    @property
    def taps(self) -> tuple[int, ...]:
        """Taps of the normal form, an axis."""
        return normal_extent(tuple(self.kernel.shape[3:]), self.stride, self.dilation)


Direct: TypeAlias = Callable[[Sequence[Plain]], list[tuple[Tensor, Tensor]]]
"""Computes a bound of each layer, and its gradient in the layer's kernel, without a graph: equal shapes together."""


@dataclass(frozen=True)
class Gradient:
    """A bound as a differentiable function.

    Attributes:
        name: as in :data:`convsv.bounds.BOUNDS`, or one of those that are here only.
        side: the side of the norm on which it lies; ``"norm"`` itself is approached from below.
        holds_for: the operators it is about, a key of :data:`convsv.bounds.SCOPES`.
        compute: does it.
        direct: does it for many layers, together with the gradients, in a fraction of the time.
    """

    name: str
    side: Side
    holds_for: Scope
    compute: Compute
    direct: Direct | None = None


GRADIENTS: Registry[Gradient] = Registry("differentiable bound", "convsv.differentiable")
"""All differentiable bounds by name."""


def gradient(
    name: str,
    *,
    side: Side | Literal["of the bound"] = "of the bound",
    holds_for: Scope = "any size",
    direct: Direct | None = None,
) -> Callable[[Compute], Compute]:
    """Return a decorator that registers a function as the differentiable form of the bound ``name``.

    Args:
        name: of the bound.
        side: told here for what the catalogue of bounds does not have.
        holds_for: the same.
        direct: the short cut, if there is one.
    """

    def register(compute: Compute) -> Compute:
        if side == "of the bound":
            entry = BOUNDS[name]
            GRADIENTS.add(name, Gradient(name, entry.side, entry.holds_for, compute, direct))
        else:
            GRADIENTS.add(name, Gradient(name, side, holds_for, compute, direct))
        return compute

    return register

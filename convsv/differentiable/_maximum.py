"""Largest values as functions with a gradient.

By Danskin's theorem the derivative of a maximum is that of the function at the maximiser, which itself may be treated
as fixed: so maximisers are found without a record, and only the value at them is differentiated. Where several are
equally large, the one that was found gives one element of the subdifferential.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convsv.bounds._norms import DIRECT, leading_rows, short_side
from convsv.linalg import eigenpairs, leading_eigenvectors

__all__ = ["Pairs", "leading_pairs", "spectral_norms", "with_slopes"]


def spectral_norms(matrices: Tensor) -> Tensor:
    """Return the largest singular values of matrices, with the gradient u v* of one leading pair each.

    Args:
        matrices: ``(B, m, n)``, float64 or complex128.

    Returns:
        ``(B,)`` float64: ``||A* u||`` for the left singular vector u, to working precision.
    """
    short = short_side(matrices)
    with torch.no_grad():
        fixed = short.detach()
        vectors = eigenpairs(fixed @ fixed.mH)[1][..., -1] if fixed.is_complex() else leading_rows(fixed)
    # LAPACK's vectors are of length 1 to working precision.
    images = (short.mT @ vectors.conj()[..., None])[..., 0]
    norms: Tensor = torch.linalg.vector_norm(images, dim=-1)
    return norms


@dataclass(frozen=True)
class Pairs:
    """The norms of a stack of matrices ``(B, m, n)``, and one pair of leading singular vectors each.

    Attributes:
        norms: ``(B,)`` float64.
        left: ``(B, m, 1)``.
        right: ``(B, n, 1)``, not finite for a matrix of zeros.
    """

    norms: Tensor
    left: Tensor
    right: Tensor

    def slope(self, which: int, factor: float, dtype: torch.dtype) -> Tensor:
        """Return the gradient of one norm, times a factor, in the stack: ``(B, m, n)``, u v* in one place."""
        one = slice(which, which + 1)
        outer = (self.left[one] * factor).to(dtype) @ self.right[one].to(dtype).mT
        if len(self.norms) == 1:
            return outer
        whole = outer.new_zeros(len(self.norms), *outer.shape[1:])
        whole[which] = outer[0]
        return whole


def leading_pairs(stacks: Sequence[Tensor]) -> list[Pairs]:
    """Return norms and leading singular vectors of stacks of matrices; those of one shape are computed together.

    Args:
        stacks: each ``(B, m, n)`` float64, outside of any graph; sizes may differ from one to the next.
    """
    alike = _alike((stack.shape[1:], stack.device) for stack in stacks)
    joined = [torch.cat([stacks[p] for p in places]) if len(places) > 1 else stacks[places[0]] for places in alike]
    shorts = [short_side(stack) for stack in joined]
    found: dict[int, Pairs] = {}
    for places, stack, short, few in zip(alike, joined, shorts, _left(shorts), strict=True):
        many = short.mT @ few
        norms = torch.linalg.vector_norm(many, dim=1, keepdim=True)
        many = many / norms
        left, right = (few, many) if short is stack else (many, few)
        sizes = [len(stacks[place]) for place in places]
        parts = [part.split_with_sizes(sizes) for part in (norms[:, 0, 0], left, right)]
        found.update({place: Pairs(*pairs) for place, *pairs in zip(places, *parts, strict=True)})
    return [found[place] for place in range(len(stacks))]


def _alike(keys: Iterable[Hashable]) -> list[list[int]]:
    """Return the places of equal keys, together."""
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return list(places.values())


def _left(shorts: Sequence[Tensor]) -> list[Tensor]:
    """Return leading left singular vectors ``(B, m, 1)`` of each: the Gram matrices of one size all together."""
    keys = (
        (short.shape[1], short.device) if 1 < short.shape[1] <= DIRECT else place for place, short in enumerate(shorts)
    )
    found: dict[int, Tensor] = {}
    for places in _alike(keys):
        if len(places) == 1:
            found[places[0]] = leading_rows(shorts[places[0]])[..., None]
            continue
        grams = torch.cat([shorts[place] @ shorts[place].mT for place in places])
        vectors = leading_eigenvectors(grams)[..., None]
        found.update(zip(places, vectors.split_with_sizes([len(shorts[place]) for place in places]), strict=True))
    return [found[place] for place in range(len(shorts))]


def with_slopes(kernels: Sequence[Tensor], values: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """Return values with known gradients, which cannot be differentiated again.

    With maximisers held fixed second derivatives would lack how these move: better an error than a wrong value.

    Args:
        kernels: N tensors.
        values: ``(N,)``, one a kernel.
        slopes: the gradient of each value in its kernel.
    """
    passed: Tensor = _Values.apply(values, *kernels, *slopes)  # type: ignore[no-untyped-call]
    return passed


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 2
        kernels, slopes = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if torch.is_grad_enabled():
            slopes = tuple(_Slope.apply(*pair) for pair in zip(kernels, slopes, strict=True))  # type: ignore[no-untyped-call]
        parts = zip(gradients[0].unbind(), kernels, slopes, strict=True)
        return None, *((slope * part.to(slope)).to(kernel) for part, kernel, slope in parts), *(None,) * count


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, slope: Tensor) -> Tensor:
        return slope.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError("bounds of norms are differentiable once, not twice")

"""Largest values as functions with a gradient.

By Danskin's theorem the derivative of a maximum is that of the function at the maximiser, which itself may be treated
as fixed: so maximisers are found without a record, and only the value at them is differentiated. Where several are
equally large, the one that was found gives one element of the subdifferential.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convsv.bounds._norms import DIRECT, leading_rows, short_side
from convsv.linalg import eigenpairs, eigenvalues, leading_eigenvectors

__all__ = ["Stack", "largest_norms", "norms_of", "spectral_norms", "with_slopes"]


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
class Stack:
    """Matrices of which the largest norm counts, times a factor.

    Attributes:
        matrices: ``(B, m, n)`` float64, outside of any graph.
        factor: what the norm is multiplied by.
        dtype: of the gradient that is wanted.
    """

    matrices: Tensor
    factor: float = 1.0
    dtype: torch.dtype = torch.float64


def largest_norms(stacks: Sequence[Stack]) -> list[tuple[Tensor, Tensor]]:
    """Return the largest spectral norm of each stack times its factor, and the gradient u v* of that.

    Args:
        stacks: any; what is alike is computed together.

    Returns:
        For each a scalar, float64, and ``(B, m, n)``: zero but for the matrix of the largest norm.
    """
    joined = _joined(stacks)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for (short, places, is_tall), every in zip(joined, _left([short for short, _, _ in joined]), strict=True):
        left, right = every, short.mT @ every
        norms = torch.linalg.vector_norm(right, dim=1, keepdim=True)
        groups = [0] * len(places)
        if len(norms) > len(places):
            parts = torch.split(norms, [len(stacks[place].matrices) for place in places])
            groups = [int(part.argmax()) for part in parts]
            starts = itertools.accumulate((len(part) for part in parts[:-1]), initial=0)
            chosen = [start + group for start, group in zip(starts, groups, strict=True)]
            left, right, norms = left[chosen], right[chosen], norms[chosen]
        factor, dtype = stacks[places[0]].factor, stacks[places[0]].dtype
        u, v = left.to(dtype), (right * (factor / norms)).to(dtype)
        slopes = torch.split(v @ u.mT if is_tall else u @ v.mT, 1)
        values = (norms * factor).flatten()
        for place, group, value, slope in zip(places, groups, values.unbind(), slopes, strict=True):
            found[place] = value, _at(slope, group, len(stacks[place].matrices))
    return [found[place] for place in range(len(stacks))]


def norms_of(stacks: Sequence[Stack]) -> list[Tensor]:
    """Return the spectral norms ``(B,)`` of each stack, without factor, and without vectors where these cost."""
    found: dict[int, Tensor] = {}
    for short, places, _ in _joined(stacks):
        if short.shape[1] <= DIRECT:
            norms = eigenvalues(short @ short.mT)[:, -1].clamp(min=0).sqrt()
        else:
            norms = torch.linalg.vector_norm(short.mT @ leading_rows(short)[..., None], dim=(1, 2))
        found.update(zip(places, torch.split(norms, [len(stacks[place].matrices) for place in places]), strict=True))
    return [found[place] for place in range(len(stacks))]


def _joined(stacks: Sequence[Stack]) -> list[tuple[Tensor, list[int], bool]]:
    """Return stacks that are alike as one, with no more rows than columns; their places; whether it is transposed."""
    alike: dict[Hashable, list[int]] = {}
    for place, stack in enumerate(stacks):
        key = stack.matrices.shape[1:], stack.matrices.device, stack.factor, stack.dtype
        alike.setdefault(key, []).append(place)
    found = []
    for places in alike.values():
        parts = [stacks[place].matrices for place in places]
        together = parts[0] if len(parts) == 1 else torch.cat(parts)
        short = short_side(together)
        found.append((short, places, short is not together))
    return found


def _left(shorts: Sequence[Tensor]) -> list[Tensor]:
    """Return leading left singular vectors ``(B, m, 1)`` of each: the Gram matrices of one size all together."""
    alike: dict[Hashable, list[int]] = {}
    for place, short in enumerate(shorts):
        rows = short.shape[1]
        alike.setdefault((rows, short.device) if 1 < rows <= DIRECT else place, []).append(place)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        if len(places) == 1:
            found[places[0]] = leading_rows(shorts[places[0]])[..., None]
            continue
        grams = torch.cat([shorts[place] @ shorts[place].mT for place in places])
        vectors = leading_eigenvectors(grams)[..., None]
        found.update(zip(places, torch.split(vectors, [len(shorts[place]) for place in places]), strict=True))
    return [found[place] for place in range(len(shorts))]


def _at(slope: Tensor, group: int, groups: int) -> Tensor:
    """Return a gradient ``(1, m, n)`` as that of so many groups."""
    if groups == 1:
        return slope
    whole = slope.new_zeros(groups, *slope.shape[1:])
    whole[group] = slope[0]
    return whole


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

"""Largest values as functions with a gradient.

By Danskin's theorem the derivative of a maximum is that of the function at the maximiser, which itself may be treated
as fixed: so maximisers are found without a record, and only the value at them is differentiated. Where several are
equally large, the one that was found gives one element of the subdifferential.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convsv.bounds._norms import leading_rows, short_side
from convsv.linalg import eigenpairs

__all__ = ["spectral_norms", "with_slope"]


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
        if fixed.is_complex():
            vectors = eigenpairs(fixed @ fixed.mH)[1][..., -1]
        elif fixed.shape[1] == 1:
            vectors = torch.ones_like(fixed[..., 0])
        else:
            vectors = leading_rows(fixed)
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    images = torch.einsum("bmn,bm->bn", short, vectors.conj())
    norms: Tensor = torch.linalg.vector_norm(images, dim=-1)
    return norms


def with_slope(kernel: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Return a value with a known gradient in the kernel, which cannot be differentiated again.

    With maximisers held fixed second derivatives would lack how these move: better an error than a wrong value.

    Args:
        kernel: any tensor.
        value: a scalar.
        slope: the gradient, of the kernel's shape.
    """
    passed: Tensor = _Value.apply(kernel, value, slope)  # type: ignore[no-untyped-call]
    return passed


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(kernel, slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        kernel, slope = ctx.saved_tensors
        fixed: Tensor = _Slope.apply(kernel, slope)  # type: ignore[no-untyped-call]
        return (gradients[0] * fixed).to(kernel.dtype), None, None


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, slope: Tensor) -> Tensor:
        return slope.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError("bounds of norms are differentiable once, not twice")

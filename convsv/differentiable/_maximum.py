"""Largest values as functions with a gradient.

By Danskin's theorem the derivative of a maximum is that of the function at the maximiser, which itself may be treated
as fixed: so maximisers are found without a record, and only the value at them is differentiated. Where several are
equally large, the one that was found gives one element of the subdifferential.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsv.bounds._norms import leading_rows, short_side
from convsv.linalg import eigenpairs

__all__ = ["spectral_norms", "with_slopes"]


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
    # LAPACK's vectors are of length 1 to working precision.
    images = (short.mT @ vectors.conj()[..., None])[..., 0]
    norms: Tensor = torch.linalg.vector_norm(images, dim=-1)
    return norms


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
        return None, *((part.to(slope) * slope).to(kernel) for part, kernel, slope in parts), *(None,) * count


class _Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, slope: Tensor) -> Tensor:
        return slope.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError("bounds of norms are differentiable once, not twice")

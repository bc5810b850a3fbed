"""Orthogonal convolutions by the Cayley transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convsv.errors import UsageError

__all__ = ["cayley", "truncate"]


def cayley(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Return a kernel as large as the image, whose circular convolution of that size is orthogonal.

    At each frequency the square part U and the rest V of the symbol give A = U - U* + V* V and
    Q = [(I - A)(I + A)^-1; 2 V (I + A)^-1], for which Q* Q = I because A + A* = 2 V* V (A. Trockman, J. Z. Kolter:
    Orthogonalizing Convolutional Layers with the Cayley Transform, ICLR 2021). Differentiable.

    Guarantee:
        With circular padding at exactly this size and stride 1 all singular values are 1, up to rounding: an isometry
        where c_out >= c_in, else a co-isometry. At another size, with zero padding, or cut to a small support
        (:func:`truncate`), it is neither: the size-free norm of the result is above 1 as a rule.

    Args:
        kernel: ``(c_out, c_in, *K)`` of one group, float64 or float32, of any support up to the size.
        size: of the image, one integer an axis.

    Returns:
        ``(c_out, c_in, *size)``, of the kernel's dtype; position 0 is the tap that does not shift.

    Raises:
        UsageError: the size has another number of axes, or is smaller than the kernel.
    """
    size = tuple(size)
    if len(size) != kernel.ndim - 2 or any(n < k for n, k in zip(size, kernel.shape[2:], strict=True)):
        raise UsageError("the size must be one integer an axis, at least the kernel's", found=str(size))
    if kernel.shape[0] < kernel.shape[1]:
        return cayley(kernel.transpose(0, 1), size).transpose(0, 1)
    axes = tuple(range(-len(size), 0))
    symbols = torch.fft.fftn(kernel, s=size, dim=axes).movedim((0, 1), (-2, -1))
    inputs = kernel.shape[1]
    square, rest = symbols[..., :inputs, :], symbols[..., inputs:, :]
    skew = square - square.mH + rest.mH @ rest
    identity = torch.eye(inputs, dtype=skew.dtype, device=skew.device)
    # (I - A)(I + A)^-1 = 2 (I + A)^-1 - I.
    inverse = torch.linalg.inv(identity + skew)
    orthogonal = torch.cat([2 * inverse - identity, 2 * rest @ inverse], -2)
    # Symbols at w and -w are conjugate, as they were: what is not real is rounding.
    found: Tensor = torch.fft.ifftn(orthogonal.movedim((-2, -1), (0, 1)), dim=axes).real
    return found


def truncate(kernel: Tensor, support: Sequence[int]) -> tuple[Tensor, float]:
    """Return the window of a circular kernel with the most energy on each axis, and what that may do.

    Where the window lies on the circle does not matter to singular values: a shift is orthogonal. By Weyl's inequality
    each moves by at most the norm of what is cut off, which is at most sqrt(n) times its Frobenius norm, n being the
    number of taps that were dropped.

    Args:
        kernel: ``(c_out, c_in, *size)``, as :func:`cayley` returns it.
        support: taps to keep, one integer an axis.

    Returns:
        The kernel ``(c_out, c_in, *support)``, and that bound: of an orthogonal kernel the singular values of the
        result, with circular padding at the same size, are within it of 1.

    Raises:
        UsageError: the support has another number of axes, or is larger than the kernel.
    """
    size = tuple(kernel.shape[2:])
    if len(support) != len(size) or any(not 1 <= k <= n for k, n in zip(support, size, strict=True)):
        raise UsageError("the support must be one integer an axis, at most the kernel's", found=str(tuple(support)))
    energy = kernel.detach().square().sum((0, 1))
    kept = kernel
    for axis, (k, n) in enumerate(zip(support, size, strict=True)):
        if k == n:
            continue
        others = [other for other in range(len(size)) if other != axis]
        line = energy.sum(others) if others else energy
        windows = torch.stack([line.roll(-start)[:k].sum() for start in range(n)])
        kept = kept.roll(-int(windows.argmax()), 2 + axis).narrow(2 + axis, 0, k)
    lost = max(0.0, float(energy.sum() - kept.detach().square().sum()))
    return kept, math.sqrt(lost * (math.prod(size) - math.prod(support)))

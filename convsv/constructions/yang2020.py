"""Kernels of low rank: exactly, as two layers, and by the symbol."""

from __future__ import annotations

import torch
from torch import Tensor

from convsv.clipping import ClipOptions
from convsv.constructions._symbol import Constructed, constructed
from convsv.errors import UsageError
from convsv.geometry import Geometry

__all__ = ["factors", "low_rank"]


def factors(kernel: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return a layer to ``rank`` channels and a 1x1 layer from there, together nearest to a kernel.

    The channel-wise decomposition of H. Yang, M. Tang, W. Wen, F. Yan, D. Hu, A. Li, H. Li, Y. Chen: Learning Low-rank
    Deep Neural Networks via Singular Vector Orthogonality Regularization and Singular Value Sparsification, CVPRW 2020.
    Every symbol of the product is U V(w): its rank is at most ``rank`` at every frequency and for every stride. Of all
    such pairs it is nearest to the kernel (Eckart, Young 1936). Differentiable where the singular values differ.

    Args:
        kernel: ``(c_out, c_in, *K)`` of one group.
        rank: from 1 to min(c_out, c_in K).

    Returns:
        Kernels ``(rank, c_in, *K)`` and ``(c_out, rank, 1, ...)``. The second has orthonormal columns: the norm of the
        pair is that of the first.

    Raises:
        UsageError: the rank is out of range.
    """
    matrix = kernel.flatten(1)
    if not 1 <= rank <= min(matrix.shape):
        raise UsageError(f"the rank must be from 1 to {min(matrix.shape)}", found=str(rank))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    first = (values[:rank, None] * right[:rank]).reshape(rank, *kernel.shape[1:])
    return first, left[:, :rank].reshape(kernel.shape[0], rank, *(1,) * (kernel.ndim - 2))


def low_rank(kernel: Tensor, rank: int, geometry: Geometry | None = None) -> Constructed:
    """Return a kernel of the same support whose symbol is nearly of low rank: cut at each frequency, then again.

    As a rule nearer to the kernel than :func:`factors`, for each frequency has a subspace of its own, but reached only
    nearly: ``reached.beyond`` is the largest singular value after the rank over the largest of all.

    Args:
        kernel: ``(c_out, c_in / groups, *K)``, or for a transposed layer ``(c_in, c_out / groups, *K)``.
        rank: at least 1.
        geometry: its stride, dilation and groups; None for stride 1 and one group.

    Raises:
        UsageError: the kernel is not real, or the rank is not positive.
        GeometryError: the geometry does not fit the kernel.
        UnavailableError: a weight is NaN or infinite.
    """
    return constructed(kernel, geometry, ClipOptions(rank=rank))

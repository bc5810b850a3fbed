"""Kernels compressed in the tensor-train format, whose singular values are those of a small core."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convsv.clipping import ClipOptions
from convsv.constructions._symbol import constructed
from convsv.errors import UsageError
from convsv.geometry import Geometry

__all__ = ["Compressed", "compress"]

_ROOM = 1e-6
"""Left below the largest norm allowed, relative to it, for orthonormal factors as they are rounded to float32."""


@dataclass(frozen=True)
class Compressed:
    """A kernel as left x core x right: a 1x1 layer, a layer between few channels, and a 1x1 layer.

    Attributes:
        left: ``(c_out, r_out)`` with orthonormal columns.
        core: ``(r_out, r_in, *K)``.
        right: ``(r_in, c_in)`` with orthonormal rows.
    """

    left: Tensor
    core: Tensor
    right: Tensor

    def full(self) -> Tensor:
        """Return the kernel, ``(c_out, c_in, *K)``. Its nonzero singular values are those of the core.

        For every stride, dilation and size: the factors are an isometry and a co-isometry on every pixel for itself.
        """
        flat = torch.einsum("oa,abk,bi->oik", self.left, self.core.flatten(2), self.right)
        return flat.reshape(self.left.shape[0], self.right.shape[1], *self.core.shape[2:])

    def clipped(self, max_norm: float, geometry: Geometry | None = None) -> Compressed:
        """Return it with the core moved as little as possible until its norm is at most ``max_norm``.

        Args:
            max_norm: the largest norm allowed, of every size.
            geometry: stride and dilation of the layer.

        Raises:
            UsageError: ``max_norm`` is not positive.
            UnavailableError: a weight is NaN or infinite.
            ComputationError: no core within the norm was found in its dtype.

        Guarantee:
            The norm of the core is certified, with a part in a million to spare. That of the full kernel is the same
            but for the rounding of its factors and products.
        """
        found = constructed(self.core, geometry, ClipOptions(max_norm * (1 - _ROOM)))
        return replace(self, core=found.kernel)


def compress(kernel: Tensor, ranks: tuple[int, int]) -> Compressed:
    """Return a kernel of one group compressed to so many channels, with the leading singular vectors as factors.

    The tensor-train format of A. Senderovich, E. Bulatova, A. Obukhov, M. Rakhuba: Towards Practical Control of
    Singular Values of Convolutional Layers, NeurIPS 2022, with orthonormal factors. By truncated singular value
    decompositions, one side after the other: within sqrt(2) of the least distance in the Frobenius norm.

    Args:
        kernel: ``(c_out, c_in, *K)``.
        ranks: channels of the core: outputs and inputs.

    Raises:
        UsageError: a rank is out of range.
    """
    outputs, inputs, taps = *kernel.shape[:2], math.prod(kernel.shape[2:])
    most = min(outputs, inputs * taps), min(inputs, ranks[0] * taps)
    if not (1 <= ranks[0] <= most[0] and 1 <= ranks[1] <= most[1]):
        raise UsageError(f"the ranks must be from 1 to {most}", found=str(ranks))
    left = torch.linalg.svd(kernel.flatten(1), full_matrices=False)[0][:, : ranks[0]]
    rest = torch.einsum("oa,oik->iak", left, kernel.flatten(2))
    frame = torch.linalg.svd(rest.flatten(1), full_matrices=False)[0][:, : ranks[1]]
    core = torch.einsum("ib,iak->abk", frame, rest).reshape(*ranks, *kernel.shape[2:])
    return Compressed(left, core, frame.mT)

"""Edits of the symbol as functions of a kernel: the projections of :mod:`convsv.clipping`, for a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convsv.certificate import certify
from convsv.clipping import ClipOptions, Kernel, clip_layer
from convsv.errors import UsageError
from convsv.geometry import Geometry, GeometryFacts, resolve
from convsv.layer import ConvLayer
from convsv.results import Interval, Reached
from convsv.symbol import normal_form

__all__ = ["Constructed", "constructed"]


@dataclass(frozen=True)
class Constructed:
    """A kernel and what is known of it.

    Attributes:
        kernel: of the layout, dtype and device of the one it was made from.
        norm: certified interval of its norm at every size, as it is in its dtype.
        reached: smallest and largest singular value of its symbol, and what is beyond the rank, on a fine grid.
    """

    kernel: Tensor
    norm: Interval
    reached: Reached | None


def constructed(kernel: Tensor, geometry: Geometry | None, options: ClipOptions) -> Constructed:
    """Return a kernel after what the options ask for.

    Args:
        kernel: ``(c_out, c_in / groups, *K)``, or for a transposed layer ``(c_in, c_out / groups, *K)``.
        geometry: its stride, dilation and groups; None for stride 1 and one group.
        options: what to do.

    Raises:
        UsageError: the kernel is not real.
        GeometryError: the geometry does not fit the kernel.
        UnavailableError: a weight is NaN or infinite.
        ComputationError: no kernel within the radius was found in its dtype.
    """
    if not torch.is_floating_point(kernel):
        raise UsageError("a kernel must be of real floating-point numbers", found=str(kernel.dtype))
    stored = kernel.detach().to("cpu", torch.float64).numpy()
    known = geometry or resolve(stored.shape[2:], [("option", GeometryFacts(stride=1, dilation=1, groups=1))])
    dtype = str(kernel.dtype).removeprefix("torch.")
    layer = ConvLayer("kernel", "kernel", stored.shape, dtype, "OIK", known, lambda: stored)

    def judge(values: Kernel) -> Interval:
        return certify(normal_form(torch.from_numpy(np.ascontiguousarray(values)), known.stride, known.dilation))

    found = clip_layer(layer, options, judge, as_stored=layer.as_stored)
    made = torch.from_numpy(np.ascontiguousarray(found.kernel.reshape(stored.shape))).to(kernel)
    return Constructed(made, found.after, found.reached)

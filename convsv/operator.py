"""The layer as it runs: the linear map that its geometry and kernel make, its exact adjoint, its dense matrix.

Padding is an index map an axis: the forward map gathers by it and convolves, the adjoint convolves transposed and
scatters by it, so that the two are adjoint by construction, for every padding mode. A transposed layer is the adjoint
of the forward convolution that its geometry describes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from convsv.errors import UnavailableError
from convsv.geometry import PADDINGS, Geometry, padding_multiplicity
from convsv.rounding import gamma

__all__ = ["ConvOperator", "enclosing_circle", "without_dilation"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@dataclass(frozen=True)
class _Forward:
    """The forward convolution: padding maps, and its sizes."""

    sources: tuple[Tensor, ...]
    size: tuple[int, ...]
    padded: tuple[int, ...]
    outputs: tuple[int, ...]


class ConvOperator:
    """A convolution layer as a linear map between arrays of shape ``(channels, *size)``.

    Every method takes and returns a leading batch axis, in the kernel's dtype and on its device. Products on a CPU
    are plain sums of products; a GPU's may be formed by other algorithms, to which ``rounding`` does not apply.

    Args:
        kernel: ``(G, O, I, *K)`` with one to three spatial axes.
        geometry: the layer's; ``groups`` is read off the kernel.

    Attributes:
        input_shape: channels and size of the layer's input.
        output_shape: channels and size of its output.

    Raises:
        GeometryError: there is no output, or a reflection that is larger than the input.
        UnavailableError: more than three spatial axes.
    """

    def __init__(self, kernel: Tensor, geometry: Geometry) -> None:
        taps = tuple(kernel.shape[3:])
        if len(taps) not in _CONVOLUTIONS:
            raise UnavailableError("only 1 to 3 spatial axes can be convolved", found=str(len(taps)))
        self._geometry = geometry
        self._kernel = kernel
        self._groups, outputs, inputs = (int(n) for n in kernel.shape[:3])
        self._weight = kernel.reshape(self._groups * outputs, inputs, *taps)
        size = geometry.forward_size(taps)
        # A transposed layer's own input may be shorter than all that the forward convolution puts out.
        rows = geometry.size if geometry.transposed else geometry.output_size(taps)
        pad = PADDINGS[geometry.padding_mode]
        maps = [pad(n, *amounts) for n, amounts in zip(size, geometry.padding, strict=True)]
        self._forward = _Forward(
            sources=tuple(torch.from_numpy(m).to(kernel.device) for m in maps),
            size=size,
            padded=tuple(len(m) for m in maps),
            outputs=rows,
        )
        domain, image = (self._groups * inputs, *size), (self._groups * outputs, *rows)
        self.input_shape, self.output_shape = (image, domain) if geometry.transposed else (domain, image)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the kernel, the inputs and the outputs."""
        return self._kernel.dtype

    @property
    def device(self) -> torch.device:
        """Device of the kernel, the inputs and the outputs."""
        return self._kernel.device

    @property
    def rounding(self) -> float:
        """Bound on ``||fl(A x) - A x|| / ||x||`` and on the adjoint's, for ``||x|| >= 1/2``, on a CPU (plain sums).

        An entry of A x is a sum of at most n products, so it errs by at most gamma_n (|A| |x|) in any order of
        summation (Higham 2002, section 3.1). |A| is the layer of kernel |K|, whose norm is at most that of its
        padding times the Frobenius norm of sum_k |K_k| (its symbol is largest at frequency 0 entry by entry). A last
        term covers products that underflow.
        """
        outputs, inputs = self._kernel.shape[1:3]
        copies = [
            padding_multiplicity(self._geometry.padding_mode, n, before, after)
            for n, (before, after) in zip(self._forward.size, self._geometry.padding, strict=True)
        ]
        length = math.prod(self._kernel.shape[3:]) * max(outputs, inputs) + math.prod(copies)
        magnitudes = self._kernel.detach().abs().to(torch.float64).flatten(3).sum(-1)
        norm = float(torch.linalg.vector_norm(magnitudes, dim=(1, 2)).max()) * math.sqrt(math.prod(copies))
        entries = max(math.prod(self.input_shape), math.prod(self.output_shape))
        underflow = 4 * length * math.sqrt(entries) * float(torch.finfo(self.dtype).tiny)
        # Two more units: for the rounding of this bound itself.
        return gamma(length + 2, float(torch.finfo(self.dtype).eps) / 2) * norm + underflow

    def apply(self, x: Tensor) -> Tensor:
        """Return A x: ``(B, *input_shape)`` to ``(B, *output_shape)``."""
        return self._scatter(x) if self._geometry.transposed else self._gather(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: ``(B, *output_shape)`` to ``(B, *input_shape)``."""
        return self._gather(y) if self._geometry.transposed else self._scatter(y)

    def to_dense(self) -> Tensor:
        """Return the matrix of A, ``(prod(output_shape), prod(input_shape))``, over row-major vectors."""
        columns = math.prod(self.input_shape)
        identity = torch.eye(columns, dtype=self.dtype, device=self.device)
        return self.apply(identity.reshape(columns, *self.input_shape)).reshape(columns, -1).T.contiguous()

    def _gather(self, x: Tensor) -> Tensor:
        """Return the forward convolution of x."""
        for axis, sources in enumerate(self._forward.sources, start=2):
            x = x.index_select(axis, sources.clamp(min=0))
            if (sources < 0).any():
                x = x * (sources >= 0).to(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
        geometry = self._geometry
        if self._is_slow:
            y = _shifted_products(x, self._weight, geometry.dilation)
        else:
            convolve = _CONVOLUTIONS[geometry.dims]
            y = convolve(x, self._weight, stride=geometry.stride, dilation=geometry.dilation, groups=self._groups)
        for axis, n in enumerate(self._forward.outputs, start=2):
            y = y.narrow(axis, 0, n)
        return y

    def _scatter(self, y: Tensor) -> Tensor:
        """Return the adjoint of the forward convolution, applied to y."""
        geometry = self._geometry
        if self._is_slow:
            reach = [d * (k - 1) for k, d in zip(self._weight.shape[2:], geometry.dilation, strict=True)]
            around = functional.pad(y, [n for amount in reversed(reach) for n in (amount, amount)])
            x = _shifted_products(around, self._weight.flip(2, 3, 4).transpose(0, 1), geometry.dilation)
        else:
            transpose = _TRANSPOSED[geometry.dims]
            x = transpose(y, self._weight, stride=geometry.stride, dilation=geometry.dilation, groups=self._groups)
        # Where the stride does not fit, the last positions of the padded input were never read.
        x = functional.pad(x, [n for axis in reversed(range(2, x.ndim)) for n in (0, self._missing(x, axis))])
        for axis, (n, sources) in enumerate(zip(self._forward.size, self._forward.sources, strict=True), start=2):
            inside = torch.nonzero(sources >= 0).flatten()
            shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
            x = x.new_zeros(shape).index_add(axis, sources[inside], x.index_select(axis, inside))
        return x

    @property
    def _is_slow(self) -> bool:
        """Whether torch is five times slower than we are: three axes, plain, in double precision on a CPU."""
        plain = max(self._geometry.stride) == 1 and self._groups == 1 and min(self._kernel.shape[1:3]) > 1
        return plain and self._geometry.dims == 3 and self.dtype == torch.float64 and self.device.type == "cpu"

    def _missing(self, x: Tensor, axis: int) -> int:
        return self._forward.padded[axis - 2] - x.shape[axis]


def _shifted_products(x: Tensor, weight: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """Return a convolution of stride 1 as one matrix product a tap, with the input shifted by that tap.

    A shift along any axis is one along the flat input: what then wraps around an axis is cut off at the end.

    Args:
        x: ``(B, I, *size)``.
        weight: ``(O, I, *K)``.
        dilation: one number an axis.

    Returns:
        ``(B, O, *size less the reach of the kernel)``, a view.
    """
    size, taps = x.shape[2:], weight.shape[2:]
    strides = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    places = product(*([tap * d * n for tap in range(k)] for k, d, n in zip(taps, dilation, strides, strict=True)))
    shifts = [sum(place) for place in places]
    matrices = weight.flatten(2).permute(2, 0, 1).contiguous()
    flat, count = x.flatten(2), math.prod(size) - shifts[-1]
    y = x.new_zeros(len(x), len(weight), math.prod(size))
    for rows, given in zip(y, flat, strict=True):
        for shift, matrix in zip(shifts, matrices, strict=True):
            rows[:, :count].addmm_(matrix, given[:, shift : shift + count])
    y = y.reshape(len(x), len(weight), *size)
    for axis, (n, k, d) in enumerate(zip(size, taps, dilation, strict=True), start=2):
        y = y.narrow(axis, 0, n - d * (k - 1))
    return y


def enclosing_circle(n: int, extent: int, stride: int, padding: tuple[int, int]) -> tuple[int, range]:
    """Return the smallest circle that contains a zero-padded axis: what wraps falls on zeros.

    Args:
        n: inputs.
        extent: of the kernel, dilation included.
        stride: of the kernel.
        padding: zeros before and after.

    Returns:
        The outputs of the circular convolution, ceil((n + max(p, q)) / stride) with the padding p, q that is read, and
        those outputs of the layer that see more than zeros.
    """
    before, after = padding
    outputs = (n + before + after - extent) // stride + 1
    after = (outputs - 1) * stride + extent - n - before
    blind = [max(0, -(-(amount - extent + 1) // stride)) for amount in (before, after)]
    before, after = before - blind[0] * stride, after - blind[1] * stride
    return -(-(n + max(before, after, 0)) // stride), range(blind[0], outputs - blind[1])


def without_dilation(geometry: Geometry, kernel_size: tuple[int, ...]) -> list[Geometry] | None:
    """Return the undilated layers whose direct sum is a dilated, zero-padded one of stride 1, each kind once.

    Taps that are r apart never connect positions of different residues modulo r: each residue an axis is a convolution
    of its own, on every r-th position. There are r of them an axis, of few kinds.

    Args:
        geometry: complete.
        kernel_size: spatial taps.

    Returns:
        Forward geometries, also for a transposed layer, whose singular values are the same: without those that see
        nothing. None where there is a stride, another padding, or no dilation.
    """
    plain = max(geometry.stride) == 1 and geometry.padding_mode == "zeros"
    if not plain or max(geometry.dilation) == 1:
        return None
    sizes = geometry.forward_size(kernel_size)
    # A transposed layer has as many inputs as its forward convolution has outputs: fewer, with output padding.
    outputs = geometry.size if geometry.transposed else geometry.output_size(kernel_size)
    axes = zip(sizes, outputs, kernel_size, geometry.dilation, geometry.padding, strict=True)
    kinds = [
        sorted({part for first in range(r) if (part := _residue((n, m), k, (r, first), pad))})
        for n, m, k, r, pad in axes
    ]
    dims = len(sizes)
    return [
        Geometry(tuple(n for n, _, _ in parts), (1,) * dims, tuple((a, b) for _, a, b in parts), groups=geometry.groups)
        for parts in product(*kinds)
    ]


def _residue(
    lengths: tuple[int, int], k: int, every: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int, int] | None:
    """Return inputs, zeros before and zeros after of the positions ``first``, ``first + r`` and so on."""
    (n, outputs), (r, first), (before, _) = lengths, every, padding
    inputs = len(range(first, n, r))
    # Output p + first + r j reads the inputs j .. j + k - 1 of this residue, counted from its first.
    earliest, latest = -((before + first) // r), (outputs - 1 - before - first) // r
    count = latest - earliest + 1
    behind = count + k - 1 - inputs + earliest
    inputs, behind = inputs + min(behind, 0), max(behind, 0)
    return (inputs, -earliest, behind) if inputs > 0 and count > 0 else None

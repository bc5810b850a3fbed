"""A convolution at its size as the blocks that do not touch one another, most of them copies.

An axis is a table: which input each output reads by each tap. Outputs that share no input belong to different parts of
the axis, and parts with the same table are copies. A product of one part an axis is a block of the layer: all other
entries of its rows and columns are 0. So a layer of 1x1 or of patches is one small matrix with many copies, one of
dilation r falls apart into r blocks an axis, and an ordinary layer is one block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.geometry import PADDINGS, Geometry
from convsv.rounding import gamma

__all__ = ["AxisPart", "Block", "axis_parts", "blocks_of", "squared_frobenius", "tap_tables"]

Table = NDArray[np.int64]

_LARGEST_COLUMNS = 64 << 20
"""Bytes of unfolded input at one time; larger blocks are worked on in slices of the first axis."""


@dataclass(frozen=True)
class AxisPart:
    """Outputs and inputs of one axis that read nothing else and are read by nothing else.

    Attributes:
        table: ``(outputs, taps)``: which of the part's inputs is read, -1 for a zero.
        inputs: positions of its inputs on the axis, ascending; those of the first of the copies.
        copies: how many parts have this table.
    """

    table: Table
    inputs: tuple[int, ...]
    copies: int = 1


def tap_tables(geometry: Geometry, kernel_size: tuple[int, ...]) -> tuple[Table, ...]:
    """Return for each axis of the forward convolution which input every output reads by every tap, -1 for a zero.

    Raises:
        GeometryError: there is no output, or a reflection that is larger than the input.
    """
    sizes = geometry.forward_size(kernel_size)
    # A transposed layer's own input may be shorter than all that the forward convolution puts out.
    outputs = geometry.size if geometry.transposed else geometry.output_size(kernel_size)
    pad = PADDINGS[geometry.padding_mode]
    axes = zip(sizes, outputs, kernel_size, geometry.stride, geometry.dilation, geometry.padding, strict=True)
    return tuple(
        pad(n, *amounts)[np.arange(rows)[:, None] * stride + np.arange(taps) * dilation]
        for n, rows, taps, stride, dilation, amounts in axes
    )


def axis_parts(table: Table) -> list[AxisPart]:
    """Return the different parts of an axis, without those that read nothing but zeros."""
    found: dict[tuple[bytes, int], AxisPart] = {}
    for rows in _connected(table):
        reads = np.unique(table[rows])
        reads = reads[reads >= 0]
        local = np.where(table[rows] >= 0, np.searchsorted(reads, table[rows]), -1)
        key = (local.tobytes(), len(rows))
        known = found.get(key)
        inputs = tuple(map(int, reads))
        found[key] = replace(known, copies=known.copies + 1) if known else AxisPart(local, inputs)
    return list(found.values())


def _connected(table: Table) -> list[list[int]]:
    """Return the outputs in groups that share inputs, directly or by way of others."""
    leader = list(range(len(table)))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    reader: dict[int, int] = {}
    for row, sources in enumerate(table.tolist()):
        for source in sources:
            if source >= 0:
                leader[find(row)] = find(reader.setdefault(source, row))
    groups: dict[int, list[int]] = {}
    for row, sources in enumerate(table.tolist()):
        if max(sources) >= 0:
            groups.setdefault(find(row), []).append(row)
    return list(groups.values())


def squared_frobenius(kernel: Tensor, tables: Sequence[Table]) -> float:
    """Return the sum of the squares of all entries of the layer's matrix.

    Entries are sums of the taps that fall onto one another, so it is sum_tu <K_t, K_u> times how often t and u read
    the same input: a product over the axes.

    Args:
        kernel: ``(G, O, I, *K)`` float64.
        tables: of :func:`tap_tables`.
    """
    flat = kernel.flatten(0, 2).flatten(1)
    together = (flat.T @ flat).reshape(*kernel.shape[3:], *kernel.shape[3:])
    for table in tables:
        same = (table[:, :, None] == table[:, None, :]) & (table[:, :, None] >= 0)
        counts = torch.from_numpy(same.sum(0).astype(np.float64)).to(kernel.device)
        # The first axis of each half is contracted; the halves shrink together.
        half = together.ndim // 2
        together = (together.movedim(half, 1) * counts.reshape(*counts.shape, *[1] * (2 * half - 2))).sum((0, 1))
    return float(together)


class Block:
    """One block of a group of the forward convolution, as a linear map with a leading batch axis.

    Args:
        kernel: ``(O, I, *K)``.
        parts: one an axis.

    Attributes:
        kernel: the kernel.
        parts: its part of each axis.
        input_shape: channels and inputs an axis.
        output_shape: channels and outputs an axis.
        copies: how often the block stands in its group.
    """

    def __init__(self, kernel: Tensor, parts: Sequence[AxisPart]) -> None:
        self.kernel, self.parts = kernel, tuple(parts)
        self.input_shape = (int(kernel.shape[1]), *(len(part.inputs) for part in parts))
        self.output_shape = (int(kernel.shape[0]), *(len(part.table) for part in parts))
        self.copies = math.prod(part.copies for part in parts)
        self._tables = [torch.from_numpy(part.table).to(kernel.device) for part in parts]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the kernel, the inputs and the outputs."""
        return self.kernel.dtype

    @property
    def device(self) -> torch.device:
        """Device of the kernel, the inputs and the outputs."""
        return self.kernel.device

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of its matrix."""
        return math.prod(self.output_shape), math.prod(self.input_shape)

    @property
    def is_wide(self) -> bool:
        """Whether its outputs are the smaller side."""
        return self.sides[0] < self.sides[1]

    @property
    def magnitude(self) -> float:
        """Upper bound, but for rounding, of the norm of |A|.

        |A| is at most sum_t |K_t| (x) P_t, where P_t reads by tap t, and reads one input at most c times: by the
        triangle inequality, channel by channel, its norm is at most sqrt(c) times the Frobenius norm of sum_t |K_t|.
        """
        counts = [[int(np.bincount(tap[tap >= 0]).max(initial=0)) for tap in part.table.T] for part in self.parts]
        magnitudes = self.kernel.abs().to(torch.float64).flatten(2).sum(-1)
        return float(torch.linalg.matrix_norm(magnitudes)) * math.sqrt(math.prod(max(axis) for axis in counts))

    @property
    def rounding(self) -> float:
        """Bound on ``||fl(A x) - A x|| / ||x||``, on the adjoint's, for ``||x|| >= 1/2``, and on that of ``dense``.

        An entry of A x is a sum of at most n products, formed in some order, so it errs by at most gamma_n (|A| |x|)
        (Higham 2002, section 3.1). A last term covers products that underflow. For arithmetic whose products are plain
        sums of products, as on a CPU.
        """
        depth = max(self.kernel[0].numel(), self.output_shape[0]) + len(self._slices(1))
        depth += sum(int(np.bincount(part.table[part.table >= 0]).max(initial=0)) for part in self.parts)
        info = torch.finfo(self.dtype)
        underflow = 4 * depth * math.sqrt(max(self.sides)) * float(info.tiny)
        # Two more units: for the rounding of the magnitude itself.
        return gamma(depth + 2, float(info.eps) / 2) * self.magnitude + underflow

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Block:
        """Return the block elsewhere."""
        return Block(self.kernel.to(device, dtype), self.parts)

    def dense(self) -> Tensor:
        """Return its matrix over row-major vectors, ``sides``: entries are taps, or sums of taps."""
        matrix, dims = self.kernel, len(self.parts)
        for table, inputs in zip(self._tables, self.input_shape[1:], strict=True):
            hot = torch.nn.functional.one_hot(table.clamp(min=0), inputs) * (table >= 0)[..., None]
            # Contract this axis' taps, always the third axis by now; its outputs and inputs go to the end.
            matrix = torch.tensordot(matrix, hot.to(matrix), dims=([2], [1]))
        order = (0, *range(2, 2 * dims + 2, 2), 1, *range(3, 2 * dims + 2, 2))
        return matrix.permute(order).reshape(self.sides).contiguous()

    def apply(self, x: Tensor) -> Tensor:
        """Return A x: ``(B, *input_shape)`` to ``(B, *output_shape)``."""
        return torch.cat([self._unfolded(x, rows) for rows in self._slices(len(x))], 2)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y: ``(B, *output_shape)`` to ``(B, *input_shape)``."""
        total = y.new_zeros(len(y), *self.input_shape)
        for rows in self._slices(len(y)):
            total += self._folded(y[:, :, rows], rows)
        return total

    def _slices(self, batch: int) -> list[slice]:
        """Return ranges of the first axis' outputs whose unfolded inputs are not too large."""
        rows = self.output_shape[1]
        each = batch * self.kernel[0].numel() * math.prod(self.output_shape[2:]) * self.kernel.element_size()
        length = max(1, _LARGEST_COLUMNS // max(1, each))
        return [slice(start, min(start + length, rows)) for start in range(0, rows, length)]

    def _tables_of(self, rows: slice) -> list[Tensor]:
        return [self._tables[0][rows], *self._tables[1:]]

    def _unfolded(self, x: Tensor, rows: slice) -> Tensor:
        tables = self._tables_of(rows)
        for axis, table in enumerate(tables, start=2):
            flat = table.flatten()
            x = x.index_select(axis, flat.clamp(min=0))
            if bool((flat < 0).any()):
                x = x * (flat >= 0).to(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
        outputs = [len(table) for table in tables]
        x = x.reshape(*x.shape[:2], *itertools.chain(*(table.shape for table in tables)))
        places, taps = range(2, 2 + 2 * len(tables), 2), range(3, 3 + 2 * len(tables), 2)
        columns = x.permute(0, 1, *taps, *places).reshape(len(x), -1, math.prod(outputs))
        return (self.kernel.flatten(1) @ columns).reshape(len(x), -1, *outputs)

    def _folded(self, y: Tensor, rows: slice) -> Tensor:
        tables = self._tables_of(rows)
        columns = self.kernel.flatten(1).T @ y.flatten(2)
        dims = len(tables)
        x = columns.reshape(len(y), *self.kernel.shape[1:], *y.shape[2:])
        # (B, I, taps..., outputs...) to (B, I, outputs and taps of the first axis, of the second ...).
        x = x.permute(0, 1, *itertools.chain(*((2 + dims + axis, 2 + axis) for axis in range(dims))))
        x = x.reshape(len(y), x.shape[1], *(table.numel() for table in tables))
        for axis, (table, inputs) in enumerate(zip(tables, self.input_shape[1:], strict=True), start=2):
            flat = table.flatten()
            inside = torch.nonzero(flat >= 0).flatten()
            shape = (*x.shape[:axis], inputs, *x.shape[axis + 1 :])
            x = x.new_zeros(shape).index_add(axis, flat[inside], x.index_select(axis, inside))
        return x


def blocks_of(tables: Sequence[Table]) -> list[tuple[AxisPart, ...]]:
    """Return the different blocks of a layer, each as one part an axis."""
    return list(itertools.product(*(axis_parts(table) for table in tables)))

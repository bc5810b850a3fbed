"""All singular values of a layer from dense matrices: one for each block that it falls apart into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.linalg import singular_value_error, singular_values
from convsv.spectra._blocks import AxisPart, Block, Table, blocks_of, tap_tables
from convsv.spectra._shared import Shared

__all__ = ["DenseLayer", "dense_layer", "dense_values", "svd_operations"]

_COPIES = 3
"""The matrix, LAPACK's copy and its workspace."""


@dataclass(frozen=True)
class DenseLayer:
    """A layer and the blocks of its groups.

    Attributes:
        kernel: ``(G, O, I, *K)`` float64, largest entry about 1.
        geometry: the layer's.
        tables: which input each output of an axis reads by each tap.
        blocks: of one group, each as one part an axis; those of all groups have the same shape.
    """

    kernel: Tensor
    geometry: Geometry
    tables: tuple[Table, ...]
    blocks: Sequence[tuple[AxisPart, ...]]

    @staticmethod
    def of(kernel: Tensor, geometry: Geometry) -> DenseLayer:
        """Take a layer apart.

        Raises:
            GeometryError: there is no output, or a reflection that is larger than the input.
        """
        tables = tap_tables(geometry, tuple(kernel.shape[3:]))
        return DenseLayer(kernel, geometry, tables, blocks_of(tables))

    @property
    def count(self) -> int:
        """Number of singular values, zeros and multiplicities counted."""
        outputs, inputs = self.kernel.shape[1:3]
        size = self.geometry.forward_size(tuple(self.kernel.shape[3:]))
        return len(self.kernel) * min(outputs * math.prod(map(len, self.tables)), inputs * math.prod(size))

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Rows and columns of the matrix of each block, the largest last."""
        return sorted((self.one(parts).sides for parts in self.blocks), key=math.prod)

    @property
    def operations(self) -> float:
        """About how many operations the values take."""
        return len(self.kernel) * sum(svd_operations(*sides) for sides in self.sides)

    def one(self, parts: Sequence[AxisPart]) -> Block:
        """Return the block of the first group."""
        return Block(self.kernel[0], parts)

    def needed(self, execution: Execution) -> int:
        """Return the bytes that the values take."""
        largest = max(map(math.prod, self.sides), default=0)
        return _COPIES * execution.torch_dtype.itemsize * largest + 16 * self.count

    def values(self, execution: Execution) -> tuple[NDArray[np.float64], float]:
        """Return all singular values in descending order, and a bound on the error of each."""
        values, error, filled = np.zeros(self.count), 0.0, 0
        for parts in self.blocks:
            block, found = self.one(parts), self._block_values(parts, execution)
            here = np.repeat(found.numpy().ravel(), block.copies)
            values[filled : filled + len(here)] = here
            filled += len(here)
            error = max(error, self._error(block, float(found.max()), execution.torch_dtype))
        return np.sort(values)[::-1], error

    def _block_values(self, parts: Sequence[AxisPart], execution: Execution) -> Tensor:
        """Return the singular values of one block in every group, ``(G, min(sides))`` float64."""
        kernel = self.kernel.to(execution.torch_dtype)
        each = _COPIES * kernel.element_size() * math.prod(self.one(parts).sides)

        def work(start: int, stop: int, device: torch.device) -> Tensor:
            matrices = [Block(group.to(device), parts).dense() for group in kernel[start:stop]]
            return singular_values(torch.stack(matrices)).to("cpu", torch.float64)

        return torch.cat(list(execution.map_chunks(len(kernel), each, work)))

    def _error(self, block: Block, largest: float, dtype: torch.dtype) -> float:
        """Return the bound on the error of each value of a block in any group."""
        error = 0.0
        for group in self.kernel:
            there = Block(group, block.parts).to("cpu", dtype)
            lost = Block((group - there.to("cpu", torch.float64).kernel).abs(), block.parts).magnitude
            error = max(error, there.rounding + lost)
        return error + singular_value_error(block.sides, dtype, largest)


def dense_layer(shared: Shared) -> DenseLayer:
    """Return the layer itself, taken apart."""
    return DenseLayer.of(shared.kernel, shared.layer.geometry)


def dense_values(shared: Shared) -> tuple[NDArray[np.float64], float]:
    """Return all singular values of the layer, in descending order, and a bound on the error of each."""
    return shared.once(dense_layer).values(shared.execution)


def svd_operations(rows: int, columns: int) -> float:
    """Return the operations of LAPACK's singular values: 4 m n^2 - 4/3 n^3 (Golub, Van Loan, 4th ed., section 8.6)."""
    many, few = max(rows, columns), min(rows, columns)
    return 4.0 * many * few**2 - 4 / 3 * few**3

"""Bounds that are spectral norms of matrices made of the kernel: the formulas of the catalogue with another norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from convsv.bounds import Problem
from convsv.bounds.elementary import schur_products, tap_matrices
from convsv.bounds.singla2021 import unfolded, unfolding_axes, unfolding_bounds, unfoldings
from convsv.differentiable._entries import Plain, gradient
from convsv.differentiable._maximum import Stack, largest_norms, norms_of, spectral_norms
from convsv.symbol import from_normal_form

__all__ = ["l1_linf", "miyato2018", "one_tap", "singla2021", "tap_sum"]


def singla2021(problem: Problem, name: str) -> Tensor:
    """Return the least of a bound's unfoldings, the largest over the groups.

    Args:
        problem: the kernel.
        name: ``"singla2021"`` or one of R, S, T and U.
    """
    kernel = problem.form.kernel
    values = [unfolding_bounds(kernel, rows, spectral_norms) for rows in unfoldings(kernel.ndim - 3)[name]]
    return (values[0] if len(values) == 1 else torch.stack(values).amin(0)).amax()


def _tap_matrices(layers: Sequence[Plain]) -> list[tuple[Tensor, Tensor]]:
    """Return the largest norm of each layer's tap matrices, one a group, and its gradient.

    The normal form's tap matrix is the kernel's own but for the order of columns and columns of zeros.
    """
    return largest_norms([Stack(layer.kernel.flatten(2), dtype=layer.dtype) for layer in layers])


def _singla2021_t(layers: Sequence[Plain]) -> list[tuple[Tensor, Tensor]]:
    """Return Miyato's, times the root of the number of taps of the normal form."""
    stacks = [(layer.kernel.flatten(2), math.sqrt(math.prod(layer.taps)), layer.dtype) for layer in layers]
    return largest_norms([Stack(*stack) for stack in stacks])


def _singla2021(layers: Sequence[Plain], name: str) -> list[tuple[Tensor, Tensor]]:
    """Return the bound of each layer and its gradient: of the unfoldings all norms, of the least its vectors."""
    choices = [[_Unfolding(layer, rows) for rows in unfoldings(layer.kernel.ndim - 3)[name]] for layer in layers]
    norms = iter(norms_of([one.stack for every in choices if len(every) > 1 for one in every]))
    decisive: list[_Unfolding] = []
    for every in choices:
        if len(every) == 1:
            decisive.extend(every)
            continue
        least, which = torch.stack([next(norms) for _ in every]).min(0)
        group = int(least.argmax())
        decisive.append(every[int(which[group])].of_group(group))
    found = zip(decisive, largest_norms([one.stack for one in decisive]), strict=True)
    return [(norm, one.back(slope)) for one, (norm, slope) in found]


class _Unfolding:
    """A kernel's normal form as matrices ``(G, m, n)``, with some spatial axes in the rows; of one group or all."""

    def __init__(self, layer: Plain, rows: tuple[int, ...], group: int | None = None) -> None:
        self._layer, self._rows, self._group = layer, rows, group
        kernel = layer.form.kernel
        self._shape = kernel.shape
        matrices = unfolded(kernel if group is None else kernel[group : group + 1], rows)
        self.stack = Stack(matrices, math.sqrt(math.prod(kernel.shape[3:])), layer.dtype)

    def of_group(self, group: int) -> _Unfolding:
        return _Unfolding(self._layer, self._rows, group)

    def back(self, slope: Tensor) -> Tensor:
        """Return a gradient in the matrices as one in the layer's kernel."""
        order = unfolding_axes(len(self._shape) - 3, self._rows)
        permuted = slope.reshape(len(slope), *(self._shape[axis] for axis in order[1:]))
        inner = permuted.permute(*(order.index(axis) for axis in range(len(order))))
        if self._group is not None:
            whole = inner.new_zeros(self._shape)
            whole[self._group] = inner[0]
            inner = whole
        layer = self._layer
        return from_normal_form(inner, tuple(layer.kernel.shape[3:]), layer.stride, layer.dilation)


for _name in unfoldings(2):
    _direct = _singla2021_t if _name == "singla2021_t" else partial(_singla2021, name=_name)
    gradient(_name, direct=_direct)(partial(singla2021, name=_name))


@gradient("miyato2018", direct=_tap_matrices)
def miyato2018(problem: Problem) -> Tensor:
    """Return the norm of the tap matrix; of the largest row where the groups are a guess."""
    kernel = problem.form.kernel
    matrices = kernel.flatten(0, 1).flatten(1)[:, None] if problem.geometry.guessed("groups") else kernel.flatten(2)
    return spectral_norms(matrices).amax()


@gradient("tap_sum")
def tap_sum(problem: Problem) -> Tensor:
    """Return the sum of the norms of all taps."""
    kernel = problem.form.kernel
    return spectral_norms(tap_matrices(kernel)).reshape(kernel.shape[0], -1).sum(1).amax()


@gradient("one_tap")
def one_tap(problem: Problem) -> Tensor:
    """Return the largest norm of a tap."""
    return spectral_norms(tap_matrices(problem.form.kernel)).amax()


def _l1_linf(layers: Sequence[Plain]) -> list[tuple[Tensor, Tensor]]:
    """Return the bound and its gradient: signs in the row and the column of the largest sums, each times the other."""
    found = []
    for layer in layers:
        kernel = layer.form.kernel
        magnitudes = kernel.abs().flatten(3).sum(-1)
        (rows, row), (columns, column) = magnitudes.sum(2).max(1), magnitudes.sum(1).max(1)
        values = (rows * columns).sqrt()
        group = int(values.argmax()) if len(values) > 1 else 0
        at_row, at_column = (group, int(row[group])), (group, slice(None), int(column[group]))
        slope = torch.zeros(kernel.shape, dtype=layer.dtype, device=kernel.device)
        slope[at_row] = kernel[at_row].sign() * (columns[group] / (2 * values[group]))
        slope[at_column] += kernel[at_column].sign() * (rows[group] / (2 * values[group]))
        back = from_normal_form(slope, tuple(layer.kernel.shape[3:]), layer.stride, layer.dilation)
        found.append((values[group], back))
    return found


@gradient("l1_linf", direct=_l1_linf)
def l1_linf(problem: Problem) -> Tensor:
    """Return the root of the largest row sum times the largest column sum of magnitudes."""
    return schur_products(problem.form.kernel).amax().sqrt()

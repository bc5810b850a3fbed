"""Bounds that are spectral norms of matrices made of the kernel: the formulas of the catalogue with another norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from convsv.bounds import Problem
from convsv.bounds.elementary import schur_products, tap_matrices
from convsv.bounds.singla2021 import unfolded, unfolding_axes, unfolding_bounds, unfoldings
from convsv.differentiable._entries import Plain, gradient
from convsv.differentiable._maximum import leading_pairs, spectral_norms
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


def _tap_matrices(
    layers: Sequence[Plain], factor: Callable[[Plain], float] = lambda _: 1.0
) -> list[tuple[Tensor, Tensor]]:
    """Return the largest norm of each layer's tap matrices, one a group, and its gradient, times a factor.

    The normal form's tap matrix is the kernel's own but for the order of columns and columns of zeros.
    """
    found = []
    for layer, pairs in zip(layers, leading_pairs([layer.kernel.flatten(2) for layer in layers]), strict=True):
        group = int(pairs.norms.argmax()) if len(pairs.norms) > 1 else 0
        by = factor(layer)
        found.append((pairs.norms[group] * by, pairs.slope(group, by, layer.dtype)))
    return found


def _singla2021_t(layers: Sequence[Plain]) -> list[tuple[Tensor, Tensor]]:
    return _tap_matrices(layers, lambda layer: math.sqrt(math.prod(layer.taps)))


def _singla2021(layers: Sequence[Plain], name: str) -> list[tuple[Tensor, Tensor]]:
    """Return the bound of each layer, and the gradient of the unfolding that is the least."""
    choices = [unfoldings(layer.kernel.ndim - 3)[name] for layer in layers]
    pairs = iter(
        leading_pairs([unfolded(one.form.kernel, r) for one, rows in zip(layers, choices, strict=True) for r in rows])
    )
    found = []
    for layer, rows in zip(layers, choices, strict=True):
        every = [next(pairs) for _ in rows]
        least, which = torch.stack([one.norms for one in every]).min(0)
        group = int(least.argmax())
        chosen = int(which[group])
        factor = math.sqrt(math.prod(layer.taps))
        slope = _from_unfolded(every[chosen].slope(group, factor, layer.dtype), layer, rows[chosen])
        found.append((least[group] * factor, slope))
    return found


def _from_unfolded(slope: Tensor, layer: Plain, rows: tuple[int, ...]) -> Tensor:
    """Return a gradient in an unfolding of the normal form as one in the layer's kernel."""
    shape = layer.form.kernel.shape
    order = unfolding_axes(len(shape) - 3, rows)
    permuted = slope.reshape([shape[axis] for axis in order])
    inner = permuted.permute([order.index(axis) for axis in range(len(order))])
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

"""Bounds that are spectral norms of matrices made of the kernel: the formulas of the catalogue with another norm."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from convsv.bounds import Problem
from convsv.bounds._norms import leading_rows
from convsv.bounds.elementary import schur_products, tap_matrices
from convsv.bounds.singla2021 import unfolding_bounds, unfoldings
from convsv.differentiable._entries import gradient
from convsv.differentiable._maximum import spectral_norms

__all__ = ["l1_linf", "miyato2018", "one_tap", "singla2021", "tap_matrix", "tap_sum"]


def singla2021(problem: Problem, name: str) -> Tensor:
    """Return the least of a bound's unfoldings, the largest over the groups.

    Args:
        problem: the kernel.
        name: ``"singla2021"`` or one of R, S, T and U.
    """
    kernel = problem.form.kernel
    values = [unfolding_bounds(kernel, rows, spectral_norms) for rows in unfoldings(kernel.ndim - 3)[name]]
    return (values[0] if len(values) == 1 else torch.stack(values).amin(0)).amax()


def tap_matrix(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the largest norm of the groups' tap matrices and its gradient u v*, without a graph.

    The normal form's tap matrix is the kernel's own but for the order of columns and columns of zeros.

    Args:
        problem: the kernel, whose groups are known.
    """
    kernel = problem.kernel.detach()
    matrices = kernel.reshape(problem.form.kernel.shape[0], -1, math.prod(kernel.shape[2:]))
    is_tall = matrices.shape[1] > matrices.shape[2]
    short = matrices.mT if is_tall else matrices
    left = leading_rows(short)[..., None]
    right = short.mT @ left
    norms = torch.linalg.vector_norm(right, dim=(1, 2))
    group = int(norms.argmax()) if len(norms) > 1 else 0
    norm, u, v = norms[group], left[group], right[group] / norms[group]
    slope = torch.zeros_like(matrices) if len(norms) > 1 else matrices.new_empty(matrices.shape)
    slope[group] = v @ u.mT if is_tall else u @ v.mT
    return norm, slope.reshape(kernel.shape)


def _singla2021_t(problem: Problem) -> tuple[Tensor, Tensor]:
    norm, slope = tap_matrix(problem)
    factor = math.sqrt(math.prod(problem.form.kernel.shape[3:]))
    return norm * factor, slope * factor


for _name in unfoldings(2):
    gradient(_name, direct=_singla2021_t if _name == "singla2021_t" else None)(partial(singla2021, name=_name))


@gradient("miyato2018", direct=tap_matrix)
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


@gradient("l1_linf")
def l1_linf(problem: Problem) -> Tensor:
    """Return the root of the largest row sum times the largest column sum of magnitudes."""
    return schur_products(problem.form.kernel).amax().sqrt()

"""Bounds that are spectral norms of matrices made of the kernel: the formulas of the catalogue with another norm."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from convsv.bounds import Problem
from convsv.bounds.elementary import schur_products, tap_matrices
from convsv.bounds.singla2021 import unfolding_bounds, unfoldings
from convsv.differentiable._entries import gradient
from convsv.differentiable._maximum import spectral_norms

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


for _name in unfoldings(2):
    gradient(_name)(partial(singla2021, name=_name))


@gradient("miyato2018")
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

"""Four unfoldings of the kernel, each an upper bound, and their minimum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from convsv.bounds import Problem, bound
from convsv.bounds._norms import norm_upper
from convsv.rounding import above

__all__ = [
    "singla2021",
    "singla2021_r",
    "singla2021_s",
    "singla2021_t",
    "singla2021_u",
    "unfolded",
    "unfolding_axes",
    "unfolding_bounds",
    "unfoldings",
]

_REFERENCE = (
    "S. Singla, S. Feizi: Fantastic Four: Differentiable Bounds on Singular Values of Convolution Layers, ICLR 2021"
)


def unfoldings(dims: int) -> dict[str, list[tuple[int, ...]]]:
    """Return which spatial axes each of the bounds puts into the rows; more than one choice: the least counts.

    Args:
        dims: number of spatial axes.
    """
    spatial = range(dims)
    every = [rows for count in range(dims + 1) for rows in itertools.combinations(spatial, count)]
    return {
        "singla2021": every,
        "singla2021_r": [tuple(spatial[:-1])],
        "singla2021_s": [(dims - 1,)],
        "singla2021_t": [()],
        "singla2021_u": [tuple(spatial)],
    }


def unfolding_axes(dims: int, rows: Sequence[int]) -> tuple[int, ...]:
    """Return the order of a kernel's axes in an unfolding: the group, those of the rows, those of the columns.

    Args:
        dims: number of spatial axes.
        rows: the spatial axes in the rows, counted from 0.
    """
    return (0, 1, *(axis + 3 for axis in rows), 2, *(axis + 3 for axis in range(dims) if axis not in rows))


def unfolded(kernel: Tensor, rows: Sequence[int]) -> Tensor:
    """Return the kernel ``(G, O, I, *K)`` as matrices ``(G, m, n)``, with some spatial axes in the rows."""
    return kernel.permute(unfolding_axes(kernel.ndim - 3, rows)).flatten(1, 1 + len(rows)).flatten(2)


def unfolding_bounds(kernel: Tensor, axes: Sequence[int], norms: Callable[[Tensor], Tensor] = norm_upper) -> Tensor:
    """Return sqrt(prod K) times the norm of the kernel with some spatial axes in the rows, the others in the columns.

    u^T F(w) v is the tensor K applied to u, v and one vector of phases an axis, of length sqrt(k_i). Whatever is
    gathered into rows and columns, it is at most the matrix's norm times those lengths.

    Args:
        kernel: ``(G, O, I, *K)`` float64, entries at most 1 in magnitude.
        axes: the spatial axes in the rows, counted from 0.
        norms: spectral norms ``(G,)`` of matrices ``(G, m, n)``.

    Returns:
        ``(G,)``, upper bounds; certified where ``norms`` is.
    """
    return norms(unfolded(kernel, axes)) * above(math.sqrt(math.prod(kernel.shape[3:])), 3)


@bound(
    "singla2021",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="spectral norms of (c_out k) x (c_in k), twice, and of c_out x (c_in k^2) and (c_out k^2) x c_in",
    reference=_REFERENCE,
)
def singla2021(problem: Problem) -> float:
    """The least of all unfoldings: R, S, T and U; in 3-d eight. The paper's code estimates it by power iteration."""
    return _least("singla2021", problem.form.kernel)


@bound(
    "singla2021_r",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="one spectral norm of (c_out k) x (c_in k)",
    reference=_REFERENCE,
)
def singla2021_r(problem: Problem) -> float:
    """sqrt(kh kw) ||K as (c_out kh) x (c_in kw)||; every axis but the last in the rows."""
    return _least("singla2021_r", problem.form.kernel)


@bound(
    "singla2021_s",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="one spectral norm of (c_out k) x (c_in k)",
    reference=_REFERENCE,
)
def singla2021_s(problem: Problem) -> float:
    """sqrt(kh kw) ||K as (c_out kw) x (c_in kh)||; the last axis in the rows."""
    return _least("singla2021_s", problem.form.kernel)


@bound(
    "singla2021_t",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="one spectral norm of c_out x (c_in k^2)",
    reference=_REFERENCE,
)
def singla2021_t(problem: Problem) -> float:
    """sqrt(kh kw) ||K as c_out x (c_in kh kw)||: Miyato's matrix, made an upper bound."""
    return _least("singla2021_t", problem.form.kernel)


@bound(
    "singla2021_u",
    side="upper",
    guarantee="certified",
    holds_for="any size",
    cost="one spectral norm of c_in x (c_out k^2)",
    reference=_REFERENCE,
)
def singla2021_u(problem: Problem) -> float:
    """sqrt(kh kw) ||K as (c_out kh kw) x c_in||; every axis in the rows."""
    return _least("singla2021_u", problem.form.kernel)


def _least(name: str, kernel: Tensor) -> float:
    """Return the least of a bound's unfoldings in each group, and of that the largest over the groups."""
    values = torch.stack([unfolding_bounds(kernel, rows) for rows in unfoldings(kernel.ndim - 3)[name]])
    return above(float(values.amin(0).max()), 2)

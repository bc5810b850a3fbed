"""Pooling: the largest of each window, and means.

A mean over windows is a tensor product of one matrix an axis, so its norm is the product of theirs.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from convsv.errors import UnavailableError
from convsv.graph import Operation
from convsv.network import Step, Surroundings, rule
from convsv.network._broadcast import known_shape
from convsv.rounding import DOUBLE, above, matrix_norm

__all__ = ["axis_windows", "most_windows"]

_LARGEST_AXIS = 2048
"""Places of an axis up to which its matrix is decomposed; above, Schur's test is near enough."""
_LARGEST_MATRIX = 1 << 22
"""Entries of the matrix of an axis that is looked at at all."""


def most_windows(kernel: int, stride: int, dilation: int) -> int:
    """Return in how many windows of an unbounded axis one place can be: taps t with t d = p modulo the stride."""
    return -(-kernel // (stride // math.gcd(stride, dilation)))


@rule(
    "max_pool",
    factor="sqrt(windows that share an entry)",
    why="|max x - max y| <= max |x - y| a window, whose squares are summed",
)
def max_pool(operation: Operation, around: Surroundings) -> Step:
    """Bound the largest entry of each window."""
    axes = zip(*(operation.settings[name] for name in ("kernel", "stride", "dilation")), strict=True)
    most = math.prod(most_windows(k, s, d) for k, s, d in axes)
    return Step((above(math.sqrt(most)) if most > 1 else 1.0,))


@rule("maximum", factor="1", why="each entry is in one window")
def maximum(operation: Operation, around: Surroundings) -> Step:
    """Bound the largest or smallest entry along whole axes."""
    return Step((1.0,))


@rule("adaptive_max_pool", factor="sqrt(windows that share an entry)", why="as max_pool, with the windows it makes")
def adaptive_max_pool(operation: Operation, around: Surroundings) -> Step:
    """Bound the largest entry of each of a given number of windows."""
    most = 1
    for n, m in _sizes(operation, around):
        most *= int((_adaptive(n, m) > 0).sum(0).max())
    return Step((above(math.sqrt(most)) if most > 1 else 1.0,))


@rule("average_pool", factor="certified norm of the means an axis", why="a tensor product of one matrix an axis")
def average_pool(operation: Operation, around: Surroundings) -> Step:
    """Bound the mean of each window, at the size it runs at; at any size where that is not known.

    Raises:
        UnavailableError: it divides by a number of its own where windows are cut off.
    """
    settings = operation.settings
    kernel, stride, padding = (settings[name] for name in ("kernel", "stride", "padding"))
    shape = around.shape(operation.inputs[0])
    sizes = shape[len(shape) - len(kernel) :] if shape else (None,) * len(kernel)
    made = operation.shape[-len(kernel) :] if operation.shape else (None,) * len(kernel)
    factor = 1.0
    for n, m, k, s, pair in zip(sizes, made, kernel, stride, padding, strict=True):
        counted = bool(settings["counts_padding"])
        if n is None or m is None or n * m > _LARGEST_MATRIX:
            # Schur's test: rows sum to at most 1, and a place is in no more windows than these.
            weight = 1 / k if counted and not settings.get("ceil") else 1.0
            factor = above(factor * math.sqrt(-(-k // s) * weight), 4)
        else:
            factor = above(factor * axis_norm(axis_windows(n, m, k, s, pair, counted=counted)))
    divisor = settings.get("divisor")
    if divisor:
        if not settings["counts_padding"] or settings.get("ceil"):
            raise UnavailableError("it divides by a number of its own, and not by that of the entries")
        factor = above(factor * math.prod(kernel) / abs(divisor), 4)
    return Step((factor,))


@rule("adaptive_average_pool", factor="certified norm of the means an axis", why="as average_pool")
def adaptive_average_pool(operation: Operation, around: Surroundings) -> Step:
    """Bound the mean of each of a given number of windows."""
    factor = 1.0
    for n, m in _sizes(operation, around):
        factor = above(factor * axis_norm(_adaptive(n, m)))
    return Step((factor,))


@rule("mean", factor="1 / sqrt(n)", why="each entry of n goes into one mean")
def mean(operation: Operation, around: Surroundings) -> Step:
    """Bound the mean over whole axes; 1 where their size is not known."""
    count = _taken_together(operation, around)
    return Step((above(1 / math.sqrt(count), 4) if count and count > 1 else 1.0,))


@rule("sum", factor="sqrt(n)", why="Cauchy and Schwarz")
def total(operation: Operation, around: Surroundings) -> Step:
    """Bound the sum over whole axes.

    Raises:
        UnavailableError: their size is not known.
    """
    count = _taken_together(operation, around)
    if count is None:
        raise UnavailableError("how many entries it sums is not known")
    return Step((above(math.sqrt(count)) if count > 1 else 1.0,))


def _taken_together(operation: Operation, around: Surroundings) -> int | None:
    """Return how many entries become one; None where that is not known."""
    shape, axes = around.shape(operation.inputs[0]), operation.settings["axes"]
    if shape is None:
        return None
    sizes = shape if axes is None else tuple(shape[axis] for axis in axes)
    return None if None in sizes else math.prod(n for n in sizes if n is not None)


def _sizes(operation: Operation, around: Surroundings) -> list[tuple[int, int]]:
    """Return (places, windows) an axis.

    Raises:
        UnavailableError: they are not known, or enormous.
    """
    dims = int(operation.settings["dims"])
    given = known_shape(around.shape(operation.inputs[0]), "the size that it pools")
    made = known_shape(operation.shape, "the size that it makes")
    pairs = list(zip(given[-dims:], made[-dims:], strict=True))
    if any(n * m > _LARGEST_MATRIX for n, m in pairs):
        raise UnavailableError("it pools over too large an axis to be looked at")
    return pairs


# ------------------------------------------------------------------------------------------------------ one axis alone


def axis_windows(
    n: int, m: int, kernel: int, stride: int, padding: tuple[int, int], *, counted: bool
) -> NDArray[np.float64]:
    """Return the matrix ``(m, n)`` of means over windows of one axis, as PyTorch and ONNX define them.

    Args:
        n: places of the axis.
        m: windows.
        kernel: length of a window.
        stride: from one window to the next.
        padding: zeros before and after.
        counted: whether zeros of the padding count where it is divided; what lies beyond the padding never does.
    """
    starts = np.arange(m)[:, None] * stride - padding[0]
    places = np.arange(n)[None, :]
    inside = (places >= starts) & (places < starts + kernel)
    low, high = (-padding[0], n + padding[1]) if counted else (0, n)
    counts = np.minimum(starts + kernel, high) - np.maximum(starts, low)
    means: NDArray[np.float64] = inside / np.maximum(counts, 1)
    return means


def _adaptive(n: int, m: int) -> NDArray[np.float64]:
    """Return the matrix of means over m windows, from floor(i n / m) up to ceil((i + 1) n / m)."""
    which = np.arange(m)[:, None]
    starts, ends = which * n // m, -(-(which + 1) * n // m)
    places = np.arange(n)[None, :]
    means: NDArray[np.float64] = ((places >= starts) & (places < ends)) / (ends - starts)
    return means


def axis_norm(matrix: NDArray[np.float64]) -> float:
    """Return an upper bound of the norm of a matrix of means, whose entries were rounded once."""
    if max(matrix.shape) <= _LARGEST_AXIS:
        return above(_norm(matrix.tobytes(), matrix.shape), 2)
    columns, rows = float(matrix.sum(0).max()), float(matrix.sum(1).max())
    return above(math.sqrt(columns * rows) * (1 + 4 * max(matrix.shape) * DOUBLE), 4)


@lru_cache(maxsize=64)
def _norm(data: bytes, shape: tuple[int, int]) -> float:
    matrix = torch.from_numpy(np.frombuffer(data).reshape(shape).copy())
    return matrix_norm(matrix)[1]

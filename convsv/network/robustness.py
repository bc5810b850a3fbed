"""Certified robustness from a Lipschitz constant: how far an input may move before its class can change."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convsv.errors import UsageError
from convsv.rounding import DOUBLE, above

__all__ = ["certified_accuracy", "certified_radii"]


def certified_radii(scores: ArrayLike, labels: ArrayLike, lipschitz: float) -> NDArray[np.float64]:
    """Return for each input the radius of a ball, in l2, in which its class is certainly the given one.

    With ``f`` of constant L, ``f_t - f_j`` is ``<e_t - e_j, f>`` of constant ``sqrt(2) L``: it stays positive while the
    input moves by less than ``(f_t - f_j) / (sqrt(2) L)`` (Tsuzuku, Sato, Sugiyama 2018, arXiv 1802.04034).

    Args:
        scores: ``(n, classes)``, what the network gives for each input, before softmax.
        labels: ``(n,)`` integers, the true classes.
        lipschitz: a constant of the scores in the input, for instance ``NetworkBound.upper``.

    Returns:
        ``(n,)`` float64, rounded down; 0 where the class is another one already, or undecided. Infinite where the
        constant is 0 and the class is right.

    Raises:
        UsageError: shapes that do not go together, fewer than two classes, or a constant that is negative or NaN.

    Guarantee:
        Certified, given the scores: those of the real function differ from computed ones by the rounding of the
        network's evaluation, which is not accounted for.
    """
    values, wanted = np.asarray(scores, np.float64), np.asarray(labels)
    if values.ndim != 2 or wanted.shape != values.shape[:1] or values.shape[1] < 2:
        raise UsageError("scores must be (n, classes) and labels (n,)", found=f"{values.shape} and {wanted.shape}")
    if not lipschitz >= 0:
        raise UsageError("a Lipschitz constant is not negative", found=str(lipschitz))
    rows = np.arange(len(values))
    others: NDArray[Any] = values.copy()
    others[rows, wanted] = -np.inf
    margins = values[rows, wanted] - others.max(axis=1)
    margins = np.where(margins > 0, margins * (1 - 4 * DOUBLE), 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        radii = margins / above(math.sqrt(2) * lipschitz, 2) * (1 - 4 * DOUBLE)
    return np.where(margins > 0, np.inf if lipschitz == 0 else radii, 0.0)


def certified_accuracy(radii: ArrayLike, radius: float) -> float:
    """Return the share of inputs whose class is certainly right wherever they move by at most ``radius``.

    Args:
        radii: what :func:`certified_radii` returns.
        radius: how far, in l2.
    """
    found = np.asarray(radii, np.float64)
    return float(np.mean((found > 0) & (found > radius))) if found.size else 0.0

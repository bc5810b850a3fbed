"""Operations that move, copy, pick or pad entries."""

from __future__ import annotations

import math

import numpy as np

from convsv.errors import GeometryError, UnavailableError
from convsv.geometry import padding_multiplicity
from convsv.graph import Operation
from convsv.network import Step, Surroundings, rule
from convsv.network._broadcast import copies, known_shape
from convsv.rounding import above

__all__: list[str] = []

_LARGEST = 1 << 24
"""Places of a padded axis whose copies are counted."""


@rule("identity", "reshape", "slice", factor="1", why="entries are moved or left out, none is copied")
def isometry(operation: Operation, around: Surroundings) -> Step:
    """Bound what keeps each entry at most once: flatten, transpose, crop, split, flip, pixel shuffle, dropout."""
    return Step((1.0,))


@rule("expand", factor="sqrt(copies)", why="every entry is copied as often")
def expand(operation: Operation, around: Surroundings) -> Step:
    """Bound broadcasting and tiling."""
    return Step((copies(operation, 0, around),))


@rule("gather", factor="sqrt(copies of the most copied)", why="entries are picked by constant places")
def gather(operation: Operation, around: Surroundings) -> Step:
    """Bound picking by constant indices along an axis.

    Raises:
        UnavailableError: the size of the axis is not known.
    """
    places = operation.constants["places"].values().astype(np.int64).ravel()
    axis = int(operation.settings["axis"])
    size = known_shape(around.shape(operation.inputs[0]), "the shape of what it picks from")[axis]
    most = int(np.unique(places % max(size, 1), return_counts=True)[1].max(initial=1))
    return Step((above(math.sqrt(most)) if most > 1 else 1.0,))


@rule("pad", factor="1; copying: sqrt(copies of the most copied)", why="the norm of the index map")
def pad(operation: Operation, around: Surroundings) -> Step:
    """Bound padding by constants (1) or by copies of entries.

    Raises:
        UnavailableError: the size is not known, or the padding crops and copies.
    """
    mode, amounts = operation.settings["mode"], operation.settings["amounts"]
    if mode == "zeros":
        return Step((1.0,))
    shape = known_shape(around.shape(operation.inputs[0]), "the shape of what it pads")
    most = 1
    for n, (before, after) in zip(shape[len(shape) - len(amounts) :], amounts, strict=True):
        if min(before, after) < 0:
            raise UnavailableError("it crops and copies at one time")
        if n + before + after > _LARGEST:
            raise UnavailableError("it pads an axis that is too long to be looked at")
        try:
            most *= padding_multiplicity(mode, n, before, after) if before or after else 1
        except GeometryError as error:
            raise UnavailableError(str(error)) from None
    return Step((above(math.sqrt(most)) if most > 1 else 1.0,))


@rule("nearest", factor="sqrt(ceil(m / n)) an axis", why="place i of m is a copy of floor(i n / m) of n")
def nearest(operation: Operation, around: Surroundings) -> Step:
    """Bound enlarging, or shrinking, by the nearest neighbour."""
    given = known_shape(around.shape(operation.inputs[0]), "the size that it resizes")
    made = known_shape(operation.shape, "the size that it makes")
    most = math.prod(-(-m // n) for n, m in zip(given, made, strict=True))
    return Step((above(math.sqrt(most)) if most > 1 else 1.0,))

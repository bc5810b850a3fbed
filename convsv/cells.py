"""Cells that cover the frequency torus, and how far a cell's points are from its centre.

Distances are measured in the metric of the certificate, tau = sum_i d_i |w_i - c_i|, with d_i the degree of the symbol
in w_i. In that metric the best cell in two dimensions is a diamond, which has twice the area of the square of the same
radius and is cut into four diamonds of half the radius. Axes are therefore taken in pairs: a cell is a product of
diamonds and, for an odd number of axes, one interval. Axes of degree 0 do not matter and get a single point.

All positions are integers over a common denominator: nothing is rounded, and no cell is ever lost between two others.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cells", "Frame", "concatenate", "root_cells"]

_POINTS_A_DEGREE = {1: 4, 2: 6}
"""Grid points a turn and degree at the root, by number of factors: root radii pi / 2 and 2 pi / 3."""


@dataclass(frozen=True)
class Frame:
    """What all cells of one torus share.

    Attributes:
        denominators: a root cell's centre on axis i is 2 pi times an integer over ``denominators[i]``.
        radius: largest tau from the centre of a root cell to a point of it, rounded up.
        pairs: axes of each factor: two for a diamond, one for an interval.
    """

    denominators: tuple[int, ...]
    radius: float
    pairs: tuple[tuple[int, ...], ...]

    @cached_property
    def active(self) -> NDArray[np.int64]:
        """1 on axes that are cut, else 0, ``(d,)``."""
        chosen = np.zeros(len(self.denominators), dtype=np.int64)
        chosen[[axis for factor in self.pairs for axis in factor]] = 1
        return chosen

    @cached_property
    def roots(self) -> NDArray[np.int64]:
        """The denominators as an array, ``(d,)``."""
        return np.array(self.denominators, dtype=np.int64)

    @property
    def children(self) -> int:
        """Number of cells that one of them is as large as, a generation later."""
        return int(2 ** int(self.active.sum()))

    def at_level(self, level: int) -> tuple[int, ...]:
        """Return the denominators of centres of that generation."""
        return tuple(n << level * int(on) for n, on in zip(self.denominators, self.active, strict=True))


@dataclass(frozen=True)
class Cells:
    """Cells of any generations; a cell of level l has the radius of the root over 2^l.

    Attributes:
        centres: ``(M, d)`` int64 numerators, over ``frame.at_level(level)``.
        levels: ``(M,)`` int64 generations.
        owners: ``(M,)`` int64 labels: the group whose symbol is looked at.
        frame: what they share.
    """

    centres: NDArray[np.int64]
    levels: NDArray[np.int64]
    owners: NDArray[np.int64]
    frame: Frame

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.centres)

    def take(self, chosen: NDArray[np.bool_] | slice) -> Cells:
        """Return some of the cells."""
        return Cells(self.centres[chosen], self.levels[chosen], self.owners[chosen], self.frame)

    def radii(self) -> NDArray[np.float64]:
        """Return the largest tau within each cell, rounded up, ``(M,)``."""
        return np.ldexp(self.frame.radius, -self.levels)

    def fractions(self) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Return all centres over one denominator an axis: numerators ``(M, d)`` and denominators."""
        finest = int(self.levels.max(initial=0))
        return self.centres << (finest - self.levels)[:, None] * self.frame.active, self.frame.at_level(finest)

    def frequencies(self) -> NDArray[np.float64]:
        """Return the centres in radians, ``(M, d)``, rounded."""
        frame = self.frame
        return self.centres * (2 * math.pi / (frame.roots << self.levels[:, None] * frame.active))

    def split(self) -> Cells:
        """Cut every cell into children of half the radius, one of each pair of opposite ones.

        A cell and its reflection through the origin are equivalent: the symbol at -w is the conjugate of that at w.
        """
        moves = _moves(self.frame.pairs, len(self.frame.denominators))
        centres = (self.centres << self.frame.active)[:, None] + moves
        levels, owners = (np.repeat(column, len(moves)) for column in (self.levels + 1, self.owners))
        return _distinct(centres.reshape(-1, moves.shape[1]), levels, owners, self.frame)

    def for_owners(self, owners: NDArray[np.int64]) -> Cells:
        """Return all cells once for each of these labels."""
        count = len(self)
        centres, levels = np.tile(self.centres, (len(owners), 1)), np.tile(self.levels, len(owners))
        return Cells(centres, levels, np.repeat(owners.astype(np.int64), count), self.frame)


def concatenate(first: Cells, second: Cells) -> Cells:
    """Return the cells of both."""
    return Cells(
        np.concatenate([first.centres, second.centres]),
        np.concatenate([first.levels, second.levels]),
        np.concatenate([first.owners, second.owners]),
        first.frame,
    )


@lru_cache(maxsize=64)
def _moves(pairs: tuple[tuple[int, ...], ...], dims: int) -> NDArray[np.int64]:
    """Return the steps from twice a parent's centre to its children's: one vertex of each factor."""
    choices = [[(axis, sign) for axis in factor for sign in (1, -1)] for factor in pairs]
    moves = np.zeros((math.prod(len(c) for c in choices), dims), dtype=np.int64)
    for row, picked in enumerate(itertools.product(*choices)):
        for axis, sign in picked:
            moves[row, axis] = sign
    return moves


def _distinct(centres: NDArray[np.int64], levels: NDArray[np.int64], owners: NDArray[np.int64], frame: Frame) -> Cells:
    """Return one of each pair of opposite cells, reduced to the torus; of equal cells one."""
    size = frame.roots << levels[:, None] * frame.active
    here = centres % size
    there = np.where(here > 0, size - here, 0)
    # In the order of dictionaries, from the last axis to the first.
    smaller = here[:, -1] <= there[:, -1]
    for one, other in zip(here.T[-2::-1], there.T[-2::-1], strict=True):
        smaller = (one < other) | ((one == other) & smaller)
    keys = np.empty((len(centres), 2 + centres.shape[1]), dtype=np.int64)
    keys[:, 0], keys[:, 1], keys[:, 2:] = owners, levels, np.where(smaller[:, None], here, there)
    keys = keys[np.lexsort(keys.T)]
    fresh = np.ones(len(keys), dtype=np.bool_)
    fresh[1:] = (keys[1:] != keys[:-1]).any(1)
    keys = keys[fresh]
    return Cells(keys[:, 2:], keys[:, 1], keys[:, 0], frame)


@lru_cache(maxsize=64)
def root_cells(degrees: tuple[int, ...]) -> Cells:
    """Return the coarsest cells used for a symbol of these degrees: they cover half of the torus, owned by group 0.

    Args:
        degrees: degree of the symbol in each frequency: taps less one.
    """
    active = tuple(axis for axis, degree in enumerate(degrees) if degree)
    pairs = tuple(active[first : first + 2] for first in range(0, len(active), 2))
    points = _POINTS_A_DEGREE.get(len(pairs), 4 * max(1, len(pairs)))
    frame = Frame(
        tuple(degree * points if degree else 1 for degree in degrees),
        2 * math.pi * len(pairs) / points * (1 + 2.0**-50),
        pairs,
    )
    axes = [np.arange(n, dtype=np.int64) for n in frame.denominators]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(degrees))
    for factor in pairs:
        # Diamonds of radius 1 around the points of even coordinate sum tile the plane; so do intervals on the line.
        centres = centres[centres[:, list(factor)].sum(1) % 2 == 0]
    zeros = np.zeros(len(centres), dtype=np.int64)
    return _distinct(centres, zeros, zeros, frame)

"""What to do with a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsv.errors import UsageError

__all__ = ["METHODS", "OPERATORS", "ClipOptions"]

METHODS = ("nearest", "alternating", "sedghi", "scale")
"""How to get within the radius."""
OPERATORS = ("any size", "circular", "zeros")
"""Of which operator the norm is meant."""


@dataclass(frozen=True)
class ClipOptions:
    """What to do with a layer.

    Attributes:
        radius: largest norm allowed; None to leave the norm alone (for the edits).
        method: one of :data:`METHODS`; of no use to an edit.
        of: of which operator: one of :data:`OPERATORS`; the latter two at the layer's size.
        size: size of the grid of ``sedghi`` and ``alternating``; the layer's own where None, or as ``nearest`` does.
        min_norm: raise the symbol's singular values to at least this.
        flatten: make all singular values of the symbol equal, to the radius or else to their mean.
        rank: cut the symbol's rank to this.
    """

    radius: float | None = None
    method: str = "nearest"
    of: str = "any size"
    size: tuple[int, ...] | None = None
    min_norm: float | None = None
    flatten: bool = False
    rank: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: an unknown name, a number out of range, nothing to do, or edits that exclude each other.
        """
        for what, value, known in (("method", self.method, METHODS), ("operator", self.of, OPERATORS)):
            if value not in known:
                raise UsageError(f"unknown {what}", found=value, advice=f"use one of {', '.join(known)}")
        for name, number in (("radius", self.radius), ("least norm", self.min_norm)):
            if number is not None and not (0 < number < math.inf):
                raise UsageError(f"the {name} must be a positive number", found=str(number))
        if self.rank is not None and self.rank < 1:
            raise UsageError("the rank must be at least 1", found=str(self.rank))
        if self.radius is not None and self.min_norm is not None and self.min_norm > self.radius:
            raise UsageError("the least norm is above the radius", found=f"{self.min_norm} > {self.radius}")
        if self.radius is None and not self.edits:
            raise UsageError("nothing to do", advice="give a radius, a least norm, a rank, or flatten")
        if len(self.edits) > 1:
            raise UsageError("one edit at a time", found=" and ".join(self.edits))
        if self.edits and self.method != METHODS[0]:
            found = f"{self.edits[0]} and method {self.method}"
            raise UsageError("an edit has its own way to move the weights", found=found, advice="leave out the method")

    @property
    def edits(self) -> tuple[str, ...]:
        """Names of the edits asked for beside the radius."""
        asked = {"min_norm": self.min_norm is not None, "flatten": self.flatten, "rank": self.rank is not None}
        return tuple(name for name, wanted in asked.items() if wanted)

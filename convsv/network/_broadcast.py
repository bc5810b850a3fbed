"""How often an operation copies the entries of a value that it broadcasts."""

from __future__ import annotations

import math

from convsv.errors import UnavailableError
from convsv.graph import Operation, Shape
from convsv.network import Surroundings
from convsv.rounding import above

__all__ = ["copies", "known_shape"]


def known_shape(shape: Shape | None, what: str) -> tuple[int, ...]:
    """Return a shape whose every dimension is known.

    Raises:
        UnavailableError: one is not.
    """
    if shape is None or None in shape:
        raise UnavailableError(f"{what} is not known")
    return tuple(n for n in shape if n is not None)


def copies(operation: Operation, place: int, around: Surroundings) -> float:
    """Return the norm of broadcasting one input to the shape of the output, rounded up.

    Raises:
        UnavailableError: a shape is not known.
    """
    given, made = around.shape(operation.inputs[place]), operation.shape
    others = operation.constants.values()
    if len(operation.inputs) == 1 and others and all(constant.size == 1 for constant in others):
        return 1.0  # together with one number
    if given is not None and given == made and None not in given:
        return 1.0
    size = math.prod(known_shape(given, "the shape of a value it takes"))
    count = math.prod(known_shape(made, "the shape of what it makes")) // max(size, 1)
    return above(math.sqrt(count)) if count > 1 else 1.0

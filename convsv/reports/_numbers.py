"""Numbers for people: few digits, and a rounding that never turns a true statement into a false one."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

__all__ = ["DOWN", "NEAREST", "UP", "as_stated", "percent", "short"]

DOWN, UP, NEAREST = ROUND_FLOOR, ROUND_CEILING, ROUND_HALF_EVEN
_FIXED = range(-4, 6)
"""Decimal exponents that are written without a power of ten."""


def short(value: float | None, rounding: str = NEAREST, digits: int = 5) -> str:
    """Return ``value`` with ``digits`` significant digits.

    The rounding is that of the exact binary value: with :data:`DOWN` the printed number is never above it, with
    :data:`UP` never below, so that an interval printed ``DOWN`` and ``UP`` still holds all it held.

    Args:
        value: the number; None gives an em dash.
        rounding: :data:`DOWN`, :data:`UP` or :data:`NEAREST`.
        digits: significant digits.
    """
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    rounded = _significant(Decimal(value), digits, rounding)
    if rounded == 0 or rounded.adjusted() in _FIXED:
        return f"{rounded:f}"
    return f"{rounded:.{digits - 1}e}".replace("e+", "e")


def _significant(exact: Decimal, digits: int, rounding: str) -> Decimal:
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=rounding)
    if rounded.adjusted() > exact.adjusted():  # 9.99996 became 10.0000: one digit too many
        rounded = rounded.quantize(Decimal(1).scaleb(rounded.adjusted() - digits + 1), rounding=rounding)
    return rounded


def as_stated(value: float) -> str:
    """Return a number that a person has written, as that person would have: 2, 0.5, 1e-6."""
    return f"{value:.12g}"


def percent(ratio: float) -> str:
    """Return a relative width as a percentage of two digits, rounded up."""
    if math.isinf(ratio) or math.isnan(ratio):
        return "—"
    if ratio == 0:
        return "0 %"
    return "<0.0001 %" if ratio < 1e-6 else f"{short(100 * ratio, UP, 2)} %"

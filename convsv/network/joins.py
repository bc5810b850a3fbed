"""Sums of values, and values side by side."""

from __future__ import annotations

from collections.abc import Mapping

from convsv.errors import UnavailableError
from convsv.graph import Operation
from convsv.network import Step, Surroundings, rule
from convsv.network._broadcast import copies
from convsv.network.activations import GELU, MISH, SILU
from convsv.rounding import above

__all__: list[str] = []


@rule("add", factor="1 each, summed", why="the triangle inequality")
def add(operation: Operation, around: Surroundings) -> Step:
    """Bound a sum or difference; ``weights`` multiply the values it takes."""
    weights = operation.settings.get("weights", (1.0,) * len(operation.inputs))
    return Step(tuple(_times(abs(float(w)), copies(operation, at, around)) for at, w in enumerate(weights)))


def _times(weight: float, factor: float) -> float:
    return factor if weight == 1 else above(weight * factor)


@rule("extreme", factor="1 each, root of squares", why="|max(a, b) - max(c, d)| <= max(|a - c|, |b - d|)")
def extreme(operation: Operation, around: Surroundings) -> Step:
    """Bound the larger or smaller of two values, entry by entry."""
    factors = tuple(copies(operation, at, around) for at in range(len(operation.inputs)))
    return Step(factors, "root")


@rule("concat", factor="1 each, root of squares", why="squared lengths of parts add up")
def concat(operation: Operation, around: Surroundings) -> Step:
    """Bound values side by side, along whatever axis."""
    return Step((1.0,) * len(operation.inputs), "root")


@rule("product", factor="2 x 1.128905, 1.09984, 1.088499 or 1.5 for x g(a x)", why="GELU, SiLU, Mish and hardswish")
def product(operation: Operation, around: Surroundings) -> Step:
    """Bound the product of two values where one is a known gate of the other, as exporters write these functions.

    The slope of x g(a x) at x is that of x g(x) at a x: whatever a is, the largest is the same.

    Raises:
        UnavailableError: it is another product.
    """
    if len(operation.inputs) == 2:
        first, second = operation.inputs
        if (slope := _slope_with_gate(first, second, around)) is not None:
            return Step((slope, 0.0))
        if (slope := _slope_with_gate(second, first, around)) is not None:
            return Step((0.0, slope))
    raise UnavailableError("a product of two values that depend on the input: on all inputs no constant bounds it")


def _slope_with_gate(value: str, gate: str, around: Surroundings) -> float | None:
    """Return the largest slope of a value times its gate, None if that is no gate of this value."""
    names: list[str] = []
    at, ends = gate, {value, _scaled_by_number(value, around)}
    while at not in ends and len(names) < _LONGEST_GATE:
        maker = around.maker(at)
        if maker is None or len(maker.inputs) != 1 or not _is_of_a_gate(maker):
            return None
        names.append(maker.kind)
        at = maker.inputs[0]
    if names and names[-1] == "scale":
        names.pop()
    return _GATES.get(tuple(names)) if at in ends else None


def _scaled_by_number(value: str, around: Surroundings) -> str:
    """Return what a value is a multiple of."""
    maker = around.maker(value)
    return maker.inputs[0] if maker is not None and maker.kind == "scale" and _is_of_a_gate(maker) else value


def _is_of_a_gate(maker: Operation) -> bool:
    """Tell whether an operation does in a gate what its kind says: scales by one number, adds 1, is odd around 1/2."""
    if maker.kind == "scale":
        constant = maker.constants.get("factor")
        return constant is None or constant.size == 1
    if maker.kind == "add":
        term = maker.settings.get("term")
        constant = maker.constants.get("term")
        if constant is not None and constant.size == 1:
            term = float(constant.values().reshape(()))
        return term == 1 and maker.settings.get("weights", (1.0,)) == (1.0,)
    wanted = {"hardsigmoid": 0.5, "softplus": 1.0}.get(maker.kind)
    return wanted is None or maker.settings.get("beta", wanted) == wanted


_LONGEST_GATE = 4
_GATES: Mapping[tuple[str, ...], float] = {
    ("sigmoid",): SILU,
    ("hardsigmoid",): 1.5,
    ("tanh", "softplus"): MISH,
    ("add", "erf"): 2 * GELU,
}
"""The kinds of operations from a gate back to what it is multiplied with -> the largest slope of the product."""

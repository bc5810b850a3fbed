"""How much a whole network can stretch its input: the door. A rule is one entry of :data:`RULES`.

A rule bounds the Lipschitz constant of one kind of operation, from l2 to l2, rounded up. The bound of the network is
carried along its graph: every value has a constant L with ``||v(x) - v(y)|| <= L ||x - y||`` for all inputs, and

* an operation of factor c on a value of constant L makes one of c L,
* a sum of values has at most the sum of theirs, and values side by side the root of the sum of their squares.

For a block x + f(x) that is L(x) (1 + Lip f), the bound of the block by itself: each rule is homogeneous in the
constants it is given. Nothing is guessed: what no rule covers has no bound, and says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from convsv.graph import Operation, Shape
from convsv.layer import ConvLayer
from convsv.registry import Registry

__all__ = ["RULES", "Compute", "Join", "Rule", "Step", "Surroundings", "rule"]

Join: TypeAlias = Literal["sum", "root"]
"""How the constants of several inputs are joined: their sum, or the root of the sum of their squares."""


@dataclass(frozen=True)
class Step:
    """What an operation does to the constants of its inputs.

    Attributes:
        factors: one a value that it takes, rounded up.
        join: how several are joined.
        of: the operator that the factor is about, where that is not plain.
        shortcut: (an earlier value, a factor): the same output is also that factor times that value's constant.
    """

    factors: tuple[float, ...]
    join: Join = "sum"
    of: str = ""
    shortcut: tuple[str, float, str] | None = None


class Surroundings(Protocol):
    """What a rule may ask about what is around an operation."""

    def maker(self, value: str) -> Operation | None:
        """Return the operation that makes a value; None for an input of the network."""
        ...

    def shape(self, value: str) -> Shape | None:
        """Return the shape of a value."""
        ...

    def layer_norm(self, layer: ConvLayer) -> tuple[float, str]:
        """Return a certified upper bound of a layer's norm, and which operator it is about.

        Raises:
            UnavailableError: it has none.
        """
        ...


Compute: TypeAlias = Callable[[Operation, Surroundings], Step]
"""Bounds an operation; raises ``UnavailableError`` where it has no bound, with the reason."""


@dataclass(frozen=True)
class Rule:
    """What is known of one kind of operation.

    Attributes:
        compute: bounds an operation of this kind.
        factor: the bound, in words or as a formula.
        why: why it holds, or where it is proved.
    """

    compute: Compute
    factor: str
    why: str


RULES: Registry[Rule] = Registry("operation", "convsv.network")
"""All rules by the kind of operation."""


def rule(*kinds: str, factor: str, why: str) -> Callable[[Compute], Compute]:
    """Return a decorator that registers a function as the rule of some kinds.

    Args:
        kinds: kinds of operations.
        factor: the bound, in words or as a formula.
        why: why it holds, or where it is proved.
    """

    def register(compute: Compute) -> Compute:
        for kind in kinds:
            RULES.add(kind, Rule(compute, factor, why))
        return compute

    return register

"""Operations that no constant bounds, or whose bound nobody has written here: named, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from convsv.errors import UnavailableError
from convsv.graph import Operation
from convsv.network import RULES, Compute, Rule, Step, Surroundings

__all__ = ["REASONS"]

REASONS: Mapping[str, str] = {
    "attention": "attention: a product of its own inputs, which no constant bounds (Kim, Papamakarios, Mnih 2021)",
    "discrete": "its values are whole numbers or truth values: it jumps",
    "recurrence": "recurrence: it is applied to its own output as often as the input is long",
    "own_statistics": "a batch normalisation that divides by the statistics of its own batch",
    "random": "it is random",
    "switched": "it becomes another function at a threshold where the two differ: it jumps",
    "unit_length": "it divides by the length of its input: near zero no constant bounds that",
    "steep": "its slope has no bound on all inputs",
    "unknown": "no rule is known for it",
    "changed": "it changes a tensor in place, and another value is a part of that tensor",
    "stranger": "it takes a tensor that is neither a parameter, a buffer nor made by an operation that was seen",
    "computed_weight": "what it multiplies with is computed from the input",
}
"""Kind -> why it has no bound."""


def _refusal(reason: str) -> Compute:
    def compute(operation: Operation, around: Surroundings) -> Step:
        raise UnavailableError(f"{operation.called}: {reason}" if operation.called else reason)

    return compute


for _kind, _reason in REASONS.items():
    RULES.add(_kind, Rule(_refusal(_reason), "none", _reason))

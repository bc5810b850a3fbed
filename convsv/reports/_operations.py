"""The bound of a network as rows and as an object."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from convsv.results import CheckpointReport, NetworkBound, OperationBound

__all__ = ["NETWORK_COLUMNS", "flat_operations", "network_object"]

NETWORK_COLUMNS = (
    *("checkpoint_path", "output", "network_upper", "guarantee", "name", "kind", "inputs", "factor", "of", "upper"),
    *("through", "share", "unavailable"),
)
"""The columns of a row an operation."""


def flat_operations(checkpoint: CheckpointReport) -> Iterator[dict[str, Any]]:
    """Yield the rows of one network, as column -> value."""
    network = checkpoint.network
    if network is None:
        return
    head = {
        "checkpoint_path": checkpoint.path,
        "output": network.output,
        "network_upper": network.upper,
        "guarantee": network.guarantee,
    }
    for row in network.operations:
        yield {**head, **_operation(row), "inputs": list(row.inputs)}


def network_object(network: NetworkBound) -> dict[str, Any]:
    """Return a network's bound as an object; a number that is not finite is null."""
    return {
        "output": network.output,
        "upper": _finite(network.upper),
        "norm": "l2",
        "guarantee": network.guarantee,
        "outputs": {name: _finite(upper) for name, upper in network.outputs.items()},
        "inputs": {name: None if shape is None else list(shape) for name, shape in network.inputs.items()},
        "unavailable": network.unavailable,
        "notes": list(network.notes),
        "operations": [_operation(row) for row in network.operations],
    }


def _operation(row: OperationBound) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "inputs": list(row.inputs),
        "factor": _finite(row.factor),
        "upper": _finite(row.upper),
        "of": row.of,
        "through": _finite(row.through),
        "share": _finite(row.share),
        "unavailable": row.unavailable,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

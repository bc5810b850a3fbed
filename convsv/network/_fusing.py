"""Batch normalisations that become part of the layer before them.

For the diagonal D of the scales, ``||D A|| <= ||D|| ||A||``, and mostly by far: the channels that a normalisation
enlarges most are those that a layer makes small. Where nothing else takes what the layer makes, only the product
counts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from convsv.graph import Network, Operation

__all__ = ["fused"]


def fused(network: Network, kept: str | None) -> Network:
    """Return a network whose layers have taken in the batch normalisations that alone take their output.

    A layer keeps its name, and gets the settings and constants of the normalisation beside its own.

    Args:
        network: the network.
        kept: an operation that is asked for, which stays what it is.
    """
    makers = {operation.name: operation for operation in network.operations}
    uses = Counter(value for operation in network.operations for value in operation.inputs)
    uses.update({*network.outputs.values()})
    layers: dict[str, Operation] = {}
    renamed: dict[str, str] = {}
    for norm in network.operations:
        before = makers.get(norm.inputs[0]) if norm.kind == "batch_norm" else None
        if before is None or uses[before.name] > 1 or kept in (before.name, norm.name) or not _fits(before, norm):
            continue
        layers[before.name], renamed[norm.name] = _together(before, norm), before.name
    operations = (layers.get(o.name, o) for o in network.operations if o.name not in renamed)
    return replace(
        network,
        operations=tuple(replace(o, inputs=tuple(renamed.get(v, v) for v in o.inputs)) for o in operations),
        outputs={name: renamed.get(value, value) for name, value in network.outputs.items()},
    )


def _fits(before: Operation, norm: Operation) -> bool:
    """Tell whether what a normalisation scales are the outputs of a layer: the second axis of what it makes."""
    if before.kind == "conv" and before.layer is not None:
        rank = before.layer.geometry.dims + 2
    elif before.kind == "linear" and not before.settings.get("transposed"):
        rank = 2
    else:
        return False
    shape = before.shape or ()
    return len(shape) == rank and norm.constants["variance"].shape == (shape[1],)


def _together(before: Operation, norm: Operation) -> Operation:
    return replace(
        before,
        settings={**before.settings, **norm.settings, "norm": norm.name},
        constants={**before.constants, **norm.constants},
    )

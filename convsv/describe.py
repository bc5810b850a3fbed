"""What is known of a layer before anything is computed."""

from __future__ import annotations

from convsv.layer import ConvLayer
from convsv.results import LayerReport

__all__ = ["describe"]


def describe(layer: ConvLayer) -> LayerReport:
    """Return the report of a layer without results: name, kind, shape, dtype, geometry and notes.

    Its tensor is not read. A layer that cannot be analysed says so under ``norm``.
    """
    return LayerReport(
        name=layer.name,
        weight=layer.weight,
        kind=layer.kind,
        shape=layer.shape,
        dtype=layer.dtype,
        geometry=layer.geometry,
        unavailable={"norm": layer.problem} if layer.problem else {},
        notes=layer.notes,
        folded=layer.folded.name if layer.folded else None,
    )

"""convsv: how much each convolution of a trained network stretches its input, in every direction.

Importing this package imports nothing heavy: each public name brings what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convsv.api import analyze, bounds, clip, network_bound, operator_norm, spectrum
    from convsv.checkpoints import open_checkpoint
    from convsv.checkpoints.discovery import find_layers
    from convsv.editing import clip_checkpoint
    from convsv.geometry import Geometry, GeometryFacts

__version__ = "0.1.0"

__all__ = [
    "Geometry",
    "GeometryFacts",
    "__version__",
    "analyze",
    "bounds",
    "clip",
    "clip_checkpoint",
    "find_layers",
    "network_bound",
    "open_checkpoint",
    "operator_norm",
    "spectrum",
]

_HOMES = {
    "Geometry": "convsv.geometry",
    "GeometryFacts": "convsv.geometry",
    "analyze": "convsv.api",
    "bounds": "convsv.api",
    "clip": "convsv.api",
    "clip_checkpoint": "convsv.editing",
    "find_layers": "convsv.checkpoints.discovery",
    "network_bound": "convsv.api",
    "open_checkpoint": "convsv.checkpoints",
    "operator_norm": "convsv.api",
    "spectrum": "convsv.api",
}

_ROOMS = ("constructions", "differentiable")
"""Modules that are there without an import of their own."""


def __getattr__(name: str) -> Any:
    """Import a public name from where it lives, on first use.

    Raises:
        AttributeError: there is no such name.
    """
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)

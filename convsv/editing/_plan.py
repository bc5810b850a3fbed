"""What to do with each layer of a checkpoint, and what its norm is judged by."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from convsv.analysis import AnalysisOptions, certified_norm
from convsv.checkpoints.sidecar import Sidecar
from convsv.clipping import ClipOptions, Judge
from convsv.errors import error_context
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer, from_canonical

__all__ = ["PUBLISHED", "ClipPlan", "holding"]

PUBLISHED = "sedghi"
"""The method that promises nothing: what it leaves is reported."""


@dataclass(frozen=True)
class ClipPlan:
    """What to do with the layers of a checkpoint.

    Attributes:
        max_norm: the radius of layers for which no file states one; None leaves them alone.
        radii: files that state radii a layer; of several the later wins.
        method: as in :class:`convsv.clipping.ClipOptions`, like the following.
        of: of which operator the norm is meant.
        size: grid of ``sedghi`` and ``alternating``.
        min_norm: least singular value of the symbol.
        flatten: make all singular values of the symbol equal.
        rank: rank to cut the symbol to.
        tol: relative width to reach of certified intervals.
        execution: where to compute.
    """

    max_norm: float | None = None
    radii: tuple[Sidecar, ...] = ()
    method: str = "nearest"
    of: str = "any size"
    size: tuple[int, ...] | None = None
    min_norm: float | None = None
    flatten: bool = False
    rank: int | None = None
    tol: float = 1e-3
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: there is nothing to do, or what is to be done contradicts itself.
        """
        tables = [table for file in self.radii for table in (file.defaults, *file.tables)]
        stated = (self.max_norm, *(table.max_norm for table in tables))
        self._options(next((radius for radius in stated if radius is not None), None))

    def for_layer(self, layer: ConvLayer) -> ClipOptions | None:
        """Return what to do with a layer; None for nothing.

        Raises:
            UsageError: what its file states contradicts the rest.
        """
        stated = [norm for file in self.radii if (norm := file.max_norm(layer.name)) is not None]
        radius = stated[-1] if stated else self.max_norm
        if radius is None and not (self.min_norm or self.flatten or self.rank):
            return None
        with error_context(tensor=layer.name):
            options = self._options(radius)
        fits = options.size is None or len(options.size) in (1, len(layer.kernel_size))
        return options if fits else replace(options, size=None)

    def _options(self, radius: float | None) -> ClipOptions:
        return ClipOptions(radius, self.method, self.of, self.size, self.min_norm, self.flatten, self.rank)

    def judge(self, layer: ConvLayer) -> Judge:
        """Return what certifies the norm that is meant, of kernels in the place of a layer's own."""
        analysis = AnalysisOptions(tol=self.tol, execution=self.execution)
        at_size = self.of != "any size"
        meant = replace(layer, geometry=_padded(layer.geometry, self.of)) if at_size else layer
        return lambda kernel: certified_norm(
            holding(meant, from_canonical(kernel, layer.layout)), analysis, at_size=at_size
        )


def holding(layer: ConvLayer, stored: NDArray[np.float64]) -> ConvLayer:
    """Return a layer as if its file held another kernel, in the stored layout."""
    return replace(layer, read=partial(_same, stored))


def _same(stored: NDArray[np.float64]) -> NDArray[np.float64]:
    return stored


def _padded(geometry: Geometry, mode: str) -> Geometry:
    """Return the geometry with a padding mode that the caller asks about."""
    return replace(geometry, padding_mode=mode, origin={**geometry.origin, "padding_mode": "option"})

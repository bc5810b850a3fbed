"""The certified enclosure of all singular values as a spectral method."""

from __future__ import annotations

import numpy as np
import torch

from convsv.enclosure import enclose_spectrum
from convsv.errors import UnavailableError
from convsv.execution import Execution
from convsv.layer import ConvLayer
from convsv.results import Spectrum
from convsv.spectra import DEFAULT, Shared, SpectrumOptions, method
from convsv.spectra._statistics import statistics

__all__ = ["enclosure"]


@method("enclosure", guarantee="certified", reference="convsv; Cauchy 1829")
def enclosure(
    layer: ConvLayer, execution: Execution, options: SpectrumOptions = DEFAULT, shared: Shared | None = None
) -> Spectrum:
    """Return proven upper ends of all singular values of the layer as it runs; the lower ends stand beside the values.

    For every size, stride, dilation, number of groups and padding. Each value lies between ``lower_values`` and
    ``values``; ``error`` is the widest of these intervals. Lower ends are those of values further down, by as many as
    the boundary has rows and columns: on small images most of them are 0.

    Args:
        layer: any layer.
        execution: where to compute, always in float64.
        options: what is wanted.
        shared: what is known of the layer already.

    Raises:
        UnavailableError: a weight is not finite, the kernel has no entries, or the values do not fit into the memory
            budget or the range of float64.
        GeometryError: the layer has no output.
    """
    shared, geometry = shared or Shared(layer, execution), layer.geometry
    shared.require_entries()
    lower, upper = enclose_spectrum(torch.from_numpy(shared.stored), geometry, execution=execution)
    if not np.isfinite(upper).all():
        raise UnavailableError("singular values exceed the range of float64")
    error = float(np.nextafter((upper - lower).max(), np.inf))
    return Spectrum(
        method="enclosure",
        of=f"{geometry.padding_mode} {'x'.join(map(str, geometry.size))}",
        guarantee="certified",
        error=error,
        kind="upper",
        assumes=geometry.guessed("size", "stride", "padding", "padding_mode", "dilation", "groups", "transposed"),
        values=upper,
        lower_values=lower,
        **vars(statistics(upper, error)),
    )

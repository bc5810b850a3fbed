"""The asymptotic spectrum with its boundary and two exact moments: an estimate of the layer's own values.

Three things are known exactly at little cost, and put together (ours):

* the symbol: how the values are distributed far from every boundary (Szego, Tilli; Yi 2020);
* a smaller copy of the layer, of size m, whose matrix is affordable. Counts of singular values have a part for the
  volume and one for the boundary, which grows with a power of the size less by one:

      count_n(x) = N rho(x) + (n / m)^(d - 1) (count_m(x) - M rho(x)),    with N and M positions.

  For m <= n no weight is negative: it is a weighted pool of samples of the symbol and of values of the copy;
* the Frobenius norm, from how often two taps meet, and the largest value, by Lanczos iteration. The quantiles of the
  pool are bent to both.

The copy is what brings the small values near: how many there are is a matter of the boundary.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer
from convsv.results import Spectrum
from convsv.spectra import DEFAULT, Shared, SpectrumOptions, method
from convsv.spectra._copies import affordable_copy, boundary_axes
from convsv.spectra._dense import DenseLayer, dense_values
from convsv.spectra._moments import bent, frobenius_norm, largest_value
from convsv.spectra._samples import SymbolSamples, estimate, sample_symbol

__all__ = ["calibrated"]

_SPREAD = 8
"""Points that each value of the copy is spread to, between its neighbours: it stands for several of the layer."""
_SHARPNESS, _SHARPNESS_ALONE = 8, 2
"""How sharply quantiles are bent, with and without a copy: it leaves little but the top to be corrected."""


@method("calibrated", guarantee="estimate", reference="convsv, after Yi 2020")
def calibrated(
    layer: ConvLayer, execution: Execution, options: SpectrumOptions = DEFAULT, shared: Shared | None = None
) -> Spectrum:
    """Return estimates of the layer's own singular values: quantiles, a boundary and two exact moments.

    The sum of squares is exact and the largest value nearly so, for every padding mode; quantiles that are equal stay
    equal. A layer so small that its matrix is affordable gets its own values. The time does not depend on the size.

    Measured on the trained 3x3 layers of a ResNet-20 with zero padding that are larger than that, against exact values,
    geometric mean at n = 8, 12, 16: relative l2 error .0044, .0031, .0027, where circulant has .090, .055, .039 and two
    moments alone, x = q (alpha + (beta - alpha) (q / q_1)^2), .0086, .0096, .0096; mean logarithmic error of the
    smallest fifth .029, .032, .024, where circulant has .17, .15, .11 and two moments alone .077, .089, .068. Tried,
    not better: two copies and extrapolation in 1 / n, sums of quantiles instead of counts, copies that are padded along
    one axis and periodic along the others, copies larger than half the layer; and clipping into the certified
    enclosure, which touches one value in a thousand.

    Args:
        layer: any layer.
        execution: where to compute.
        options: what is wanted.
        shared: what is known of the layer already.

    Raises:
        UnavailableError: a weight is not finite, or the values do not fit into memory or the range of float64.
        GeometryError: the layer has no output.
    """
    shared = shared or Shared(layer, execution)
    shared.require_entries()
    kernel, geometry = shared.kernel, layer.geometry
    is_open = any(boundary_axes(geometry, tuple(kernel.shape[3:])))
    copy = affordable_copy(kernel, geometry, execution) if is_open else None
    if copy == geometry:
        return estimate("calibrated", shared, shared.once(dense_values)[0])
    samples = shared.once(sample_symbol)
    frobenius = frobenius_norm(kernel, geometry)
    if frobenius == 0:
        return estimate("calibrated", shared, np.zeros(samples.count * len(kernel)))
    own = DenseLayer.of(kernel, copy).values(execution)[0] if copy else np.zeros(0)
    quantiles = _pooled(samples, own, _weights(samples, geometry, copy))
    largest = largest_value(samples, geometry, execution)
    sharpness = _SHARPNESS if copy else _SHARPNESS_ALONE
    return estimate("calibrated", shared, bent(quantiles, frobenius, largest, sharpness))


def _weights(samples: SymbolSamples, geometry: Geometry, copy: Geometry | None) -> tuple[float, float]:
    """Return for how many values of the layer a sample of the symbol counts, and how many a value of the copy."""
    taps = tuple(samples.kernel.shape[3:])
    sizes = geometry.forward_size(taps)
    positions = math.prod(n / s for n, s in zip(sizes, geometry.stride, strict=True))
    if copy is None:
        return positions / len(samples.frequencies), 0.0
    ratios = [m / n for n, m in zip(sizes, copy.forward_size(taps), strict=True)]
    across = [ratio for ratio, is_open in zip(ratios, boundary_axes(geometry, taps), strict=True) if is_open]
    share = sum(across) / len(across)
    return positions * (1 - share) / len(samples.frequencies), share / math.prod(ratios)


def _pooled(samples: SymbolSamples, own: NDArray[np.float64], weights: tuple[float, float]) -> NDArray[np.float64]:
    """Return quantiles of the volume and the boundary together, as many as the layer has values, descending."""
    boundary = _spread(own, math.prod(samples.form.dilation))
    values = np.concatenate([samples.values.ravel(), boundary])
    each = np.repeat([weights[0], weights[1] / _SPREAD], [samples.values.size, len(boundary)])
    order = np.argsort(-values)
    heaps = np.cumsum(each[order])
    count = samples.count * samples.values.shape[1]
    wanted = (np.arange(count) + 0.5) / count * heaps[-1]
    return np.asarray(values[order][np.searchsorted(heaps, wanted)])


def _spread(values: NDArray[np.float64], bundle: int) -> NDArray[np.float64]:
    """Return several points for each value, between it and its neighbours.

    Dilation interleaves copies of a layer: their values are equal or nearly so, and one point to go through.
    """
    if not len(values):
        return values
    starts = np.arange(0, len(values), bundle)
    lengths = np.diff(starts, append=len(values))
    points = np.add.reduceat(np.sort(values), starts) / lengths
    between = (np.arange(_SPREAD * len(values)) + 0.5) / _SPREAD - 0.5
    return np.interp(between, starts + (lengths - 1) / 2, points)

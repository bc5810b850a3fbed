"""The spectrum as quantiles of the symbol: what it tends to as the input grows, read off at the layer's own size.

Yi (2020): the singular values of a convolution are distributed, as the input grows, like sigma_j(F(w)) with w uniform
over all frequencies (the theorem of Szego and Tilli; F is the spectral density matrix of the paper). Sort samples of
each branch sigma_j into a quantile function and read it at equidistant probabilities, by interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convsv.execution import Execution
from convsv.layer import ConvLayer
from convsv.results import Spectrum
from convsv.spectra import DEFAULT, Shared, SpectrumOptions, method
from convsv.spectra._samples import estimate, sample_symbol

__all__ = ["MEASURED_BEST", "QuantileVariant", "asymptotic", "quantiles"]


@dataclass(frozen=True)
class QuantileVariant:
    """How the quantile functions are read; the defaults are what was measured best.

    Attributes:
        nodes: probabilities of the i-th largest of n values, counted from the top.
        interpolation: between samples, by the names of :func:`numpy.quantile`: which probabilities the samples
            themselves stand for.
        branches: a quantile function for ``"each"`` branch sigma_j, or one for ``"all"`` values of a group.
        points: sampled frequencies an axis, an even number; None for as many as change nothing any more.
    """

    nodes: Literal["i/n", "i/(n+1)", "(i-1/2)/n"] = "i/n"
    interpolation: Literal["linear", "hazen", "weibull", "median_unbiased", "nearest"] = "linear"
    branches: Literal["each", "all"] = "each"
    points: int | None = None


MEASURED_BEST = QuantileVariant()
"""The variant of the default."""


@method("asymptotic", guarantee="estimate", reference="Yi 2020")
def asymptotic(
    layer: ConvLayer,
    execution: Execution,
    options: SpectrumOptions = DEFAULT,
    shared: Shared | None = None,
    *,
    variant: QuantileVariant = MEASURED_BEST,
) -> Spectrum:
    """Return quantiles of the symbol's singular values, as many as the layer has at its size.

    There are min(rows, columns) of them a group, for every size, stride, dilation and padding: a stride need not
    divide the size. The time does not depend on the size. Boundaries are not seen: with zero padding the values
    are too large by a part of order kernel / size.

    Of the paper only the abstract could be read: the spectral density matrix and the better accuracy than circular
    padding are its own. Nodes, interpolation and sampling are reconstructed. Measured on the trained 3x3 layers of a
    ResNet-20 with zero padding, relative l2 error against exact values, geometric mean at n = 8, 12, 16: circulant
    .090, .055, .039; nodes i/n .078, .050, .036 (the default: always the lower end of a share, which makes up for a
    part of the boundary); i/(n+1) .086, .054, .038; (i-1/2)/n .089, .055, .038. One quantile function for all branches
    is worse by up to an eighth with nodes i/n, else alike; the interpolation changes a hundredth of the error.

    Args:
        layer: any layer.
        execution: where to compute.
        options: what is wanted.
        shared: what is known of the layer already.
        variant: how the quantiles are read.

    Raises:
        UnavailableError: a weight is not finite, or the values do not fit into memory or the range of float64.
        GeometryError: the layer has no output.
    """
    shared = shared or Shared(layer, execution)
    points = variant.points
    samples = shared.once(sample_symbol) if points is None else sample_symbol(shared, points)
    return estimate("asymptotic", shared, quantiles(samples.values, samples.count, variant))


def quantiles(samples: NDArray[np.float64], count: int, variant: QuantileVariant) -> NDArray[np.float64]:
    """Return quantiles of samples of the symbol.

    Args:
        samples: ``(P, G, c)``, singular values at P frequencies, descending along c.
        count: values wanted a group; shared out evenly to the branches, the larger ones first.
        variant: how.

    Returns:
        ``(G * count,)``, unordered.
    """
    frequencies, groups, channels = samples.shape
    if variant.branches == "all":
        samples = samples.transpose(0, 2, 1).reshape(frequencies * channels, groups, 1)
        channels = 1
    some, more = divmod(count, channels)
    parts = []
    for branches, each in ((samples[:, :, :more], some + 1), (samples[:, :, more:], some)):
        if branches.size and each:
            probabilities = 1 - _nodes(each, variant)
            parts.append(np.quantile(branches, probabilities, axis=0, method=variant.interpolation).ravel())
    return np.concatenate(parts)


def _nodes(count: int, variant: QuantileVariant) -> NDArray[np.float64]:
    rank = np.arange(1, count + 1, dtype=np.float64)
    if variant.nodes == "i/n":
        return rank / count
    return rank / (count + 1) if variant.nodes == "i/(n+1)" else (rank - 0.5) / count

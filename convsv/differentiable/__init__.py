"""Norms of convolutions in training loops: differentiable bounds, a penalty, a projection, a parametrisation.

    loss = loss + 1e-3 * spectral_penalty(model)        # a bound of each layer's norm, summed
    clip = SpectralClip(model, max_norm=1.0)            # clip.step() after optimizer.step()
    bounded(model.conv1, max_norm=1.0)                  # within the norm at every step

Formulas are those of :mod:`convsv.bounds`, gradients are analytic, and no loop runs over frequencies. Everything
depends on the weights alone: nothing is remembered from one step to the next that could differ between the ranks of a
distributed group. Arithmetic is float64 whatever autocast says; ``torch.compile`` breaks its graph here.
"""

from __future__ import annotations

from convsv.differentiable._bound import layer_bound, layer_bounds, norm_bound
from convsv.differentiable._entries import DEFAULT, GRADIENTS, WITHOUT_GRADIENT
from convsv.differentiable._layers import geometry_of
from convsv.differentiable.ball import NormBall, bounded
from convsv.differentiable.clip import SpectralClip
from convsv.differentiable.penalty import spectral_penalty

__all__ = [
    "DEFAULT",
    "GRADIENTS",
    "WITHOUT_GRADIENT",
    "NormBall",
    "SpectralClip",
    "bounded",
    "geometry_of",
    "layer_bound",
    "layer_bounds",
    "norm_bound",
    "spectral_penalty",
]

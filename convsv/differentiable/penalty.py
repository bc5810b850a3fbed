"""A penalty on the norms of a model's convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from convsv.differentiable._bound import eager, entry_of, layer_bounds
from convsv.differentiable._entries import DEFAULT
from convsv.differentiable._layers import convolutions

__all__ = ["spectral_penalty"]


@eager
def spectral_penalty(
    model: nn.Module,
    bound: str = DEFAULT,
    *,
    target: float = 0.0,
    squared: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Tensor:
    """Return the sum over a model's convolutions of how far a bound of the norm exceeds a target.

    Stride, padding, dilation, groups and direction are read from the modules, and weights through their
    parametrisations. Differentiable once in the weights. Nothing is remembered between calls, and the value depends on
    the weights alone: every rank of a distributed group finds the same.

    Args:
        model: a module with ``nn.Conv1d`` to ``nn.ConvTranspose3d`` in it; others do not count.
        bound: a name in :data:`convsv.differentiable.GRADIENTS`, of a bound that needs no input size.
        target: norm up to which nothing is to be paid: a layer adds max(0, bound - target).
        squared: whether each layer adds the square of that.
        include: globs on module paths; all convolutions when empty.
        exclude: globs on module paths to leave out.

    Returns:
        A scalar, of the weights' dtype but at least float32; 0 for a model without convolutions.

    Raises:
        UsageError: there is no such bound, or a module has no real weight.
        UnavailableError: a layer has no such bound, or a weight is NaN or infinite.
    """
    entry_of(bound)
    layers = list(convolutions(model, include, exclude))
    if not layers:
        return torch.zeros(())
    weights = [layer.weight for layer in layers]
    values = layer_bounds([(w, layer.geometry) for w, layer in zip(weights, layers, strict=True)], bound)
    excess = torch.clamp(values - target, min=0) if target else values
    total = (excess.square() if squared else excess).sum()
    return total.to(reduce(torch.promote_types, (weight.dtype for weight in weights), torch.float32))

"""A parametrisation that keeps a layer within a norm at every step of its training."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convsv.differentiable._bound import eager, entry_of, layer_bound
from convsv.differentiable._certified import without_borders
from convsv.differentiable._entries import NORM
from convsv.differentiable._layers import geometry_of
from convsv.errors import UsageError
from convsv.geometry import Geometry
from convsv.rounding import DOUBLE, gamma

__all__ = ["DEFAULT_BALL", "NormBall", "bounded"]

ConvModule = TypeVar("ConvModule", bound=nn.Module)

DEFAULT_BALL = "singla2021"
"""The bound of a ball unless told: tighter than the penalty's, for what it overestimates is lost to the layer."""


class NormBall(nn.Module):
    """Maps a weight W to W min(1, R / u(W)), u being a certified upper bound of the norm.

    It goes with ``torch.nn.utils.parametrize``, see :func:`bounded`.

    Differentiable, through the bound too. Nothing is remembered: the result depends on the weight alone, so ranks of a
    distributed group agree. Under ``torch.compile`` the graph breaks here; autocast does not reach the bound.

    Args:
        geometry: of the layer, complete but for the size.
        max_norm: R.
        bound: a certified upper bound of every size. The looser it is, the less of the ball the layer can use;
            ``"norm"`` uses nearly all of it, at the cost of a certificate a forward pass.

    Raises:
        UsageError: R is not positive, or the bound is no certified upper bound of every size.

    Guarantee:
        The norm of the result, in its dtype, is certified to be at most R at every input size. With P taps, rounding W'
        to unit roundoff u errs by at most u sqrt(P) ||W'||_F in norm, and the factor leaves room for it.
    """

    def __init__(self, geometry: Geometry, max_norm: float, bound: str = DEFAULT_BALL) -> None:
        super().__init__()
        entry = entry_of(bound)
        if not 0 < max_norm < math.inf:
            raise UsageError("the largest norm must be a positive number", found=str(max_norm))
        fits = entry.side == "upper" and entry.holds_for == "any size" and bound != "grishina2024"
        if not (fits or bound == NORM):
            raise UsageError("this bound does not bound a layer of every size from above", found=bound)
        self.geometry, self.max_norm, self.bound = geometry, max_norm, bound

    def extra_repr(self) -> str:
        """Return what is printed of it."""
        return f"max_norm={self.max_norm}, bound={self.bound!r}"

    @eager
    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight within the ball, of the same shape and dtype.

        Raises:
            UnavailableError: a weight is NaN or infinite.
        """
        upper = layer_bound(weight, self.geometry, self.bound, certified=True)
        with torch.autocast(weight.device.type, enabled=False):
            wide = weight.to(torch.float64)
            relative, absolute = self._rounding(wide.detach(), weight.dtype)
            # The quotient and the product below err by a few units of float64.
            factor = ((self.max_norm - absolute) / (upper * (1 + 16 * DOUBLE) + relative)).clamp(0, 1)
            # Within the ball the weight is returned as it is, bit for bit.
            return weight if factor == 1 else (wide * factor).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return a weight that is mapped to the given one, if that is within the ball: itself."""
        return weight

    def _rounding(self, weight: Tensor, dtype: torch.dtype) -> tuple[float, float]:
        """Return what rounding of the product can add to the norm: a part that the factor multiplies, and the rest."""
        unit = float(torch.finfo(dtype).eps) / 2
        copies = without_borders(self.geometry, tuple(weight.shape[2:]))[1]
        spread = math.sqrt(math.prod(weight.shape[2:])) * copies * (1 + gamma(weight.numel() + 16))
        # Half precision is reached through single: twice rounded is a little more than once.
        each = unit * (1 + 2 * unit) + 4 * DOUBLE
        # Below the normal numbers the spacing is absolute; squares may vanish.
        smallest = (float(torch.finfo(dtype).smallest_normal) + 1e-150) * math.sqrt(weight.numel())
        return spread * (each * float(torch.linalg.vector_norm(weight)) + 1e-150), spread * smallest


def bounded(module: ConvModule, max_norm: float, bound: str = DEFAULT_BALL) -> ConvModule:
    """Keep a convolution within a norm from now on: registers a :class:`NormBall` as parametrisation of its weight.

    ``torch.nn.utils.parametrize.remove_parametrizations(module, "weight")`` makes the weight as it is permanent.

    Args:
        module: one of ``nn.Conv1d`` to ``nn.ConvTranspose3d``; changed in place.
        max_norm: the largest norm allowed.
        bound: as for :class:`NormBall`.

    Returns:
        The module.

    Raises:
        UsageError: it is no convolution, or what :class:`NormBall` refuses.
    """
    parametrize.register_parametrization(module, "weight", NormBall(geometry_of(module), max_norm, bound))
    return module

"""What the results of one layer have in common, computed once however many of them are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsv.at_size import Effort, certify_at_size
from convsv.certificate import Budget, certify_with_peak
from convsv.errors import UnavailableError
from convsv.execution import Execution
from convsv.layer import ConvLayer
from convsv.peaks import Peak
from convsv.results import Interval
from convsv.rounding import power_of_two_scale, scale_by_power, unscale
from convsv.symbol import NormalForm, normal_form

__all__ = ["Shared"]

Result = TypeVar("Result")


class Shared:
    """A layer, and what has been computed of it so far: each part when it is first asked for.

    Kernel and intervals are in units of ``2^exponent``, in which the kernel's largest entry is about 1. What is found
    does not depend on what else was asked for.

    Args:
        layer: any layer.
        execution: where to compute.
        tol: wanted relative width of the interval of the norm.
        budget: when to stop certifying.
    """

    def __init__(self, layer: ConvLayer, execution: Execution, tol: float = 1e-3, budget: Budget | None = None) -> None:
        self.layer, self.execution = layer, execution
        self._tol, self._budget = tol, budget
        self._found: dict[Callable[[Any], Any], Any] = {}

    @cached_property
    def stored(self) -> NDArray[np.float64]:
        """The kernel, ``(G, O, I, *K)``.

        Raises:
            UnavailableError: the layer has a problem, or a weight is not finite.
            CheckpointError: the file could not be read.
        """
        return self.layer.kernel()

    @cached_property
    def exponent(self) -> int:
        """Of the power of two that is the unit."""
        return power_of_two_scale(float(np.abs(self.stored).max(initial=0.0)))

    @cached_property
    def kernel(self) -> Tensor:
        """The kernel in these units, ``(G, O, I, *K)`` float64 on the CPU."""
        return scale_by_power(torch.from_numpy(self.stored), -self.exponent)

    @property
    def form(self) -> NormalForm:
        """Its normal form."""
        return normal_form(self.kernel, self.layer.geometry.stride, self.layer.geometry.dilation)

    @cached_property
    def norm(self) -> tuple[Interval, Peak | None]:
        """Certified interval of the size-free norm for the layer's geometry, and where that is attained.

        Raises:
            ComputationError: the certificate could not be computed.
            ContradictionError: its ends exclude each other, which is a bug.
        """
        return certify_with_peak(self.form, self._tol, execution=self.execution, budget=self._budget)

    @cached_property
    def norm_at_size(self) -> Interval:
        """Certified interval of the norm of the layer as it runs; nothing in its geometry is questioned.

        Raises:
            GeometryError: the layer has no output at this size.
            ContradictionError: the ends exclude each other, which is a bug.
        """
        return certify_at_size(
            self.kernel, self.layer.geometry, *self.norm, execution=self.execution, effort=self._effort(lower=True)
        )

    @property
    def upper_at_size(self) -> Interval:
        """The same with the certified upper end only, which for large layers takes a fraction of the time.

        Raises:
            GeometryError: the layer has no output at this size.
        """
        return certify_at_size(
            self.kernel, self.layer.geometry, *self.norm, execution=self.execution, effort=self._effort(lower=False)
        )

    def _effort(self, *, lower: bool) -> Effort:
        return Effort(lower=lower, tol=self._tol, seconds=(self._budget or Budget()).seconds)

    def once(self, function: Callable[[Shared], Result]) -> Result:
        """Return what a function makes of this, calling it the first time only."""
        if function not in self._found:
            self._found[function] = function(self)
        return cast("Result", self._found[function])

    def require_entries(self) -> None:
        """Refuse a kernel without entries, which has no singular values.

        Raises:
            UnavailableError: it is one.
        """
        if not self.stored.size:
            raise UnavailableError("the kernel has no entries", found=f"shape {self.layer.shape}")

    def in_its_units(self, interval: Interval) -> Interval:
        """Return an interval of the scaled layer as one of the layer itself, rounded outwards."""
        if interval.upper == 0:
            return interval
        lower = unscale(interval.lower, self.exponent, down=True)
        return replace(interval, lower=lower, upper=unscale(interval.upper, self.exponent, down=False))

    def unscaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values of the scaled layer as those of the layer itself.

        Raises:
            UnavailableError: they exceed the range of float64.
        """
        with np.errstate(over="ignore", under="ignore"):
            values = np.ldexp(values, self.exponent)
        if not np.isfinite(values).all():
            raise UnavailableError("singular values exceed the range of float64")
        return np.asarray(values)

    def unscaled_length(self, length: float) -> float:
        """Return a length of the scaled layer, infinite where it exceeds the range of float64, as the layer's own."""
        try:
            return math.ldexp(length, self.exponent)
        except OverflowError:
            return math.inf

"""A flat spectrum: all singular values of a kernel nearly equal."""

from __future__ import annotations

from torch import Tensor

from convsv.clipping import ClipOptions
from convsv.constructions._symbol import Constructed, constructed
from convsv.geometry import Geometry

__all__ = ["flat_spectrum"]


def flat_spectrum(kernel: Tensor, geometry: Geometry | None = None, *, max_norm: float | None = None) -> Constructed:
    """Return a kernel of the same support with singular values as equal as rounds of projection make them.

    A symbol with all values equal is a multiple of an isometry; few kernels of small support have one, so what was
    reached is measured: ``reached.smallest`` and ``reached.largest``. The aim is that of Feng et al. (2024).

    Args:
        kernel: ``(c_out, c_in / groups, *K)``, or for a transposed layer ``(c_in, c_out / groups, *K)``.
        geometry: its stride, dilation and groups; None for stride 1 and one group.
        max_norm: the largest norm allowed; the mean of the singular values where None, or where that is smaller.

    Returns:
        The kernel, whose norm is certified to be at most ``max_norm`` where there is one.

    Raises:
        UsageError: the kernel is not real, or ``max_norm`` is not positive.
        GeometryError: the geometry does not fit the kernel.
        UnavailableError: a weight is NaN or infinite.
        ComputationError: no kernel within the norm was found in its dtype.
    """
    return constructed(kernel, geometry, ClipOptions(max_norm, flatten=True))

"""One convolution layer: its kernel in one canonical shape, and its normal form.

Whatever the framework stored, mathematics sees ``(G, O, I, *K)``: groups, output and input channels of the
forward convolution a group, and the spatial taps. A transposed layer is the adjoint of that convolution, so
PyTorch's ``(c_in, c_out / g, *K)`` and Keras' ``(*K, c_out, c_in)`` need no rule of their own.

The normal form is a stride-1 convolution with the same nonzero singular values: the polyphase components of the
kernel, one block of input channels a phase (Senderovich et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from convsv.errors import ComputationError, GeometryError, UnavailableError
from convsv.geometry import Geometry

__all__ = [
    "ConvLayer",
    "Folded",
    "Layout",
    "Writeback",
    "as_float64",
    "from_canonical",
    "loosest",
    "normal_taps",
    "rounded_to",
    "to_canonical",
]

Layout: TypeAlias = Literal["OIK", "KIO", "KCM"]
"""Axes as stored: PyTorch (both directions), Keras (both directions), Keras depthwise."""


def to_canonical(stored: NDArray[Any], layout: Layout, groups: int) -> NDArray[Any]:
    """Return a stored kernel as ``(G, O, I, *K)``; a view where numpy allows it.

    Args:
        stored: the kernel as stored.
        layout: what its axes mean.
        groups: number of groups; ignored for ``"KCM"``, where each channel is a group.

    Raises:
        GeometryError: the groups do not divide the channels.
    """
    if layout == "KCM":
        return np.moveaxis(stored, (-2, -1), (0, 1))[:, :, None]
    oik = stored if layout == "OIK" else np.moveaxis(stored, (-1, -2), (0, 1))
    if oik.shape[0] % groups:
        raise GeometryError("groups must divide the channels", found=f"groups {groups} for shape {stored.shape}")
    return oik.reshape(groups, oik.shape[0] // groups, *oik.shape[1:])


def from_canonical(kernel: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Return a canonical ``(G, O, I, *K)`` kernel in its stored layout: the inverse of :func:`to_canonical`."""
    if layout == "KCM":
        return np.moveaxis(kernel[:, :, 0], (0, 1), (-2, -1))
    oik = kernel.reshape(-1, *kernel.shape[2:])
    return oik if layout == "OIK" else np.moveaxis(oik, (0, 1), (-1, -2))


def normal_taps(
    kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Return the polyphase index map and the dilation that remains.

    With ``index`` of shape ``(prod(stride), *K')``, the normal-form kernel is
    ``kernel[o, i, index[t, q]]`` over flattened taps, -1 meaning a zero, with input channels ``(i, t)``.
    At stride 1 the taps stay as they are and the dilation remains (it acts on frequencies only); with a
    stride on any axis the dilation of every axis is written out as zero taps.

    Args:
        kernel_size: spatial taps.
        stride: one integer an axis.
        dilation: one integer an axis.
    """
    flat = np.arange(math.prod(kernel_size), dtype=np.int64).reshape(kernel_size)
    if max(stride, default=1) == 1:
        return flat[None], dilation
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True))
    taps = tuple(-(-length // s) for length, s in zip(extent, stride, strict=True))
    padded = np.full(tuple(q * s for q, s in zip(taps, stride, strict=True)), -1, dtype=np.int64)
    padded[tuple(slice(0, length, d) for length, d in zip(extent, dilation, strict=True))] = flat
    dims = len(kernel_size)
    split = padded.reshape([n for q, s in zip(taps, stride, strict=True) for n in (q, s)])
    phases_first = split.transpose(*range(1, 2 * dims, 2), *range(0, 2 * dims, 2))
    return phases_first.reshape(math.prod(stride), *taps), (1,) * dims


def loosest(geometry: Geometry) -> Geometry:
    """Return the geometry whose size-free norm bounds that of every reading of what is only guessed.

    Guessed groups become one group (a group is a block of rows of the ungrouped symbol). A guessed stride becomes
    1 (a stride is a restriction after stride 1), and so does a known one when the dilation is a guess.
    """
    groups = 1 if geometry.guessed("groups") else geometry.groups
    loose_stride = geometry.guessed("stride") or (geometry.guessed("dilation") and max(geometry.stride) > 1)
    stride = (1,) * geometry.dims if loose_stride else geometry.stride
    if (groups, stride) == (geometry.groups, geometry.stride):
        return geometry
    return replace(geometry, groups=groups, stride=stride)


def as_float64(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return floating values of any dtype in a new array of float64, exactly, and without signalling NaNs.

    Args:
        values: any shape.
    """
    # The 8-bit floats have no direct cast to float64 in every numpy; float32 holds each half-sized format exactly.
    exact = values if values.dtype.itemsize >= 4 else values.astype(np.float32)
    # A signalling NaN becomes a quiet one here, of which numpy would warn wherever it is first computed with.
    with np.errstate(invalid="ignore"):
        quiet: NDArray[np.float64] = np.multiply(exact, 1.0, dtype=np.float64)
    return quiet


def rounded_to(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Return values rounded to the nearest of a stored dtype, once: ties go to the even one.

    Args:
        values: any shape, float64.
        dtype: a floating dtype, by numpy's or ml_dtypes' name.

    Raises:
        UnavailableError: a value is not finite, or too large for the dtype.
    """
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype)).newbyteorder("=")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # ml_dtypes rounds to float32 on the way; the odd one of its neighbours makes the second rounding the only one.
        once = values if wanted.type in (np.float64, np.float32, np.float16) else _to_odd(values)
        rounded: NDArray[Any] = once.astype(wanted)
        finite = np.isfinite(rounded.astype(np.float32) if wanted.itemsize < 4 else rounded)
    if not finite.all():
        worst = float(np.abs(values[~finite]).max())
        raise UnavailableError(f"a weight of {worst:.6g} cannot be stored as {dtype}")
    return rounded


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return float32 values: what is not exact becomes the neighbour whose last bit is set (Boldo, Melquiond 2008)."""
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    away = np.abs(nearest.astype(np.float64)) > np.abs(values)
    exact = nearest.astype(np.float64) == values
    return np.where(exact, bits, (bits - away) | np.uint32(1)).astype(np.uint32).view(np.float32)


class Writeback(Protocol):
    """How a kernel goes back into what its file holds of it. Nothing here writes."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever changes the kernel should know."""
        ...

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The stored tensors (``checkpoints.StoredTensor``) that decide the kernel; those of tied layers agree."""
        ...

    def edits(self, kernel: NDArray[np.float64]) -> tuple[Any, ...]:
        """Return what to store (``checkpoints.writing.Edit``) for a kernel in the stored layout.

        Raises:
            UnavailableError: it cannot be stored; says why.
            CheckpointError: the file could not be read.
        """
        ...

    def after(self, edits: tuple[Any, ...]) -> NDArray[Any]:
        """Return what ``ConvLayer.read`` will return once these edits are in the file."""
        ...

    def support(self) -> NDArray[np.bool_] | None:
        """Return where the kernel, in the stored layout, can differ from zero; None for everywhere."""
        ...


@dataclass(frozen=True)
class Folded:
    """The batch normalisation that a layer's kernel has taken in.

    Attributes:
        name: its name.
        epsilon: what it adds to the variance.
        known: whether something tells its epsilon, or it is its framework's usual one.
    """

    name: str
    epsilon: float
    known: bool = True


def _only_named() -> NDArray[Any]:
    raise ComputationError("this layer is only named here")


@dataclass(frozen=True)
class ConvLayer:
    """A convolution found in a checkpoint, or made by hand.

    Attributes:
        name: module path.
        weight: key of the weight as stored.
        shape: stored shape.
        dtype: stored dtype, by numpy's or ml_dtypes' name.
        layout: what the stored axes mean.
        geometry: complete geometry; its ``size`` has as many axes as the kernel.
        read: returns the effective kernel in the stored layout; may raise ``CheckpointError``.
        notes: remarks on how it was found.
        problem: why it cannot be analysed, if so.
        writeback: how its kernel goes back into the file; None for a layer that is in none.
        folded: the batch normalisation that the kernel has taken in.
        call: the end of the name that tells this call of the layer from others with another geometry.
        recipe: how another process finds it again (``checkpoints.recipe.Recipe``); None for a layer that is in no file.
    """

    name: str
    weight: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    geometry: Geometry
    read: Callable[[], NDArray[Any]] = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()
    problem: str | None = None
    writeback: Writeback | None = field(default=None, repr=False, compare=False)
    folded: Folded | None = None
    call: str = ""
    recipe: Any = field(default=None, repr=False, compare=False)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Spatial taps of the stored kernel."""
        return self.shape[2:] if self.layout == "OIK" else self.shape[:-2]

    @property
    def kind(self) -> str:
        """``conv2d``, ``conv_transpose1d`` and so on."""
        return f"conv{'_transpose' if self.geometry.transposed else ''}{len(self.kernel_size)}d"

    def bare(self) -> ConvLayer:
        """Return the layer without what reads it: it is only named, keeps no file open, and can travel."""
        return replace(self, read=_only_named, writeback=None, recipe=None)

    def kernel(self, groups: int | None = None) -> NDArray[np.float64]:
        """Return the kernel as ``(G, O, I, *K)`` in float64.

        Args:
            groups: another number of groups than the geometry's.

        Raises:
            UnavailableError: the layer has a problem, or a weight is not finite.
            CheckpointError: the file could not be read.
            GeometryError: the groups do not divide the channels.
        """
        if self.problem:
            raise UnavailableError(self.problem, tensor=self.name)
        kernel = self._canonical(self.read(), self.geometry.groups if groups is None else groups)
        if not np.isfinite(kernel).all():
            bad = int(kernel.size - np.isfinite(kernel).sum())
            raise UnavailableError(f"{bad} of {kernel.size} weights are NaN or infinite", tensor=self.name)
        return kernel

    def stored_parts(self, kernel: NDArray[np.float64]) -> tuple[Any, ...]:
        """Return what to store so that a reader sees another kernel, up to rounding: one edit a tensor.

        Args:
            kernel: the wanted effective kernel, ``(G, O, I, *K)``.

        Raises:
            UnavailableError: the layer cannot be written back; says why.
            CheckpointError: the file could not be read.
        """
        if self.problem:
            raise UnavailableError(self.problem, tensor=self.name)
        if self.writeback is None:
            raise UnavailableError("the layer is in no file", tensor=self.name)
        return self.writeback.edits(from_canonical(kernel, self.layout))

    def as_stored(self, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what :meth:`kernel` would return once ``kernel`` were stored: bit for bit, without writing it.

        Args:
            kernel: the wanted effective kernel, ``(G, O, I, *K)``.

        Returns:
            A kernel of the same shape: rounded to the stored dtype, through the parametrisation if there is one.

        Raises:
            UnavailableError: the layer cannot be written back; says why.
            CheckpointError: the file could not be read.
        """
        if self.writeback is None and not self.problem:
            return self._canonical(rounded_to(from_canonical(kernel, self.layout), self.dtype), self.geometry.groups)
        return self.after(self.stored_parts(kernel))

    def after(self, edits: tuple[Any, ...]) -> NDArray[np.float64]:
        """Return what :meth:`kernel` would return with what :meth:`stored_parts` returned in the file.

        Args:
            edits: what it returned; nothing for the kernel as it is.

        Raises:
            CheckpointError: the file could not be read.
        """
        stored = self.writeback.after(edits) if self.writeback and edits else self.read()
        return self._canonical(stored, self.geometry.groups)

    def support(self) -> NDArray[np.bool_] | None:
        """Return where the kernel, ``(G, O, I, *K)``, can differ from zero (pruning); None for everywhere.

        Raises:
            CheckpointError: the file could not be read.
        """
        stored = None if self.writeback is None else self.writeback.support()
        return None if stored is None else to_canonical(stored, self.layout, self.geometry.groups)

    def _canonical(self, stored: NDArray[Any], groups: int) -> NDArray[np.float64]:
        # Never what was read: torch warns of read-only arrays and refuses negative strides.
        return np.ascontiguousarray(to_canonical(as_float64(stored), self.layout, groups))

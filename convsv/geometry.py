"""How a convolution is laid over its input: size, stride, padding, dilation, groups, direction.

A :class:`Geometry` is complete: every field has a value, and ``origin`` says where each was learned.
Sources (an option, a sidecar file, the checkpoint itself ...) speak in :class:`GeometryFacts`, which may be
silent about anything; :func:`resolve` lets the strongest source win, field by field.

A transposed convolution is described by the forward convolution that it is the adjoint of: ``stride``,
``padding`` and ``dilation`` are that convolution's, while ``size`` is the size of the layer's own input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convsv.errors import GeometryError

__all__ = [
    "ORIGINS",
    "PADDINGS",
    "Geometry",
    "GeometryFacts",
    "Origin",
    "PaddingSpec",
    "padding_multiplicity",
    "resolve",
]

Origin: TypeAlias = Literal["option", "sidecar", "stored", "traced", "inferred", "assumed"]
ORIGINS: tuple[Origin, ...] = ("option", "sidecar", "stored", "traced", "inferred", "assumed")
"""Where a value may come from, strongest first."""

Ints: TypeAlias = tuple[int, ...]
Pairs: TypeAlias = tuple[tuple[int, int], ...]
PaddingSpec: TypeAlias = int | Ints | Pairs | Literal["same", "valid"]
IndexMap: TypeAlias = NDArray[np.int64]

# ---------------------------------------------------------------------------------------------------- padding modes
# Padding is an index map: position in the padded axis -> source position, or -1 for a zero.


def _zeros(n: int, before: int, after: int) -> IndexMap:
    positions = np.arange(-before, n + after)
    return np.where((positions >= 0) & (positions < n), positions, -1)


def _circular(n: int, before: int, after: int) -> IndexMap:
    return np.arange(-before, n + after) % n


def _replicate(n: int, before: int, after: int) -> IndexMap:
    return np.clip(np.arange(-before, n + after), 0, n - 1)


def _reflect(n: int, before: int, after: int) -> IndexMap:
    if max(before, after) >= n:
        raise GeometryError(
            "reflect padding must be smaller than the input",
            found=f"padding {max(before, after)} on an axis of {n}",
            advice="give a larger --size or another --padding-mode",
        )
    positions = np.abs(np.arange(-before, n + after))
    return np.where(positions >= n, 2 * (n - 1) - positions, positions)


PADDINGS: Mapping[str, Callable[[int, int, int], IndexMap]] = {
    "zeros": _zeros,
    "circular": _circular,
    "reflect": _reflect,
    "replicate": _replicate,
}
"""One index map a padding mode: ``(n, before, after) -> source positions`` of the padded axis."""


def padding_multiplicity(mode: str, n: int, before: int, after: int) -> int:
    """Return how often the most copied input position occurs in the padded axis (1: the padding is an isometry).

    The square of the norm of ``x -> pad(x)`` is the product of this number over the axes.
    """
    sources = PADDINGS[mode](n, before, after)
    return int(np.bincount(sources[sources >= 0], minlength=1).max())


# --------------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True)
class GeometryFacts:
    """What one source says about a layer; ``None`` where it is silent.

    Scalars stand for every axis. ``padding`` may be ``"same"`` or ``"valid"``: it is turned into amounts
    by :func:`resolve`, because "same" depends on the size, the stride and the dilation.
    """

    size: int | Ints | None = None
    stride: int | Ints | None = None
    padding: PaddingSpec | None = None
    padding_mode: str | None = None
    dilation: int | Ints | None = None
    groups: int | None = None
    transposed: bool | None = None
    output_padding: int | Ints | None = None


FIELDS: tuple[str, ...] = tuple(f.name for f in fields(GeometryFacts))
"""The names of everything a source may speak about."""


@dataclass(frozen=True)
class Geometry:
    """The complete geometry of one convolution.

    Attributes:
        size: spatial size of the layer's own input, one integer an axis.
        stride: one integer an axis.
        padding: amounts ``(before, after)``, one pair an axis.
        padding_mode: a key of :data:`PADDINGS`.
        dilation: one integer an axis.
        groups: number of groups.
        transposed: whether the layer is the adjoint of the convolution described here.
        output_padding: extra rows of the output of a transposed layer, one integer an axis.
        origin: for each of the names above, where its value was learned.
        is_same: whether the source said "same" and the amounts follow from the size; no part of what is compared.
    """

    size: Ints
    stride: Ints
    padding: Pairs
    padding_mode: str = "zeros"
    dilation: Ints = ()
    groups: int = 1
    transposed: bool = False
    output_padding: Ints = ()
    origin: Mapping[str, Origin] = field(default_factory=dict)
    is_same: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Fill the per-axis defaults and refuse impossible values.

        Raises:
            GeometryError: a number is out of range, or the axes disagree.
        """
        dims = len(self.size)
        if not self.dilation:
            object.__setattr__(self, "dilation", (1,) * dims)
        if not self.output_padding:
            object.__setattr__(self, "output_padding", (0,) * dims)
        for name in ("stride", "padding", "dilation", "output_padding"):
            if len(getattr(self, name)) != dims:
                raise GeometryError(
                    f"{name} must have one entry a spatial axis", found=f"{getattr(self, name)} for size {self.size}"
                )
        smallest = {"size": 1, "stride": 1, "dilation": 1, "output_padding": 0}
        for name, least in smallest.items():
            if any(value < least for value in getattr(self, name)):
                raise GeometryError(f"{name} must be at least {least}", found=str(getattr(self, name)))
        if any(amount < 0 for pair in self.padding for amount in pair):
            raise GeometryError("padding must not be negative", found=str(self.padding))
        if self.groups < 1:
            raise GeometryError("groups must be at least 1", found=str(self.groups))
        if self.padding_mode not in PADDINGS:
            raise GeometryError(
                "unknown padding mode", found=self.padding_mode, advice=f"use one of {', '.join(PADDINGS)}"
            )

    @property
    def dims(self) -> int:
        """Number of spatial axes."""
        return len(self.size)

    def guessed(self, *names: str) -> tuple[str, ...]:
        """Return those of ``names`` whose value is a guess: assumed, or inferred from shapes.

        A geometry without origins was given by the caller and holds no guess.
        """
        return tuple(name for name in names if self.origin.get(name, "option") in ("inferred", "assumed"))

    def forward_size(self, kernel_size: Ints) -> Ints:
        """Return the input size of the forward convolution: the layer's own, or its output size when transposed.

        Raises:
            GeometryError: a transposed layer of this geometry has no output.
        """
        if not self.transposed:
            return self.size
        out = tuple(
            (n - 1) * s - before - after + d * (k - 1) + 1 + extra
            for n, s, (before, after), d, k, extra in zip(
                self.size, self.stride, self.padding, self.dilation, kernel_size, self.output_padding, strict=True
            )
        )
        if min(out) < 1:
            raise GeometryError("the transposed convolution has no output", found=f"output size {out}")
        return out

    def output_size(self, kernel_size: Ints) -> Ints:
        """Return the spatial size of the layer's output.

        Raises:
            GeometryError: the kernel does not fit into the padded input.
        """
        if self.transposed:
            return self.forward_size(kernel_size)
        out = tuple(
            (n + before + after - d * (k - 1) - 1) // s + 1
            for n, s, (before, after), d, k in zip(
                self.size, self.stride, self.padding, self.dilation, kernel_size, strict=True
            )
        )
        if min(out) < 1:
            raise GeometryError(
                "the kernel is larger than the padded input", found=f"kernel {kernel_size}, size {self.size}"
            )
        return out


def resolve(kernel_size: Ints, sources: Sequence[tuple[Origin, GeometryFacts]]) -> Geometry:
    """Merge what the sources say into one complete geometry.

    Args:
        kernel_size: spatial size of the kernel; its length is the number of axes.
        sources: (origin, facts) in any order; a stronger origin wins, and of two equal ones the later.
            What no source tells is assumed: size 32, stride 1, dilation 1, one group, zero padding that
            keeps the size.

    Returns:
        The geometry, with the origin of each field. Amounts that follow from "same" have the weakest origin of what
        they were computed from; that a forward layer has no output padding is learned with its being one.

    Raises:
        GeometryError: a value has the wrong number of axes or is out of range.
    """
    dims = len(kernel_size)
    assumed = GeometryFacts(32, 1, "same", "zeros", 1, 1, False, 0)
    # Stable sort: weakest first, so that a later or stronger source overwrites.
    ranked = sorted([("assumed", assumed), *sources], key=lambda item: -ORIGINS.index(item[0]))
    value: dict[str, object] = {}
    origin: dict[str, Origin] = {}
    for source, facts in ranked:
        for name in FIELDS:
            said = getattr(facts, name)
            if said is not None:
                value[name], origin[name] = said, source
    if not value["transposed"] and origin["output_padding"] == "assumed":
        origin["output_padding"] = origin["transposed"]  # a forward layer has none
    per_axis = {name: _per_axis(name, value[name], dims) for name in ("size", "stride", "dilation", "output_padding")}
    padding = _padding_amounts(value["padding"], kernel_size, per_axis, transposed=bool(value["transposed"]))
    if value["padding"] == "same":
        leaning = _same_leans_on(kernel_size, per_axis["stride"], transposed=bool(value["transposed"]))
        origin["padding"] = max((origin["padding"], *(origin[name] for name in leaning)), key=ORIGINS.index)
    return Geometry(
        size=per_axis["size"],
        stride=per_axis["stride"],
        padding=padding,
        padding_mode=str(value["padding_mode"]),
        dilation=per_axis["dilation"],
        groups=int(value["groups"]),  # type: ignore[call-overload]
        transposed=bool(value["transposed"]),
        output_padding=per_axis["output_padding"],
        origin=origin,
        is_same=value["padding"] == "same",
    )


def _per_axis(name: str, value: object, dims: int) -> Ints:
    if isinstance(value, int):
        return (value,) * dims
    numbers = tuple(value) if isinstance(value, Iterable) else ()
    if len(numbers) != dims or not all(isinstance(n, int) for n in numbers):
        raise GeometryError(f"{name} must be an integer or {dims} integers", found=repr(value))
    return numbers


def _padding_amounts(spec: object, kernel_size: Ints, per_axis: Mapping[str, Ints], *, transposed: bool) -> Pairs:
    dims = len(kernel_size)
    if spec == "valid":
        return ((0, 0),) * dims
    if spec == "same":
        axes = zip(kernel_size, per_axis["size"], per_axis["stride"], per_axis["dilation"], strict=True)
        return tuple(_same_amounts(k, n, s, d, transposed=transposed) for k, n, s, d in axes)
    if isinstance(spec, Sequence) and len(spec) == dims and all(isinstance(p, Sequence) and len(p) == 2 for p in spec):
        return tuple((int(before), int(after)) for before, after in spec)
    return tuple((amount, amount) for amount in _per_axis("padding", spec, dims))


def _same_leans_on(kernel_size: Ints, stride: Ints, *, transposed: bool) -> tuple[str, ...]:
    """Return the names of what the amounts of "same" padding depend on: at stride 1 no size, for one tap nothing."""
    if all(k == 1 for k in kernel_size):
        return ()
    if all(s == 1 for k, s in zip(kernel_size, stride, strict=True) if k > 1):
        return "stride", "dilation"
    return ("stride", "dilation", "transposed") if transposed else ("stride", "dilation", "transposed", "size")


def _same_amounts(k: int, n: int, stride: int, dilation: int, *, transposed: bool) -> tuple[int, int]:
    """Return the (before, after) that make ceil(n / stride) outputs: TensorFlow's rule, and PyTorch's at stride 1."""
    forward = n * stride if transposed else n
    outputs = -(-forward // max(stride, 1))  # Geometry refuses a stride below 1 with a message of its own
    total = max((outputs - 1) * stride + dilation * (k - 1) + 1 - forward, 0)
    return total // 2, total - total // 2

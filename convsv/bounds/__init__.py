"""Published bounds on a convolution's operator norm: the door. A paper is one file in this folder.

An entry is a function of a :class:`Problem`. It sees a float64 kernel whose largest entry is in [1/2, 1): the door
scales by a power of two before and after, rounds certified values outwards, takes the time, and turns a failure into
a reason. All entries work on the normal form, so that strides and dilation get their tight version, and take the
largest value over the groups.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from convsv.errors import ContradictionError, ConvsvError, UnavailableError
from convsv.execution import Execution
from convsv.geometry import Geometry
from convsv.layer import ConvLayer, loosest
from convsv.registry import Registry
from convsv.results import Bound, Guarantee, Interval, Side, Unavailable
from convsv.rounding import above, below, power_of_two_scale, scale_by_power, unscale
from convsv.symbol import NormalForm, normal_form

__all__ = ["BOUNDS", "SCOPES", "Entry", "Problem", "Scope", "bound", "bounds_of"]

Scope: TypeAlias = Literal["any size", "any geometry", "circular", "same", "layer"]

SCOPES: Mapping[Scope, str] = {
    "any size": "the size-free norm: every input size, zero padding of any amount, ordinary circular padding",
    "any geometry": "the size-free norm, and the layer itself under every stride, dilation and padding mode where one "
    "window lies inside the input",
    "circular": "the layer on a circle of its own size",
    "same": "the layer with zero padding that keeps the size",
    "layer": "the layer as it runs: its own size, stride and padding",
}
"""The operators that a bound may be about."""

_ABSOLUTE = 1e-290
"""More than the norm of all that can underflow when a kernel is scaled so that its largest entry is near 1."""


@dataclass(frozen=True)
class Problem:
    """What a bound is computed from; both kernels are float64, on the device of ``execution``, scaled alike.

    Attributes:
        form: the normal form whose size-free norm is asked for; guessed strides and groups are read in the loosest
            way (:func:`convsv.layer.loosest`), which is right for bounds from above: see :meth:`read_from`.
        kernel: ``(G, O, I, *K)``, as the layer's own geometry reads it.
        geometry: the layer's own geometry.
        execution: where to compute.
    """

    form: NormalForm
    kernel: Tensor
    geometry: Geometry
    execution: Execution

    def read_from(self, side: Side, holds_for: Scope) -> Problem:
        """Return the problem as a bound of that side and scope reads it.

        The loosest reading has the largest norm: what bounds that from below may lie above the layer's. So a lower
        bound of any size gets the normal form of the layer's own geometry, guesses and all.
        """
        leans = side == "lower" and holds_for == "any size"
        if not leans or not self.geometry.guessed("stride", "groups", "dilation"):
            return self
        return replace(self, form=normal_form(self.kernel, self.geometry.stride, self.geometry.dilation))


Compute: TypeAlias = Callable[[Problem], float]
"""Computes a bound. Raises ``UnavailableError`` where there is none, with the reason as its text."""


@dataclass(frozen=True)
class Entry:
    """A bound that can be asked for by name.

    Attributes:
        name: the paper, and which of its bounds if it has several.
        side: the side of the norm on which the theorem puts it.
        guarantee: what is true of the computed value.
        holds_for: the operators it is about, a key of :data:`SCOPES`.
        cost: leading terms, in the layer's dimensions.
        reference: authors, title, venue and year.
        compute: does it.
    """

    name: str
    side: Side
    guarantee: Guarantee
    holds_for: Scope
    cost: str
    reference: str
    compute: Compute


BOUNDS: Registry[Entry] = Registry("bound", "convsv.bounds")
"""All bounds by name."""


def bound(
    name: str, *, side: Side, guarantee: Guarantee, holds_for: Scope, cost: str, reference: str
) -> Callable[[Compute], Compute]:
    """Return a decorator that registers a function as the bound ``name``; the arguments are those of :class:`Entry`."""

    def register(compute: Compute) -> Compute:
        BOUNDS.add(name, Entry(name, side, guarantee, holds_for, cost, reference, compute))
        return compute

    return register


def bounds_of(
    layer: ConvLayer,
    names: Iterable[str] | None = None,
    *,
    execution: Execution | None = None,
    norm: Interval | None = None,
    norm_at_size: Interval | None = None,
) -> dict[str, Bound | Unavailable]:
    """Compute published bounds of one layer.

    Args:
        layer: the layer.
        names: which bounds; all when None.
        execution: where to compute; the arithmetic is float64 whatever its dtype.
        norm: certified interval of the size-free norm, for the ratios.
        norm_at_size: certified interval of the norm of the layer as it runs, for the ratios of bounds about that.

    Returns:
        For each name the bound, or why it does not exist for this layer.

    Raises:
        KeyError: there is no bound of that name.
        UnavailableError: the layer cannot be analysed at all.
        CheckpointError: the file could not be read.
        ContradictionError: two certified statements exclude each other.
    """
    entries = [BOUNDS[name] for name in (BOUNDS if names is None else names)]
    problem, exponent = _problem(layer, execution or Execution())
    found: dict[str, Bound | Unavailable] = {}
    for entry in entries:
        started = time.perf_counter()
        value = _value(entry, problem, exponent)
        if isinstance(value, Unavailable):
            found[entry.name] = value
            continue
        reference = norm_at_size if entry.holds_for == "layer" and norm_at_size else norm
        found[entry.name] = Bound(
            name=entry.name,
            value=value,
            side=entry.side,
            of=_operator(entry, layer.geometry),
            guarantee=entry.guarantee,
            ratio=_ratio(value, entry.side, reference),
            seconds=time.perf_counter() - started,
            assumes=_assumes(entry, layer.geometry),
        )
    _refuse_contradictions(found, layer.geometry, norm, norm_at_size)
    return found


def _problem(layer: ConvLayer, execution: Execution) -> tuple[Problem, int]:
    """Return the scaled problem and the exponent of the scale.

    Raises:
        UnavailableError: the kernel has no entries.
    """
    stored = layer.kernel()
    if not stored.size:
        raise UnavailableError("the kernel has no entries", found=f"shape {layer.shape}")
    exponent = power_of_two_scale(float(abs(stored).max()))
    loose = loosest(layer.geometry)

    def scaled(groups: int | None) -> Tensor:
        return scale_by_power(torch.from_numpy(layer.kernel(groups)), -exponent).to(execution.torch_device)

    kernel = scaled(None)
    free = kernel if loose.groups == layer.geometry.groups else scaled(loose.groups)
    form = normal_form(free, loose.stride, loose.dilation)
    return Problem(form, kernel, layer.geometry, execution), exponent


def _value(entry: Entry, problem: Problem, exponent: int) -> float | Unavailable:
    """Return the bound of the kernel as stored, rounded outwards where it is certified, or why there is none.

    Raises:
        ContradictionError: the bound contradicts itself.
    """
    if not problem.kernel.any():
        return 0.0
    try:
        value = entry.compute(problem.read_from(entry.side, entry.holds_for))
    except ContradictionError:
        raise
    except (ConvsvError, RuntimeError, MemoryError) as error:
        # torch reports failed factorisations and exhausted memory as RuntimeError.
        return Unavailable(str(error).splitlines()[0] if str(error) else type(error).__name__)
    if entry.guarantee == "certified":
        value = below(value - _ABSOLUTE) if entry.side == "lower" else above(value + _ABSOLUTE)
    value = unscale(value, exponent, down=entry.side == "lower") if math.isfinite(value) else value
    return value if math.isfinite(value) else Unavailable("the value exceeds the range of float64")


def _operator(entry: Entry, geometry: Geometry) -> str:
    """Return the operator that a bound is about, in the words of ``Bound.of``."""
    size = "x".join(map(str, geometry.size))
    names: Mapping[Scope, str] = {
        "any size": "any size",
        "any geometry": "any size",
        "circular": f"circular {size}",
        "same": f"zeros {size}, same padding",
        "layer": f"{geometry.padding_mode} {size}",
    }
    return names[entry.holds_for]


def _assumes(entry: Entry, geometry: Geometry) -> tuple[str, ...]:
    """Return the guessed geometry that the value leans on.

    An upper bound of the size-free norm is computed in the loosest reading and leans on nothing. Dilation and
    direction matter to a lower one only where there is a stride.
    """
    if entry.holds_for == "any geometry" or (entry.holds_for == "any size" and entry.side == "upper"):
        return ()
    names = ["stride", "groups"]
    if entry.holds_for == "any size":
        return geometry.guessed(*names, *(["dilation", "transposed"] if max(geometry.stride) > 1 else []))
    names += ["size", "dilation", "transposed"]
    return geometry.guessed(*names, *(["padding", "padding_mode"] if entry.holds_for == "layer" else []))


def _ratio(value: float, side: Side, norm: Interval | None) -> float | None:
    end = None if norm is None else norm.upper if side == "upper" else norm.lower
    ratio = value / end if end else math.inf
    return ratio if math.isfinite(ratio) else None


def _refuse_contradictions(
    found: Mapping[str, Bound | Unavailable], geometry: Geometry, norm: Interval | None, norm_at_size: Interval | None
) -> None:
    """Compare every certified bound with what else is certified about the same norm.

    A zero-padded operator is a compression of the infinite one, so its lower bounds are lower bounds of the
    size-free norm too.

    Raises:
        ContradictionError: a lower bound exceeds an upper one.
    """
    certified = [b for b in found.values() if isinstance(b, Bound) and b.guarantee == "certified"]
    uppers = [(b.name, b.value) for b in certified if (b.side, b.of) == ("upper", "any size")]
    compressions = {"any size", "any geometry", "same", *(["layer"] if geometry.padding_mode == "zeros" else [])}
    lowers = [(b.name, b.value) for b in certified if b.side == "lower" and BOUNDS[b.name].holds_for in compressions]
    if norm is not None and norm.guarantee == "certified":
        uppers, lowers = [*uppers, ("norm", norm.upper)], [*lowers, ("norm", norm.lower)]
    _refuse(lowers, uppers)
    if norm_at_size is not None and norm_at_size.guarantee == "certified":
        own = [(b.name, b.value) for b in certified if BOUNDS[b.name].holds_for == "layer"]
        _refuse(own, [("norm_at_size", norm_at_size.upper)])


def _refuse(lowers: list[tuple[str, float]], uppers: list[tuple[str, float]]) -> None:
    if not lowers or not uppers:
        return
    low, high = max(lowers, key=lambda item: item[1]), min(uppers, key=lambda item: item[1])
    if low[1] > high[1]:
        found = f"{low[0]} >= {low[1]!r} and {high[0]} <= {high[1]!r}"
        raise ContradictionError("two certified statements about one norm exclude each other", found=found)


class _Door(ModuleType):
    """This package as a function: once it is imported it stands where the library promises ``convsv.bounds()``."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        return importlib.import_module("convsv.api").bounds(*args, **named)


sys.modules[__name__].__class__ = _Door

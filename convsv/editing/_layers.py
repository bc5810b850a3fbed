"""Layers clipped one by one, ties together, each into what is to be stored and the numbers about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import StoredTensor
from convsv.checkpoints.writing import Edit
from convsv.clipping import ClipOptions, Clipped, clip_layer
from convsv.describe import describe
from convsv.editing._plan import ClipPlan, holding
from convsv.errors import (
    CheckpointError,
    ComputationError,
    ContradictionError,
    GeometryError,
    UnavailableError,
    UsageError,
    error_context,
)
from convsv.layer import ConvLayer, from_canonical
from convsv.results import Clipping, LayerReport

__all__ = ["Outcome", "clip_layers", "clip_one", "digest"]

Kernel: TypeAlias = NDArray[np.float64]

_ROUNDS = 12
"""Times that tied layers of different geometry are clipped one after the other."""


@dataclass(frozen=True)
class Outcome:
    """What became of one layer.

    Attributes:
        layer: the layer.
        clip: what was done, or None.
        reason: why nothing could be done that was asked for.
        failed: whether it could have been, but for a numerical failure or a lack of memory.
        unavailable: whether the file's own data are the reason (NaN, quantised): such a layer has no norm to keep.
        unread: whether its weights could not be read from the file.
        edits: what is to be stored.
        digest: of the kernel that a reader must find afterwards.
    """

    layer: ConvLayer
    clip: Clipping | None = None
    reason: str | None = None
    failed: bool = False
    unavailable: bool = False
    unread: bool = False
    edits: tuple[Edit, ...] = field(default=(), repr=False)
    digest: bytes = b""

    def report(self, *, written: bool) -> LayerReport:
        """Return it as a layer's report, whose norm is that of the weights in the file that there is now."""
        report = describe(self.layer)
        if self.reason is not None:
            missing = {**report.unavailable, "clip": self.reason}
            why = self.reason if self.unread else None
            return replace(report, unavailable=missing, failures=("clip",) if self.failed else (), unread=why)
        if self.clip is None:
            return report
        norm = self.clip.norm_after if written else self.clip.norm_before
        sized = norm.of != "any size"
        return replace(report, clip=self.clip, norm=None if sized else norm, norm_at_size=norm if sized else None)


def clip_one(layer: ConvLayer, plan: ClipPlan) -> Clipped:
    """Return what a plan makes of one layer.

    Args:
        layer: the layer; the kernel is rounded as the layer stores it.
        plan: what to do.

    Raises:
        UsageError: the plan has nothing to do with this layer.
        UnavailableError: the layer cannot be read or written back, or holds NaN.
        GeometryError: a size does not fit it.
        ComputationError: no kernel within the radius was found in the stored precision.
    """
    options = plan.for_layer(layer)
    if options is None:
        raise UsageError("no radius is given for this layer", tensor=layer.name)
    return _clipped(layer, options, plan, layer.as_stored)


def clip_layers(layers: Iterable[ConvLayer], plan: ClipPlan) -> Iterator[Outcome]:
    """Yield what becomes of each layer, in order. Tied layers are clipped once.

    Args:
        layers: the layers of one checkpoint.
        plan: what to do.

    Raises:
        UsageError: what a file states about a layer contradicts the rest.
        ContradictionError: two certified statements exclude each other.
    """
    chosen = list(layers)
    # A layer without weights keeps within every norm, and there is nothing to store.
    asked = [None if 0 in layer.shape else plan.for_layer(layer) for layer in chosen]
    ties: dict[object, list[int]] = {}
    for number, (layer, options) in enumerate(zip(chosen, asked, strict=True)):
        if options is not None:
            ties.setdefault(_identity(layer), []).append(number)
    done: dict[int, Outcome] = {}
    for number, (layer, options) in enumerate(zip(chosen, asked, strict=True)):
        if options is not None and number not in done:
            numbers = ties[_identity(layer)]
            group = [(chosen[n], wanted) for n in numbers if (wanted := asked[n]) is not None]
            done.update(zip(numbers, _attempted(group, plan), strict=True))
        yield done.pop(number, Outcome(layer))


def digest(kernel: NDArray[np.float64]) -> bytes:
    """Return what is equal for kernels that are equal bit for bit."""
    return hashlib.sha256(kernel.tobytes()).digest()


def _clipped(layer: ConvLayer, options: ClipOptions, plan: ClipPlan, store: Callable[[Kernel], Kernel]) -> Clipped:
    with error_context(tensor=layer.name):
        return clip_layer(
            layer, options, plan.judge(layer), as_stored=store, mask=layer.support(), execution=plan.execution
        )


class _Storing:
    """Stores kernels of a layer in memory only, and remembers how the last one is stored."""

    def __init__(self, layer: ConvLayer) -> None:
        self._layer = layer
        self.edits: tuple[Edit, ...] = ()
        self._digest = b""

    def __call__(self, kernel: Kernel) -> Kernel:
        self.edits = self._layer.stored_parts(kernel)
        seen = self._layer.after(self.edits)
        self._digest = digest(seen)
        return seen

    def edits_for(self, kernel: Kernel) -> tuple[Edit, ...]:
        """Return what stores the kernel that was returned last.

        Raises:
            ComputationError: it was another one, which is a bug.
        """
        if digest(kernel) != self._digest:
            raise ComputationError("the kernel that is certified is not the one that would be stored")
        return self.edits


def _identity(layer: ConvLayer) -> object:
    """Return something equal for layers whose kernels are the same stored bytes."""
    tensors: tuple[StoredTensor, ...] = layer.writeback.tensors if layer.writeback else ()
    return tuple(tensor.identity or tensor for tensor in tensors) or id(layer)


def _attempted(group: Sequence[tuple[ConvLayer, ClipOptions]], plan: ClipPlan) -> list[Outcome]:
    """Clip tied layers; turn what they do not allow, or what failed, into a reason.

    Raises:
        ContradictionError: two certified statements exclude each other.
    """
    try:
        return _together(group, plan)
    except ContradictionError:
        raise
    except CheckpointError as error:
        return [Outcome(layer, reason=error.reason, unread=True) for layer, _ in group]
    except (GeometryError, ComputationError) as error:
        advice = f"; {error.advice}" if error.advice else ""
        reason, failed = error.reason + advice, not isinstance(error, (UnavailableError, GeometryError))
    except (ArithmeticError, MemoryError, RuntimeError) as error:
        reason, failed = str(error).splitlines()[0] if str(error) else type(error).__name__, True
    return [
        Outcome(layer, reason=reason, failed=failed, unavailable=not failed and not _has_weights(layer))
        for layer, _ in group
    ]


def _has_weights(layer: ConvLayer) -> bool:
    """Tell whether the layer has a kernel of numbers at all."""
    try:
        layer.kernel()
    except UnavailableError:
        return False
    except CheckpointError:  # it could be read a moment ago
        return True
    return True


def _together(group: Sequence[tuple[ConvLayer, ClipOptions]], plan: ClipPlan) -> list[Outcome]:
    """Clip layers that share one kernel: one after the other, until it suits all of them.

    Raises:
        ComputationError: it never does.
    """
    (first, asked), *others = group
    storing = _Storing(first)
    found = _clipped(first, asked, plan, storing)
    edits = storing.edits_for(found.kernel) if found.touched else ()
    alike = all((layer.geometry, options) == (first.geometry, asked) for layer, options in others)
    if alike:
        return [_outcome(layer, found, edits) for layer, _ in group]
    stored, rounds = from_canonical(found.kernel, first.layout), found.iterations
    for _ in range(_ROUNDS):
        settled = True
        for layer, options in group:
            storing = _Storing(layer)
            now = _clipped(holding(layer, stored), options, plan, storing)
            if now.touched:
                stored, edits = from_canonical(now.kernel, layer.layout), storing.edits_for(now.kernel)
                rounds, settled = rounds + now.iterations, False
        if settled:
            return [_outcome(layer, _shared(layer, o, plan, stored, rounds), edits) for layer, o in group]
    raise ComputationError(
        "it is tied to layers of other geometry or radius, and no kernel that suits them all was found",
        advice="use --method scale, or leave all but one of them out",
    )


def _shared(layer: ConvLayer, options: ClipOptions, plan: ClipPlan, stored: Kernel, rounds: int) -> Clipped:
    """Return what a kernel that was found for several layers is to one of them."""
    judge, before = plan.judge(layer), layer.kernel()
    kernel = holding(layer, stored).kernel()
    return Clipped(
        kernel=kernel,
        method=options.method,
        radius=options.radius,
        before=judge(before),
        after=judge(kernel),
        distance=float(np.linalg.norm(kernel - before) / np.linalg.norm(before)),
        iterations=rounds,
        touched=not np.array_equal(kernel, before),
        notes=("one kernel for tied layers of different geometry or radius",),
    )


def _outcome(layer: ConvLayer, found: Clipped, edits: tuple[Edit, ...]) -> Outcome:
    told = layer.writeback.notes if layer.writeback and found.touched else ()
    clip = Clipping(
        radius=found.radius,
        method=found.method,
        norm_before=found.before,
        norm_after=found.after,
        distance=found.distance,
        iterations=found.iterations,
        gap=found.gap,
        touched=found.touched,
        notes=(*found.notes, *told),
        reached=found.reached,
    )
    return Outcome(layer, clip, edits=edits, digest=digest(found.kernel))

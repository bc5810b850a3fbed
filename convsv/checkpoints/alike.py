"""Checkpoints of one network, one after the other: what was found in the last one holds for the next, of other weights.

Which layers there are and how they lie depends on names, shapes and statements, never on the values of tensors. Where
all of these are equal, only what reads the tensors is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, overload

from convsv.checkpoints import Checkpoint
from convsv.checkpoints._writeback import Plain
from convsv.checkpoints.recipe import Recipe
from convsv.checkpoints.sources import GeometryOptions
from convsv.layer import ConvLayer

__all__ = ["Lazily", "Pattern", "changed", "facts_of"]

T = TypeVar("T")

Facts: TypeAlias = "tuple[Any, ...]"


def changed(value: T, **fields: Any) -> T:
    """Return a frozen dataclass with other fields, unchecked: as ``dataclasses.replace``, in a fraction of its time."""
    made = object.__new__(type(value))
    vars(made).update(vars(value), **fields)
    return made


class Lazily(Sequence[T]):
    """Items that are made when they are asked for, each once.

    Args:
        count: how many there are.
        make: makes the one of a number.
    """

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._made: list[T | None] = [None] * count
        self._make = make

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        made = self._made[index]
        if made is None:
            made = self._made[index] = self._make(index % len(self))
        return made

    def __len__(self) -> int:
        return len(self._made)


def facts_of(
    checkpoint: Checkpoint, geometry: GeometryOptions, include: Sequence[str], exclude: Sequence[str]
) -> Facts | None:
    """Return everything that decides which layers are found; None where it is not to be compared.

    Args:
        checkpoint: an opened checkpoint; no tensor is read.
        geometry: what the caller states; norms to fold in and traced models are not compared.
        include: globs on layer names.
        exclude: globs on layer names.
    """
    if geometry.fold or geometry.trace:
        return None
    stated = (geometry, tuple(include), tuple(exclude))
    if checkpoint.likeness is not None:
        return (checkpoint.format, stated, checkpoint.likeness, checkpoint.modules, checkpoint.problems)
    # Which bytes tensors share does not matter, but which tensors do: each is told by the first of its ties.
    first: dict[object, int] = {}
    ties = [
        None if t.identity is None else first.setdefault(t.identity, number)
        for number, t in enumerate(checkpoint.tensors)
    ]
    tensors = [
        (t.key, t.shape, t.dtype, t.container, tie, t.problem) for t, tie in zip(checkpoint.tensors, ties, strict=True)
    ]
    return (checkpoint.format, stated, tensors, checkpoint.modules, checkpoint.problems)


@dataclass(frozen=True)
class Pattern:
    """The layers of a checkpoint without what reads them; no file stays open for it.

    Attributes:
        layers: the layers.
        positions: of each of them, which of the checkpoint's tensors it is.
    """

    layers: tuple[ConvLayer, ...]
    positions: tuple[int, ...]

    @staticmethod
    def of(checkpoint: Checkpoint, layers: Sequence[ConvLayer]) -> Pattern | None:
        """Return the pattern of the layers that were found; None where one is more than a tensor as it is stored."""
        position = {id(tensor): number for number, tensor in enumerate(checkpoint.tensors)}
        positions = []
        for layer in layers:
            writeback = layer.writeback
            number = position.get(id(writeback.tensor)) if type(writeback) is Plain else None
            if number is None or layer.folded or layer.read is not checkpoint.tensors[number].read:
                return None
            positions.append(number)
        bare = tuple(layer.bare() for layer in layers)
        return Pattern(bare, tuple(positions))

    def filled(self, checkpoint: Checkpoint, recipe: Recipe) -> tuple[ConvLayer, ...]:
        """Return the layers of another checkpoint of which the same facts hold."""
        tensors = checkpoint.tensors
        return tuple(
            changed(layer, read=tensors[number].read, writeback=Plain(tensors[number]), recipe=recipe)
            for layer, number in zip(self.layers, self.positions, strict=True)
        )

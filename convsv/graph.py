"""A network as a graph of operations, as whoever read it tells it: a value, which knows no mathematics.

A value of the graph is named by the operation that makes it, or by the input that it is. Only what depends on the
network's input is a value; everything else that an operation takes is a constant: weights, statistics, numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convsv.errors import UnavailableError
from convsv.layer import ConvLayer, as_float64

__all__ = ["Constant", "Network", "Operation", "Shape"]

Shape: TypeAlias = tuple[int | None, ...]
"""Dimensions of a value for a batch of one, None where unknown."""


@dataclass(frozen=True)
class Constant:
    """A tensor that an operation takes and that does not depend on the network's input.

    Attributes:
        shape: its shape, None where unknown.
        read: returns its values; None where nobody knows them.
        key: what the model or the file calls it, ``""`` where it has no name.
        problem: why nobody knows its values.
    """

    shape: tuple[int, ...] | None
    read: Callable[[], NDArray[Any]] | None = field(default=None, repr=False, compare=False)
    key: str = ""
    problem: str = "the values of a tensor that it takes are not known"

    @property
    def size(self) -> int | None:
        """How many entries it has, None where unknown."""
        return None if self.shape is None else math.prod(self.shape)

    def values(self) -> NDArray[np.float64]:
        """Return its values in float64, which holds every narrower dtype exactly.

        Raises:
            UnavailableError: they are not known, or one is NaN or infinite.
            CheckpointError: the file could not be read.
        """
        if self.read is None:
            raise UnavailableError(f"{self.problem}: {self.key}" if self.key else self.problem)
        values = as_float64(np.asarray(self.read()))
        if not np.isfinite(values).all():
            raise UnavailableError(f"a value of {self.key or 'a constant'} is NaN or infinite")
        return values


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: its name, unlike any other's: the module's path, or the node's name.
        kind: which rule is about it.
        inputs: the values it takes, in its own order.
        shape: of what it makes.
        settings: numbers and words that it is called with, by the rule's names.
        constants: tensors that it is called with, by the rule's names.
        layer: for convolutions, the layer.
        called: what the model or the file calls the operator.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Constant] = field(default_factory=dict)
    layer: ConvLayer | None = None
    called: str = ""


@dataclass(frozen=True)
class Network:
    """A network.

    Attributes:
        inputs: name -> shape.
        operations: each behind those whose values it takes.
        outputs: name -> value. Outputs that do not depend on the input are left out.
        problem: why nothing can be concluded from the graph, if so.
        notes: remarks on how it was read.
    """

    inputs: Mapping[str, Shape | None]
    operations: tuple[Operation, ...]
    outputs: Mapping[str, str]
    problem: str | None = None
    notes: tuple[str, ...] = ()

    def leading_to(self, value: str) -> Iterator[Operation]:
        """Yield the operations that a value depends on, in order."""
        wanted = {value}
        for operation in reversed(self.operations):
            if operation.name in wanted:
                wanted.update(operation.inputs)
        return (operation for operation in self.operations if operation.name in wanted)

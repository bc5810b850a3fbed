"""How a kernel goes back into the tensors that its file holds of it: plain, in parts, or not at all.

Nothing here writes: edits are computed, and read again in memory as the reader would read them from the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from convsv.checkpoints import StoredTensor
from convsv.checkpoints._steps import Array, Step, Values
from convsv.errors import UnavailableError
from convsv.layer import as_float64, rounded_to

if TYPE_CHECKING:
    from convsv.checkpoints.writing import Edit

__all__ = ["InParts", "Locked", "Plain"]

_ROUNDINGS = 4
"""Units in the last place that parts may put a weight off, relative to the largest: each is rounded once."""


@dataclass(frozen=True)
class Plain:
    """The kernel is one tensor, rounded to its dtype.

    Attributes:
        tensor: the tensor.
        notes: what whoever changes it should know.
    """

    tensor: StoredTensor
    notes: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The tensor."""
        return (self.tensor,)

    def edits(self, kernel: Array) -> tuple[Edit, ...]:
        """Return the one edit.

        Raises:
            UnavailableError: a weight does not fit the dtype.
        """
        return (_edit(self.tensor, rounded_to(kernel, self.tensor.dtype)),)

    def after(self, edits: tuple[Edit, ...]) -> NDArray[Any]:
        """Return the edited tensor."""
        return edits[0].values

    def support(self) -> NDArray[np.bool_] | None:
        """Everywhere."""
        return None


@dataclass(frozen=True)
class Locked:
    """The kernel cannot be written back.

    Attributes:
        reason: why, in words.
        tensors: none.
        notes: none.
    """

    reason: str
    tensors: tuple[StoredTensor, ...] = ()
    notes: tuple[str, ...] = ()

    def edits(self, kernel: Array) -> tuple[Edit, ...]:
        """Refuse.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(self.reason)

    def after(self, edits: tuple[Edit, ...]) -> NDArray[Any]:
        """Refuse.

        Raises:
            UnavailableError: always.
        """
        raise UnavailableError(self.reason)

    def support(self) -> NDArray[np.bool_] | None:
        """Everywhere."""
        return None


@dataclass(frozen=True)
class InParts:
    """The kernel is computed from a tensor of its shape by steps with tensors of their own.

    Attributes:
        direction: the tensor that the first step is applied to.
        steps: what is applied to it, in order.
        copies: tensors that repeat the effective kernel; they follow it.
    """

    direction: StoredTensor
    steps: Sequence[Step]
    copies: Sequence[StoredTensor] = field(default=())

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever changes it should know."""
        return tuple(step.note for step in self.steps if step.note)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The direction and the tensors of the steps."""
        return (self.direction, *(tensor for step in self.steps for tensor in step.tensors))

    def read(self) -> Array:
        """Return the effective kernel, as the file has it."""
        return self._effective(_in_file)

    def edits(self, kernel: Array) -> tuple[Edit, ...]:
        """Return an edit for each tensor whose values change.

        Raises:
            UnavailableError: no values of the parts give this kernel.
        """
        new = self._fitted(kernel)
        seen = self._effective(_overlaid(new))
        support = self.support()
        wanted = kernel if support is None else kernel * support
        coarsest = max(_epsilon(values.dtype) for values in new.values())
        with np.errstate(invalid="ignore"):
            close = np.abs(seen - wanted) <= _ROUNDINGS * coarsest * np.abs(wanted).max(initial=0.0)
        if not close.all():
            raise UnavailableError(f"no values of its parts give this kernel in {self.direction.dtype}")
        for copy in self.copies:
            if copy.shape == self.direction.shape and copy.dtype.startswith(("float", "bfloat")):
                new[copy] = rounded_to(seen, copy.dtype)
        return tuple(
            _edit(t, values) for t, values in new.items() if not np.array_equal(as_float64(values), _in_file(t))
        )

    def after(self, edits: tuple[Edit, ...]) -> Array:
        """Return the effective kernel with these edits."""
        return self._effective(_overlaid({edit.tensor: edit.values for edit in edits}))

    def support(self) -> NDArray[np.bool_] | None:
        """Return where no step hides the kernel."""
        shown = [support for step in self.steps if (support := step.support(_in_file)) is not None]
        return np.logical_and.reduce(shown) if shown else None

    def _effective(self, values: Values) -> Array:
        *_, kernel = self._stages(values)
        return kernel

    def _stages(self, values: Values) -> list[Array]:
        """Return the input of each step and, last, the effective kernel."""
        return list(
            itertools.accumulate(
                self.steps, lambda weight, step: step.apply(weight, values), initial=values(self.direction)
            )
        )

    def _fitted(self, kernel: Array) -> dict[StoredTensor, NDArray[Any]]:
        """Return the new values of the direction and of the steps' own tensors, in their stored dtypes."""
        before = self._stages(_in_file)
        wanted = [kernel]
        for step, stage in zip(reversed(self.steps), reversed(before[:-1]), strict=True):
            wanted.append(step.ask(wanted[-1], stage, _in_file))
        wanted.reverse()
        new: dict[StoredTensor, NDArray[Any]] = {self.direction: rounded_to(wanted[0], self.direction.dtype)}
        given = as_float64(new[self.direction])
        for step, stage, output in zip(self.steps, before[:-1], wanted[1:], strict=True):
            for tensor, values in step.fit(given, output, stage, _in_file):
                new[tensor] = rounded_to(values, tensor.dtype)
            given = step.apply(given, _overlaid(new))
        return new


def _edit(tensor: StoredTensor, values: NDArray[Any]) -> Edit:
    from convsv.checkpoints.writing import Edit  # reading needs nothing of writing

    return Edit(tensor, values)


def _in_file(tensor: StoredTensor) -> Array:
    return as_float64(tensor.read())


def _epsilon(dtype: np.dtype[Any]) -> float:
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def _overlaid(new: Mapping[StoredTensor, NDArray[Any]]) -> Values:
    return lambda tensor: as_float64(new[tensor]) if tensor in new else _in_file(tensor)
